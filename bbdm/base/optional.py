"""Optional packages, and the extra of bbdm that installs each."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

EXTRAS = {
    "eval": ("torchmetrics", "torch_fidelity", "torchvision", "matplotlib", "scipy", "lpips"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "train": ("accelerate", "tensorboard"),
    "diffusers": ("diffusers",),
    "hub": ("huggingface_hub",),
    "data": ("datasets",),
    "app": ("gradio",),
    "tiff": ("tifffile", "imagecodecs"),
    "medical": ("SimpleITK", "nibabel"),
    "geo": ("rasterio",),
    "ray": ("ray", "pyarrow", "fsspec", "starlette", "prometheus_client"),
}


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


def install(error: ModuleNotFoundError) -> str:
    """The end of the message of a missing package's error: how to install it, if that is not said yet."""
    package = (error.name or "").split(".")[0]
    extra = next((extra for extra, names in EXTRAS.items() if package in names), None)
    if extra is None or "pip install" in str(error):
        return ""
    if find_spec("torch") is None:  # the runtime without PyTorch, which the extra would install
        return f": pip install {package}"
    return f": pip install 'bbdm[{extra}]'"
