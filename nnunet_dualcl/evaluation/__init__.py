"""How good a segmentation is, in millimeters, and whether one set of segmentations is better than another.

Needs the extra: ``pip install "nnunet-dualcl[benchmark]"``.
"""
