"""Architectures, with the state-dict keys of the released weights."""
