"""BridgeSampler: translates images with a trained network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bbdm.base.atomic import check_place
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.defaults import Defaults
from bbdm.execution.compiled import PackagedNetwork, save_package
from bbdm.execution.device import choose_dtype, find_device
from bbdm.files import hub
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.repository import find_checkpoint
from bbdm.networks.arrays import check_pictures
from bbdm.networks.base import SOURCE, Network, Wrapped, check_network
from bbdm.pictures import images
from bbdm.sampling import inversion
from bbdm.sampling.base import Sampler
from bbdm.sampling.loop import Shapes
from bbdm.sampling.options import Seed, TimestepsLike
from bbdm.sampling.torch_backend import TorchBackend
from bbdm.solvers import AnySolver

if TYPE_CHECKING:
    from typing_extensions import Self


class BridgeSampler(Sampler[torch.Tensor]):
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
            a minute, and on CUDA run a step as one graph. A failure to compile is an error.
        compiled: a package that :meth:`save_compiled` wrote, in place of ``compile``; it loads in seconds.
            It translates images of one size, the number at a time that it was saved for, in its own dtype.
            It holds machine code: load only your own.

    Threads may share a sampler. Attributes: ``unet``, ``bridge``, ``codec``, ``device``, ``dtype``, which are
    not to be changed; ``image_size``, the side or (height, width) of its training pictures, or None where no
    checkpoint gives it; ``pictures``, their values; ``origin``, the network's file and the folder of
    its training run, or None where it is not known. Solver and steps may change at each call.

    Raises:
        FileNotFoundError: there is no such package.
        ValueError: an argument is out of range, or the package is of another network or machine.
    """

    backend: TorchBackend

    def __init__(
        self,
        unet: Network,
        bridge: Bridge,
        solver: AnySolver | None = None,
        steps: int | None = None,
        timesteps: TimestepsLike = None,
        *,
        codec: Codec | None = None,
        calls: int | None = None,
        defaults: Defaults | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
        compiled: str | os.PathLike[str] | None = None,
    ) -> None:
        check_network(unet)
        weight = next(unet.parameters())
        device = weight.device if device is None else find_device(device)
        bridge.check()
        if codec is not None:
            check_codec(unet, codec)
        if compile and compiled is not None:
            raise ValueError(
                "compile and compiled exclude each other: a package is compiled already"
            )
        package = None if compiled is None else PackagedNetwork(compiled, unet, device)
        dtype = choose_dtype(dtype, weight.dtype, device, compile, package)
        self.package = package
        self._defaults = defaults or Defaults(calls=calls)
        backend = TorchBackend(unet, codec, device, dtype, compile, package)
        module = unet.module if isinstance(unet, Wrapped) else unet
        choice = self._defaults.over(solver, steps, timesteps)
        shapes = shapes_of(unet, codec, package, fill=compile or package is not None)
        super().__init__(backend, bridge, shapes, choice, type(module).__name__)

    @property
    def unet(self) -> Network:
        """The network, on the device in the dtype."""
        return self.backend.network

    @property
    def codec(self) -> Codec | None:
        """Between pictures and the space of the bridge; None of image space."""
        return self.backend.codec

    @property
    def device(self) -> torch.device:
        """Where the sampler runs."""
        return self.backend.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's computation."""
        return self.backend.dtype

    @property
    def compile(self) -> bool:
        """Whether the network is compiled at the first call with each shape."""
        return self.backend.compile

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
            raise ValueError(
                f"a package is of one device, {self.device}, and cannot move to {device}: build another"
            )
        self.backend.to(device)
        self._own.clear()
        self._others.clear()
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
        checkpoint = load_checkpoint(path, num_steps, c_lambda, codec, config)
        network = checkpoint.build_unet(ema, network)
        codec = checkpoint.build_codec()
        sampler = cls(
            network, checkpoint.bridge, codec=codec, defaults=checkpoint.defaults, **settings
        )
        sampler.image_size = checkpoint.image_size
        sampler.pictures = checkpoint.pictures
        sampler.origin = checkpoint.origin
        return sampler

    @property
    def defaults(self) -> Defaults:
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

        The first arguments are those of :func:`~bbdm.files.repository.find_checkpoint`, which says what is
        read, and ``settings`` those of :meth:`from_checkpoint`.
        """
        return cls.from_checkpoint(
            find_checkpoint(name_or_path, revision, token, cache_dir), **settings
        )

    def save_pretrained(self, folder: str | os.PathLike[str], **settings: Any) -> None:
        """Write a folder for :meth:`from_pretrained`; see :func:`bbdm.files.hub.save_pretrained`."""
        hub.save_pretrained(self, folder, **settings)

    def push_to_hub(self, name: str, **settings: Any) -> str:
        """Push to the Hugging Face Hub; see :func:`bbdm.files.hub.push_to_hub`. Returns the commit."""
        return hub.push_to_hub(self, name, **settings)

    def save_compiled(
        self, path: str | os.PathLike[str], size: images.Size, batch_size: int = 1
    ) -> None:
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
        padded = self.shapes.padded(sides)
        grid = self.shapes.grid(sides)
        zeros: dict[str, torch.Tensor] = {}
        for name, condition in self.unet.inputs.items():
            shape = condition.shape(batch_size, grid if name == SOURCE else padded)
            zeros[name] = self.loop.array(np.zeros(shape, condition.dtype))
        with torch.inference_mode():
            conditions = self.backend.prepare(zeros, grid)
        save_package(path, self.unet, (batch_size, self.unet.channels, *grid), conditions)

    def noise(self, source: Any, seed: Seed = None, **options: Any) -> torch.Tensor:
        """The noise that seeds draw for a call: with it as ``noise``, the call gives the same images.

        Args:
            source: what a call takes, of one size; only the size counts.
            seed: an integer, or one for each source; None draws one.
            options: those of the call, which decide the number of steps.

        Returns:
            (K, B, C, H, W) standard normals, one for each step, on the grid that the network sees.
        """
        return inversion.noise(self, source, seed, options)

    def encode(
        self,
        target: Any,
        source: Any,
        steps: int | None = None,
        *,
        timesteps: TimestepsLike = None,
        **options: Any,
    ) -> Any:
        """The noise that the deterministic solver ``ddim`` makes a target of, for interpolation and editing.

        ``sampler(source, noise=noise, solver="ddim", steps=steps)`` gives the target back, but for the error
        of the steps. Noises of two targets may be mixed, and another source or condition be given.

        Args:
            target: what a result is, of the kind of ``source``.
            source: what a call takes, of one size.
            steps: of ``ddim``; its default if None. One network call fewer is made.
            timesteps: of ``ddim``, in place of ``steps``.
            options: conditions, windows, guidance, values and ``batch_size``, as in a call.

        Returns:
            (K, B, C, H, W) noise on the grid that the network sees: zeros but in the step that draws it. Of a
            bridge without noise, what takes the source's place, in its type.

        Raises:
            ValueError: target and source have other numbers or sizes, there are fewer than 2 steps, or an
                option is of calls alone: ``solver``, ``mask``, ``noise`` or ``callback``.
        """
        return inversion.encode(self, self.codec, target, source, steps, timesteps, options)


def shapes_of(
    unet: Network, codec: Codec | None, package: PackagedNetwork | None, fill: bool
) -> Shapes:
    """What a network takes, in latents of a codec or none; ``fill`` where another shape is compiled again."""
    cell = 1 if codec is None else codec.stride
    return Shapes(
        source_channels=unet.source_channels if codec is None else codec.image_channels,
        image_channels=unet.channels if codec is None else codec.image_channels,
        channels=unet.channels,
        endpoint=unet.endpoint_channels,
        conditions=unet.network_config,
        shown=unet.condition_channels > 0,
        stride=tuple(step * cell for step in unet.strides),
        cell=cell,
        only=None if package is None else package.shape[0],
        fill=fill,
    )


def check_codec(unet: Network, codec: Codec) -> None:
    """Raise ValueError unless a network is of a codec's latents."""
    check_pictures(unet.axes, "a codec")
    if codec.channels != unet.channels:
        raise ValueError(
            f"codec must have the network's {unet.channels} channels, got {codec.channels}"
        )
    if unet.source_channels != unet.channels or unet.endpoint_channels is not None:
        raise ValueError(
            f"with a codec, source and target have the same channels; the network takes {unet.source_channels} "
            f"channels for {unet.channels}, endpoint={unet.endpoint_channels}"
        )
