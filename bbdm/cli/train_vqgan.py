"""The command bbdm train-vqgan. In Python, ``TrainVQGAN.of(...)`` has its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bbdm.base.settings import from_command, setting
from bbdm.base.sizes import number_of
from bbdm.cli.training import SHORT, TrainingCommand
from bbdm.networks.config import VQGANS
from bbdm.pictures.images import Size, read_size
from bbdm.training.config import AutoencoderConfig

if TYPE_CHECKING:
    from bbdm.execution.processes import Processes
    from bbdm.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class TrainVQGAN(TrainingCommand, AutoencoderConfig):
    """Train an autoencoder, for -vq: bbdm train-vqgan edge2shoes DATA OUTPUT_MODEL [flags].

    It learns sources and targets: L1, LPIPS, an adversary, and a codebook (--kind vq) or a KL divergence
    (--kind kl). If it ends early, the same command resumes.
    """

    HEADING: ClassVar[str] = "autoencoder"
    PAIRS: ClassVar[bool] = False
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **SHORT,
        "epochs": 50,
        "batch_size": 8,
        "learning_rate": 2e-4,
    }
    FIRST: ClassVar[str] = "preset kind epochs batch_size image_size device ckpt_path overwrite"

    preset: str = setting("vq-f4", "the network", choices=sorted(VQGANS))
    kind: Literal["vq", "kl"] = setting("vq", "with a codebook, or with latents that are drawn")
    image_size: Size | None = setting(
        256, "side, or HxW, that pictures are resized to", parse=read_size
    )
    channels: Literal[1, 3] = setting(3, "of its pictures; 1 for grey ones", group="data")

    @property
    def opening(self) -> str:
        """On what, which network, and for how long."""
        length = number_of(self.epochs, "epoch")
        return (
            f"training {self.output_model} on {self.data_dir}: autoencoder {self.preset}, {length}"
        )

    def read(self, path: Path) -> Any:
        """The content of a checkpoint of the run, which is an autoencoder."""
        from bbdm.files.checkpoint import load_vqgan_state

        return load_vqgan_state(path)

    def build(self, team: Processes, folder: Path, resumed: Any) -> Trainer:
        """The run before its first step; see the base class."""
        import torch

        from bbdm.networks.vqgan import VQGAN
        from bbdm.training.autoencoder import AutoencoderTask
        from bbdm.training.trainer import Trainer

        config = from_command(AutoencoderConfig, self)
        torch.manual_seed(self.seed)
        settings = replace(VQGANS[self.preset], image_channels=self.channels)
        if self.kind == "kl":
            settings = replace(settings, num_codes=0)
        vqgan = VQGAN.from_config(settings).to(team.device)
        pairs, validation = self.load_pairs(self.image_size, self.channels, team)
        return Trainer(
            vqgan, None, config, pairs, validation, folder, processes=team, task=AutoencoderTask
        )
