"""From scans to nnU-Net's raw format: one module per source of data."""
