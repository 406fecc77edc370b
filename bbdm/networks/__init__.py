"""Network architectures, with the state-dict keys of the released weights."""
