"""Pictures: reading, writing, sizes and grids. Nothing here imports torch at the top."""
