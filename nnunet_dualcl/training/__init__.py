"""What happens in a step: terms added up, and what is written down about them. No trainer in here."""

from nnunet_dualcl.training.objective import SemiSupervisedLoss
from nnunet_dualcl.training.term_log import TermLog

__all__ = ["SemiSupervisedLoss", "TermLog"]
