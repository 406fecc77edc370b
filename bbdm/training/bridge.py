"""What trains the network of a bridge: its loss, its validation, its pictures and its files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.data.examples import Example
from bbdm.data.latents import LatentDataset
from bbdm.data.pairs import Pairs
from bbdm.defaults import NO_DEFAULTS, Defaults
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.content import Checkpoint, CodecState, NetworkState
from bbdm.files.weights import Snapshot
from bbdm.kernels import philox
from bbdm.networks.base import SOURCE, Conditions, Network
from bbdm.networks.conditions import DIRECTION, DIRECTIONS
from bbdm.networks.config import LoRA
from bbdm.networks.lora import completed
from bbdm.sampling.sampler import BridgeSampler
from bbdm.solvers import StepTable
from bbdm.training.augmentation import broadcast
from bbdm.training.compatibility import check_start
from bbdm.training.config import BridgeConfig, Loss
from bbdm.training.decoded import DecodedLoss
from bbdm.training.preparation import both_ways, drawn_back, dropped, encode, turned
from bbdm.training.task import SHARE, Forward, Losses, Task

VALIDATION_STEPS = range(2**32 - 4, 2**32)  # counter values above those of optimizer steps
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
        loss: ``l1`` (the papers'), ``l2``, or a function of (prediction, target) that returns their errors.
        conditions: tensors by name that the network sees, such as ``{"source": source}``; None for none.
        seeds: (B,) int64, one for each image; noise is a function of the seed and of ``step``.
        step: the number of the optimizer step.
        mask: (B, 1, H, W), 1 where pixels count, 0 where they do not; None where all do.
        per_image: return the mean over each image, (B,), in place of a scalar.

    Raises:
        ValueError: ``loss`` returned another shape; or see :meth:`~bbdm.bridges.base.Bridge.add_noise`.
    """
    shown, target = bridge.add_noise(x0, y, t, noise, seeds=seeds, step=step)
    return distance(network(shown, bridge.seen(t), conditions), target, loss, mask, per_image)


def distance(
    prediction: torch.Tensor,
    target: torch.Tensor,
    loss: Loss | Errors,
    mask: torch.Tensor | None,
    per_image: bool,
) -> torch.Tensor:
    """Distance of predictions from targets; see :func:`bridge_loss`."""
    prediction = prediction.to(target.dtype)
    if loss == "l1":
        errors = F.l1_loss(prediction, target, reduction="none")
    elif loss == "l2":
        errors = F.mse_loss(prediction, target, reduction="none")
    else:
        errors = loss(prediction, target)
    if errors.shape != target.shape:
        shapes = f"{tuple(target.shape)}, got {tuple(errors.shape)}"
        raise ValueError(f"loss must return errors of the target's shape, {shapes}")
    image = tuple(range(1, target.ndim))
    if mask is None:
        losses = errors.mean(dim=image)
    else:
        values = mask.sum(dim=image).clamp(min=1) * errors.shape[1]
        losses = (errors * mask).sum(dim=image) / values
    if per_image:
        return losses
    return errors.mean() if mask is None else losses.mean()


class BridgeTask(Task):
    """The training of a bridge's network.

    The other arguments and the errors are those of a :class:`~bbdm.training.trainer.Trainer` and a
    :class:`~bbdm.training.task.Task`.

    Args:
        loss: the errors of (prediction, target), of their shape, in place of the settings'.
        times: the (B,) times of training of (seeds, step, bridge), in place of the bridge's.
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
    ) -> None:
        bridge.check()
        if train is not None:
            check_start(network, config, train, codec)
        super().__init__(network, config, train, processes)
        self.bridge = bridge
        self.codec = None if codec is None else codec.placed(self.device, torch.float32)
        self.latents = isinstance(train, LatentDataset)
        self.two_way = network.network_config.two_way
        self.loss: Any = getattr(config, "loss", None) if loss is None else loss
        self.times = times
        self.decoded = self._decoded_loss()
        # solver and steps of results
        self.defaults = Defaults("mean") if bridge.density == "top" else NO_DEFAULTS
        self.pictures = None
        if train is not None:
            masked = train.masked and train.rows[0].get("mask") is not None
            self.pictures = replace(train.spec, spacing=train.spacing, masked=masked)

    def _decoded_loss(self) -> DecodedLoss | None:
        """The loss on decoded crops, where the settings have one; ValueError where it does not fit."""
        if getattr(self.config, "decoded_loss", None) is None:
            return None
        if self.codec is None:
            raise ValueError("decoded_loss is of latents: it needs vqgan_path, the autoencoder")
        if self.two_way:
            raise ValueError("decoded_loss is of one direction, got direction 'both'")
        from bbdm.evaluation.perceptual import lpips_network  # of an extra

        with self.processes.first_before_others():  # the others find what the first downloads
            perceptual = lpips_network("vgg").to(self.device)
        return DecodedLoss(self.codec, self.bridge, perceptual)

    # Learning

    def prepared(self, batch: Example, seeds: torch.Tensor, step: int) -> Example:
        """The batch in the space of the bridge; some examples lack conditions, or go back."""
        if not self.latents:
            batch = super().prepared(batch, seeds, step)
        elif self.config.flip:  # latents of a picture, and of the mirrored one
            rows = torch.arange(len(seeds), device=seeds.device)
            mirrored = philox.flips(seeds, step).long()
            batch = batch._replace(
                source=batch.source[rows, mirrored], target=batch.target[rows, mirrored]
            )
        if self.codec is not None:
            batch = encode(batch, self.codec, self.latents)
        if self.two_way:
            batch = turned(batch, drawn_back(seeds, step))
        if self.network.drop:
            batch = dropped(batch, seeds, step, self.network)
        return batch

    def seen(self, batch: Example) -> dict[str, torch.Tensor]:
        """What the network sees of a batch: its conditions, and its source where the network takes that."""
        source = {SOURCE: batch.source} if self.network.condition_channels else {}
        return {**source, **batch.conditions}

    def losses(self, network: Forward, batch: Example, seeds: torch.Tensor, step: int) -> Losses:
        """Losses (B,) of a batch in the space of the bridge; those of each direction are reported."""
        if self.times is None:
            t = self.bridge.draw_times(seeds, step)
        else:
            t = self.times(seeds, step, self.bridge)
        shown, target = self._noised(batch, t, seeds, step)
        with self.autocast():
            prediction = network(shown, self.bridge.seen(t), self.seen(batch))
            losses = distance(prediction, target, self.loss, batch.mask, per_image=True)
            if self.decoded is not None:
                lpips = self.decoded(prediction, target, batch.target, t, seeds, step)
                return losses + self.config.decoded_loss * lpips, {"lpips": lpips.mean()}
        if not self.two_way:
            return losses, {}
        back = batch.conditions[DIRECTION] == 1
        reported: dict[str, torch.Tensor] = {}
        for way, rows in zip(DIRECTIONS, (~back, back), strict=True):
            reported[f"loss_{way}"] = (losses * rows).mean()
            reported[f"{SHARE}loss_{way}"] = rows.float().mean()
        return losses, reported

    def _noised(
        self, batch: Example, t: torch.Tensor, seeds: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network is shown at times (B,), and its target; of each example by its direction."""
        x0 = batch.target
        y = self.network.endpoint(batch.source)
        shown, target = self.bridge.add_noise(x0, y, t, seeds=seeds, step=step)
        if not self.two_way or self.bridge.turned is self.bridge:
            return shown, target
        shown_back, target_back = self.bridge.turned.add_noise(x0, y, t, seeds=seeds, step=step)
        back = broadcast(batch.conditions[DIRECTION] == 1, x0)
        return torch.where(back, shown_back, shown), torch.where(back, target_back, target)

    def estimate(
        self,
        network: Forward,
        table: StepTable,
        row: int,
        x: torch.Tensor,
        y: torch.Tensor,
        conditions: Conditions,
    ) -> torch.Tensor:
        """x0hat (B, C, H, W), float32, that a network makes of a state at the time of a table's row."""
        i_x, i_y = table.inputs[row].tolist()
        p_x, p_y, p_f = table.prediction[row].tolist()
        t = torch.full((len(x),), float(table.network_times[row]), device=x.device)
        with self.autocast():
            prediction = network(i_x * x + i_y * y, t, conditions)
        return p_x * x + p_y * y + p_f * prediction.float()

    # Validation, and pictures of the averaged weights

    @torch.no_grad()
    def validation_losses(self, batch: Example, seeds: torch.Tensor) -> dict[str, float]:
        """The losses of the averaged weights, the mean over VALIDATION_STEPS and the sum over pairs.

        There is one more for each condition that training drops: without it. Of two directions, each is the
        mean of both, and there is one more for each direction.
        """
        if self.codec is not None:
            batch = encode(batch, self.codec)
        dropped_by_name: dict[str, list[str]] = {"validation_loss": []}
        for name in self.network.drop:
            dropped_by_name[f"validation_without_{name}"] = [name]
        sums: dict[str, float] = {}
        for name, missing in dropped_by_name.items():
            if not self.two_way:
                sums[name] = self._validation_loss(batch, seeds, missing)
                continue
            ways = both_ways(batch)
            for way, turned_batch in ways.items():
                sums[f"{name}_{way}"] = self._validation_loss(turned_batch, seeds, missing)
            sums[name] = sum(sums[f"{name}_{way}"] for way in ways) / len(ways)
        return sums

    def _validation_loss(self, batch: Example, seeds: torch.Tensor, missing: list[str]) -> float:
        """The loss without some conditions, the mean over VALIDATION_STEPS and the sum over pairs."""
        batch = batch._replace(conditions=self.network.without(batch.conditions, missing))
        losses: list[float] = []
        for step in VALIDATION_STEPS:
            losses.append(self.losses(self.average, batch, seeds, step)[0].sum().item())
        return sum(losses) / len(losses)

    def translated(self, batch: Example) -> torch.Tensor:
        """What the averaged weights make of sources, by the sampler's default solver and steps."""
        network = self.average
        if network.lora is not None:
            # a base in bfloat16 computes only under autocast
            network = copy.deepcopy(network).float()
        sampler = BridgeSampler(network, self.bridge, codec=self.codec, defaults=self.defaults)
        return sampler(batch.source, seed=0, conditions=batch.conditions)

    def columns(self, batch: Example) -> dict[str, torch.Tensor]:
        """Sources, translations and targets; of two directions, A, what is made of B, B, and what of A."""
        if self.two_way:
            results = {
                way: self.translated(turned_batch) for way, turned_batch in both_ways(batch).items()
            }
            return {
                "A": batch.source,
                "A of B": results["BtoA"],
                "B": batch.target,
                "B of A": results["AtoB"],
            }
        source = batch.source
        # of a slice with neighbours, the slice itself is shown
        if self.network.endpoint_channels is not None:
            source = self.network.endpoint(batch.source)
        return {"source": source, "result": self.translated(batch), "target": batch.target}

    # Files

    @property
    def description(self) -> dict[str, Any]:
        """See :class:`~bbdm.training.task.Task`."""
        codec = {} if self.codec is None else {"codec": self.codec.config()}
        lora = added(self.network.lora)
        return {"unet": self.network.description(), "bridge": self.bridge.config(), **codec, **lora}

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
        assert self.pictures is not None
        if self.network.lora is None:
            network = NetworkState.of(self.network, self.average)
        elif training is None:
            network = NetworkState.of(self.average)
        else:
            network = NetworkState.of_trained(self.network, self.average)
        size = self.train.image_size
        return Checkpoint(
            network, self.bridge, codec, size, training, self.defaults, self.pictures
        ).snapshot()

    def stored(self, checkpoint: Checkpoint) -> tuple[NetworkState, dict[str, Any]]:
        """See :meth:`~bbdm.training.task.Task.stored`; ValueError where codec or base has other weights."""
        stored = checkpoint.codec
        if stored is not None and self.codec is not None and stored.digest() != self.codec_hash:
            raise ValueError(
                "training can resume only with the weights of the codec (vqgan_path) that it began with"
            )
        codec = {} if stored is None else {"codec": stored.config}
        unet = checkpoint.unet
        description = {
            "unet": asdict(unet.config),
            "bridge": checkpoint.bridge.config(),
            **codec,
            **added(unet.lora),
        }
        if unet.lora is not None:
            unet.lora.check(self.network.lora)
            weights = completed(self.network, unet.weights or {})
            unet = replace(unet, weights=weights, ema=completed(self.average, unet.ema or {}))
        return unet, description


def added(lora: LoRA | None) -> dict[str, Any]:
    """What of LoRA must not change when a run resumes; the base may have moved."""
    return {} if lora is None else {"lora": {"rank": lora.rank, "sha256": lora.sha256}}
