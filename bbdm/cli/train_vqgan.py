"""The command bbdm train-vqgan. In Python, ``TrainVQGAN.of(...)`` has the defaults of the command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bbdm.base.settings import from_values, setting
from bbdm.cli.training import TrainingCommand
from bbdm.networks.config import VQGANS
from bbdm.pictures.images import Size, read_size
from bbdm.training.config import AutoencoderConfig

if TYPE_CHECKING:
    from bbdm.execution.processes import Processes
    from bbdm.networks.vqgan import VQGAN
    from bbdm.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class TrainVQGAN(TrainingCommand, AutoencoderConfig):
    """Train an autoencoder, for -vq: bbdm train-vqgan edge2shoes DATA OUTPUT_MODEL [flags].

    It learns sources and targets: L1, LPIPS, an adversary, and a codebook (--kind vq) or a KL divergence
    (--kind kl). If it ends early, the same command resumes. For several processes, one for each GPU, add
    --use_multi_gpus, or start it by torchrun --nproc_per_node N -m bbdm train-vqgan ...

    Raises:
        ValueError: a field is out of range, or fields contradict each other.
    """

    HEADING: ClassVar[str] = "autoencoder"
    PAIRS: ClassVar[bool] = False
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "epochs": 50,
        "batch_size": 8,
        "learning_rate": 2e-4,
        "lr_schedule": "cosine",
        "ema_decay": 0.999,
        "precision": "bf16",
    }
    DECIDING: ClassVar[str] = "init_from"
    FIRST: ClassVar[str] = (
        "dataset data_dir output_model preset kind epochs batch_size image_size device ckpt_path overwrite"
    )

    preset: str = setting("vq-f4", "the network", choices=sorted(VQGANS))
    kind: Literal["vq", "kl"] = setting("vq", "with a codebook, or with latents that are drawn")
    image_size: Size | None = setting(256, "side, or HxW, that pictures are resized to", parse=read_size)
    init_from: Path | None = setting(None, "begin with this autoencoder, in place of a preset; restarts are 0 if unset")
    channels: Literal[1, 3] | None = setting(
        None, "1 for grey pictures; 3 if unset, or those of --init_from", group="data"
    )
    lpips_weights: Path | None = setting(None, "torchvision's weights of the LPIPS network, if they are not downloaded")

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of all autoencoders; a trained codebook keeps its codes."""
        return cls.DEFAULTS if values.get("init_from") is None else {**cls.DEFAULTS, "restarts": 0}

    def read(self, path: Path) -> Any:
        """The content of a checkpoint of the run, which is an autoencoder."""
        from bbdm.files.checkpoint import load_vqgan_state

        return load_vqgan_state(path)

    def network(self) -> VQGAN:
        """The autoencoder that a run begins with."""
        from bbdm.files.checkpoint import load_vqgan
        from bbdm.networks.vqgan import VQGAN

        if self.init_from is None:
            settings = replace(VQGANS[self.preset], image_channels=self.channels or 3)
            return VQGAN.from_config(replace(settings, num_codes=0) if self.kind == "kl" else settings)
        vqgan = load_vqgan(self.init_from)
        channels = vqgan.config.image_channels
        if self.channels not in (None, channels):
            raise ValueError(f"{self.init_from} is for images of {channels} channels: leave channels out")
        if (self.kind == "kl") != (vqgan.config.num_codes == 0):
            raise ValueError(f"{self.init_from} is of another kind than {self.kind!r}")
        return vqgan

    def build(self, team: Processes, folder: Path, resumed: Any) -> Trainer:
        """The run before its first step; see the base class."""
        import torch

        from bbdm.training.autoencoder import AutoencoderTask, perceptual_loss
        from bbdm.training.trainer import Trainer

        config = from_values(AutoencoderConfig, vars(self))
        torch.manual_seed(self.seed)
        vqgan = self.network().to(team.device)
        pairs, validation = self.load_pairs(self.image_size, vqgan.config.image_channels, team)
        with team.first_before_others():  # the others find what the first downloads
            perceptual = perceptual_loss(config, self.lpips_weights, team.device)
        task = partial(AutoencoderTask, perceptual=perceptual)
        return Trainer(vqgan, None, config, pairs, validation, folder, processes=team, task=task)


main = TrainVQGAN.main
