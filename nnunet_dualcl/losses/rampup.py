"""r(t): the unlabeled terms start near zero, because early pseudo-labels are mostly wrong."""

from __future__ import annotations

import math


def sigmoid_rampup(step: float, length: float) -> float:
    r"""Weight of the unlabeled terms, from exp(-5) at step 0 to 1 at ``length`` and after.

    .. math:: r(t) = \exp\left(-5 \, (1 - \min(1, t / t_r))^2\right)

    Args:
        step: t >= 0, in the unit of ``length`` (training steps).
        length: t_r; at or below 0 there is no ramp and the weight is 1.

    Source: Laine & Aila, arXiv 1610.02242, section 3.
    """
    if length <= 0:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(1.0, step / length)) ** 2)
