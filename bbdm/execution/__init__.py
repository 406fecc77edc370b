"""Ways to run a loop over a step table, and where: devices, compiled networks, CUDA graphs, processes."""
