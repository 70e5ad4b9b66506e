"""The terms of the method as pure functions of tensors, one concept a file.

=====================  =====================================================================================
``entropy``            probabilities -> normalized entropy of each voxel
``reliability``        entropy -> which voxels are confident enough to teach
``pseudo_label``       cross-entropy part of L_u: a decoder against the classes of whoever teaches, where reliable
``verification``       L_reg: squared error where the two decoders' assertions differ
``prototypes``         embeddings of reliable voxels -> one unit vector a class
``contrastive``        L_c: unreliable voxels toward the prototype of their class, away from the others
``rampup``             r(t), the weight that lets the unlabeled terms in slowly
=====================  =====================================================================================

Shapes: ``B`` batch, ``C`` classes, ``D`` embedding channels, ``*`` one or more spatial axes. Every result is
computed in float32 even under autocast (float64 stays float64), an empty set of voxels gives exactly 0 with a
graph, and nothing waits for the device. Classes exclude each other; a sigmoid head ``z`` enters as the two
classes ``(0, z)``, whose softmax is its sigmoid.
"""

from nnunet_dualcl.losses._numerics import is_class, recomputed
from nnunet_dualcl.losses._ranks import mean_over_ranks, shared_between_ranks, total_over_ranks
from nnunet_dualcl.losses.contrastive import reliability_contrastive_loss
from nnunet_dualcl.losses.entropy import normalized_entropy
from nnunet_dualcl.losses.prototypes import class_prototypes
from nnunet_dualcl.losses.pseudo_label import class_label_loss, pseudo_label_loss
from nnunet_dualcl.losses.rampup import sigmoid_rampup
from nnunet_dualcl.losses.reliability import reliable_mask
from nnunet_dualcl.losses.verification import assertion_disagreement, mutual_verification_loss

__all__ = [
    "assertion_disagreement",
    "class_label_loss",
    "class_prototypes",
    "is_class",
    "mean_over_ranks",
    "mutual_verification_loss",
    "normalized_entropy",
    "pseudo_label_loss",
    "recomputed",
    "reliability_contrastive_loss",
    "reliable_mask",
    "shared_between_ranks",
    "sigmoid_rampup",
    "total_over_ranks",
]
