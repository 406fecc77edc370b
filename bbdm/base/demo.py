"""The bundled weights and drawings, under CC BY-SA 4.0; see ``README.md`` beside them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "demo"  # val/ has 16 pairs, in the layout of edge2shoes
WEIGHTS = FOLDER / "openmoji64.safetensors"  # drawings to colour
PHOTOGRAPHS = FOLDER / "photographs.safetensors"  # damaged photographs to clean ones
DRAWINGS = FOLDER / "drawings"  # four of the sources
