"""DICOM: CT, MR and PET series with RTSTRUCT or DICOM-SEG, in folders or as one unsorted export.

Series are told apart by UIDs, orientation and position. Patients get new numbers; nothing that identifies them
reaches the dataset.
"""

from nnunet_dualcl.dataset_conversion.dicom.planning import add_arguments, convert, keywords, plan

__all__ = ["add_arguments", "convert", "keywords", "plan"]
