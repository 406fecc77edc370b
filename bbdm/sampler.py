"""BridgeSampler: translates images with a trained network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from bbdm import solvers
from bbdm.base import images
from bbdm.base.atomic import check_place
from bbdm.base.frontend import Advance, FrontEnd
from bbdm.base.frontend import Step as Step
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


class BridgeSampler(FrontEnd[torch.Tensor]):
    """Translates images with a trained network.

    Args:
        unet: the network. It is used directly where it is on ``device`` in ``dtype`` and in evaluation mode,
            and copied otherwise; the one given is never changed. Do not change its weights later: what
            depends on the time alone is computed here, once.
        bridge: what it was trained on.
        solver: see :func:`bbdm.solvers.build`, as for
        steps: number of network evaluations, and
        timesteps: the times themselves or a named list.
        codec: between pictures and the space that the network was trained in; None for image space. Sources
            and results are pictures in both cases. Used or copied as ``unet`` is.
        clamp: None, or (low, high) for every estimate of the target.
        device: where to run; None for the network's own.
        dtype: of the network's computation; None for its own, or for the fastest on the device with
            ``compile``. The state is float32 (float64 for a float64 network).
        compile: compile the network at the first call with each size and number of images, which takes up to
            a minute, and on CUDA run all steps as one graph. A failure to compile is an error.
        compiled: a package that :meth:`save_compiled` wrote, in place of ``compile``; it loads in a second.
            It translates images of one size, the number at a time that it was saved for, in its own dtype.
            It holds machine code: load only your own.

    Threads may share a sampler. ``table`` is its :class:`~bbdm.solvers.StepTable`, ``unet`` its network, and
    ``image_size`` the side or (height, width) of its training pictures, or None where no checkpoint gives it.

    Raises:
        FileNotFoundError: there is no such package.
        ValueError: an argument is out of range, or the package is of another network or machine.
    """

    kind = torch.Tensor
    noun = "a tensor"
    _from_numpy = staticmethod(torch.from_numpy)
    _concatenate = staticmethod(torch.cat)

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
        weight = next(unet.parameters())
        self.device = weight.device if device is None else find_device(device)
        fast = compile or compiled is not None
        _check_arguments(unet, codec, clamp, dtype)
        _check_compilation(self.device, compile, compiled)
        self.package = None if compiled is None else PackagedNetwork(compiled, unet, self.device)
        self.dtype = _choose_dtype(dtype, weight.dtype, self.device, compile, self.package)
        self.bridge = bridge
        self.clamp = clamp
        self.compile = compile
        self.image_size: images.Size | None = None
        self.table = solvers.build(bridge, solver, timesteps, steps)
        self.unet = unet if self.package else placed(unet, self.device, self.dtype)
        network = self.package or (Compiled(self.unet.trunk, self.device) if compile else self.unet.trunk)
        if codec is not None:
            codec = codec.placed(self.device, self.dtype if self.dtype == torch.bfloat16 else torch.float32)
        self.codec = codec if codec is None or not compile else codec.compiled(partial(Compiled, device=self.device))
        channels = unet.config.in_channels
        latent_stride = 1 if codec is None else codec.stride
        super().__init__(
            self.table.timesteps.tolist(),
            image_channels=channels if codec is None else codec.image_channels,
            channels=channels,
            stride=unet.config.stride * latent_stride,
            latent_stride=latent_stride,
            batch=self.package.shape[0] if self.package else None,
            fill=fast,  # cheaper than to compile for a short batch
        )
        self._loop = Loop(unet, network, self.table, clamp, self.device, self.dtype)
        self._graphed = GraphedLoop(self._loop) if fast and self.device.type == "cuda" else None

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

        ``path``, ``codec``, ``num_steps``, ``c_lambda`` and ``config`` are as for
        :func:`~bbdm.files.checkpoint.load_checkpoint`, and ``settings`` as for the constructor. ``ema`` takes
        the averaged weights where the file has both.
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
        any other is refused. Solver and steps are free: the sampler that loads the package has its own.

        Args:
            path: where to write, such as ``unet.pt2``.
            batch_size: number of images at a time.
            size: their (height, width); None for the size of the training pictures, where that is known.

        Raises:
            ValueError: the sampler was not built with ``compile=True``, the size is not known, ``path`` is a
                folder, or packages were not tested with this version of torch.
        """
        if not self.compile:
            raise ValueError("save_compiled needs a sampler that was built with compile=True")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if size is None:
            if self.image_size is None:
                raise ValueError("size must be given as (height, width): the sampler has no image_size")
            size = images.sides(self.image_size)
        check_place(Path(path))  # before minutes of compiling
        save_package(path, self.unet, self._grid(batch_size, *size))

    def _check_batch_size(self, batch_size: int | None) -> None:
        super()._check_batch_size(batch_size)
        if batch_size is not None and self.package and batch_size < self.package.shape[0]:
            raise ValueError(f"batch_size must be at least the package's {self.package.shape[0]}, got {batch_size}")

    @contextmanager
    def _progress(self, total: int) -> Iterator[Advance]:
        with tqdm(total=total, unit="step") as bar:
            yield bar.update

    @torch.inference_mode()
    def _run(
        self, source: torch.Tensor, seeds: Sequence[int], noise: torch.Tensor | None, advance: Advance
    ) -> torch.Tensor:
        if self._graphed is not None and noise is None:
            x = self._graphed(self._to_device(source), self._keys(seeds))
            advance(len(self.table))
        else:
            state = self._start(source, seeds, noise)
            for index in range(len(self.table)):
                self._loop.advance(state, index)
                advance(1)
            x = state.x
        if self.codec is not None:
            x = self.codec.decode(x)
        return x.to(source.device, source.dtype)

    @torch.inference_mode()
    def _steps(
        self, source: torch.Tensor, seeds: Sequence[int], noise: torch.Tensor | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        state = self._start(source, seeds, noise)
        for index in range(len(self.table)):
            self._loop.advance(state, index)
            yield state.x.clone(), state.x0hat.clone()  # the next step overwrites them

    def _start(self, source: torch.Tensor, seeds: Sequence[int], noise: torch.Tensor | None) -> State:
        if noise is not None:
            noise = noise.to(self.device, self._loop.state_dtype)
        return self._loop.start(self._to_device(source), self._keys(seeds), noise)

    def _keys(self, seeds: Sequence[int]) -> torch.Tensor:
        return torch.tensor(seeds, dtype=torch.int64, device=self.device)

    def _to_device(self, source: torch.Tensor) -> torch.Tensor:
        """The source in the space of the bridge, padded, in memory of its own.

        Pictures are padded below and to the right, where the edge is repeated.
        """
        height, width = source.shape[-2:]
        padded = self._padded(height, width)
        padding = (0, padded[1] - width, 0, padded[0] - height)
        if self.codec is None:
            y = F.pad(source.to(self.device, self._loop.state_dtype), padding, mode="replicate")
            return y.clone(memory_format=torch.channels_last)
        image = F.pad(source.to(self.device, torch.float32), padding, mode="replicate")
        y = self.codec.encode(image, "source")
        return y.to(self._loop.state_dtype).contiguous(memory_format=torch.channels_last)


def _check_arguments(
    unet: UNet, codec: Codec | None, clamp: tuple[float, float] | None, dtype: torch.dtype | None
) -> None:
    if clamp is not None and not (len(clamp) == 2 and clamp[0] < clamp[1]):
        raise ValueError(f"clamp must be None or (low, high) with low < high, got {clamp}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
    if codec is not None and codec.channels != unet.config.in_channels:
        raise ValueError(f"codec must have the network's {unet.config.in_channels} channels, got {codec.channels}")


def _check_compilation(device: torch.device, compile: bool, compiled: str | os.PathLike[str] | None) -> None:
    if compile and compiled is not None:
        raise ValueError("compile and compiled exclude each other: a package is compiled already")
    if (compile or compiled is not None) and device.type not in ("cpu", "cuda"):
        raise ValueError(f"compiled networks run on cpu and cuda, got device {device}")


def _choose_dtype(
    dtype: torch.dtype | None, own: torch.dtype, device: torch.device, compile: bool, package: PackagedNetwork | None
) -> torch.dtype:
    """The package's dtype, the one given, the fastest of the device, or the network's own."""
    if package is not None:
        if dtype not in (None, package.dtype):
            raise ValueError(f"dtype must be that of {package.path}, {package.dtype}, got {dtype}")
        return package.dtype
    if dtype is not None:
        return dtype
    return best_dtype(device) if compile and own == torch.float32 else own
