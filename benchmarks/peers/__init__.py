"""The systems that we compare with, one a module: the same weights in, a callable out."""
