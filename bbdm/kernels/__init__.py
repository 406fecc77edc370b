"""The arithmetic of bridges: one file for each op, with its PyTorch reference. It imports no other folder."""
