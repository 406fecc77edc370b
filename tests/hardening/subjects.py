"""The files that are mutated, and how each is read: a row for each kind."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open

from bbdm.base.atomic import file_sha256
from bbdm.data.cached import CachedExamples, LatentDataset
from bbdm.evaluation.intervals import Intervals
from bbdm.execution import package
from bbdm.files.checkpoint import load_checkpoint, load_vqgan, save_checkpoint, save_vqgan
from bbdm.files.weights import described
from bbdm.pictures import images
from bbdm.runtime import OnnxBridgeSampler
from bbdm.sampling.options import GuidanceOptions
from bbdm.translation.results import Record
from tests.conftest import load_pairs, tiny_unet
from tests.files.importers.common import save
from tests.files.importers.test_original_bbdm import bbdm_file, bbdm_unet
from tests.hardening.mutations import Mutate, Subject, of_bytes, of_json, of_values
from tests.onnx.exports import BRIDGE, SIZE, export, tiny_codec

PICTURE = 2 * 2 * 3 * (Image.MAX_IMAGE_PIXELS or 0)  # bytes of the largest that Pillow opens, and of a copy


def _state(checkpoint: Any) -> Any:
    """The weights and settings of a checkpoint, built, as values that compare."""
    return checkpoint.bridge, _bytes(checkpoint.build_unet().state_dict())


def _bytes(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """The bits of tensors: lists of numbers would take ten times longer than reading the file."""
    return {key: value.numpy().tobytes() for key, value in state.items()}


def _checkpoint(path: Path, mutate: Mutate = of_bytes, exact: bool = True, **arguments: Any) -> Subject:
    return Subject(path, lambda: _state(load_checkpoint(path, **arguments)), mutate, exact)


def _values_of_pt(data: bytes, rng: random.Random, path: Path) -> bytes:
    """A file of torch.save with other settings, and whole."""
    content = torch.load(path, weights_only=True)
    states = content.pop("states")
    changed = of_values(content, rng)
    if isinstance(changed, dict):
        changed["states"] = states
    torch.save(changed, path)
    return path.read_bytes()


def _values_of_safetensors(name: str, path: Path) -> Mutate:
    """Other settings in the metadata, with the hash that fits them."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
            settings = json.loads(file.metadata()[name])
        changed = of_values(settings, rng)
        safetensors.torch.save_file(tensors, path, described(name, changed, tensors))
        return path.read_bytes()

    return mutate


def our_pt(folder: Path) -> Subject:
    save_checkpoint(path := folder / "a.pt", tiny_unet(), BRIDGE, image_size=SIZE)
    return _checkpoint(path)


def our_pt_settings(folder: Path) -> Subject:
    save_checkpoint(path := folder / "a.pt", tiny_unet(), BRIDGE, image_size=SIZE)
    return _checkpoint(path, lambda data, rng: _values_of_pt(data, rng, path), exact=False)


def our_safetensors(folder: Path) -> Subject:
    save_checkpoint(path := folder / "a.safetensors", tiny_unet(), BRIDGE, image_size=SIZE)
    return _checkpoint(path)


def our_safetensors_settings(folder: Path) -> Subject:
    save_checkpoint(path := folder / "a.safetensors", tiny_unet(), BRIDGE, codec=tiny_codec(), image_size=SIZE)
    return _checkpoint(path, _values_of_safetensors("bbdm", path), exact=False)


def our_vqgan(folder: Path) -> Subject:
    save_vqgan(path := folder / "v.pt", tiny_codec().module)  # pyright: ignore[reportArgumentType]
    return Subject(path, lambda: _bytes(load_vqgan(path).state_dict()))


def legacy(folder: Path) -> Subject:
    """A bare state dict as torch.save wrote before PyTorch 1.6: without checksums."""
    path = save(bbdm_unet(condition_channels=3, channel_mult=(1,)).state_dict(), folder / "a.pt", zipped=False)
    return _checkpoint(path, exact=False, num_steps=100, c_lambda=1.0)


def original_bbdm(folder: Path) -> Subject:
    path, _, _ = bbdm_file(folder / "a.pth", condition_channels=3, channel_mult=(1,))
    return _checkpoint(path, config="bbdm")


def compiled_package(folder: Path) -> Subject:
    """What says what a package fits; its code is not loaded, so it is no archive here."""
    network, device = tiny_unet(), torch.device("cpu")
    (path := folder / "a.pt2").write_bytes(b"code")
    fits = package.fingerprint(network, torch.float32, device)
    content = {"shape": [1, 3, 8, 8], "fits": fits, "sha256": file_sha256(path)}
    (about := folder / "a.pt2.json").write_text(json.dumps(content))

    def read() -> Any:
        with patch("torch._inductor.aoti_load_package"):
            return tuple(package.PackagedNetwork(path, network, device).shape)

    return Subject(about, read, of_json, exact=False)


def export_settings(folder: Path) -> Subject:
    save_checkpoint(folder / "a.pt", tiny_unet(), BRIDGE, image_size=SIZE)
    export(folder / "a.pt", folder / "onnx", "--solver", "sde-dpm2m", "--steps", "4")

    def read() -> Any:
        sampler = OnnxBridgeSampler(folder / "onnx", threads=1)
        return sampler.settings["solver"], sampler.table.coefficients.tolist()

    return Subject(folder / "onnx" / "bridge.json", read, of_json, exact=False)


def _pairs(folder: Path) -> Any:
    for split in ("A", "B"):
        (folder / split).mkdir()
        for i in range(2):
            Image.new("RGB", (16, 16), (40 * i, 90, 7)).save(folder / split / f"{i}.png")
    return load_pairs("paired", f"{folder / 'A'},{folder / 'B'}", size=16)


def _cache(folder: Path, make: Callable[[], CachedExamples]) -> Subject:
    """The manifest of a cache of two pairs."""
    make()
    (block,) = (folder / "cache").glob("*.safetensors")
    kept = block.read_bytes()

    def read() -> Any:
        cache = make()
        return [[v.tolist() for v in cache[i]] for i in range(2)]

    def mutate(data: bytes, rng: random.Random) -> bytes:
        block.write_bytes(kept)
        return of_json(data, rng)

    return Subject(next((folder / "cache").glob("*.json")), read, mutate)


def image_cache(folder: Path) -> Subject:
    pairs = _pairs(folder)
    return _cache(folder, lambda: CachedExamples(pairs, folder / "cache"))


def latent_cache(folder: Path) -> Subject:
    pairs, codec = _pairs(folder), tiny_codec()
    return _cache(folder, lambda: LatentDataset(pairs, codec, folder / "cache"))


def results(folder: Path) -> Subject:
    settings = {"solver": "dpm2m", "nfe": 4, "weights": "a" * 64, "nested": {"seed": 0}}
    Record(folder, settings, [], overwrite=False)
    return Subject(folder / "settings.json", lambda: Record(folder, settings, [], False).settings, of_json)


def intervals(folder: Path) -> Subject:
    about = {"sampled": {"solver": "dpm2m", "timesteps": [9, 5]}, "options": asdict(GuidanceOptions())}
    found = Intervals(None, 0.1, 0.1, 4, "std", "conformal", 1.5, 9, 0.05, 0.2, (8, 8), "a" * 64, **about)  # pyright: ignore
    found.save(path := folder / "a.intervals.json")
    return Subject(path, lambda: Intervals.call_of(path), of_json, exact=False)


def _picture(suffix: str, **options: Any) -> Callable[[Path], Subject]:
    def make(folder: Path) -> Subject:
        rng = random.Random(0)
        picture = Image.frombytes("RGB", (24, 16), rng.randbytes(24 * 16 * 3))
        picture.save(path := folder / f"a{suffix}", **options)
        return Subject(path, lambda: images.convert(images.open_image(path)).size, exact=False, room=PICTURE)

    return make


FILES: dict[str, tuple[Callable[[Path], Subject], int]] = {  # of each, how many every night: 98,000 in all
    "our .pt": (our_pt, 15_000),
    "our .pt, settings": (our_pt_settings, 10_000),
    "our .safetensors": (our_safetensors, 15_000),
    "our .safetensors, settings": (our_safetensors_settings, 5_000),
    "our VQGAN": (our_vqgan, 5_000),
    "a legacy .pt": (legacy, 10_000),
    "the original BBDM's .pth": (original_bbdm, 5_000),
    "a package": (compiled_package, 10_000),
    "an export's bridge.json": (export_settings, 3_000),
    "a cache of pictures": (image_cache, 3_000),
    "a cache of latents": (latent_cache, 2_000),
    "settings of results": (results, 3_000),
    "intervals": (intervals, 2_000),
}
PICTURES: dict[str, tuple[Callable[[Path], Subject], int]] = {  # 10,000 in all
    "PNG": (_picture(".png"), 3_000),
    "JPEG": (_picture(".jpg"), 2_000),
    "WebP": (_picture(".webp"), 1_500),
    "BMP": (_picture(".bmp"), 1_000),
    "TIFF": (_picture(".tif"), 1_500),
    "TIFF, compressed": (_picture(".tif", compression="tiff_lzw"), 1_000),
}
