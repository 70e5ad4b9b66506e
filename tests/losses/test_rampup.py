from itertools import pairwise

import pytest

from nnunet_dualcl.losses import sigmoid_rampup


@pytest.mark.parametrize(
    ("step", "length", "expected"),
    [
        (0, 100, 0.006737947),  # exp(-5)
        (50, 100, 0.2865048),  # exp(-5 / 4)
        (80, 100, 0.8187308),  # exp(-0.2)
        (100, 100, 1.0),
        (1000, 100, 1.0),
        (0, 0, 1.0),
        (3, -1, 1.0),
    ],
)
def test_closed_form(step, length, expected):
    assert sigmoid_rampup(step, length) == pytest.approx(expected, rel=1e-6)


def test_rises_strictly_to_one():
    values = [sigmoid_rampup(step, 20) for step in range(21)]
    assert all(before < after for before, after in pairwise(values))
    assert values[-1] == 1.0
