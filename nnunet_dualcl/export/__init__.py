"""A trained model as a stock nnU-Net one."""

from nnunet_dualcl.export.stock_model import Network, export_stock_model, is_archive, name_of_plans_b

__all__ = ["Network", "export_stock_model", "is_archive", "name_of_plans_b"]
