"""The command bbdm distill. In Python, ``Distill.of(...)`` has its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bbdm.base.settings import from_command, position, setting
from bbdm.cli.training import SHORT, TrainingCommand
from bbdm.data.config import DataConfig
from bbdm.data.rows import read_layout
from bbdm.files.header import read_header
from bbdm.training.config import DistillConfig
from bbdm.translation.config import FileConfig

if TYPE_CHECKING:
    from bbdm.execution.processes import Processes
    from bbdm.files.content import Checkpoint
    from bbdm.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Distill(TrainingCommand, DataConfig, FileConfig, DistillConfig):
    """Distil a trained bridge into one of few calls: bbdm distill TEACHER DATA STUDENT --calls 2.

    The student begins with the teacher's weights and is trained on the same pairs, by the energy score of its
    own results. If it ends early, the same command resumes.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **SHORT,
        "epochs": 20,
        "batch_size": 32,
        "warmup_steps": 100,
        "flip": True,
    }
    FIRST: ClassVar[str] = (
        "teacher data_dir output_model dataset calls epochs batch_size device ckpt_path overwrite"
    )

    teacher: Path = position("a file that bbdm.load_checkpoint reads")
    output_model: Path = position("the distilled weights: .pt or .safetensors", metavar="STUDENT")
    dataset: str = setting("edge2shoes", "the layout of the data set", parse=read_layout)

    @property
    def opening(self) -> str:
        """Which network, on what, and into how many calls."""
        teacher = read_header(self.teacher)
        return f"distilling {teacher} on {self.data_dir} into {self.output_model} of {self.calls} calls"

    def build(self, team: Processes, folder: Path, resumed: Checkpoint | None) -> Trainer:
        """The run before its first step; see the base class."""
        import torch

        from bbdm.files.checkpoint import load_checkpoint
        from bbdm.training.distillation import StudentTask, student_of
        from bbdm.training.trainer import Trainer

        config = from_command(DistillConfig, self)
        teacher = load_checkpoint(self.teacher, **self.missing)
        student = student_of(teacher, self.calls)
        codec = teacher.build_codec()
        known = teacher.unet.config
        size = self.image_size or teacher.image_size
        if size is None:
            raise ValueError(
                f"{self.teacher} does not hold the size of its pictures: give image_size"
            )
        channels = known.source_channels if codec is None else codec.image_channels
        pairs, validation = self.load_pairs(
            size, channels, team, known.axes, teacher.pictures, known
        )
        torch.manual_seed(self.seed)
        trainer = Trainer(
            student,
            teacher.bridge,
            config,
            pairs,
            validation,
            folder,
            codec,
            team,
            task=StudentTask,
        )
        trainer.origin = teacher.origin
        return trainer
