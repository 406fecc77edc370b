"""Results and files as JSON: arrays by shape, type and hash, files by what other libraries read of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import rasterio
import SimpleITK as sitk  # noqa: N813
import tifffile
import torch
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import bbdm
from bbdm.pictures import Header, Picture

PACKAGE = str(Path(bbdm.__file__).parent)
MOST = 200  # members of a sequence that are described one by one
SECONDS = re.compile(r"(?<![\w.])\d+(\.\d+)?(e-?\d+)? ?(s|seconds|minutes|min|ms)(?![\w])")
DURATION = re.compile(r"(?<![\w:.-])\d+:\d\d(:\d\d)?(?![\w:])")
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp")
UUID = re.compile(rb"urn:uuid:[0-9a-f-]{36}")  # of OME-TIFF, drawn anew for each file
KEY = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")  # of a cache's entry
PROGRESS = re.compile(r"\d+%\||it/s|s/it|\?it/s|(B|ba|examples?)/s")
# keys of JSON whose values differ in each run
TIMED = re.compile(r"second|time_of|hours|throughput|per_s|stamps")


def sha(content: bytes) -> str:
    """The first 16 digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def array_of(array: Any) -> dict[str, Any]:
    """Shape, type and hash of values, and a few numbers that say how far two arrays differ."""
    array = np.ascontiguousarray(np.asarray(array))
    about: dict[str, Any] = {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "sha": sha(array.tobytes()),
    }
    if array.size and array.dtype.kind in "biuf":
        finite = array[np.isfinite(array)].astype(np.float64)
        if finite.size:
            about["range"] = [
                float(f"{number:.6g}") for number in (finite.min(), finite.mean(), finite.max())
            ]
    return about


def tensor_of(tensor: torch.Tensor) -> dict[str, Any]:
    """A tensor as an array; of bfloat16, by its bytes."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return {"dtype": "bfloat16"} | array_of(tensor.view(torch.int16).numpy())
    return {"tensor": True} | array_of(tensor.numpy())


def image_of(image: Image.Image) -> dict[str, Any]:
    """Size, mode and pixels of a picture of Pillow."""
    return {"image": image.mode, "size": list(image.size), "sha": sha(image.tobytes())}


def picture_of(picture: Any) -> dict[str, Any]:
    """What a picture, or the header of one, says of its place, besides its values."""
    geometry = picture.geometry
    about = {"affine": geometry.affine, "spacing": geometry.spacing, "nodata": str(picture.nodata)}
    return about | {"shape": list(picture.shape), "dtype": str(picture.dtype)}


def value_of(value: Any) -> Any:
    """Any result of a call, as JSON."""
    if isinstance(value, Picture):
        about = picture_of(value) | {
            "unit": value.unit,
            "name": value.name,
            "read only": not value.flags.writeable,
        }
        return {"picture": about} | array_of(value)
    if isinstance(value, Header):
        return {"header": picture_of(value), "windowed": value.windowed}
    if isinstance(value, torch.Tensor):
        return tensor_of(value)
    if isinstance(value, np.ndarray):
        return array_of(value)
    if isinstance(value, Image.Image):
        return image_of(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.generic):
        return f"{value!r}"
    if isinstance(value, bytes):
        return {"bytes": len(value), "sha": sha(value)}
    if isinstance(value, Mapping):
        return {str(name): value_of(each) for name, each in value.items()}
    if isinstance(value, list | tuple | range):
        members = [value_of(each) for each in value[:MOST]]
        return members if len(value) <= MOST else [*members, f"and {len(value) - MOST} more"]
    if isinstance(value, torch.nn.Module):
        return state_of(value.state_dict())
    if isinstance(value, BaseException):
        return {"error": type(value).__name__, "text": str(value)}
    if dataclasses.is_dataclass(value) or isinstance(value, Path | set | frozenset):
        return repr(value)
    return f"a {type(value).__name__}"


def state_of(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A hash of all tensors, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {json.dumps(tensor_of(state[name]), sort_keys=True)}\n".encode())
    return {"tensors": len(state), "sha": digest.hexdigest()[:16]}


def _without_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The content of a checkpoint but tensors, which are collected by their paths."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return "a tensor"
    if isinstance(value, torch.nn.Module):
        return _without_tensors(dict(value.state_dict()), path, tensors)
    if isinstance(value, Mapping):
        members = {
            str(name): _without_tensors(each, f"{path}/{name}", tensors)
            for name, each in value.items()
        }
        return (
            members
            if any(each != "a tensor" for each in members.values())
            else f"{len(members)} tensors"
        )
    if isinstance(value, list | tuple) and any(
        isinstance(each, torch.Tensor | Mapping) for each in value
    ):
        return [
            _without_tensors(each, f"{path}/{index}", tensors) for index, each in enumerate(value)
        ]
    return value_of(value)


def of_torch(path: Path) -> dict[str, Any]:
    """A checkpoint: a hash of all tensors, and the rest as JSON."""
    tensors: dict[str, torch.Tensor] = {}
    content = torch.load(path, map_location="cpu", weights_only=False)
    others = _without_tensors(content, "", tensors)
    return {"state": state_of(tensors), "others": others}


def of_safetensors(path: Path) -> dict[str, Any]:
    """The tensors and the text of a file of safetensors."""
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {"state": state_of(state), "metadata": value_of(file.metadata())}


def of_pillow(path: Path) -> dict[str, Any]:
    """A photograph by Pillow."""
    with Image.open(path) as image:
        info = {
            "profile": sha(image.info.get("icc_profile") or b""),
            "text": str(image.info.get("transparency")),
        }
        return {"format": image.format, **image_of(image), "info": info}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings, such as that a TIFF has no place on Earth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def of_tiff(path: Path) -> dict[str, Any]:
    """A TIFF by tifffile, and its place on Earth by rasterio."""
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        page: Any = file.pages.first
        about = {
            "axes": series.axes,
            "pages": len(file.pages),
            "compression": page.compression.name,
        }
        about |= {
            "photometric": page.photometric.name,
            "big": file.is_bigtiff,
            "tile": str(page.is_tiled),
        }
        tags = {
            name: str(page.tags[name].value)
            for name in ("XResolution", "GDAL_NODATA")
            if name in page.tags
        }
        values = array_of(series.asarray())
        if file.ome_metadata:
            about["ome"] = re.sub(r'(UUID|Creator)="[^"]*"', "", file.ome_metadata)
    with _quiet(), rasterio.open(path) as file:
        place = {
            "crs": str(file.crs),
            "transform": list(file.transform),
            "nodata": str(file.nodata),
        }
        place["tags"] = value_of(file.tags()) if file.crs else {}
    return {**about, **tags, **place, "values": values}


def of_nifti(path: Path) -> dict[str, Any]:
    """A NIfTI by nibabel."""
    image: Any = nibabel.load(path)
    header = {name: str(value) for name, value in image.header.items()}
    return {"affine": image.affine.tolist(), "header": header, "values": array_of(image.dataobj)}


def of_itk(path: Path) -> dict[str, Any]:
    """MetaImage or NRRD by SimpleITK."""
    image = sitk.ReadImage(str(path))
    place = {
        "spacing": image.GetSpacing(),
        "origin": image.GetOrigin(),
        "direction": image.GetDirection(),
    }
    return value_of(place) | {"values": array_of(sitk.GetArrayFromImage(image))}


def of_events(path: Path) -> dict[str, Any]:
    """The numbers of TensorBoard's file, but those of time."""
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    scalars: list[str] = [tag for tag in events.Tags()["scalars"] if not TIMED.search(tag)]
    return {tag: [repr(each.value) for each in events.Scalars(tag)] for tag in sorted(scalars)}


def of_json(path: Path) -> Any:
    """Parsed JSON."""
    return json.loads(path.read_text())


def of_lines(path: Path) -> Any:
    """The parsed lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def of_text(path: Path) -> str:
    """Text as it is."""
    return path.read_text()


def of_array(path: Path) -> dict[str, Any]:
    """An array of NumPy."""
    return array_of(np.load(path, allow_pickle=False))


def of_onnx(path: Path) -> dict[str, Any]:
    """The operators and the weights of a graph."""
    import onnx

    graph = onnx.load(path).graph
    operators = sha(" ".join(node.op_type for node in graph.node).encode())
    weights = {
        each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in graph.initializer
    }
    return {"nodes": len(graph.node), "operators": operators, "weights": state_of(weights)}


READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".bmp"), of_pillow),
    **dict.fromkeys((".tif", ".tiff"), of_tiff),
    **dict.fromkeys((".nii", ".nii.gz"), of_nifti),
    **dict.fromkeys((".mha", ".nrrd"), of_itk),
    **dict.fromkeys((".csv", ".txt", ".md"), of_text),
    **dict.fromkeys((".pt", ".pth", ".model"), of_torch),
    ".npy": of_array,
    ".json": of_json,
    ".jsonl": of_lines,
    ".safetensors": of_safetensors,
    ".onnx": of_onnx,
}
STABLE = {
    suffix
    for suffix, reader in READERS.items()
    if reader in (of_pillow, of_tiff, of_nifti, of_itk, of_array)
}


def file_of(path: Path) -> dict[str, Any]:
    """The content of a file that matters, and of pictures the hash of all bytes."""
    name = path.name
    suffix = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    content = path.read_bytes()
    if ".tfevents." in name:
        return {"events": of_events(path)}
    reader = READERS.get(suffix)
    if reader is None:
        return {"bytes": sha(content)}
    try:
        about: dict[str, Any] = {"content": reader(path)}
    except Exception as error:
        about = {"content": f"not read: {type(error).__name__}", "bytes": sha(content)}
    if suffix in STABLE:
        about["bytes"] = sha(UUID.sub(b"", content))
    return about


def _without_seconds(text: str) -> str:
    """Tables without the values of a last column of seconds, whose heading begins with ``s /``."""
    lines = text.split("\n")
    timed = False
    for index, line in enumerate(lines):
        cells = line.split("|")
        if len(cells) > 2 and cells[-2].strip().startswith("s /"):
            timed = True
        elif timed and len(cells) > 2 and "---" not in line:
            lines[index] = "|".join([*cells[:-2], " <n> ", cells[-1]])
        else:
            timed = timed and len(cells) > 2
    return "\n".join(lines)


def normal_text(text: str, folders: Iterable[str]) -> str:
    """Text without what differs from run to run: folders, times, progress, addresses and versions."""
    for folder in folders:
        text = text.replace(folder, "<folder>")
    if PACKAGE in text:  # in help, whose lines break by the length of this path
        text = " ".join(text.replace(PACKAGE, "<bbdm>").split())
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    text = "\n".join(line for line in lines if not PROGRESS.search(line))
    text = ADDRESS.sub("<address>", text)
    text = KEY.sub("<key>", text)
    text = TEMPORARY.sub(".<temporary>", text)
    text = _without_seconds(text)
    text = SECONDS.sub(r"<n> \3", text)
    text = DURATION.sub("<duration>", text)
    for version in (bbdm.__version__, torch.__version__):
        text = re.sub(rf"(?<![\w.]){re.escape(version)}(?![\w.])", "<version>", text)
    return text


def normal(value: Any, folders: Iterable[str]) -> Any:
    """JSON of which all texts are normal, and values of keys of time are left out."""
    if isinstance(value, str):
        return normal_text(value, folders)
    if isinstance(value, dict):
        kept: dict[str, Any] = {}
        for name, each in value.items():
            kept[normal_text(str(name), folders)] = (
                "<timed>" if TIMED.search(str(name)) else normal(each, folders)
            )
        return kept
    if isinstance(value, list | tuple):
        return [normal(each, folders) for each in value]
    if isinstance(value, float):
        return repr(value)
    return value
