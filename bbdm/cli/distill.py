"""Distil a trained bridge into one of few calls: bbdm distill TEACHER DATA STUDENT --calls 2.

The student begins with the teacher's weights and is trained on the same pairs, by the energy score of its own
results. If it ends early, the same command resumes. For several processes, add --use_multi_gpus, or start it
by torchrun --nproc_per_node N -m bbdm distill ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, from_values
from bbdm.cli import training
from bbdm.sampling.network_config import FileConfig
from bbdm.training.config import DistillConfig

if TYPE_CHECKING:
    from bbdm.execution.processes import Processes
    from bbdm.training.trainer import Trainer

DEFAULTS = {
    "epochs": 20,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "lr_schedule": "cosine",
    "warmup_steps": 100,
    "ema_decay": 0.999,
    "flip": True,
    "precision": "bf16",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(__doc__, prog="bbdm distill")
    flag = parser.add_argument
    flag("teacher", type=Path, help="a file that bbdm.load_checkpoint reads")
    flag("data_dir", help=training.DATA_DIR)
    flag("output_model", type=Path, metavar="STUDENT", help="the distilled weights: .pt or .safetensors")
    training.add_layout(parser, "--dataset", default="edge2shoes", help="the layout of the data set")
    training.add_data_flags(parser, None, "that pictures are resized to; the teacher's if unset")
    add_flags(parser, FileConfig)
    add_flags(parser, DistillConfig)
    training.add_run_flags(parser)
    parser.set_defaults(**DEFAULTS)
    return parser.parse_args(argv)


def build(args: argparse.Namespace, team: Processes) -> Trainer:
    """The run that the flags describe, at the step where it begins or resumes."""
    import torch

    from bbdm.training.distillation import StudentTask, student_of
    from bbdm.training.trainer import Trainer

    config = from_values(DistillConfig, vars(args))
    teacher = from_values(FileConfig, vars(args)).load(args.teacher)
    student = student_of(teacher, config.calls)
    codec = teacher.build_codec()
    args.axes = teacher.unet.config.axes
    size = args.image_size or teacher.image_size
    if size is None:
        raise ValueError(f"{args.teacher} does not hold the size of its pictures: give --image_size")
    folder = training.run_folder(args)
    resumed = training.find_resumed(args, folder, team)
    channels = teacher.unet.source_channels if codec is None else codec.image_channels
    channels = channels if channels in (1, 3) else None  # of other pictures, the channels stay
    known = teacher.unet.config
    pairs, validation = training.load_pairs(args, size, channels, team, teacher.pictures, known)
    torch.manual_seed(args.seed)
    parts = student, teacher.bridge, config, pairs, validation, folder.path, codec, team
    return training.resume(Trainer(*parts, task=StudentTask), args, resumed, team)


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    training.train("distill", argv, parse(argv), build)
