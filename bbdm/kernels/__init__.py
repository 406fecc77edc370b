"""The arithmetic of bridges: one file an op, each with its plain PyTorch reference. Imports nothing else of bbdm."""
