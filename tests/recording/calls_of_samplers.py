"""Cases of ``BridgeSampler``: sources of every type, options of calls, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bbdm import BridgeSampler, Intervals, Values, load_checkpoint, load_vqgan, save_checkpoint
from bbdm.data import Pairs, Spec, read_rows
from bbdm.pictures import Geometry, Picture, read
from tests.recording.running import Case, tried
from tests.recording.world import colours, numbers

PNG = "pairs/A/val/04.png"
WIDE = numbers(1, (1, 20, 24), np.uint16, 0, 4000)
VOLUME = numbers(2, (1, 6, 8, 12), np.int16, 0, 900)
SOLVERS = (
    "dpm2m",
    "sde-dpm2m",
    "ddim",
    "midpoint",
    "ancestral",
    "posterior",
    "fast",
    "mean",
    "consistency",
)


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random numbers in [-1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sampler(name: str = "c", **settings: Any) -> BridgeSampler:
    """A sampler of two steps."""
    more = {} if {"steps", "timesteps", "solver"} & settings.keys() else {"steps": 2}
    return BridgeSampler.from_checkpoint(f"{name}.pt", **more, **settings)


def made(source: Any, network: str = "c", seed: Any = 0, **options: Any) -> Any:
    """What a call gives, or its error."""
    return tried(lambda: sampler(network)(source, seed=seed, **options))


def sources() -> dict[str, Any]:
    """Sources of every type, and such that are refused."""
    image = Image.fromarray(colours(3, 12, 10))
    array = colours(3, 12, 10)
    tensor = floats(2, 3, 12, 10)
    good: dict[str, Any] = {
        "tensor": tensor,
        "double tensor": tensor.double(),
        "bfloat16 tensor": tensor.bfloat16(),
        "strided tensor": floats(2, 12, 10, 3).permute(0, 3, 1, 2),
        "list of tensors": [tensor[0], tensor[1, :, :8]],
        "array of bytes": array,
        "grey array of bytes": array[:, :, 0],
        "array of one channel": array[:, :, :1],
        "array with alpha": np.dstack([array, array[:, :, 0]]),
        "array of floats": (array / 127.5 - 1).astype(np.float32),
        "array of doubles": array / 127.5 - 1,
        "batch of floats": tensor.numpy(),
        "picture": image,
        "grey picture": image.convert("L"),
        "picture with alpha": image.convert("RGBA"),
        "picture of a palette": image.convert("P"),
        "picture of one bit": image.convert("1"),
        "path": PNG,
        "Path": Path(PNG),
        "turned photograph": "formats/turned6.jpg",
        "8-bit TIFF": "formats/rgb8.tif",
        "mixed list": [PNG, image, array, tensor[0], Path(PNG), (array / 127.5 - 1)],
        "Picture": Picture(array.transpose(2, 0, 1)),
        "tuple": (image, image),
        "one pixel": Image.new("RGB", (1, 1)),
        "odd sizes": Image.fromarray(colours(4, 7, 13)),
        "a range of 0 to 1": tensor / 2 + 0.5,
    }
    bad: dict[str, Any] = {
        "nothing": None,
        "a number": 7,
        "empty list": [],
        "missing path": "gone.png",
        "damaged path": "some/b.png",
        "text": "labels.csv",
        "a list in a list": [[image]],
        "tensor of integers": torch.zeros(1, 3, 8, 8, dtype=torch.int64),
        "tensor of other channels": floats(1, 4, 8, 8),
        "tensor of three axes": floats(3, 8, 8),
        "tensor of no images": floats(0, 3, 8, 8),
        "tensor out of range": floats(1, 3, 8, 8) * 100,
        "tensor with NaN": floats(1, 3, 8, 8) / 0 * 0,
        "array of 16 bits": numbers(5, (8, 8), np.uint16),
        "array of two channels": numbers(5, (8, 8, 2)),
        "array of truth values": np.zeros((8, 8), bool),
        "picture of 16 bits": "formats/grey16.png",
        "picture of floats": Image.new("F", (8, 8)),
        "volume": "formats/volume.nii",
        "bands": "formats/geo.tif",
        "bytes": b"abc",
        "list with a bad one": [image, "some/b.png"],
    }
    return {"good": good, "bad": bad}


def of_source(kind: str, name: str) -> Any:
    """Results of a source by networks that do not see it, and that do."""
    source = sources()[kind][name]
    return {
        network: made(source, network) for network in (("c", "seen") if kind == "good" else ("c",))
    }


def of_values() -> Any:
    """Sources and results with values: files, Pictures, arrays, percentiles, and pictures of 8 bits."""
    place = Geometry(((0.0, 2.0, 5.0), (2.0, 0.0, 6.0), (0.0, 0.0, 1.0)), nodata=7)
    wide = Values(0, 4000, dtype="uint16")
    stored = WIDE.copy()
    stored[0, 3, 4] = 7
    return {
        "file": made("wide/val/A/3.tif", "wide"),
        "npy": made("npy/A/val/3.npy", "wide"),
        "Picture": made(Picture(stored, place, "u", "a"), "wide"),
        "list": made([Picture(WIDE), "wide/val/A/3.tif"], "wide"),
        "array": made(WIDE[0], "wide", source_values=wide),
        "array of floats": made(
            WIDE[None].astype(np.float32), "wide", source_values="0:4000", target_values=(0, 1)
        ),
        "tensor": made([torch.from_numpy(WIDE.astype(np.int32))], "wide", source_values=(0, 4000)),
        "floats as they are": made(floats(1, 1, 8, 8), "wide"),
        "8 bits": made("formats/grey.png", "wide"),
        "8 bits with a range": made("formats/grey.png", "wide", source_values=(0, 255)),
        "percentiles": made(Picture(WIDE), "wide", source_values="p1:99"),
        "percentiles of a batch": made(floats(1, 1, 8, 8), "wide", source_values="p1:99"),
        "unit": made(WIDE[0], "wide", source_values="0:4000:u", target_values="0:1000:mm"),
        "flawed ranges": [
            made(WIDE[0], "wide", source_values=each)
            for each in ("4", "3:1", (1, 2, 3, 4, 5), 5, "a:b")
        ],
        "colours": made("formats/rgb.png", "wide"),
        "8-bit network": made(WIDE[0], "c", source_values="0:4000"),
        "floats of 0 to 1": made(
            np.random.default_rng(0).random((8, 8, 3)), source_values=(0, 1), target_values=(0, 1)
        ),
        "constant": made(Picture(np.full_like(WIDE, 9)), "wide"),
        "crops": made("wide/val/A/3.tif", "wide_crops"),
        "bands": made("S1/val/3.tif", "bands"),
        "other bands": made("S2/val/3.tif", "bands"),
    }


def of_volumes() -> Any:
    """Volumes by slices with neighbours, and in three axes."""
    affine = (
        (0.0, 0.0, 1.0, 0.0),
        (0.0, 1.5, 0.0, 0.0),
        (4.0, 0.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    )
    return {
        "slices": made("scans/val/p3/mr.mha", "slices", batch_size=4),
        "two": made([Picture(VOLUME), Picture(VOLUME)], "slices"),
        "other voxels": made(Picture(VOLUME, Geometry(affine), name="v"), "slices"),
        "flat": made(Picture(VOLUME[:, 0]), "slices"),
        "array": made(VOLUME[0].astype(np.float32), "slices"),
        "blocks": made(Picture(VOLUME), "volume"),
        "windows": made("scans/val/p3/mr.mha", "volume", window=(4, 8, 8)),
        "floats": made(floats(1, 1, 4, 8, 8), "volume"),
        "flat floats": made(floats(1, 1, 8, 8), "volume"),
    }


def of_solvers(network: str) -> Any:
    """Solvers, steps and times."""
    source = floats(2, 3, 8, 8)
    found = {
        name: tried(lambda name=name: sampler(network, solver=name)(source, 0))
        for name in SOLVERS[:4]
    }
    found |= {name: made(source, network, solver=name, steps=3) for name in (*SOLVERS, "euler", 5)}
    steps: tuple[Any, ...] = (0, -1, 1, 2.5, 10**6, "3")
    found |= {f"steps {number}": made(source, network, steps=number) for number in steps}
    times: tuple[Any, ...] = ([100, 50, 1], [1, 50, 100], [50, 1], [], "noise", "karras", "nothing")
    found |= {f"timesteps {each}": made(source, network, timesteps=each) for each in times}
    found["steps and timesteps"] = made(source, network, steps=3, timesteps=[100, 1])
    found["table"] = tried(lambda: sampler(network).table.rows)
    return found


def of_seeds() -> Any:
    """Seeds, noise and batches."""
    source = floats(3, 3, 8, 8)
    noise = floats(2, 3, 3, 8, 8, seed=1)
    seeds: tuple[Any, ...] = (
        5,
        [5, 6, 7],
        (7, 7, 7),
        np.array([1, 2, 3]),
        [1, 2],
        -1,
        1.5,
        2**63,
        "a",
        [],
    )
    found = {f"seed {each!r}": made(source, seed=each) for each in seeds}
    found |= {f"batch_size {size}": made(source, batch_size=size) for size in (1, 2, 3, 100, 0, -1)}
    found["noise"] = made(source, seed=None, noise=noise)
    found["noise of another shape"] = made(source, seed=None, noise=noise[:1])
    found["noise and a seed"] = made(source, seed=1, noise=noise)
    found["noise with NaN"] = made(source, seed=None, noise=noise * float("nan"))
    found["dtype"] = [
        tried(lambda each=each: sampler(dtype=each)(source, 0))
        for each in ("bf16", "fp32", "fp64", "int8")
    ]
    found["device"] = [
        tried(lambda each=each: sampler(device=each)(source, 0))
        for each in ("cpu", "cuda:77", "gpu")
    ]
    found["unknown argument"] = made(source, colour="red")
    found["drawn noise"] = tried(lambda: sampler().noise(source, 3))
    return found


def of_windows() -> Any:
    """Windows of larger pictures, and settings of them that are refused."""
    source = floats(1, 3, 24, 40)
    settings: tuple[dict[str, Any], ...] = (
        {"window": 16},
        {"window": (8, 16)},
        {"window": 16, "overlap": 0.5},
        {"window": 16, "margin": 2},
        {"window": 16, "batch_size": 2},
        {"window": None},
        {"window": "auto"},
        {"window": 64},
        {"window": 7},
        {"window": 0},
        {"window": "large"},
        {"window": (8, 8, 8)},
        {"window": 16, "overlap": 0.95},
        {"window": 16, "overlap": 0},
        {"window": 16, "margin": -1},
        {"window": 16, "margin": 8},
    )
    found = {str(each): made(source, **each) for each in settings}
    found["a network of crops"] = made("large/a.png", "crops")
    found["a network of crops, whole"] = made("large/a.png", "crops", window=None)
    found["two sizes"] = made(["large/a.png", PNG], "crops", window=16, batch_size=3)
    return found


def of_masks() -> Any:
    """Masks of all types, and such that are refused."""
    source = floats(2, 3, 16, 16)
    mask = np.zeros((16, 16))
    mask[:, 8:] = 1
    masks: dict[str, Any] = {
        "array": mask,
        "array of bytes": (255 * mask).astype(np.uint8),
        "truth values": mask > 0,
        "tensor": torch.from_numpy(mask).float().expand(2, 1, -1, -1),
        "picture": Image.fromarray((255 * mask).astype(np.uint8)),
        "path": "masks/04.png",
        "halves": mask / 2,
        "another size": mask[:8],
        "out of range": mask * 3,
        "three axes": mask[None],
        "missing": "gone.png",
        "a number": 3,
    }
    found = {name: made(source, mask=each) for name, each in masks.items()}
    found["of a picture"] = made([PNG], mask="masks/04.png")
    found["of a list of two sizes"] = made([PNG, "own/wide.png"], mask=mask)
    found["in latents"] = made([PNG], "latent", mask=mask)
    found["of bands"] = made("S1/val/3.tif", "bands", mask=np.ones((20, 24)))
    return found


def of_conditions() -> Any:
    """Conditions of a call, guidance, and both directions."""
    source = floats(2, 3, 16, 16)
    text = floats(4, 3, seed=1)
    all_three: dict[str, Any] = {"sar": floats(1, 1, 16, 16, seed=2), "style": "b", "text": text}
    settings: dict[str, dict[str, Any]] = {
        "all": all_three,
        "as a mapping": {"conditions": all_three},
        "by number": {**all_three, "style": 2},
        "of each": {**all_three, "style": ["a", "c"], "text": [text, text[:2]]},
        "without text": {**all_three, "text": None},
        "without some": {**all_three, "style": ["a", None]},
        "guided": {**all_three, "guidance": 2.0},
        "guided by name": {**all_three, "guidance": {"style": 2, "text": 3}},
        "guided by 1": {**all_three, "guidance": 1},
        "in windows": {**all_three, "window": 8},
        "none": {},
        "one is missing": {"sar": all_three["sar"], "style": "b"},
        "without an image": {**all_three, "sar": None},
        "an unknown class": {**all_three, "style": "z"},
        "a number too large": {**all_three, "style": 3},
        "too many classes": {**all_three, "style": ["a", "b", "c"]},
        "other channels": {**all_three, "sar": source},
        "another width": {**all_three, "text": floats(4, 5)},
        "an unknown name": {**all_three, "season": "winter"},
        "guided by an unknown name": {**all_three, "guidance": {"sar": 2}},
        "guided by text": {**all_three, "guidance": "2"},
    }
    found = {name: made(source, "told", **each) for name, each in settings.items()}
    found["of a network without"] = made(source, "c", style="a")
    found["guidance without conditions"] = made(source, "c", guidance=2)
    ways: tuple[Any, ...] = ("AtoB", "BtoA", "CtoD", None)
    found |= {f"direction {way}": made(source, "both", direction=way) for way in ways}
    found["no direction"] = made(source, "both")
    found["direction of one"] = made(source, "c", direction="BtoA")
    return found


def of_steps() -> Any:
    """Streams, callbacks, distributions, and the way back to noise."""
    source = floats(1, 3, 8, 8)
    net = sampler("seen")
    steps = [
        [each.index, each.t, each.x0hat.clone(), each.preview()]
        for each in net.stream(source, 0, steps=3)
    ]
    pictures = [each.preview() for each in net.stream([PNG], 0)]
    seen: list[Any] = []
    net([PNG, PNG], 0, batch_size=1, callback=lambda step: seen.append([step.index, step.t]))
    spread = net.distribution([PNG], samples=4, seed=0, batch_size=3)
    kept = [spread.mean, spread.std, spread.quantile(0.25), spread.samples]
    few = net.distribution(source, samples=3, seed=1, keep=False)
    wide = sampler("wide").distribution("wide/val/A/3.tif", samples=3, seed=1)
    return {
        "stream": steps,
        "previews": pictures,
        "callback": seen,
        "distribution": kept,
        "without samples": [
            few.mean,
            few.std,
            tried(lambda: few.quantile(0.5)),
            tried(lambda: few.samples),
        ],
        "with values": [wide.mean, wide.std, wide.quantile(0.9)],
        "one sample": tried(lambda: net.distribution(source, samples=1)),
        "quantile 2": tried(lambda: spread.quantile(2)),
        "with noise": tried(lambda: net.distribution(source, samples=2, noise=source)),
        "encode": tried(lambda: net.encode(source / 2, source, steps=4)),
        "encode pictures": tried(lambda: net.encode([PNG], [PNG], steps=4)),
        "encode in one step": tried(lambda: net.encode(source, source, steps=1)),
        "encode other sizes": tried(lambda: net.encode(source, floats(1, 3, 8, 4), steps=3)),
    }


def of_files() -> Any:
    """Checkpoints loaded, saved again, and refused."""
    names = ("c", "seen", "wide", "slices", "told", "both", "latent", "sizeless")
    found: dict[str, Any] = {}
    for name in names:
        net = sampler(name)
        found[name] = [
            repr(net.bridge),
            net.solver,
            len(net.table),
            str(net.dtype),
            net.image_size,
            net.unet,
        ]
        save_checkpoint(
            f"again_{name}.safetensors",
            net.unet,
            net.bridge,
            codec=net.codec,
            image_size=net.image_size,
        )
    wrong = ("damaged.pt", "text.pt", "gone.pt", "pairs", "vqgan.pt", "labels.csv", "pickled.model")
    found |= {name: tried(lambda name=name: load_checkpoint(name)) for name in wrong}
    found["vqgan"] = [
        load_vqgan("vqgan.pt"),
        tried(lambda: load_vqgan("c.pt")),
        tried(lambda: load_vqgan("text.pt")),
    ]
    sampler().save_pretrained("folder")
    found["pretrained"] = tried(
        lambda: BridgeSampler.from_pretrained("folder", steps=2)(floats(1, 3, 8, 8), 0)
    )
    found["a suffix"] = tried(lambda: save_checkpoint("c.bin", sampler().unet, sampler().bridge))
    return found


def of_latents() -> Any:
    """Pictures by way of latents."""
    return {
        "pictures": made([PNG, "own/wide.png"], "latent"),
        "tensor": made(floats(1, 3, 16, 16), "latent"),
        "windows": made("large/a.png", "latent", window=16),
        "odd": made(floats(1, 3, 13, 9), "latent"),
    }


def of_intervals() -> Any:
    """Intervals calibrated on pairs, saved, loaded, and used."""
    net = sampler("seen")
    pairs = Pairs(read_rows("edge2shoes", "data", "val"), Spec(size=16))
    intervals = Intervals.calibrate(net, pairs, alpha=0.4, bound="conformal", samples=3, seed=0)
    intervals.save("i.json")
    loaded = Intervals.load("i.json", net)
    return {
        "lambda": [intervals.lambda_, intervals.loss, intervals.length, intervals.pairs],
        "ends": tried(lambda: loaded([PNG], seed=0)),
        "of another network": tried(lambda: Intervals.load("i.json", sampler("c"))),
        "of no file": tried(lambda: Intervals.load("gone.json", net)),
        "of another file": tried(lambda: Intervals.load("labels.csv", net)),
        "too few": tried(lambda: Intervals.calibrate(net, pairs, alpha=0.1, samples=3, seed=0)),
        "alpha 2": tried(lambda: Intervals.calibrate(net, pairs, alpha=2, samples=3, seed=0)),
    }


def saved_results() -> Any:
    """Results saved in files of the sources' formats."""
    found: list[Any] = []
    for index, (network, path) in enumerate(
        (
            ("wide", "wide/val/A/3.tif"),
            ("bands", "S1/val/3.tif"),
            ("slices", "scans/val/p3/mr.mha"),
            ("c", PNG),
        )
    ):
        (result,) = sampler(network)([path], seed=index)
        output = f"result{index}{Path(path).suffix}"
        result.save(output)
        found.append(read(output))
    return found


OTHERS: dict[str, Callable[[], Any]] = {
    "values": of_values,
    "volumes": of_volumes,
    "solvers of A-Bridge": partial(of_solvers, "c"),
    "solvers of a Brownian bridge": partial(of_solvers, "seen"),
    "seeds and batches": of_seeds,
    "windows": of_windows,
    "masks": of_masks,
    "conditions": of_conditions,
    "streams and distributions": of_steps,
    "files of networks": of_files,
    "latents": of_latents,
    "intervals": of_intervals,
    "saved results": saved_results,
}
CASES: dict[str, Case] = {
    **{
        f"sampler: {kind} source, {name}": partial(of_source, kind, name)
        for kind, members in sources().items()
        for name in members
    },
    **{f"sampler: {name}": call for name, call in OTHERS.items()},
}
