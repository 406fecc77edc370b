"""BridgeSampler: translates images with a trained network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bbdm import solvers
from bbdm.base.atomic import check_place
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.execution.compiled import Compiled, Graphs, PackagedNetwork, save_package
from bbdm.execution.device import choose_dtype, find_device
from bbdm.files import hub
from bbdm.files.checkpoint import load_checkpoint
from bbdm.kernels.bridge_step import bridge_step
from bbdm.kernels.elementwise import CHANNELS_LAST, layout
from bbdm.networks.arrays import check_pictures
from bbdm.networks.base import SOURCE, Body, Network, Wrapped, check_network, placed
from bbdm.pictures import images
from bbdm.sampling.inversion import Inverting
from bbdm.sampling.loop import Batch, Callback, Inputs, Plan, Shapes, State, check_prediction
from bbdm.sampling.options import Timesteps
from bbdm.solvers import AnySolver, StepTable

if TYPE_CHECKING:
    from typing_extensions import Self


class BridgeSampler(Inverting):
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
        device: where to run; None for the network's own.
        dtype: of the network's computation, such as ``"bf16"`` or ``torch.bfloat16``; None for its own, or
            for the fastest on the device with ``compile``. The state is float32 (float64 for a float64
            network).
        compile: compile the network at the first call with each size and number of images, which takes up to
            a minute, and on CUDA run all steps as one graph. A failure to compile is an error.
        compiled: a package that :meth:`save_compiled` wrote, in place of ``compile``; it loads in seconds.
            It translates images of one size, the number at a time that it was saved for, in its own dtype.
            It holds machine code: load only your own.

    Threads may share a sampler. Attributes: ``unet``, ``bridge``, ``codec``, ``device``, ``dtype``, which are
    not to be changed; ``image_size``, the side or (height, width) of its training pictures, or None where no
    checkpoint gives it; ``pictures``, their values; ``origin``, the network's file and what it says of its
    training pairs, or None where it is not known. Solver and steps may change at each call.

    Raises:
        FileNotFoundError: there is no such package.
        ValueError: an argument is out of range, or the package is of another network or machine.
    """

    array, noun, _inference = torch.Tensor, "a tensor", torch.inference_mode

    def __init__(
        self,
        unet: Network,
        bridge: Bridge,
        solver: AnySolver | None = None,
        steps: int | None = None,
        timesteps: Timesteps = None,
        *,
        codec: Codec | None = None,
        calls: int | None = None,
        defaults: solvers.Defaults | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
        compiled: str | os.PathLike[str] | None = None,
    ) -> None:
        check_network(unet)
        weight = next(unet.parameters())
        self.device = weight.device if device is None else find_device(device)
        bridge.check()
        if codec is not None:
            check_codec(unet, codec)
        if compile and compiled is not None:
            raise ValueError("compile and compiled exclude each other: a package is compiled already")
        self.package = None if compiled is None else PackagedNetwork(compiled, unet, self.device)
        self.dtype = choose_dtype(dtype, weight.dtype, self.device, compile, self.package)
        self.bridge, self.compile = bridge, compile
        self._defaults = defaults or solvers.Defaults(calls=calls)
        self._network_name = type(unet.module if isinstance(unet, Wrapped) else unet).__name__
        self._embedder = unet.embedder()  # of the weights as given, before they are rounded to dtype
        self._place(unet, codec)
        cell = 1 if codec is None else codec.stride
        shapes = Shapes(
            source_channels=unet.source_channels if codec is None else codec.image_channels,
            image_channels=unet.channels if codec is None else codec.image_channels,
            channels=unet.channels,
            endpoint=unet.endpoint_channels,
            conditions=unet.network_config,
            shown=unet.condition_channels > 0,
            stride=tuple(step * cell for step in unet.strides),
            cell=cell,
            only=None if self.package is None else self.package.shape[0],
            fill=compile or self.package is not None,  # cheaper than to compile for a short batch
        )
        super().__init__(shapes, self._defaults.over(solver, steps, timesteps))

    def _place(self, unet: Network, codec: Codec | None) -> None:
        """Move network and codec to the device, and compile them where it was asked for."""
        self.unet = placed(unet, self.device, self.dtype)
        self._prepare = self.unet.prepared
        self._like = torch.zeros((), dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)
        self._body: Body = self.unet.body
        if self.package is not None:
            self._body = self.package
        elif self.compile:
            self._body = Compiled(self.unet.body, self.device)
        if codec is not None:
            codec = codec.placed(self.device, torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32)
        self._placed_codec = codec
        if codec is not None and self.compile:
            codec = codec.compiled(partial(Compiled, device=self.device))
        self.codec = codec
        captures = self.device.type == "cuda" and (self.compile or self.package is not None)
        self._graphs = Graphs(self.device) if captures else None

    def to(self, device: str | torch.device) -> Self:
        """Move the sampler to a device, with its dtype and settings; no call may run meanwhile.

        Returns:
            This sampler, on the new device.

        Raises:
            ValueError: there is no such device here, or the sampler has a package, which is of one device.
        """
        device = find_device(device)
        if device == self.device:
            return self
        if self.package is not None:
            raise ValueError(f"a package is of one device, {self.device}, and cannot move to {device}: build another")
        self.device = device
        self._place(self.unet, self._placed_codec)
        self._other = None  # made anew where a call asks for it
        self._choose(self._choice)
        return self

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
        **settings: Any,
    ) -> BridgeSampler:
        """A sampler from a file.

        ``path``, ``codec``, ``num_steps``, ``c_lambda`` and ``config`` are as for
        :func:`~bbdm.files.checkpoint.load_checkpoint`. ``ema`` takes the averaged weights where the file has
        both. A file of a wrapped network has its weights only: give it as ``network``, which is copied.
        ``settings`` are those of the constructor: ``solver``, ``steps``, ``timesteps``,
        ``device``, ``dtype``, ``compile`` and ``compiled``.
        """
        found = load_checkpoint(path, num_steps, c_lambda, codec, config)
        network, said = found.build_unet(ema, network), {"codec": found.build_codec(), "defaults": found.defaults}
        sampler = cls(network, found.bridge, **said, **settings)
        sampler.image_size, sampler.pictures = found.image_size, found.pictures
        sampler.origin = found.origin
        return sampler

    @property
    def defaults(self) -> solvers.Defaults:
        """What a file of this sampler keeps of solver, steps and calls.

        They are those of its network where nothing was chosen. A solver without a registered name cannot be
        kept, nor can its steps.
        """
        return self._choice if isinstance(self._choice.chosen, str) else self._defaults

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
        return cls.from_checkpoint(hub.find_checkpoint(name_or_path, revision, token, cache_dir), **settings)

    def save_pretrained(self, folder: str | os.PathLike[str], **settings: Any) -> None:
        """Write a folder for :meth:`from_pretrained`; see :func:`bbdm.files.hub.save_pretrained`."""
        hub.save_pretrained(self, folder, **settings)

    def push_to_hub(self, name: str, **settings: Any) -> str:
        """Push to the Hugging Face Hub; see :func:`bbdm.files.hub.push_to_hub`. Returns the commit."""
        return hub.push_to_hub(self, name, **settings)

    def save_compiled(self, path: str | os.PathLike[str], size: images.Size, batch_size: int = 1) -> None:
        """Compile the network into a package, from which a new process starts in seconds.

        The package fits these weights, this machine with its number of threads, and this version of torch:
        any other is refused. Solver and steps are free: the sampler that loads the package has its own.

        Args:
            path: where to write, such as ``unet.pt2``. What the package fits goes to ``unet.pt2.json``.
            size: the side of images, or their (height, width).
            batch_size: number of images at a time.

        Raises:
            ValueError: the sampler was not built with ``compile=True``, ``path`` is a folder or does not end
                in ``.pt2``, or the network has tokens, which are of any length.
        """
        if not self.compile:
            raise ValueError("save_compiled needs a sampler that was built with compile=True")
        check_place(Path(path))  # before minutes of compiling
        sides = images.sides(size, self.axes)
        padded, grid = self._shapes.padded(sides), self._shapes.grid(sides)
        with torch.inference_mode():
            zeros = {
                name: self._array(np.zeros(each.shape(batch_size, grid if name == SOURCE else padded), each.dtype))
                for name, each in self.unet.inputs.items()
            }
            conditions = {name: self._put(each) for name, each in self.unet.prepared(zeros, grid).items()}
        save_package(path, self.unet, (batch_size, self.unet.channels, *grid), conditions)

    # The backend of the loop, see :class:`bbdm.sampling.loop.Loop`.

    _copy = staticmethod(torch.inference_mode(mode=False)(torch.clone))  # a normal tensor, which autograd takes

    def _table(self, choice: solvers.Defaults) -> tuple[str, StepTable]:
        return solvers.name_of(choice.chosen), choice.table(self.bridge)

    def _load(self, table: StepTable) -> tuple[torch.Tensor, ...]:
        """(K, 10) rows and opening, which uses the last one, (K,) their numbers, (K, M) embedded times."""
        with torch.no_grad():
            embedding = self._embedder(torch.tensor(table.network_times, dtype=torch.float32))
            steps = torch.arange(len(table), device=self.device)
            return self._array(table.rows), self._array(table.opening), steps, self._array(embedding)

    def _encode(self, source: torch.Tensor) -> torch.Tensor:
        y = source if self.codec is None else self.codec.encode(source.float(), "source").to(self._like.dtype)
        return y.contiguous(memory_format=CHANNELS_LAST[y.ndim])

    def _decode(self, state: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return state if self.codec is None else self.codec.decode(state)

    def _put(self, array: torch.Tensor) -> torch.Tensor:
        array = array.to(self.dtype) if array.is_floating_point() else array
        return array.contiguous(memory_format=layout(array.ndim))

    def _get(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self._like.dtype)

    def _net(self, plan: Plan, conditions: Mapping[str, torch.Tensor], x: torch.Tensor, index: int) -> torch.Tensor:
        prediction = self._body(x, plan.loaded[3][index : index + 1], conditions)
        check_prediction(prediction, x)
        return prediction

    def _step(self, plan: Plan, inputs: Inputs, state: State | None, prediction: Any, index: int) -> State:
        """One row of the table, which overwrites the buffers of the state; they are channels_last."""
        (rows, opening, steps, _), y = plan.loaded, inputs.y
        if state is None:
            rows, index, prediction = opening, len(plan.times) - 1, y
            state = State(*(torch.empty_like(y, dtype=dtype) for dtype in (y.dtype, y.dtype, self.dtype)))
        seeds, noise = (inputs.seeds, None) if inputs.noise is None else (None, inputs.noise[index])
        images, others = (state.x, state.x0hat, state.inputs, prediction, y), (seeds, noise, inputs.mask)
        bridge_step(*images, rows, steps[index : index + 1], *others)
        return state

    def _last(self, batch: Batch, inputs: Inputs, callback: Callback) -> torch.Tensor:
        """The state after all steps; by a captured run, where there is nothing to do between two steps."""
        if self._graphs is None or not callback is inputs.noise is inputs.mask is None:
            return super()._last(batch, inputs, callback)
        names, sides = [list(each) for each in inputs.conditions], len(inputs.weights)

        def run(tensors: list[torch.Tensor]) -> torch.Tensor:
            y, seeds, *rest = tensors
            values = iter(rest[sides:])
            again = Inputs(y, [{name: next(values) for name in each} for each in names], seeds, weights=rest[:sides])
            *_, last = self._states(batch, again)
            return last.x

        values = (value for each in inputs.conditions for value in each.values())
        key, body = (batch.plan, batch.windows, batch.guidance, tuple(map(tuple, names))), self._body
        reads = body.functions if isinstance(body, Compiled) else list  # with constants that replays read
        return self._graphs(key, run, [inputs.y, inputs.seeds, *inputs.weights, *values], reads)


def check_codec(unet: Network, codec: Codec) -> None:
    """Raise ValueError unless a network is of a codec's latents."""
    check_pictures(unet.axes, "a codec")
    if codec.channels != unet.channels:
        raise ValueError(f"codec must have the network's {unet.channels} channels, got {codec.channels}")
    if unet.source_channels != unet.channels or unet.endpoint_channels is not None:
        raise ValueError(
            f"with a codec, source and target have the same channels; the network takes {unet.source_channels} "
            f"channels for {unet.channels}, endpoint={unet.endpoint_channels}"
        )
