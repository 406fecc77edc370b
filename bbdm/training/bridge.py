"""What trains the network of a bridge: its loss, its validation, its pictures and its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from bbdm.base import sizes
from bbdm.bridges import Bridge
from bbdm.codec import Codec, Role
from bbdm.data.examples import Example
from bbdm.data.latents import LatentDataset
from bbdm.data.pairs import Pairs
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.content import Checkpoint, CodecState, NetworkState
from bbdm.files.weights import Snapshot
from bbdm.networks.arrays import check_pictures
from bbdm.networks.base import SOURCE, Conditions, Network
from bbdm.networks.conditions import DIRECTION, DIRECTIONS
from bbdm.pictures import images
from bbdm.sampling.sampler import BridgeSampler
from bbdm.solvers import USUAL, Defaults, StepTable
from bbdm.training.batches import augment, drawn_back, dropped, turned
from bbdm.training.config import BridgeConfig, Loss
from bbdm.training.task import Forward, Losses, Task

VALIDATION_STEPS = range(2**32 - 4, 2**32)  # counter values above those of optimizer steps
HUBER_DELTA = 0.1  # errors below it are squared; predictions are on the scale of pictures in [-1, 1]
Errors = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Times = Callable[[torch.Tensor, int, Bridge], torch.Tensor]


def bridge_loss(
    network: Callable[..., torch.Tensor],
    bridge: Bridge,
    x0: torch.Tensor,
    y: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor | None = None,
    loss: Loss | Errors = "l1",
    conditions: Conditions | None = None,
    *,
    seeds: torch.Tensor | None = None,
    step: int | None = None,
    mask: torch.Tensor | None = None,
    per_image: bool = False,
) -> torch.Tensor:
    """Distance between the network's prediction and the bridge's target, the mean over a batch.

    Args:
        network: called with what the bridge shows of x_t and t, and the conditions.
        bridge: defines x_t, what is shown of it, and the target.
        x0: (B, C, H, W) target images; for volumes, here and below, H, W is D, H, W.
        y: (B, C, H, W) source images in the target's channels: ``network.endpoint(source)``.
        t: (B,) times: integers or, of a continuous bridge, reals.
        noise: (B, C, H, W) standard normals, in place of ``seeds`` and ``step``.
        loss: ``l1`` (the papers'), ``l2`` or ``huber``, which is l2 for small errors and l1 for large ones;
            or a function of (prediction, target) that returns errors of their shape.
        conditions: tensors by name that the network sees, such as ``{"source": source}``; None for none.
        seeds: (B,) int64, one for each image; noise is a function of the seed and of ``step``.
        step: the number of the optimizer step.
        mask: (B, 1, H, W), 1 where pixels count, 0 where they do not; None where all do.
        per_image: return the mean over each image, (B,), in place of a scalar.

    Raises:
        ValueError: ``loss`` returned another shape; or see :meth:`~bbdm.bridges.base.Bridge.add_noise`.
    """
    shown, target = bridge.add_noise(x0, y, t, noise, seeds=seeds, step=step)
    prediction = network(shown, bridge.seen(t), conditions).to(target.dtype)
    if not isinstance(loss, str):
        errors = loss(prediction, target)
        if errors.shape != target.shape:
            shape = tuple(target.shape)
            raise ValueError(f"loss must return errors of the target's shape, {shape}, got {tuple(errors.shape)}")
    elif loss == "huber":
        errors = F.huber_loss(prediction, target, reduction="none", delta=HUBER_DELTA)
    else:
        errors = (F.l1_loss if loss == "l1" else F.mse_loss)(prediction, target, reduction="none")
    image = tuple(range(1, errors.ndim))  # all axes of an image
    if mask is not None:
        counted = mask.sum(dim=image).clamp(min=1) * errors.shape[1]
        losses = (errors * mask).sum(dim=image) / counted
        return losses if per_image else losses.mean()
    return errors.mean(dim=image) if per_image else errors.mean()


class BridgeTask(Task):
    """The training of a bridge's network.

    Arguments and errors are those of a :class:`~bbdm.training.trainer.Trainer` and a
    :class:`~bbdm.training.task.Task`. Without ``train``, batches come from elsewhere.
    """

    network: Network
    config: Any  # a BridgeConfig
    read = staticmethod(load_checkpoint)

    def __init__(
        self,
        network: Network,
        bridge: Bridge,
        config: BridgeConfig,
        train: Pairs | None = None,
        processes: Processes | None = None,
        codec: Codec | None = None,
        *,
        loss: Errors | None = None,
        times: Times | None = None,
        **functions: Any,
    ) -> None:
        if train is not None:
            check_start(network, config, train, codec)
        self.parts = config.grad_accumulation
        self.bridge = bridge
        super().__init__(network, config, train, processes, **functions)
        self.codec = None if codec is None else codec.placed(self.device, torch.float32)
        self.latents = isinstance(train, LatentDataset)
        self.two_way = network.network_config.two_way
        self.loss: Any = getattr(config, "loss", None) if loss is None else loss
        self.draw_times = times
        bridge.check()

    @property
    def defaults(self) -> Defaults:
        """The solver and the steps of results."""
        return Defaults("mean") if self.bridge.density == "top" else USUAL

    def prepared(self, batch: Example, seeds: torch.Tensor, step: int) -> Example:
        """The batch in the space of the bridge; some examples lack conditions, or go back."""
        batch = augment(batch, seeds, step, self.config, self.latents)
        if self.codec is not None:
            batch = encode(batch, self.codec, self.latents)
        if self.two_way:
            batch = turned(batch, drawn_back(seeds, step))
        return dropped(batch, seeds, step, self.network) if self.network.drop else batch

    def losses(self, network: Forward, batch: Example, seeds: torch.Tensor, step: int) -> Losses:
        """Losses (B,) of a batch in the space of the bridge; the mean of each direction is reported."""
        bridge: Any = self.bridge
        t = bridge.draw_times(seeds, step) if self.draw_times is None else self.draw_times(seeds, step, bridge)
        y, seen = self.network.endpoint(batch.source), self.network.given(batch.source, batch.conditions)
        about: dict[str, Any] = {"conditions": seen, "seeds": seeds, "step": step, "mask": batch.mask}
        back = batch.conditions[DIRECTION] == 1 if self.two_way else None
        if back is not None and bridge.turned is not bridge:
            bridge = _Either(bridge, back)
        with self.autocast():
            losses = bridge_loss(network, bridge, batch.target, y, t, loss=self.loss, per_image=True, **about)
        ways = () if back is None else zip(DIRECTIONS, (~back, back), strict=True)
        return losses, {f"loss_{way}": 2 * (losses * own).mean() for way, own in ways}  # each is half of a batch

    def estimate(
        self, network: Forward, table: StepTable, row: int, x: torch.Tensor, y: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """x0hat (B, C, H, W), float32, that a network makes of a state at the time of a table's row."""
        (i_x, i_y), (p_x, p_y, p_f) = table.inputs[row].tolist(), table.prediction[row].tolist()
        t = torch.full((len(x),), float(table.network_times[row]), device=x.device)
        with self.autocast():
            prediction = network(i_x * x + i_y * y, t, conditions)
        return p_x * x + p_y * y + p_f * prediction.float()

    @torch.no_grad()
    def validation_losses(self, batch: Example, seeds: torch.Tensor) -> dict[str, float]:
        """The losses of the averaged weights, the mean over VALIDATION_STEPS and the sum over pairs.

        There is one more for each condition that training drops: without it. Of two directions, each is the
        mean of both, and there is one more for each direction.
        """
        batch = batch if self.codec is None else encode(batch, self.codec)
        ways = {"": batch}
        if self.two_way:
            ways = {f"_{way}": each for way, each in both_ways(batch).items()}
        names = {"validation_loss": [], **{f"validation_without_{name}": [name] for name in self.network.drop}}
        found: dict[str, float] = {}
        for name, missing in names.items():
            for way, each in ways.items():
                seen = each._replace(conditions=self.network.without(each.conditions, missing))
                losses = [self.losses(self.average, seen, seeds, step)[0].sum().item() for step in VALIDATION_STEPS]
                found[name + way] = sum(losses) / len(losses)
            if self.two_way:
                found[name] = (found[f"{name}_AtoB"] + found[f"{name}_BtoA"]) / 2
        return found

    def translated(self, batch: Example) -> torch.Tensor:
        """What the averaged weights make of sources, by the sampler's default solver and steps."""
        sampler = BridgeSampler(self.average, self.bridge, codec=self.codec, defaults=self.defaults)
        return sampler(batch.source, seed=0, conditions=batch.conditions)

    def columns(self, batch: Example) -> dict[str, torch.Tensor]:
        """Sources, translations and targets; of two directions, A, what is made of B, B, and what of A."""
        if self.two_way:
            results = {way: self.translated(each) for way, each in both_ways(batch).items()}
            return {"A": batch.source, "A of B": results["BtoA"], "B": batch.target, "B of A": results["AtoB"]}
        own = self.network.endpoint_channels is None  # of a slice with neighbours, its own channels are shown
        source = batch.source if own else self.network.endpoint(batch.source)
        return {"source": source, "result": self.translated(batch), "target": batch.target}

    @property
    def description(self) -> dict[str, Any]:
        """See :class:`~bbdm.training.task.Task`."""
        codec = {} if self.codec is None else {"codec": self.codec.config()}
        return {"unet": self.network.description(), "bridge": self.bridge.config(), **codec}

    @cached_property
    def codec_hash(self) -> str:
        """The SHA-256 of the codec's weights, which a run does not change."""
        assert self.codec is not None
        return CodecState.of(self.codec).digest()

    def snapshot(self, training: dict[str, Any] | None = None) -> Snapshot:
        """The weights, their average and the codec; with training state, only the hash of the codec."""
        codec = None if self.codec is None else CodecState.of(self.codec)
        if codec is not None and training is not None:
            codec = replace(codec, weights=None, sha256=self.codec_hash)
        assert self.train is not None
        pictures = replace(self.train.spec, spacing=self.train.spacing)
        network, size = NetworkState.of(self.network, self.average), self.train.image_size
        return Checkpoint(network, self.bridge, codec, size, training, self.defaults, pictures).snapshot()

    def stored(self, checkpoint: Checkpoint) -> tuple[NetworkState, dict[str, Any], dict[str, Any]]:
        """See :meth:`~bbdm.training.task.Task.stored`."""
        both = (checkpoint.unet, checkpoint.bridge), (NetworkState.of(self.network), self.bridge)
        stored, own = ({**network.settings, **bridge.config()} for network, bridge in both)
        return checkpoint.unet, stored, own

    def resume(self, path: Path, checkpoint: Checkpoint, pairs: Any) -> dict[str, Any]:
        """See :meth:`~bbdm.training.task.Task.resume`; a codec is the stored one, with its statistics."""
        stored, codec = checkpoint.codec, self.codec
        statistics = None if stored is None else stored.statistics
        same = stored.same_latents(codec) if stored and codec else stored is None and codec is None
        if not same or (codec is not None and (codec.statistics is None) != (statistics is None)):
            how = "without" if statistics is None else "with"
            how = f"with the same codec (vqgan_path), {how} normalised latents (normalize_latents)" if stored else ""
            how = how or "without a codec (vqgan_path)"
            raise ValueError(f"training can resume only in the space where it began: {how}")
        state = super().resume(path, checkpoint, pairs)
        if codec is not None and statistics is not None:
            self.codec = codec.with_statistics(statistics)
        return state


def both_ways(batch: Example) -> dict[str, Example]:
    """A whole batch in each direction, by its name."""
    back = torch.ones(len(batch.source), dtype=torch.bool, device=batch.source.device)
    return {way: turned(batch, each) for way, each in zip(DIRECTIONS, (~back, back), strict=True)}


class _Either(NamedTuple):
    """A bridge of examples of which some go back, as :func:`bridge_loss` asks it."""

    bridge: Bridge
    back: torch.Tensor  # (B,)

    def add_noise(self, x0: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each example by its own direction."""
        where = self.back[(..., *[None] * (x0.ndim - 1))]
        both = (each.add_noise(x0, *args, **kwargs) for each in (self.bridge.turned, self.bridge))
        shown, target = (torch.where(where, *each) for each in zip(*both, strict=True))
        return shown, target

    def seen(self, t: torch.Tensor) -> torch.Tensor:
        """The same both ways."""
        return self.bridge.seen(t)


def encode(batch: Example, codec: Codec, latents: bool = False) -> Example:
    """A batch of pictures, or of latents from a cache, as the codec has it; its mask, of pixels, goes."""
    coded = codec.normalize if latents else codec.encode
    roles: dict[Role, torch.Tensor] = {"source": batch.source, "target": batch.target}
    source, target = (coded(v, r).contiguous(memory_format=torch.channels_last) for r, v in roles.items())
    return batch._replace(source=source, target=target, mask=None)


def check_start(network: Network, config: BridgeConfig, train: Pairs, codec: Codec | None) -> None:
    """Raise ValueError where a network cannot be trained on pairs or their latents."""

    def channels(source: int, target: int) -> str:
        return f"{target} channels" if source == target else f"sources of {source} and targets of {target} channels"

    takes = network.source_channels, network.channels
    have = (train.source_channels, train.channels) if codec is None else (codec.channels, codec.channels)
    if takes != have:
        kind = "pairs" if codec is None else "latents"
        raise ValueError(f"the network takes {channels(*takes)}, and the {kind} have {channels(*have)}")
    if codec is not None:
        check_pictures(network.axes, "a codec")
    if network.network_config.two_way != (train.spec.direction == "both"):
        raise ValueError(
            "pairs of direction 'both' and a network with classes={'direction': ('AtoB', 'BtoA')} need each other; got "
            f"direction {train.spec.direction!r} and classes={dict(network.classes)}"
        )
    seen, known = (sorted({*each} - {SOURCE}) for each in (network.inputs, train.spec.conditions))
    if seen != known:
        raise ValueError(f"the network takes the conditions {seen} besides the source, and the pairs have {known}")
    size = images.sides(train.image_size, train.spec.axes)
    if len(size) != network.axes:
        shapes = [f"(B, C, {sizes.SIDES[axes]})" for axes in (network.axes, len(size))]
        raise ValueError(f"the network takes {shapes[0]}, and the pairs are {shapes[1]}, of {sizes.shown(size)}")
    stride = 1 if codec is None else codec.stride
    if any(side % (each * stride) for side, each in zip(size, network.strides, strict=True)):
        factors = f"the network's {network.stride}"
        if codec is not None:
            factors = f"{network.strides[0] * stride}, {factors} times the autoencoder's {stride}"
        raise ValueError(f"image_size {train.image_size} is not a multiple of {factors}")
    if isinstance(train, LatentDataset):
        if codec is None or train.codec != codec.description():
            got = "none" if codec is None else "another one"
            raise ValueError(f"codec must be that of the latents in {train.folder}, got {got}")
        if train.flip != config.flip:
            raise ValueError(f"flip must be that of the latents in {train.folder}, {train.flip}, got {config.flip}")
        if config.shift:
            raise ValueError("shift moves pictures, and must be 0 with latents that are computed once")
