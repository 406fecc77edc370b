"""bbdm: image-to-image diffusion bridges. PyTorch is imported when a public name is first used."""

from __future__ import annotations

from bbdm.base.optional import public

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = public(__name__, __file__)
__all__ += ["__version__"]
