"""What is imported late: optional packages, with the extra of bbdm that installs each, and public names.

A package imports a public name at its first use, so that importing the package is cheap. The names stand
once, in the package's stub ``__init__.pyi``, as imports. Type checkers read it too.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

EXTRAS = {
    "eval": ("torchmetrics", "torch_fidelity", "torchvision", "matplotlib", "scipy", "lpips"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "train": ("accelerate", "tensorboard"),
    "diffusers": ("diffusers", "transformers"),
    "lora": ("peft",),
    "hub": ("huggingface_hub",),
    "data": ("datasets",),
    "app": ("gradio",),
    "tiff": ("tifffile", "imagecodecs"),
    "medical": ("SimpleITK", "nibabel", "nrrd", "pydicom"),
    "geo": ("rasterio",),
    "film": ("av",),
    "zarr": ("zarr",),
    "bioio": ("bioio", "pylibCZIrw"),
    "registration": ("skimage",),
    "ray": ("ray", "pyarrow", "fastapi", "starlette"),
}
PROJECTS = {"nrrd": "pynrrd", "skimage": "scikit-image"}  # what installs a package of another name


def package(name: str, needed_by: str) -> Any:
    """An optional package, imported; ``needed_by`` begins the message where it is missing.

    Raises:
        ModuleNotFoundError: it is not installed. The message says how to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        message = f"{needed_by} needs {error.name}, which is not installed{install(error)}"
        raise ModuleNotFoundError(message, name=error.name) from error


def install(error: ImportError) -> str:
    """The end of the message of an optional package's error: how to install it, if that is not said yet.

    A package that lacks a module or a name is older than what imports it expects.
    """
    package = (error.name or "").split(".")[0]
    extra = next((extra for extra, names in EXTRAS.items() if package in names), None)
    if extra is None or "pip install" in str(error):
        return ""
    if find_spec(package) is not None:
        return f": pip install -U {package}"
    if find_spec("torch") is None:  # the runtime without PyTorch, which the extra would install
        return f": pip install {PROJECTS.get(package, package)}"
    return f": pip install 'bbdm[{extra}]'"


def public(room: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The ``__getattr__``, ``__dir__`` and ``__all__`` of a package, whose ``__init__.py`` is ``file``."""
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text())
    imports = (node for node in stub.body if isinstance(node, ast.ImportFrom))
    homes = {alias.name: f"{node.module}" for node in imports for alias in node.names}

    def get(name: str) -> Any:
        try:
            if name in homes:
                home = package(homes[name], name)
                if hasattr(home, name):
                    return getattr(home, name)
                return import_module(f"{homes[name]}.{name}")
            if not name.startswith("__") and find_spec(f"{room}.{name}"):
                return import_module(f"{room}.{name}")
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            message = f"{name} needs PyTorch, which is not installed; bbdm.runtime runs without it"
            raise ModuleNotFoundError(message, name="torch") from error
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    names = sorted(homes)
    return get, lambda: names, names
