"""How and where steps are run: eager, compiled, as a CUDA graph, from a package; devices and processes."""
