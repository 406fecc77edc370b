"""BridgeSampler: translates images with a trained network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from bbdm import solvers
from bbdm.base import sizes
from bbdm.base.atomic import check_place
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.execution.compiled import Compiled, check_compilation
from bbdm.execution.device import choose_dtype, find_device
from bbdm.execution.graph import GraphedLoop
from bbdm.execution.loop import Loop, state_dtype
from bbdm.execution.package import PackagedNetwork, save_package
from bbdm.files import pretrained
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.hub import find_checkpoint
from bbdm.networks.base import Network, Wrapped, check_network, placed
from bbdm.pictures import images
from bbdm.sampling import compiling
from bbdm.sampling.bands import Bands
from bbdm.sampling.base import BaseSampler
from bbdm.sampling.batch import Batch
from bbdm.sampling.call import Timesteps
from bbdm.sampling.engine import Advance, Given
from bbdm.sampling.inputs import Inputs, check_codec, shapes_of
from bbdm.sampling.plans import SolverPlan
from bbdm.sampling.step import Callback
from bbdm.sampling.step import Step as Step
from bbdm.sampling.tensors import TENSORS


@dataclass(frozen=True)
class TorchSolverPlan(SolverPlan):
    """A solver with its table, and the loops that run it."""

    loop: Loop
    graphed: GraphedLoop | None


class BridgeSampler(BaseSampler[torch.Tensor, TorchSolverPlan]):
    """Translates images with a trained network.

    Args:
        unet: the network: a :class:`~bbdm.networks.unet.UNet`, another of this library, or any module by
            :func:`~bbdm.networks.base.wrap`. It is used directly where it is on ``device`` in ``dtype`` and
            in evaluation mode, and copied otherwise; the one given is never changed. Do not change its
            weights later: what depends on the time alone is computed here, once.
        bridge: what it was trained on.
        solver: see :func:`bbdm.solvers.build`; None for that of ``defaults``, or ``dpm2m``, or
            ``consistency`` with ``calls``.
        steps: the number of steps, each of which is one network call; None for that of ``defaults`` where
            the solver is theirs, or the solver's default.
        timesteps: the times themselves, or a named list, in place of ``steps``.
        codec: between pictures and the space that the network was trained in; None for image space. Sources
            and results are pictures in both cases. Used or copied as ``unet`` is.
        calls: the network calls that the network was distilled for, which become the default; other
            settings give a warning. None for any number.
        defaults: what the network's file says of solver, steps and calls, in place of ``calls``.
        clamp: None, or (low, high) for every estimate of the target.
        device: where to run; None for the network's own.
        dtype: of the network's computation, such as ``"bf16"`` or ``torch.bfloat16``; None for its own, or
            for the fastest on the device with ``compile``. The state is float32 (float64 for a float64
            network).
        compile: compile the network at the first call with each size and number of images, which takes up to
            a minute, and on CUDA run all steps as one graph. A failure to compile is an error.
        compiled: a package that :meth:`save_compiled` wrote, in place of ``compile``; it loads in a second.
            It translates images of one size, the number at a time that it was saved for, in its own dtype.
            It holds machine code: load only your own.

    Threads may share a sampler. Attributes: ``unet``, ``bridge``, ``codec``, ``device``, ``dtype``, and
    ``image_size``, the side or (height, width) of its training pictures, or None where no checkpoint gives
    it; ``pictures``, their values; ``origin``, the network's file and what it says of its training pairs, or
    None where it is not known. They are fixed, except the last three; solver and steps may change at each
    call.

    Raises:
        FileNotFoundError: there is no such package.
        ValueError: an argument is out of range, or the package is of another network or machine.
    """

    backend = TENSORS
    _half: torch.dtype | None = None  # of the weights in the file, where it has 16 bits

    def __init__(
        self,
        unet: Network,
        bridge: Bridge,
        solver: str | None = None,
        steps: int | None = None,
        timesteps: Timesteps = None,
        *,
        codec: Codec | None = None,
        calls: int | None = None,
        defaults: solvers.Defaults | None = None,
        clamp: tuple[float, float] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
        compiled: str | os.PathLike[str] | None = None,
    ) -> None:
        check_network(unet)
        weight = next(unet.parameters())
        self.device = weight.device if device is None else find_device(device)
        if clamp is not None and not (len(clamp) == 2 and clamp[0] < clamp[1]):
            raise ValueError(f"clamp must be None or (low, high) with low < high, got {clamp}")
        check_codec(unet, codec)
        check_compilation(self.device, compile, compiled)
        self.package = None if compiled is None else PackagedNetwork(compiled, unet, self.device)
        self.dtype = choose_dtype(dtype, weight.dtype, self.device, compile, self.package)
        self.bridge = bridge
        self.clamp = clamp
        self.compile = compile
        self._defaults = defaults or solvers.Defaults(calls=calls)
        self.calls = self._defaults.calls
        self._embedder = unet.embedder()  # of the weights as given, before they are rounded to dtype
        self._place(unet, codec)
        super().__init__(solver, steps, timesteps, shapes_of(unet, codec, self.package, compile))

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.unet.parameters())
        parts = [
            f"{_name(self.unet)} of {count / 1e6:.1f} M parameters",
            repr(self.bridge),
            f"solver={self.solver!r}",
            f"steps={len(self.table)}",
            f"device={str(self.device)!r}",
            f"dtype={str(self.dtype).removeprefix('torch.')!r}",
            f"codec={None if self.codec is None else type(self.codec).__name__}",
            f"compile={self.compile}" if self.package is None else f"compiled={str(self.package.path)!r}",
        ]
        return f"BridgeSampler({', '.join(parts)})"

    def to(self, device: str | torch.device) -> BridgeSampler:
        """Move to a device, and return the sampler. No call may be running.

        Raises:
            ValueError: there is no such device, or the network is a package, which is of one device.
        """
        found = find_device(device)
        if found != self.device:
            if self.package is not None:
                raise ValueError(f"{self.package.path} was saved for {self.device}, and cannot move to {found}")
            check_compilation(found, self.compile, None)
            self._fixed = False  # until it is planned anew
            self.device = found
            self._place(self.unet, self.codec)
            self._replan()
        return self

    def _place(self, unet: Network, codec: Codec | None) -> None:
        """Put network and codec on the device, compiled where they are to be."""
        network = unet if self.package else placed(unet, self.device, self.dtype)
        if codec is not None:
            codec = codec.placed(self.device, self.dtype if self.dtype == torch.bfloat16 else torch.float32)
            codec = codec.compiled(partial(Compiled, device=self.device)) if self.compile else codec
        self.unet, self.codec = network, codec
        self._network = self.package or (Compiled(network.body, self.device) if self.compile else network.fixed())

    def _make_plan(self, solver: str | None, steps: int | None, timesteps: Timesteps) -> TorchSolverPlan:
        solver, steps, timesteps = self._defaults.fill(solver, steps, timesteps)
        table = solvers.build(self.bridge, solver, timesteps, steps)
        solvers.check_calls(self.calls, solver, table)
        loop = Loop(self._network, self._embedder, table, self.clamp, self.device, self.dtype)
        graphed = GraphedLoop(loop) if self._shapes.fill and self.device.type == "cuda" else None
        return TorchSolverPlan(solver, table, loop, graphed)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        ema: bool = True,
        codec: Codec | None = None,
        *,
        num_steps: int | None = None,
        c_lambda: float | None = None,
        config: str | None = None,
        network: Network | None = None,
        solver: str | None = None,
        steps: int | None = None,
        timesteps: Timesteps = None,
        clamp: tuple[float, float] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
        compiled: str | os.PathLike[str] | None = None,
    ) -> BridgeSampler:
        """A sampler from a file.

        ``path``, ``codec``, ``num_steps``, ``c_lambda`` and ``config`` are as for
        :func:`~bbdm.files.checkpoint.load_checkpoint`, the others as for the constructor. ``ema`` takes the
        averaged weights where the file has both. A file of a wrapped network has its weights only: give it as
        ``network``, which is copied.
        """
        checkpoint = load_checkpoint(path, num_steps, c_lambda, codec, config)
        sampler = cls(
            checkpoint.build_unet(ema, network),
            checkpoint.bridge,
            solver,
            steps,
            timesteps,
            codec=checkpoint.build_codec(),
            defaults=checkpoint.defaults,
            clamp=clamp,
            device=device,
            dtype=dtype,
            compile=compile,
            compiled=compiled,
        )
        sampler.image_size, sampler.pictures = checkpoint.image_size, checkpoint.pictures
        sampler._half, sampler.origin = checkpoint.half(ema), checkpoint.origin
        return sampler

    @property
    def defaults(self) -> solvers.Defaults:
        """What a file of this sampler keeps of solver, steps and calls; empty where nothing was chosen."""
        return self._defaults.over(*self._plans.settings)

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """The dtype in which the weights were stored, where it has 16 bits and they are the same yet.

        None where weights are stored as they are.
        """
        return self._half if next(self.unet.parameters()).dtype == torch.float32 else None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> BridgeSampler:
        """A sampler from the Hugging Face Hub, or from a folder that :meth:`save_pretrained` wrote.

        The first arguments are those of :func:`~bbdm.files.hub.find_checkpoint`, which says what is read, and
        ``settings`` those of :meth:`from_checkpoint`.
        """
        return cls.from_checkpoint(find_checkpoint(name_or_path, revision, token, cache_dir), **settings)

    def save_pretrained(self, folder: str | os.PathLike[str], **settings: Any) -> None:
        """Write a folder for :meth:`from_pretrained`; see :func:`bbdm.files.pretrained.save_pretrained`."""
        pretrained.save_pretrained(self, folder, **settings)

    def push_to_hub(self, name: str, **settings: Any) -> str:
        """Push to the Hugging Face Hub; see :func:`bbdm.files.pretrained.push_to_hub`. Returns the commit."""
        return pretrained.push_to_hub(self, name, **settings)

    def save_compiled(
        self, path: str | os.PathLike[str], batch_size: int = 1, size: tuple[int, ...] | None = None
    ) -> None:
        """Compile the network into a package, from which a new process starts in seconds.

        The package fits these weights, this machine with its number of threads, and this version of torch:
        any other is refused. Solver and steps are free: the sampler that loads the package has its own.

        Args:
            path: where to write, such as ``unet.pt2``. What the package fits goes to ``unet.pt2.json``.
            batch_size: number of images at a time.
            size: their (height, width); None for the size of the training pictures, where that is known.

        Raises:
            ValueError: the sampler was not built with ``compile=True``, the size is not known, ``path`` is a
                folder or does not end in ``.pt2``, or the network is told tokens.
        """
        if not self.compile:
            raise ValueError("save_compiled needs a sampler that was built with compile=True")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if size is None:
            if self.image_size is None:
                raise ValueError("size must be given as (height, width): the sampler has no image_size")
            size = images.sides(self.image_size, self._shapes.axes)
        check_place(Path(path))  # before minutes of compiling
        save_package(path, self.unet, self._shapes.grid(batch_size, *size), self._inputs.blank(batch_size, *size))

    def bands(self, size: tuple[int, ...], seed: int, **windows: Any) -> Bands:
        """The sampler's own steps on rows of one picture, which need not be in memory.

        Args:
            size: (height, width) of the picture. Rows are those of the picture padded below and to the right.
            seed: that of the picture's noise.
            windows: the arguments of :meth:`windowing`.

        Raises:
            ValueError: there are no windows, or the network is one of latents; or as for :meth:`windowing`.
        """
        made = self.windowing(**windows)
        if self.codec is not None:
            raise ValueError("bands are of the pixels of pictures, and this network is of an autoencoder's latents")
        if made is None:
            raise ValueError("a picture is translated by bands of windows: give the size of a window")
        return Bands(self.unet, self._own.loop, made, self._shapes.grid(1, *size)[1:], seed)

    def _prepare(self, plan: TorchSolverPlan, batch: Batch, progress: bool) -> None:
        """Compile what was not compiled for batches of a shape, with a bar of its own on a terminal."""
        due = compiling.due(plan.loop, self._inputs, batch, self._together(batch))
        count, _, *size = batch.source.shape
        name = f"compiling for {sizes.shown([count, *size])}"
        for call in tqdm(due, name, unit="graph", disable=False if progress else None) if due else ():
            call()

    @contextmanager
    def _progress(self, total: int) -> Iterator[Advance]:
        with tqdm(total=total, unit="step") as bar:
            yield bar.update

    @torch.inference_mode()
    def _run(self, plan: TorchSolverPlan, batch: Batch, advance: Advance, callback: Callback | None) -> torch.Tensor:
        if plan.graphed is None or batch.noise is not None or batch.mask is not None or callback is not None:
            result = super()._run(plan, batch, advance, callback)
        else:
            y, conditions = self._given(batch)
            x = plan.graphed(
                y, self._inputs.seeds(batch), conditions, batch.windows, batch.guidance, self._together(batch)
            )
            advance(plan.calls(batch, self._grid(batch)))
            result = self._decoded(x)
        return result.to(batch.source.device, batch.source.dtype)

    @torch.inference_mode()
    def _states(
        self, plan: TorchSolverPlan, batch: Batch, advance: Advance
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        noise = None if batch.noise is None else batch.noise.to(self.device, plan.loop.state_dtype)
        y, conditions = self._given(batch)
        loop = plan.loop.over(batch.windows, batch.guidance, advance, self._together(batch))
        state = loop.start(y, self._inputs.seeds(batch), noise, self._inputs.mask(batch), conditions)
        for index in range(len(plan.times)):
            loop.advance(state, index)
            if batch.windows is None:
                advance(1)
            yield state.x, state.x0hat

    def _copied(self, state: torch.Tensor) -> torch.Tensor:
        return state.clone()

    @torch.inference_mode()
    def _decoded(self, state: torch.Tensor) -> torch.Tensor:
        return state if self.codec is None else self.codec.decode(state)

    @property
    def _inputs(self) -> Inputs:
        """What batches are on the device."""
        return Inputs(self.unet, self.codec, self._shapes, self.device, state_dtype(self.dtype))

    def _given(self, batch: Batch) -> Given:
        return self._inputs.given(batch)

    def _repeated(self, given: Given, places: list[int]) -> Given:
        return self._inputs.repeated(given, places)

    def _together(self, batch: Batch) -> bool:
        """Whether a guided step is one batch: a package takes one number of images or of windows alone."""
        return self.package is None or batch.windows is not None


def _name(network: Network) -> str:
    return type(network.module if isinstance(network, Wrapped) else network).__name__
