"""bbdm: image-to-image diffusion bridges. PyTorch is imported when a public name is first used."""

from __future__ import annotations

from pathlib import Path

from bbdm.base.lazy import public

__version__ = "0.1.0"
DEMO = Path(__file__).parent / "demo"  # the bundled weights, drawings/ and val/, under CC BY-SA 4.0
__getattr__, __dir__, __all__ = public(__name__, __file__)
__all__ += ["DEMO", "__version__"]
