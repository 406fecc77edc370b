"""Translation: what both samplers share, and the one on PyTorch."""
