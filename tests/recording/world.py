"""The files that cases use, written by Pillow, NumPy, tifffile, nibabel, SimpleITK, rasterio and datasets.

Networks are written by the public functions of bbdm, with random weights. No file depends on the time.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import numpy.typing as npt
import rasterio
import SimpleITK as sitk  # noqa: N813
import tifffile
import torch
from PIL import Image
from rasterio.transform import Affine
from torch import nn

import bbdm
from bbdm.data import Spec

Array = npt.NDArray[Any]
SIZE = 16  # the side of pictures in pairs
HEIGHT, WIDTH = 12, 10  # of a picture of each format
VOLUME = 4, 12, 10  # (D, H, W)
LAST_CHANGED = 1_600_000_000  # the time of all files, in seconds
TINY: dict[str, Any] = {
    "model_channels": 8,
    "channel_mult": (1, 2),
    "attention_resolutions": (2,),
    "head_channels": 8,
    "num_groups": 4,
    "num_res_blocks": 1,
}
TINY_VQGAN: dict[str, Any] = {
    "image_channels": 3,
    "latent_channels": 3,
    "num_codes": 16,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "num_groups": 4,
}
# (x, y, z) to the world
OBLIQUE = np.array([[1.6, -1.2, 0, 5], [1.2, 1.6, 0, -3], [0, 0, 3, 7], [0, 0, 0, 1]])


def numbers(
    seed: int, shape: Sequence[int], dtype: Any = np.uint8, low: int = 0, high: int = 256
) -> Array:
    """Random whole numbers, from low to below high."""
    return np.random.default_rng(seed).integers(low, high, tuple(shape)).astype(dtype)


def colours(seed: int, height: int = SIZE, width: int = SIZE) -> Array:
    """(H, W, 3) of random 8-bit colours."""
    return numbers(seed, (height, width, 3))


def save_image(path: Path, array: Array, mode: str | None = None, **options: Any) -> None:
    """A picture by Pillow, in a mode if given; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)


def save_itk(
    path: Path, array: Array, spacing: Sequence[float] = (1.0, 1.5, 3.0), vector: bool = False
) -> None:
    """A picture (H, W) or (D, H, W) by SimpleITK, which lies somewhere; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=vector)
    axes = image.GetDimension()
    image.SetSpacing(tuple(spacing)[:axes])
    image.SetOrigin((5.0, -6.0, 7.0)[:axes])
    sitk.WriteImage(image, str(path), useCompression=True)


def save_geotiff(path: Path, bands: Array, nodata: float | None, **options: Any) -> None:
    """(C, H, W) by rasterio, at a place on Earth; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    transform = options.pop("transform", Affine(10, 0, 500_000, 0, -10, 5_400_000))
    shape = {"height": height, "width": width, "count": count, "dtype": bands.dtype.name}
    with rasterio.open(
        path, "w", "GTiff", **shape, crs="EPSG:32632", nodata=nodata, transform=transform, **options
    ) as file:
        file.write(bands)


def save_dicom(folder: Path, slices: Array, heights: Sequence[float]) -> None:
    """A file for each slice (H, W), at heights in mm."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, (pixels, height) in enumerate(zip(slices, heights, strict=True)):
        image = sitk.GetImageFromArray(pixels[None])
        image.SetSpacing((0.5, 0.25, 1.0))
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.{index + 1}",
            "0020|000d": "1.2",
            "0020|000e": "1.2.3",
            "0020|0013": str(index),
            "0020|0032": f"-10\\5\\{height}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{(index * 7) % 10}.dcm"))
        writer.Execute(image)


def make_photographs(folder: Path) -> None:
    """PNG, JPEG, WebP and BMP of all modes."""
    colour = colours(1, HEIGHT, WIDTH)
    grey = colour[:, :, 0]
    with_alpha = np.dstack([colour, colour[:, :, 1]])
    save_image(folder / "rgb.png", colour)
    save_image(folder / "grey.png", grey)
    save_image(folder / "rgba.png", with_alpha)
    save_image(folder / "grey_alpha.png", with_alpha, "LA")
    save_image(folder / "palette.png", colour, "P")
    save_image(folder / "palette_clear.png", colour, "P", transparency=3)
    save_image(folder / "one_bit.png", grey, "1")
    save_image(folder / "grey16.png", numbers(2, (HEIGHT, WIDTH), np.uint16, 0, 65536))
    (folder / "rgb16.png").write_bytes(
        imagecodecs.png_encode(numbers(3, (HEIGHT, WIDTH, 3), np.uint16, 0, 65536))
    )
    for turn in (2, 6):
        exif = Image.Exif()
        exif[274] = turn
        save_image(folder / f"turned{turn}.jpg", colour, exif=exif)
    save_image(folder / "grey.jpg", grey)
    save_image(folder / "inks.jpeg", colour, "CMYK")
    save_image(folder / "rgb.webp", colour, lossless=True)
    save_image(folder / "rgba.webp", with_alpha, lossless=True)
    save_image(folder / "rgb.bmp", colour)
    save_image(folder / "palette.bmp", grey)
    save_image(folder / "rgb.GIF", colour)


def make_tiffs(folder: Path) -> None:
    """TIFF of types and layouts, of OME, of ImageJ, and with a place on Earth."""
    tifffile.imwrite(folder / "rgb8.tif", colours(4, HEIGHT, WIDTH), photometric="rgb")
    for name in ("uint8", "uint16", "int16", "int32", "float16", "float32", "float64"):
        tifffile.imwrite(folder / f"{name}.tif", numbers(5, (HEIGHT, WIDTH), name, 0, 127))
    bands = numbers(6, (40, 36, 4), np.uint16, 0, 5000)
    extra: dict[str, Any] = {"photometric": "minisblack", "extrasamples": ["unspecified"] * 3}
    layouts: dict[str, dict[str, Any]] = {
        "strips": {"rowsperstrip": 8, "compression": "lzw"},
        "tiles": {"tile": (16, 16), "compression": "zlib"},
        "plain_tiles": {"tile": (16, 16)},
        "predictor": {"rowsperstrip": 16, "compression": "zlib", "predictor": True},
        "big_endian": {"byteorder": ">", "rowsperstrip": 16},
    }
    for name, options in layouts.items():
        tifffile.imwrite(folder / f"{name}.tif", bands, **options, **extra)
    planes = bands.transpose(2, 0, 1)
    tifffile.imwrite(
        folder / "planes.tif", planes, planarconfig="separate", compression="zstd", **extra
    )
    tifffile.imwrite(
        folder / "pages.tiff", planes, photometric="minisblack", compression="zlib", metadata=None
    )
    micro = {f"PhysicalSize{axis}Unit": "µm" for axis in "XYZ"}
    sizes = {"PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 0.5}
    stack = numbers(7, (4, 2, HEIGHT, WIDTH), np.uint16, 0, 4096)
    metadata: dict[str, Any] = {"axes": "ZCYX", **sizes, **micro, "UUID": "urn:uuid:0"}
    tifffile.imwrite(folder / "stack.ome.tif", stack, metadata=metadata, photometric="minisblack")
    metadata = {"axes": "ZCYX", "spacing": 3.0, "unit": "um"}
    tifffile.imwrite(
        folder / "imagej.tif", stack, imagej=True, metadata=metadata, resolution=(4, 2)
    )
    tags = [(42113, 2, 0, "7", True)]
    resolution: dict[str, Any] = {"resolution": ((72, 7), (31, 3)), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        folder / "nodata.tif",
        numbers(8, (HEIGHT, WIDTH), np.uint16, 0, 20),
        extratags=tags,
        **resolution,
    )
    located = numbers(9, (2, HEIGHT, WIDTH), np.int16, -30, 3000)
    located[0, 3, 4] = -99
    save_geotiff(folder / "geo.tif", located, -99)
    floats = located.astype(np.float32)
    floats[:, 2, 2] = np.nan
    save_geotiff(folder / "geo_float.tif", floats, float("nan"), compress="deflate")
    save_geotiff(
        folder / "geo_turned.tif",
        located[:1],
        None,
        transform=Affine(6, 8, 500_000, 8, -6, 5_400_000),
    )
    large = numbers(10, (3, 40, 36), np.uint16, 0, 9000)
    save_geotiff(folder / "geo_tiles.tif", large, 0, tiled=True, blockxsize=16, blockysize=16)


def make_medical(folder: Path) -> None:
    """NIfTI, MetaImage, NRRD and DICOM."""
    volume = numbers(11, VOLUME, np.int16, -1000, 2000)
    for name in ("volume.nii", "volume.nii.gz"):
        nibabel.Nifti1Image(volume.transpose(), OBLIQUE).to_filename(folder / name)
    nibabel.Nifti1Image(volume[0].transpose(), OBLIQUE).to_filename(folder / "flat.nii")
    nibabel.Nifti2Image(volume.transpose().astype(np.float32), OBLIQUE).to_filename(
        folder / "two.nii"
    )
    scaled = nibabel.Nifti1Image(volume.transpose(), OBLIQUE)
    scaled.header.set_slope_inter(0.5, 10)
    scaled.to_filename(folder / "scaled.nii")
    vectors = numbers(12, (3, *VOLUME), np.float32).transpose(3, 2, 1, 0)[:, :, :, None, :]
    nibabel.Nifti1Image(vectors, OBLIQUE).to_filename(folder / "vectors.nii")
    times = numbers(13, (3, *VOLUME), np.int16).transpose()
    nibabel.Nifti1Image(times, OBLIQUE).to_filename(folder / "times.nii")
    for suffix in ("mha", "nrrd"):
        save_itk(folder / f"volume.{suffix}", volume)
        save_itk(folder / f"flat.{suffix}", volume[0])
        save_itk(folder / f"vectors.{suffix}", numbers(14, (*VOLUME, 3), np.float32), vector=True)
    save_itk(folder / "other.mhd", volume)
    save_dicom(folder / "dicom", volume, [0, 2.5, 5, 7.5])
    save_dicom(folder / "dicom_gap", volume, [0, 2.5, 5, 12.5])
    save_dicom(folder / "dicom_one", volume[:1], [0])
    shutil.copy(folder / "dicom_one/0.dcm", folder / "slice.dcm")


def make_arrays(folder: Path) -> None:
    """Files of NumPy and PyTorch."""
    shapes = {
        "two": (HEIGHT, WIDTH),
        "three": (3, HEIGHT, WIDTH),
        "four": (1, *VOLUME),
        "five": (1, 1, *VOLUME),
    }
    for name, shape in shapes.items():
        np.save(folder / f"{name}.npy", numbers(15, shape, np.int16, -500, 500))
    for name in ("float16", "float64", "int64", "uint8", "bool", "complex64"):
        np.save(folder / f"{name}.npy", numbers(16, (2, HEIGHT, WIDTH), name, 0, 2))
    np.save(folder / "objects.npy", np.array([[{"a": 1}]]), allow_pickle=True)
    np.save(folder / "columns.npy", np.asfortranarray(numbers(17, (3, HEIGHT, WIDTH), np.uint16)))
    np.savez(folder / "several.npz", a=numbers(18, (1, HEIGHT, WIDTH)))
    torch.save(torch.zeros(1, HEIGHT, WIDTH), folder / "tensor.pth")


def make_damaged(folder: Path, whole: Path) -> None:
    """Files that are cut off, empty, text, or of another format than their suffix."""
    folder.mkdir(parents=True)
    for path in sorted(whole.iterdir()):
        names = (
            "rgb.png",
            "turned6.jpg",
            "rgb.webp",
            "rgb.bmp",
            "tiles.tif",
            "uint16.tif",
            "geo.tif",
            "volume.nii",
        )
        if path.name in (
            *names,
            "volume.nii.gz",
            "volume.mha",
            "volume.nrrd",
            "three.npy",
            "slice.dcm",
        ):
            content = path.read_bytes()
            (folder / path.name).write_bytes(content[: len(content) * 2 // 3])
    for suffix in ("png", "jpg", "tif", "nii", "nii.gz", "mha", "nrrd", "npy"):
        (folder / f"empty.{suffix}").touch()
        (folder / f"text.{suffix}").write_text("no picture at all")
    shutil.copy(whole / "rgb.png", folder / "a_png.jpg")
    shutil.copy(whole / "rgb.png", folder / "a_png.tif")
    shutil.copy(whole / "uint16.tif", folder / "a_tiff.png")
    shutil.copy(whole / "volume.mha", folder / "a_mha.nii")
    (folder / "notes.txt").write_text("no picture")
    (folder / "folder").mkdir()


def make_pairs(root: Path) -> None:
    """Pairs of 8 bits in all layouts of files, with columns of conditions and masks."""
    for index in range(7):
        split = "train" if index < 4 else "val"
        name = f"{index:02d}"
        source, target = colours(20 + index), colours(40 + index)
        save_image(root / f"data/{split}/{name}.png", np.hstack([source, target]))
        save_image(root / f"pairs/A/{split}/{name}.png", source)
        save_image(root / f"pairs/B/{split}/{name}.png", target)
        save_image(root / f"faces/{split}/A/{name}.jpg", source)
        save_image(root / f"faces/{split}/B/{name}.jpg", target)
        save_image(root / f"city/gtFine/{split}/town/{name}_gtFine_color.png", source)
        save_image(root / f"city/leftImg8bit/{split}/town/{name}_leftImg8bit.png", target)
        save_image(root / f"sar/{name}.png", numbers(60 + index, (SIZE, SIZE)))
        save_image(
            root / f"masks/{name}.png", 255 * numbers(80 + index, (SIZE, SIZE), low=0, high=2)
        )
        (root / "text").mkdir(exist_ok=True)
        np.save(root / f"text/{name}.npy", np.full((1 + index, 3), 0.1 + index, np.float32))
        if index < 5:
            save_image(root / f"other/{split}/X{name}.png", colours(100 + index, SIZE, SIZE))
    np.save(root / "sar.npy", numbers(90, (1, SIZE, SIZE), np.float32, -1, 2))
    (root / "labels.csv").write_text(
        "".join(f"{index:02d},{'cab'[index % 3]}\n" for index in range(7))
    )
    for split, names in (("train", range(4)), ("val", range(4, 7))):
        lines = [
            f"pairs/A/{split}/{i:02d}.png,pairs/B/{split}/{i:02d}.png,masks/{i:02d}.png,{'cab'[i % 3]}"
            for i in names
        ]
        (root / f"table_{split}.csv").write_text(
            "\n".join(["source,target,mask,style", *lines, ""])
        )


def make_values(root: Path) -> None:
    """Pairs of other values: 16 bits, floats, bands with a place on Earth, and volumes of patients."""
    for index in range(5):
        split = "train" if index < 3 else "val"
        stored = numbers(120 + index, (20, 24), np.uint16, 0, 4000)
        np_folder = root / f"npy/A/{split}"
        for folder in (
            np_folder,
            root / f"npy/B/{split}",
            root / f"wide/{split}/A",
            root / f"wide/{split}/B",
        ):
            folder.mkdir(parents=True, exist_ok=True)
        np.save(np_folder / f"{index}.npy", stored[None])
        np.save(root / f"npy/B/{split}/{index}.npy", (stored[None] / 4000).astype(np.float32))
        tifffile.imwrite(root / f"wide/{split}/A/{index}.tif", stored)
        tifffile.imwrite(
            root / f"wide/{split}/B/{index}.tif", (stored.astype(int) - 1024).astype(np.int16)
        )
        radar = numbers(140 + index, (2, 20, 24), np.float32, -30, 1)
        bands = numbers(160 + index, (3, 20, 24), np.uint16, 1, 9000)
        radar[:, 3, 4] = -9999
        bands[:, 5, 6:8] = 0
        save_geotiff(root / f"S1/{split}/{index}.tif", radar, -9999)
        save_geotiff(root / f"S2/{split}/{index}.tif", bands, 0, compress="lzw")
    mask = np.zeros((6, 20, 24), np.uint8)
    mask[1:-1, 4:16, 4:20] = 1
    for index, name in enumerate(("train/p1", "train/p2", "val/p3")):
        save_itk(
            root / f"scans/{name}/mr.mha", numbers(180 + index, mask.shape, np.float32, 0, 900)
        )
        save_itk(
            root / f"scans/{name}/ct.mha", numbers(190 + index, mask.shape, np.int16, -1024, 1500)
        )
        save_itk(root / f"scans/{name}/mask.mha", mask)


def png(array: Array) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def make_tables(root: Path) -> None:
    """Tars and Parquet of pairs, with a label."""
    import datasets

    for split, count in (("train", 4), ("val", 3)):
        rows = range(200, 200 + count)
        with tarfile.open(root / f"{split}-0.tar", "w") as tar:
            for row in rows:
                members = {"source.png": png(colours(row)), "target.png": png(colours(row + 50))}
                members["style.txt"] = "cab"[row % 3].encode()
                for name, content in members.items():
                    info = tarfile.TarInfo(f"{row}.{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        columns: dict[str, Any] = {
            "edges": [{"bytes": png(colours(row)), "path": None} for row in rows],
            "photo": [{"bytes": png(colours(row + 50)), "path": None} for row in rows],
            "style": [row % 3 for row in rows],
        }
        features = datasets.Features(
            edges=datasets.Image(),
            photo=datasets.Image(),
            style=datasets.ClassLabel(names=["c", "a", "b"]),
        )
        (root / "hub").mkdir(exist_ok=True)
        name = "validation" if split == "val" else split
        datasets.Dataset.from_dict(columns, features=features).to_parquet(
            root / f"hub/{name}-00000-of-00001.parquet"
        )


def make_sources(root: Path) -> None:
    """Pictures without targets: of several shapes and modes, a large one, and a damaged one among others."""
    save_image(root / "own/wide.png", colours(300, 20, 40))
    save_image(root / "own/high.jpg", colours(301, 25, 12))
    save_image(root / "own/deep/same.webp", colours(302), lossless=True)
    save_image(root / "own/deep/grey.bmp", colours(303)[:, :, 0])
    save_image(root / "large/a.png", colours(304, 46, 62))
    save_image(root / "alpha/a.png", numbers(305, (20, 24, 4)))
    save_image(root / "some/a.png", colours(306))
    save_image(root / "some/c.png", colours(307))
    (root / "some/b.png").write_bytes((root / "some/a.png").read_bytes()[:300])
    (root / "some/notes.txt").write_text("no picture")
    (root / "nothing").mkdir()


def unet(seed: int, **settings: Any) -> bbdm.UNet:
    """A tiny network of random weights, also where they begin as zeros."""
    torch.manual_seed(seed)
    network = bbdm.UNet(**{**TINY, **settings})
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return network


def vqgan() -> bbdm.VQGAN:
    """A tiny autoencoder."""
    torch.manual_seed(3)
    return bbdm.VQGAN.from_config(bbdm.VQGANConfig(**TINY_VQGAN)).eval()


def make_networks(root: Path) -> None:
    """A checkpoint of each kind."""
    abridge = bbdm.ABridge(num_steps=100)
    pinned = bbdm.BrownianBridge(objective="pinned", spread=0.1)
    wide = bbdm.Values(0, 4000, dtype="uint16")
    hu = bbdm.Values(-1024, 3071, "HU", "int16")
    bands = bbdm.Values((0, 0, 0), (10000, 9000, 8000), dtype="uint16")
    radar = bbdm.Values((-25, -32), (0, -5), "dB", "float32")
    conditions = {
        "images": {"sar": 1},
        "classes": {"style": ("a", "b", "c")},
        "tokens": {"text": 3},
    }
    two_ways = {"classes": {"direction": ("AtoB", "BtoA")}}
    one = {"in_channels": 1, "out_channels": 1, "condition_channels": 1}
    networks: dict[str, tuple[dict[str, Any], Any, Any, Spec | None]] = {
        "c": ({}, abridge, SIZE, None),
        "seen": ({"condition_channels": 3}, pinned, SIZE, None),
        "grey": (one, abridge, SIZE, None),
        "crops": ({"condition_channels": 3}, pinned, SIZE, Spec(crop=SIZE)),
        "wide": (one, abridge, (20, 24), Spec(source=wide, target=hu)),
        "wide_crops": (one, abridge, 8, Spec(source=wide, target=hu, crop=8)),
        "bands": (
            {"condition_channels": 2},
            pinned,
            8,
            Spec(source=radar, target=bands, crop=8, nodata=0),
        ),
        "slices": (
            {**one, "condition_channels": 3, "endpoint": (1,)},
            abridge,
            (20, 24),
            Spec(
                source=bbdm.Values(0, 900, dtype="int16"),
                target=hu,
                slices="axial",
                neighbours=1,
                spacing=(3.0, 1.5, 1.0),
            ),
        ),
        "volume": (
            {**one, "axes": 3},
            abridge,
            (4, 8, 8),
            Spec(source=bbdm.Values(0, 900, dtype="int16"), target=hu, crop=(4, 8, 8), axes=3),
        ),
        "told": (
            {"condition_channels": 3, **conditions, "drop": {"style": 0.1, "text": 0.1}},
            abridge,
            SIZE,
            None,
        ),
        "both": ({"condition_channels": 3, **two_ways}, abridge, SIZE, None),
        "sizeless": ({}, abridge, None, None),
    }
    for seed, (name, (settings, bridge, size, spec)) in enumerate(networks.items()):
        bbdm.save_checkpoint(
            root / f"{name}.pt", unet(seed, **settings), bridge, image_size=size, pictures=spec
        )
    bbdm.save_checkpoint(root / "c.safetensors", unet(0), abridge, image_size=SIZE)
    bbdm.save_vqgan(root / "vqgan.pt", vqgan())
    codec = bbdm.VQGANCodec(vqgan())
    bbdm.save_checkpoint(root / "latent.pt", unet(20), abridge, codec=codec, image_size=SIZE)
    torch.save(unet(21, model_channels=32, num_groups=32), root / "pickled.model")
    (root / "damaged.pt").write_bytes((root / "c.pt").read_bytes()[:5000])
    (root / "text.pt").write_text("no network")


def make_world(root: Path) -> None:
    """Make all files in a new folder."""
    root.mkdir(parents=True)
    formats = root / "formats"
    formats.mkdir()
    for make in (make_photographs, make_tiffs, make_medical, make_arrays):
        make(formats)
    make_damaged(root / "bad", formats)
    for make in (make_pairs, make_values, make_tables, make_sources, make_networks):
        make(root)
    for path in root.rglob("*"):
        os.utime(path, (LAST_CHANGED, LAST_CHANGED))
