"""The files that are mutated, and how each is read: a row for each kind.

python -m tests.hardening.subjects KIND COUNT SEED FOLDER [FIRST] prints how many were read, and faults. The
same seed makes the same files. A fault's name has a number: with it as FIRST, and COUNT 1, the file is left
in FOLDER.
"""

import gzip
import io
import json
import random
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import safetensors.torch
import SimpleITK
import tifffile
import torch
from PIL import Image
from pylibCZIrw import czi

from bbdm import pictures
from bbdm.base.atomic import file_sha256
from bbdm.data.latents import LatentDataset
from bbdm.evaluation.intervals import Intervals
from bbdm.execution import compiled
from bbdm.files.checkpoint import load_checkpoint, load_vqgan, save_checkpoint, save_vqgan
from bbdm.files.weights import described
from bbdm.networks.base import state_hash
from bbdm.pictures import Geometry, Picture, images, write
from bbdm.runtime import OnnxBridgeSampler
from bbdm.sampling.options import GuidanceOptions
from bbdm.translation.record import Record
from tests.conftest import load_pairs, tiny_unet
from tests.files.importers.common import save
from tests.files.importers.test_original_bbdm import bbdm_file, bbdm_unet
from tests.films import moving, write_film
from tests.hardening.mutations import Mutate, of_bit, of_bytes, of_json, of_values
from tests.hardening.watch import ROOM, Watch
from tests.networks.test_vqgan import tiny_vqgan
from tests.onnx.exports import BRIDGE, SIZE, export, tiny_codec
from tests.pictures.formats import numbers, write_dicom

# bytes of the largest that Pillow opens, and of a copy
PICTURE = 2 * 2 * 3 * (Image.MAX_IMAGE_PIXELS or 0)


@dataclass(frozen=True)
class Subject:
    """A file in a folder of its own.

    ``read`` returns what was read, which is right where it equals what the whole file gave. ``exact`` is
    False where a change of values makes another valid file, or where a format has no checksums. ``room`` is
    the memory besides twice the file's size: a small picture may say that it is a large white one.
    """

    path: Path
    read: Callable[[], Any]
    mutate: Mutate = of_bytes
    exact: bool = True
    room: int = ROOM


Make = Callable[[Path], Subject]


def _checkpoint(
    path: Path, mutate: Mutate = of_bytes, exact: bool = True, **arguments: Any
) -> Subject:
    """A file whose bridge and weights, built, are compared."""

    def read() -> Any:
        checkpoint = load_checkpoint(path, **arguments)
        return checkpoint.bridge, state_hash(checkpoint.build_unet().state_dict())

    return Subject(path, read, mutate, exact)


def _own(suffix: str, mutate: Mutate = of_bytes, **settings: Any) -> Make:
    """A checkpoint of our own."""

    def make(folder: Path) -> Subject:
        save_checkpoint(
            path := folder / f"a{suffix}", tiny_unet(), BRIDGE, image_size=SIZE, **settings
        )
        return _checkpoint(path, mutate, exact=mutate is of_bytes)

    return make


def _settings_of_pt(data: bytes, rng: random.Random) -> bytes:
    """A file of torch.save with other settings, and whole."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    states = content.pop("states")
    changed = of_values(content, rng)
    torch.save(
        {**changed, "states": states} if isinstance(changed, dict) else changed,
        file := io.BytesIO(),
    )
    return file.getvalue()


def _settings_of_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Other settings in the metadata, with the hash that fits them."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    changed = json.dumps(of_values(json.loads(header["__metadata__"]["bbdm"]), rng))
    tensors = safetensors.torch.load(data)
    return safetensors.torch.save(tensors, described("bbdm", changed, tensors))


def our_vqgan(folder: Path) -> Subject:
    save_vqgan(path := folder / "v.pt", tiny_vqgan())
    return Subject(path, lambda: state_hash(load_vqgan(path).state_dict()))


def legacy(folder: Path) -> Subject:
    """A bare state dict as torch.save wrote before PyTorch 1.6: without checksums."""
    path = save(
        bbdm_unet(condition_channels=3, channel_mult=(1,)).state_dict(),
        folder / "a.pt",
        zipped=False,
    )
    return _checkpoint(path, exact=False, num_steps=100, c_lambda=1.0)


def original_bbdm(folder: Path) -> Subject:
    path, _, _ = bbdm_file(folder / "a.pth", condition_channels=3, channel_mult=(1,))
    return _checkpoint(path, config="bbdm")


def compiled_package(folder: Path) -> Subject:
    """What says what a package fits; its code is not loaded, so it is no archive here."""
    network, device, path = tiny_unet(), torch.device("cpu"), folder / "a.pt2"
    path.write_bytes(b"code")
    content = {"shape": [1, 3, 8, 8], "fits": compiled.fingerprint(network, torch.float32, device)}
    (about := folder / "a.pt2.json").write_text(
        json.dumps({**content, "sha256": file_sha256(path)})
    )

    def read() -> Any:
        with patch("torch._inductor.aoti_load_package"):
            return tuple(compiled.PackagedNetwork(path, network, device).shape)

    return Subject(about, read, of_json, exact=False)


def export_settings(folder: Path) -> Subject:
    save_checkpoint(folder / "a.pt", tiny_unet(), BRIDGE, image_size=SIZE)
    export(folder / "a.pt", folder / "onnx", "--solver", "sde-dpm2m", "--steps", "4")

    def read() -> Any:
        sampler = OnnxBridgeSampler(folder / "onnx", threads=1)
        return sampler.settings["solver"], sampler.table.coefficients.tolist()

    return Subject(folder / "onnx" / "bridge.json", read, of_json, exact=False)


def latents(folder: Path) -> Subject:
    """The manifest of a cache of a pair."""
    Image.new("RGB", (16, 16), (40, 90, 7)).save(folder / "0.png")
    make = partial(
        LatentDataset,
        load_pairs("paired", f"{folder},{folder}", size=16),
        tiny_codec(),
        folder / "cache",
    )
    make()
    return Subject(
        next((folder / "cache").glob("*.json")),
        lambda: [value.tolist() for value in make()[0]],
        of_json,
    )


def results(folder: Path) -> Subject:
    settings = {"solver": "dpm2m", "nfe": 4, "weights": "a" * 64, "nested": {"seed": 0}}
    Record(folder, settings, [], lambda name: {})
    return Subject(
        folder / "settings.json",
        lambda: Record(folder, settings, [], lambda name: {}).settings,
        of_json,
    )


def intervals(folder: Path) -> Subject:
    values: list[Any] = [None, 0.1, 0.1, 4, "std", "conformal", 1.5, 9, 0.05, 0.2, (8, 8)]
    found = Intervals(
        *values, sampled={"solver": "dpm2m", "timesteps": [9]}, options=asdict(GuidanceOptions())
    )
    found.save(path := folder / "a.intervals.json")
    return Subject(path, lambda: Intervals.load(path, None).fixed, of_json, exact=False)


# Pictures


def _picture(suffix: str, **options: Any) -> Make:
    def make(folder: Path) -> Subject:
        picture = Image.frombytes("RGB", (24, 16), random.Random(0).randbytes(24 * 16 * 3))
        picture.save(path := folder / f"a{suffix}", **options)
        return Subject(
            path, lambda: images.convert(images.open_image(path)).size, exact=False, room=PICTURE
        )

    return make


def _format(
    name: str, save: Callable[[Path], Any], mutate: Mutate = of_bytes, exact: bool = False
) -> Make:
    """``save`` writes a file of that ``name``, whose values are read in part and whole."""

    def make(folder: Path) -> Subject:
        save(path := folder / name)
        whole = path.parent if path.suffix == ".dcm" else path

        def read() -> bytes:
            window = tuple(slice(0, -(-length // 2)) for length in pictures.header(whole).sides)
            return pictures.read(whole, window).tobytes() + pictures.read(whole).tobytes()

        return Subject(path, read, mutate, exact)

    return make


def _written(shape: tuple[int, ...], kind: str) -> Callable[[Path], Any]:
    return lambda path: write(path, numbers(shape, kind))


def _tiff(shape: tuple[int, ...], kind: str, **options: Any) -> Callable[[Path], Any]:
    return lambda path: tifffile.imwrite(
        path, numbers(shape, kind), photometric="minisblack", **options
    )


def _geotiff(path: Path) -> None:
    affine = ((0.0, 10.0, 5e5), (-10.0, 0.0, 4e6), (0.0, 0.0, 1.0))
    write(
        path,
        Picture(
            numbers((5, 24, 24), "uint16"), Geometry(affine, "geotiff", {"crs": "EPSG:32632"}, 7.0)
        ),
    )


def _packed(path: Path) -> None:
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(numbers((5, 7, 9), "int16")), str(path), useCompression=True
    )


def _dicom(path: Path) -> None:
    write_dicom(path.parent, numbers((3, 8, 8), "uint8").astype(np.int16), [0, 2, 4])


def _film(path: Path) -> None:
    write_film(path, moving(8))


def _czi(path: Path) -> None:
    with czi.create_czi(str(path)) as file:
        for channel in range(2):
            file.write(numbers((16, 24, 1), "uint16", channel), plane={"C": channel})


def _zarr(inside: str, mutate: Mutate) -> Make:
    """A file in the folder of a picture, whose values are read in part and whole."""

    def make(folder: Path) -> Subject:
        kept = {"version": "0.5"}
        array = numbers((2, 24, 40), "uint16")
        write(whole := folder / "a.ome.zarr", Picture(array, Geometry(None, "ome-zarr", kept)))

        def read() -> bytes:
            window = (slice(0, 12), slice(20, 40))
            return pictures.read(whole, window).tobytes() + pictures.read(whole).tobytes()

        (path,) = whole.glob(inside)
        return Subject(path, read, mutate, exact=False)

    return make


def _inside(data: bytes, rng: random.Random) -> bytes:
    """A gzip with other bytes inside, and the checksum that fits them."""
    return gzip.compress(of_bytes(gzip.decompress(data), rng))


TILES = {"tile": (16, 16), "compression": "zlib", "predictor": True}
SUBJECTS: dict[str, tuple[Make, int]] = {  # of each, how many every night
    "our .pt": (_own(".pt"), 15_000),
    "our .pt, settings": (_own(".pt", _settings_of_pt), 10_000),
    "our .safetensors": (_own(".safetensors"), 15_000),
    "our .safetensors, settings": (
        _own(".safetensors", _settings_of_safetensors, codec=tiny_codec()),
        5_000,
    ),
    "our VQGAN": (our_vqgan, 5_000),
    "a legacy .pt": (legacy, 10_000),
    "the original BBDM's .pth": (original_bbdm, 5_000),
    "a package": (compiled_package, 10_000),
    "an export's bridge.json": (export_settings, 3_000),
    "a cache of latents": (latents, 2_000),
    "settings of results": (results, 3_000),
    "intervals": (intervals, 2_000),
    "PNG": (_picture(".png"), 3_000),
    "JPEG": (_picture(".jpg"), 2_000),
    "WebP": (_picture(".webp"), 1_500),
    "BMP": (_picture(".bmp"), 1_000),
    "TIFF": (_picture(".tif"), 1_500),
    "TIFF, compressed": (_picture(".tif", compression="tiff_lzw"), 1_000),
    "PNG of 16-bit grey": (_format("a.png", _written((1, 16, 24), "uint16")), 5_000),
    "TIFF of bands": (_format("a.tif", _written((5, 16, 24), "uint16")), 5_000),
    "TIFF in tiles": (_format("a.tif", _tiff((40, 40), "float32", **TILES)), 5_000),
    "TIFF of pages, LZW": (
        _format("a.tif", _tiff((4, 16, 24), "uint16", rowsperstrip=8, compression="lzw")),
        5_000,
    ),
    "OME-TIFF": (_format("a.tif", _written((2, 3, 16, 24), "uint16")), 5_000),
    "GeoTIFF": (_format("a.tif", _geotiff), 5_000),
    "NIfTI": (_format("a.nii", _written((1, 5, 7, 9), "int16")), 5_000),
    "NIfTI, compressed": (_format("a.nii.gz", _written((1, 5, 7, 9), "int16"), exact=True), 2_500),
    "NIfTI, inside": (_format("a.nii.gz", _written((1, 5, 7, 9), "int16"), _inside), 2_500),
    "NIfTI, a bit": (
        _format("a.nii.gz", _written((1, 5, 7, 9), "int16"), of_bit, exact=True),
        1_200,
    ),
    "NIfTI of vectors": (_format("a.nii", _written((3, 5, 7, 9), "float32")), 5_000),
    "MetaImage": (_format("a.mha", _written((1, 5, 7, 9), "int16")), 5_000),
    "NRRD": (_format("a.nrrd", _written((2, 5, 7, 9), "int16")), 5_000),
    "MetaImage, compressed": (_format("a.mha", _packed), 5_000),
    "MetaImage, a bit": (_format("a.mha", _packed, of_bit, exact=True), 1_200),
    "NRRD, compressed": (_format("a.nrrd", _packed, exact=True), 5_000),
    "NRRD, a bit": (_format("a.nrrd", _packed, of_bit, exact=True), 1_200),
    "DICOM": (_format("07.dcm", _dicom), 5_000),
    "film, H.264": (_format("a.mp4", _film), 1_000),
    "film, Matroska": (_format("a.mkv", _film), 1_000),
    "CZI": (_format("a.czi", _czi), 2_000),
    "OME-Zarr, of the picture": (_zarr("zarr.json", of_json), 2_000),
    "OME-Zarr, of a level": (_zarr("0/zarr.json", of_json), 2_000),
    "OME-Zarr, a chunk": (_zarr("0/c/0/0/0", of_bytes), 2_000),
    "npy": (_format("a.npy", _written((2, 5, 7, 9), "float32")), 5_000),
}


def run(kind: str, count: int, seed: int, folder: Path, first: int = 0) -> Watch:
    """Mutate the file ``count`` times; number ``first`` is the first."""
    make, _ = SUBJECTS[kind]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subject = make(folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    expected = subject.read()
    subject.read()  # what is imported and kept at a second call
    watch = Watch()

    def right() -> bool:
        return subject.read() == expected or not subject.exact

    for index in range(first, first + count):
        data = subject.mutate(files[subject.path], random.Random(f"{seed} {index}"))
        for path, whole in files.items():
            path.write_bytes(data if path == subject.path else whole)
        watch.judge(f"{kind} {index}", right, len(data), str(folder), subject.room)
    return watch


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # odd settings are as good as none here
    kind, count, seed, folder, *first = sys.argv[1:]
    print(run(kind, int(count), int(seed), Path(folder), *map(int, first)))
