"""Semi-supervised segmentation inside nnU-Net v2.

The package reads like the path of a scan: ``dataset_conversion`` brings it into nnU-Net's raw format,
``preprocessing`` runs nnU-Net's own preprocessor over the unlabeled cases, ``data`` pairs labeled with unlabeled
batches, ``networks`` puts a second decoder on nnU-Net's network, ``losses`` holds the terms, ``training`` adds them
up, ``trainers`` plugs them into nnU-Net, and ``export`` turns a trained model into a stock one.
``docs/data_flow.md`` shows the same map with file names.
"""

from importlib.metadata import version

__version__ = version("nnunet-dualcl")
