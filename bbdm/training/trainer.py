"""The training run of a bridge. The loop over epochs is :mod:`.loop`, an optimizer step :mod:`.bridge`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.data.cached import LatentDataset
from bbdm.data.mapped import MapStyle, as_pairs
from bbdm.data.pairs import Pairs
from bbdm.execution.processes import Processes
from bbdm.networks.base import Network
from bbdm.training.bridge import BridgeTask
from bbdm.training.callback import Callback
from bbdm.training.config import TrainConfig
from bbdm.training.loop import Training
from bbdm.training.resume import check_start


class Trainer(Training):
    """The training run of a bridge.

    Args:
        unet: the network, on the device to train on; it is moved to that of ``processes``.
        bridge: the bridge to train it on.
        config: the settings of the run.
        train: pairs to learn from, or their latents; or any map-style data set of
            :class:`~bbdm.data.mapped.MappedDataset`'s items.
        validation: pairs for the validation loss and previews, or None.
        folder: the folder of metrics, previews and checkpoints.
        codec: encodes pictures into the space of the bridge; None to train in image space.
        processes: the processes that share the work; None for this one alone. The first of them writes.
        callbacks: what is called after :class:`~bbdm.training.previews.Previews`.
        task: what an optimizer step does: a :class:`~bbdm.training.bridge.BridgeTask`, or a subclass.

    Attributes:
        ema: the average of the network's weights; ``ema.unet`` is the network with them.

    Raises:
        ValueError: fewer pairs than one batch, pictures of a size that the network cannot take, a codec of
            another number of channels, or latents of another codec or another ``flip``.
    """

    task: BridgeTask

    def __init__(
        self,
        unet: Network,
        bridge: Bridge,
        config: TrainConfig,
        train: Pairs | MapStyle,
        validation: Pairs | MapStyle | None,
        folder: Path,
        codec: Codec | None = None,
        processes: Processes | None = None,
        callbacks: Sequence[Callback] = (),
        task: type[BridgeTask] = BridgeTask,
    ) -> None:
        processes = Processes(next(unet.parameters()).device) if processes is None else processes
        train, validation = as_pairs(train), None if validation is None else as_pairs(validation)
        check_start(unet, config, train, codec, processes.count)
        codec = None if codec is None else codec.placed(processes.device, torch.float32)
        total = config.total_steps(len(train))
        made = task(unet, bridge, config, codec, processes, isinstance(train, LatentDataset), total)
        super().__init__(made, train, validation, folder, callbacks)
        self.unet = unet
        self.bridge = bridge
        self.ema = made.ema

    @property
    def codec(self) -> Codec | None:
        """Encodes pictures into the space of the bridge, on the device; None in image space."""
        return self.task.codec
