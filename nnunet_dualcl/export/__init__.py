"""A trained model as a stock nnU-Net one."""

from nnunet_dualcl.export.stock_model import export_stock_model, is_archive, name_of_plans_b

__all__ = ["export_stock_model", "is_archive", "name_of_plans_b"]
