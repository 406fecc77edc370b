"""BridgeSampler: source image in, translated image out. The one loop over a step table is here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm

from bbdm import solvers
from bbdm.base import images
from bbdm.base.atomic import check_place
from bbdm.base.seeds import resolve_seeds
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.execution.compiled import Compiled
from bbdm.execution.device import best_dtype, find_device
from bbdm.execution.graph import GraphedLoop
from bbdm.execution.loop import Loop, State
from bbdm.execution.package import PackagedNetwork, save_package
from bbdm.files.checkpoint import load_checkpoint
from bbdm.network import placed
from bbdm.networks.unet import UNet


class Step(NamedTuple):
    """One step of :meth:`BridgeSampler.stream`, in the space of the bridge; without a codec, sizes as the source's."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # row of the table
    t: int  # the time that the network saw
    x: torch.Tensor  # (B, C, H, W) the state after the step; with a codec, a latent on the padded grid
    x0hat: torch.Tensor  # the estimate of the target that the step was made with, alike


class BridgeSampler:
    """Translates images with a trained network.

    Args:
        unet: the network. It is used as it is where it already stands on ``device`` in ``dtype`` and in
            evaluation mode, and copied otherwise, so that the one given is never changed. Nor may you change
            its weights later: what depends on the time alone is computed here, once.
        bridge: what it was trained on.
        solver: see :func:`bbdm.solvers.build`, as for
        steps: number of network evaluations, and
        timesteps: the times themselves or a named list.
        codec: what stands between pictures and the space that the network was trained in; None for image
            space. Sources and results are pictures all the same. Treated as ``unet`` is.
        clamp: None, or (low, high) for every estimate of the target.
        device: where to run; None for the network's own.
        dtype: what the network computes in; None for its own, or for the fastest that the device has where it
            is compiled. The state is float32 (float64 for a float64 network).
        compile: compile the network at the first call with each size and number of images, which takes up to
            a minute, and on CUDA run all steps as one graph. A failure to compile is an error.
        compiled: a package that :meth:`save_compiled` wrote, in place of ``compile``: it takes a second to
            load. It translates images of one size, so many at a time as it was saved for, in its own dtype.
            It holds machine code, so load only your own.

    Threads may share a sampler. ``table`` is its :class:`~bbdm.solvers.StepTable`, ``unet`` its network, and
    ``image_size`` the side or (height, width) of the pictures that it was trained on, where its checkpoint
    tells.

    Raises:
        FileNotFoundError: there is no such package.
        ValueError: an argument is out of range, or the package is of another network or machine.
    """

    def __init__(
        self,
        unet: UNet,
        bridge: Bridge,
        solver: str = solvers.DEFAULT,
        steps: int | None = None,
        timesteps: str | Iterable[int] | None = None,
        *,
        codec: Codec | None = None,
        clamp: tuple[float, float] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        compiled: str | os.PathLike[str] | None = None,
    ) -> None:
        if clamp is not None and not (len(clamp) == 2 and clamp[0] < clamp[1]):
            raise ValueError(f"clamp must be None or (low, high) with low < high, got {clamp}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
        if codec is not None and codec.channels != unet.config.in_channels:
            raise ValueError(f"codec must have the network's {unet.config.in_channels} channels, got {codec.channels}")
        weight = next(unet.parameters())
        self.device = weight.device if device is None else find_device(device)
        fast = compile or compiled is not None
        if fast and self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"compiled networks run on cpu and cuda, got device {self.device}")
        if compile and compiled is not None:
            raise ValueError("compile and compiled exclude each other: a package is compiled already")
        self.package = None if compiled is None else PackagedNetwork(compiled, unet, self.device)
        if self.package is not None and dtype not in (None, self.package.dtype):
            raise ValueError(f"dtype must be that of {compiled}, {self.package.dtype}, got {dtype}")
        if self.package is not None:
            dtype = self.package.dtype
        elif dtype is None:
            dtype = best_dtype(self.device) if compile and weight.dtype == torch.float32 else weight.dtype
        self.dtype = dtype
        self.bridge = bridge
        self.clamp = clamp
        self.compile = compile
        self.image_size: images.Size | None = None
        self.table = solvers.build(bridge, solver, timesteps, steps)
        self.unet = unet if self.package else placed(unet, self.device, dtype)
        network = self.package or (Compiled(self.unet.trunk, self.device) if compile else self.unet.trunk)
        if codec is not None:
            codec = codec.placed(self.device, dtype if dtype == torch.bfloat16 else torch.float32)
        self.codec = codec if codec is None or not compile else codec.compiled(self._compiled)
        self._channels = unet.config.in_channels if codec is None else codec.image_channels
        self._stride = unet.config.stride * (1 if codec is None else codec.stride)
        self._loop = Loop(unet, network, self.table, clamp, self.device, dtype)
        self._graphed = GraphedLoop(self._loop) if fast and self.device.type == "cuda" else None
        self._thread = threading.local()

    @property
    def last_seeds(self) -> tuple[int, ...]:
        """The seed of each image in this thread's last call: what seed=None drew. Empty before the first call."""
        return getattr(self._thread, "seeds", ())

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        ema: bool = True,
        codec: Codec | None = None,
        *,
        num_steps: int | None = None,
        c_lambda: float | None = None,
        config: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> BridgeSampler:
        """A sampler from a file.

        Args:
            path: what :func:`~bbdm.files.checkpoint.load_checkpoint` reads.
            ema: pick the averaged weights where the file has both.
            codec: for a file of a latent network that holds none; as
            num_steps: T,
            c_lambda: the noise scale, and
            config: the original BBDM's YAML, for files that leave them out.
            **settings: as above.
        """
        checkpoint = load_checkpoint(path, num_steps, c_lambda, codec, config)
        sampler = cls(checkpoint.build_unet(ema), checkpoint.bridge, codec=checkpoint.build_codec(), **settings)
        sampler.image_size = checkpoint.image_size
        return sampler

    def save_compiled(
        self, path: str | os.PathLike[str], batch_size: int = 1, size: tuple[int, int] | None = None
    ) -> None:
        """Compile the network into a package, from which a new process starts in seconds.

        The package fits these weights, this machine with its number of threads, and this version of torch:
        with any other it is refused. Solver and steps are free: they stay with the sampler that loads it.

        Args:
            path: where to write, such as ``unet.pt2``.
            batch_size: so many images at a time.
            size: their (height, width); None for the size that the network was trained on, where that is
                known.

        Raises:
            ValueError: the sampler was not built with ``compile=True``, the size is not known, or ``path`` is
                a folder.
        """
        if not self.compile:
            raise ValueError("save_compiled needs a sampler that was built with compile=True")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if size is None:
            if self.image_size is None:
                raise ValueError("size must be given as (height, width): no checkpoint tells it")
            size = images.sides(self.image_size)
        check_place(Path(path))  # before minutes of compiling
        save_package(path, self.unet, self._grid(batch_size, *size))

    @overload
    def __call__(
        self,
        source: torch.Tensor,
        seed: int | Sequence[int] | None = None,
        noise: torch.Tensor | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> torch.Tensor: ...
    @overload
    def __call__(
        self,
        source: Image.Image | list[Image.Image],
        seed: int | Sequence[int] | None = None,
        noise: torch.Tensor | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> list[Image.Image]: ...
    def __call__(
        self,
        source: torch.Tensor | Image.Image | list[Image.Image],
        seed: int | Sequence[int] | None = None,
        noise: torch.Tensor | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> torch.Tensor | list[Image.Image]:
        """Translate images.

        Args:
            source: (B, C, H, W) float tensor in [-1, 1], a picture, or a list of pictures of any sizes.
            seed: image i gets the seed ``seed + i``, or one each from a list. The same seed gives the same
                image at every batch size. None draws one; ``last_seeds`` tells it.
            noise: (K, B, C, H, W) standard normals in place of a seed, on the grid that the network sees.
            batch_size: at most so many images at once; None for all. A compiled sampler runs exactly so many,
                filling up what is short: calls with one ``batch_size`` compile once for each size of picture.
            progress: show a bar over network evaluations.

        Returns:
            A tensor like ``source``, clamped to [-1, 1], or a list of pictures.

        Raises:
            ValueError: something that cannot be taken; it names the argument, what it got and what it wants.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size is not None and self.package and batch_size < self.package.shape[0]:
            raise ValueError(f"batch_size must be at least the package's {self.package.shape[0]}, got {batch_size}")
        if isinstance(source, torch.Tensor):
            images.check(source, self._channels)
            noise = self._check_noise(noise, source)
            return self._translate(source, self._seeds(seed, len(source)), noise, batch_size, progress)
        pictures = [source] if isinstance(source, Image.Image) else source
        if not isinstance(pictures, list | tuple) or not all(isinstance(p, Image.Image) for p in pictures):
            raise ValueError(f"source must be a tensor, a PIL picture or a list of them, got {type(source).__name__}")
        if not pictures:
            raise ValueError("source must hold at least one picture, got an empty list")
        if noise is not None and len({p.size for p in pictures}) > 1:
            raise ValueError("noise needs pictures of one size, got several")
        tensors = [images.from_pil(picture, self._channels) for picture in pictures]
        every = self._seeds(seed, len(pictures))
        results: dict[int, Image.Image] = {}
        for chosen in images.by_size(tensors):
            batch = torch.stack([tensors[i] for i in chosen])
            noise = self._check_noise(noise, batch)
            made = self._translate(batch, [every[i] for i in chosen], noise, batch_size, progress)
            results.update(zip(chosen, map(images.to_pil, made), strict=True))
        return [results[i] for i in range(len(pictures))]

    def stream(
        self, source: torch.Tensor, seed: int | Sequence[int] | None = None, noise: torch.Tensor | None = None
    ) -> Iterator[Step]:
        """The same translation of a tensor one step at a time, for progress and previews; arguments as for a
        call.

        The last step's ``x`` is what a call returns, before it is clamped to [-1, 1]. With a codec, steps are
        latents, of which ``sampler.codec.decode`` makes pictures.
        """
        if not isinstance(source, torch.Tensor):
            raise ValueError(f"source must be a (B, {self._channels}, H, W) tensor, got {type(source).__name__}")
        images.check(source, self._channels)
        return self._stream(source, self._seeds(seed, len(source)), self._check_noise(noise, source))

    @torch.inference_mode()
    def _stream(self, source: torch.Tensor, seeds: Sequence[int], noise: torch.Tensor | None) -> Iterator[Step]:
        state = self._start(source, seeds, noise)
        height, width = source.shape[-2:]
        if self.codec is not None:
            height, width = state.x.shape[-2:]
        for index, t in enumerate(self.table.timesteps.tolist()):
            self._loop.advance(state, index)
            yield Step(index, t, state.x[..., :height, :width].clone(), state.x0hat[..., :height, :width].clone())

    def _translate(
        self,
        source: torch.Tensor,
        seeds: list[int],
        noise: torch.Tensor | None,
        batch_size: int | None,
        progress: bool,
    ) -> torch.Tensor:
        count = len(source)
        size = self.package.shape[0] if self.package else batch_size or count
        if not self.compile and not self.package:
            size = min(size, count)
        starts = range(0, count, size)
        parts: list[torch.Tensor] = []
        with tqdm(total=len(starts) * len(self.table), disable=not progress, unit="step") as bar:
            for start in starts:
                chosen = list(range(start, min(start + size, count)))
                short = size - len(chosen)
                if self.compile or self.package:  # a short last part is filled up: cheaper than to compile for its size
                    chosen += chosen[-1:] * short
                part = None if noise is None else noise[:, chosen]
                x = self._run(source[chosen], [seeds[i] for i in chosen], part, bar)
                parts.append(x[: size - short].clamp(-1, 1).to(source.device, source.dtype))
        return torch.cat(parts)

    @torch.inference_mode()
    def _run(
        self, source: torch.Tensor, seeds: Sequence[int], noise: torch.Tensor | None, bar: tqdm[Any]
    ) -> torch.Tensor:
        """The result for images that fit into one batch."""
        if self._graphed is not None and noise is None:
            x = self._graphed(self._to_device(source), self._keys(seeds))
            bar.update(len(self.table))
        else:
            state = self._start(source, seeds, noise)
            for index in range(len(self.table)):
                self._loop.advance(state, index)
                bar.update()
            x = state.x
        if self.codec is not None:
            x = self.codec.decode(x)
        return x[..., : source.shape[2], : source.shape[3]]

    def _start(self, source: torch.Tensor, seeds: Sequence[int], noise: torch.Tensor | None) -> State:
        if noise is not None:
            noise = noise.to(self.device, self._loop.state_dtype)
        return self._loop.start(self._to_device(source), self._keys(seeds), noise)

    def _keys(self, seeds: Sequence[int]) -> torch.Tensor:
        return torch.tensor(seeds, dtype=torch.int64, device=self.device)

    def _to_device(self, source: torch.Tensor) -> torch.Tensor:
        """The source in the space of the bridge, of a size that the network can take, in memory of its own.

        Pictures are padded below and to the right, where the edge is repeated.
        """
        height, width = source.shape[-2:]
        padding = (0, -width % self._stride, 0, -height % self._stride)
        if self.codec is None:
            y = F.pad(source.to(self.device, self._loop.state_dtype), padding, mode="replicate")
            return y.clone(memory_format=torch.channels_last)
        image = F.pad(source.to(self.device, torch.float32), padding, mode="replicate")
        y = self.codec.encode(image, "source")
        return y.to(self._loop.state_dtype).contiguous(memory_format=torch.channels_last)

    def _grid(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the bridge's space for pictures of a size."""
        stride = 1 if self.codec is None else self.codec.stride
        height, width = (-(-side // self._stride) * self._stride // stride for side in (height, width))
        return batch, self.unet.config.in_channels, height, width

    def _compiled(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return Compiled(function, self.device)

    def _seeds(self, seed: int | Sequence[int] | None, count: int) -> list[int]:
        """One seed for each image of a call, kept as this thread's ``last_seeds``."""
        chosen = resolve_seeds(seed, count)
        self._thread.seeds = tuple(chosen)
        return chosen

    def _check_noise(self, noise: torch.Tensor | None, source: torch.Tensor) -> torch.Tensor | None:
        if noise is None:
            return None
        batch, _, height, width = source.shape
        wanted = (len(self.table), *self._grid(batch, height, width))
        if not isinstance(noise, torch.Tensor):
            raise ValueError(f"noise must be a tensor, got {type(noise).__name__}")
        if tuple(noise.shape) != wanted:
            raise ValueError(f"noise must have shape {wanted}, got {tuple(noise.shape)}")
        if not noise.isfinite().all():
            raise ValueError("noise must be finite, got NaN or infinity")
        return noise
