"""What a call of any sampler does: seeds, pictures, checks, padding, batches, progress.

:class:`bbdm.BridgeSampler` and :class:`bbdm.runtime.OnnxBridgeSampler` differ in their arrays and in how they
run a batch. All else is here, and needs neither PyTorch nor ONNX Runtime.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.base import images
from bbdm.base.seeds import resolve_seeds

Array = TypeVar("Array")
Seed = int | Sequence[int] | None
Advance = Callable[[int], Any]  # reports a number of network evaluations as done


class Step(NamedTuple):
    """One step of a stream, in the space of the bridge. Without a codec, sizes are the source's."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # row of the table
    t: int  # the time that the network saw
    x: Any  # (B, C, H, W) the state after the step, an array of the source's kind; with a codec, a padded latent
    x0hat: Any  # the estimate of the target that the step was made with; shape and kind of x


class FrontEnd(ABC, Generic[Array]):
    """A sampler that calls a network on batches of ``Array``; a subclass says what that is and runs a batch.

    Args:
        times: the time of each step.
        image_channels: channels of pictures.
        channels: channels of the bridge's space.
        stride: the height and width of pictures are padded to multiples of it.
        latent_stride: pixels of a picture along one of the bridge's space.
        batch: the only number of images that the network takes, or None.
        fill: repeat the last image where a batch is short, so that all batches have one size.
    """

    kind: type[Any]  # of arrays
    noun: str  # for messages: "a tensor"
    _from_numpy: Callable[[npt.NDArray[np.float32]], Any]  # to an array of this kind
    _concatenate: Callable[[list[Any]], Any]  # batches to one

    def __init__(
        self,
        times: Sequence[int],
        image_channels: int,
        channels: int,
        stride: int,
        latent_stride: int,
        batch: int | None,
        fill: bool,
    ) -> None:
        self._step_times = list(times)
        self._image_channels = image_channels
        self._channels = channels
        self._stride = stride
        self._latent_stride = latent_stride
        self._batch = batch
        self._fill = fill
        self._thread = threading.local()

    @property
    def last_seeds(self) -> tuple[int, ...]:
        """The seed of each image in this thread's last call, drawn or given. Empty before the first call."""
        return getattr(self._thread, "seeds", ())

    @overload
    def __call__(
        self,
        source: Array,
        seed: Seed = None,
        noise: Array | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Array: ...
    @overload
    def __call__(
        self,
        source: Image.Image | list[Image.Image],
        seed: Seed = None,
        noise: Array | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> list[Image.Image]: ...
    def __call__(
        self,
        source: Any,
        seed: Seed = None,
        noise: Array | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Array | list[Image.Image]:
        """Translate images.

        Args:
            source: (B, C, H, W) floats in [-1, 1], a picture, or a list of pictures of any sizes.
            seed: image i gets the seed ``seed + i``, or one each from a list. The same seed gives the same
                image at every batch size. None draws one; see ``last_seeds``.
            noise: (K, B, C, H, W) standard normals in place of a seed, on the grid that the network sees.
            batch_size: the largest number of images at once; None for all. A compiled sampler repeats the
                last image where fewer are left, so calls with one ``batch_size`` compile once for each size
                of picture.
            progress: show the network evaluations that are done on standard error.

        Returns:
            Floats like ``source``, clamped to [-1, 1], or a list of pictures.

        Raises:
            ValueError: an argument is refused; the message says what was got and what is wanted.
        """
        self._check_batch_size(batch_size)
        if isinstance(source, self.kind):
            return self._translate(source, self._checked(source, seed, noise), noise, batch_size, progress)
        pictures = [source] if isinstance(source, Image.Image) else source
        if not isinstance(pictures, list | tuple) or not all(isinstance(p, Image.Image) for p in pictures):
            got = type(source).__name__
            raise ValueError(f"source must be {self.noun}, a PIL picture or a list of them, got {got}")
        if not pictures:
            raise ValueError("source must hold at least one picture, got an empty list")
        if noise is not None and len({p.size for p in pictures}) > 1:
            raise ValueError("noise needs pictures of one size, got several")
        arrays = [images.to_array(picture, self._image_channels) for picture in pictures]
        seeds = self._seeds(seed, len(pictures))
        results: dict[int, Image.Image] = {}
        for chosen in images.by_size(arrays):
            batch = np.stack([arrays[i] for i in chosen])
            self._check_noise(noise, batch.shape)
            made = self._translate(self._from_numpy(batch), [seeds[i] for i in chosen], noise, batch_size, progress)
            results.update(zip(chosen, map(images.from_array, np.asarray(made)), strict=True))
        return [results[i] for i in range(len(pictures))]

    def stream(self, source: Array, seed: Seed = None, noise: Array | None = None) -> Iterator[Step]:
        """The same translation one step at a time, for progress and previews; arguments as for a call.

        The last step's ``x`` is what a call returns, before it is clamped to [-1, 1]. With a codec, steps are
        latents, which the codec decodes to pictures.
        """
        if not isinstance(source, self.kind):
            wanted = f"a (B, {self._image_channels}, H, W) {self.noun.split()[-1]}"
            raise ValueError(f"source must be {wanted}, got {type(source).__name__}")
        seeds = self._checked(source, seed, noise)
        return self._cropped(self._steps(source, seeds, noise), source)

    def _cropped(self, steps: Iterator[tuple[Any, Any]], source: Any) -> Iterator[Step]:
        height, width = source.shape[2:]
        crop = (..., slice(height), slice(width)) if self._latent_stride == 1 else (...,)
        for index, (x, x0hat) in enumerate(steps):
            yield Step(index, self._step_times[index], x[crop], x0hat[crop])

    def _translate(self, source: Any, seeds: list[int], noise: Any, batch_size: int | None, progress: bool) -> Array:
        count, (height, width) = len(source), source.shape[2:]
        size = self._batch or batch_size or count
        starts = range(0, count, size)
        parts: list[Any] = []
        with (
            self._progress(len(starts) * len(self._step_times)) if progress else nullcontext(lambda _: None) as advance
        ):
            for start in starts:
                chosen = list(range(start, min(start + size, count)))
                filled = chosen + chosen[-1:] * (size - len(chosen)) if self._fill else chosen
                part = None if noise is None else noise[:, filled]
                made: Any = self._run(source[filled], [seeds[i] for i in filled], part, advance)
                parts.append(made[: len(chosen), :, :height, :width].clip(-1, 1))
        return self._concatenate(parts)

    def _checked(self, source: Any, seed: Seed, noise: Any) -> list[int]:
        """Check a batch and its noise, and return its seeds."""
        images.check(source, self._image_channels)
        self._check_noise(noise, source.shape)
        return self._seeds(seed, len(source))

    def _seeds(self, seed: Seed, count: int) -> list[int]:
        """One seed for each image of a call, stored as this thread's ``last_seeds``."""
        seeds = resolve_seeds(seed, count)
        self._thread.seeds = tuple(seeds)
        return seeds

    def _check_batch_size(self, batch_size: int | None) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")

    def _check_noise(self, noise: Any, shape: Sequence[int]) -> None:
        """Raise ValueError unless noise is None or finite normals for a source of a shape."""
        if noise is None:
            return
        if not isinstance(noise, self.kind):
            raise ValueError(f"noise must be {self.noun}, got {type(noise).__name__}")
        wanted = (len(self._step_times), *self._grid(shape[0], shape[2], shape[3]))
        if tuple(noise.shape) != wanted:
            raise ValueError(f"noise must have shape {wanted}, got {tuple(noise.shape)}")
        if not np.isfinite(float(abs(noise).max())):
            raise ValueError("noise must be finite, got NaN or infinity")

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        """The size of pictures after padding."""
        return height + -height % self._stride, width + -width % self._stride

    def _grid(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the bridge's space for pictures of a size."""
        height, width = (side // self._latent_stride for side in self._padded(height, width))
        return batch, self._channels, height, width

    @abstractmethod
    def _progress(self, total: int) -> AbstractContextManager[Advance]:
        """A display of a number of network evaluations, and the function that advances it."""

    @abstractmethod
    def _run(self, source: Array, seeds: Sequence[int], noise: Array | None, advance: Advance) -> Array:
        """The padded result of one batch, on the source's device; reports network evaluations."""

    @abstractmethod
    def _steps(self, source: Array, seeds: Sequence[int], noise: Array | None) -> Iterator[tuple[Array, Array]]:
        """State and estimate after each step, padded, in memory of their own."""
