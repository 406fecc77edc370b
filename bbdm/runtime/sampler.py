"""The sampler on ONNX Runtime: numpy, pillow and onnxruntime are all that it needs, and no PyTorch.

    python -m bbdm.runtime.sampler FOLDER PICTURE... -o OUT

FOLDER is what ``export/to_onnx.py`` wrote. A seed gives the image that :class:`bbdm.BridgeSampler` makes of
it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from bbdm import bridges, solvers
from bbdm.base import images
from bbdm.base.atomic import file_sha256
from bbdm.base.seeds import resolve_seeds
from bbdm.kernels.philox_numpy import normal
from bbdm.runtime.session import Provider, Session, with_options

FORMAT = "bbdm onnx"
VERSION = 1
SETTINGS = "bridge.json"
PIPELINE = "pipeline.onnx"
Array = npt.NDArray[np.float32]
Images = TypeVar("Images", Array, list[Image.Image])


class Step(NamedTuple):
    """One step of :meth:`OnnxBridgeSampler.stream`, as :class:`bbdm.sampler.Step`, of arrays."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # row of the table
    t: int
    x: Array  # (B, C, H, W) the state after the step; with a codec, a latent on the padded grid
    x0hat: Array  # the estimate of the target that the step was made with, alike


class OnnxBridgeSampler:
    """Translates images with an exported network, called as :class:`bbdm.BridgeSampler` is.

    Args:
        folder: what ``export/to_onnx.py`` wrote.
        providers: execution providers of ONNX Runtime, the preferred first, with or without options; None for
            CUDA where this ONNX Runtime has it, and else the CPU.
        threads: of the CPU provider; None for one a core.
        solver: another solver than the one exported, as for
        steps: another number of network evaluations, and
        timesteps: other times; see :func:`bbdm.solvers.build`.

    On CUDA the state stays on the device between steps. Threads may share a sampler. ``table`` is its
    :class:`~bbdm.solvers.StepTable`, ``settings`` the content of ``bridge.json``.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file was changed, is of a newer version or of another export; an unknown provider, or
            one that does not start.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        *,
        solver: str | None = None,
        steps: int | None = None,
        timesteps: str | Iterable[int] | None = None,
    ) -> None:
        folder = Path(folder)
        self.settings = read_settings(folder)
        self.providers = with_options(providers)
        self.static: tuple[int, int, int] | None = None
        if self.settings["static"] is not None:
            self.static = cast(tuple[int, int, int], tuple(self.settings["static"]))
        if solver is steps is timesteps is None:
            stored = (np.array(self.settings[name]) for name in ("timesteps", "prediction", "coefficients"))
            self.table = solvers.StepTable(*stored)
        else:
            bridge = bridges.from_config(self.settings["bridge"])
            self.table = solvers.build(bridge, solver or self.settings["solver"], timesteps, steps)
        self.graphs = {
            name.removesuffix(".onnx"): Session(folder / name, self.providers, threads)
            for name in self.settings["files"]
            if name.endswith(".onnx") and name != PIPELINE
        }
        device = self.graphs["unet"].device
        self._rows = [device.put(row) for row in self.table.rows.astype(np.float32)]
        self._times = [device.put(np.array([t])) for t in self.table.timesteps]
        self._silence = device.put(np.zeros((1, 1, 1, 1), np.float32))
        self._device = device
        self._thread = threading.local()

    @property
    def last_seeds(self) -> tuple[int, ...]:
        """The seed of each image in this thread's last call. Empty before the first call."""
        return getattr(self._thread, "seeds", ())

    @overload
    def __call__(
        self,
        source: Array,
        seed: int | Sequence[int] | None = None,
        noise: Array | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Array: ...
    @overload
    def __call__(
        self,
        source: Image.Image | list[Image.Image],
        seed: int | Sequence[int] | None = None,
        noise: Array | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> list[Image.Image]: ...
    def __call__(
        self,
        source: Array | Image.Image | list[Image.Image],
        seed: int | Sequence[int] | None = None,
        noise: Array | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Array | list[Image.Image]:
        """Translate images.

        Args:
            source: (B, C, H, W) float array in [-1, 1], a picture, or a list of pictures of any sizes.
            seed: image i gets the seed ``seed + i``, or one each from a list. None draws one; ``last_seeds``
                tells it.
            noise: (K, B, C, H, W) standard normals in place of a seed, on the grid that the network sees.
            batch_size: at most so many images at once; None for all.
            progress: tell on standard error how many network evaluations are done.

        Returns:
            A float32 array like ``source``, clamped to [-1, 1], or a list of pictures.

        Raises:
            ValueError: something that cannot be taken; it names the argument, what it got and what it wants.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        channels = self.settings["image_channels"]
        if isinstance(source, np.ndarray):
            images.check(source, channels)
            noise = self._check_noise(noise, source)
            return self._translate(source, self._seeds(seed, len(source)), noise, batch_size, progress)
        pictures = [source] if isinstance(source, Image.Image) else source
        if not isinstance(pictures, list | tuple) or not all(isinstance(p, Image.Image) for p in pictures):
            raise ValueError(f"source must be an array, a PIL picture or a list of them, got {type(source).__name__}")
        if not pictures:
            raise ValueError("source must hold at least one picture, got an empty list")
        if noise is not None and len({p.size for p in pictures}) > 1:
            raise ValueError("noise needs pictures of one size, got several")
        arrays = [images.to_array(picture, channels) for picture in pictures]
        every = self._seeds(seed, len(pictures))
        results: dict[int, Image.Image] = {}
        for chosen in images.by_size(arrays):
            batch = np.stack([arrays[i] for i in chosen])
            noise = self._check_noise(noise, batch)
            made = self._translate(batch, [every[i] for i in chosen], noise, batch_size, progress)
            results.update(zip(chosen, map(images.from_array, made), strict=True))
        return [results[i] for i in range(len(pictures))]

    def stream(
        self, source: Array, seed: int | Sequence[int] | None = None, noise: Array | None = None
    ) -> Iterator[Step]:
        """The same translation of an array one step at a time; arguments as for a call."""
        if not isinstance(source, np.ndarray):
            raise ValueError(f"source must be an array, got {type(source).__name__}")
        images.check(source, self.settings["image_channels"])
        if self.static is not None and len(source) != self.static[0]:
            raise ValueError(f"source must hold {self.static[0]} images for this export, got {len(source)}")
        seeds, noise = self._seeds(seed, len(source)), self._check_noise(noise, source)
        return self._stream(source, seeds, noise)

    def _stream(self, source: Array, seeds: Sequence[int], noise: Array | None) -> Iterator[Step]:
        height, width = (side // self.settings["latent_stride"] for side in source.shape[2:])
        crop = (..., slice(height), slice(width)) if "encoder" not in self.graphs else (...,)
        for index, (x, x0hat) in enumerate(self._run(source, seeds, noise)):
            yield Step(index, int(self.table.timesteps[index]), x.numpy()[crop], x0hat.numpy()[crop])

    def _translate(
        self, source: Array, seeds: list[int], noise: Array | None, batch_size: int | None, progress: bool
    ) -> Array:
        size = min(batch_size or len(source), len(source)) if self.static is None else self.static[0]
        parts: list[Array] = []
        for start in range(0, len(source), size):
            chosen = list(range(start, min(start + size, len(source))))
            short = 0 if self.static is None else size - len(chosen)
            chosen += chosen[-1:] * short  # a static graph takes a whole batch
            part = None if noise is None else noise[:, chosen]
            label = f"image {start + 1} of {len(source)}" if progress else None
            run = self._run(source[chosen], [seeds[i] for i in chosen], part, label)
            state = deque(run, maxlen=1).pop()
            (x,) = self.graphs["decoder"].run({"latent": state[0]}) if "decoder" in self.graphs else state[:1]
            parts.append(x.numpy()[: size - short if short else None, :, : source.shape[2], : source.shape[3]])
        if progress:
            print(file=sys.stderr)
        return np.concatenate(parts).clip(-1, 1)

    def _run(
        self, source: Array, seeds: Sequence[int], noise: Array | None, label: str | None = None
    ) -> Iterator[tuple[onnxruntime.OrtValue, onnxruntime.OrtValue]]:
        """State and estimate after each step, on the device; a label is told with each."""
        y = self._start(source)
        x = x0hat = y
        shape = tuple(y.shape())[1:]
        for index, (row, time) in enumerate(zip(self._rows, self._times, strict=True)):
            inputs = {"x": x, "t": time} | ({"condition": y} if self.settings["conditioned"] else {})
            (prediction,) = self.graphs["unet"].run(inputs)
            z = self._silence
            if self.table.coefficients[index, 4]:
                z = self._device.put(normal(seeds, index, shape) if noise is None else noise[index])
            x, x0hat = self.graphs["step"].run(
                {"x": x, "x0hat": x0hat, "prediction": prediction, "y": y, "z": z, "row": row}
            )
            if label is not None:
                print(f"\r{label}, step {index + 1} of {len(self.table)}", end="", file=sys.stderr, flush=True)
            yield x, x0hat

    def _start(self, source: Array) -> onnxruntime.OrtValue:
        """The source in the space of the bridge, padded below and to the right to what the network can take."""
        height, width = self._padded(*source.shape[2:])
        if self.static is not None and (height, width) != self.static[1:]:
            sizes = f"{self.static[1]} x {self.static[2]}", f"{source.shape[2]} x {source.shape[3]}"
            raise ValueError(f"this export takes pictures of height x width {sizes[0]} only, got {sizes[1]}")
        padding = ((0, 0), (0, 0), (0, height - source.shape[2]), (0, width - source.shape[3]))
        image = self._device.put(np.pad(source.astype(np.float32), padding, mode="edge"))
        return self.graphs["encoder"].run({"image": image})[0] if "encoder" in self.graphs else image

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        stride = self.settings["stride"]
        return height + -height % stride, width + -width % stride

    def _seeds(self, seed: int | Sequence[int] | None, count: int) -> list[int]:
        chosen = resolve_seeds(seed, count)
        self._thread.seeds = tuple(chosen)
        return chosen

    def _check_noise(self, noise: Array | None, source: Array) -> Array | None:
        if noise is None:
            return None
        sides = (side // self.settings["latent_stride"] for side in self._padded(*source.shape[2:]))
        wanted = (len(self.table), len(source), self.settings["channels"], *sides)
        if noise.shape != wanted:
            raise ValueError(f"noise must have shape {wanted}, got {noise.shape}")
        if not np.isfinite(noise).all():
            raise ValueError("noise must be finite, got NaN or infinity")
        return noise.astype(np.float32)


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of an export's ``bridge.json``, after its files were compared with their hashes.

    Raises:
        FileNotFoundError, ValueError: see :class:`OnnxBridgeSampler`.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {folder} is not what export/to_onnx.py writes")
    try:
        settings = json.loads(path.read_text())
        if settings["format"] != FORMAT:
            raise ValueError(f"its format is {settings['format']!r}, not {FORMAT!r}")
        if settings["version"] > VERSION:
            raise ValueError(f"version {settings['version']} is newer than this library reads ({VERSION}): update bbdm")
        files = dict(settings["files"])
        missing = {"unet.onnx", "step.onnx"} - files.keys()
        if missing:
            raise ValueError(f"it lists no {sorted(missing)[0]}")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"missing entry {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"cannot read {path}: {reason}") from error
    files.pop(PIPELINE, None)  # for other programs: who ships one of the two may leave out the other
    for name, digest in files.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which its {SETTINGS} lists")
        if file_sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not what {SETTINGS} describes: it is damaged, or of another export")
    return settings
