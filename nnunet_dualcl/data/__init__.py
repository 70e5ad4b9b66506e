"""Which cases are unlabeled, and batches that pair them with labeled ones."""
