"""Distil a trained bridge into one of few calls: python examples/distill.py TEACHER DATA STUDENT --calls 2.

The student begins with the teacher's weights and is trained on the same pairs, by the energy score of its own
results. If it ends early, the same command resumes. For several processes, replace python by torchrun
--nproc_per_node N, or add --use_multi_gpus.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bbdm.base import scripts
from bbdm.base.settings import add_flags, flag_names, flag_type, from_values
from bbdm.cli import setup
from bbdm.cli import training as command
from bbdm.data.degradations import DegradeConfig
from bbdm.data.pairs import DATASETS, DIRECTIONS, ColumnsConfig
from bbdm.data.survey import BadPicturesError
from bbdm.execution.processes import Processes
from bbdm.files.weights import IncompleteFileError
from bbdm.pictures.images import read_size
from bbdm.sampling.network_config import FileConfig
from bbdm.training import resume, run_folder
from bbdm.training.callback import Callback
from bbdm.training.distillation import DistillConfig, StudentTask, student_of
from bbdm.training.loop import DivergedError
from bbdm.training.profiling import Profile
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
HINTS: dict[type[Exception], str] = {
    run_folder.UnreadableRunError: "--overwrite starts the run anew",
    run_folder.FolderInUseError: "--experiment gives another folder",
    run_folder.LaterStepsError: "so does the command without --ckpt_path; --overwrite deletes it",
    resume.OtherRunError: "--overwrite starts anew, and --experiment gives another folder",
    BadPicturesError: "--skip_bad leaves such pairs out",
    DivergedError: "the flags of learning_rate and grad_clip are -lr and --grad_clip",
    IncompleteFileError: f"the flags are {flag_names(FileConfig)}",
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = scripts.Parser(__doc__)
    flag = parser.add_argument
    flag("teacher", type=Path, help="a file that bbdm.load_checkpoint reads")
    flag("data_dir", help="the data set's folder; for 'paired', SOURCES,TARGETS; for 'shards', see docs/data.md")
    flag("output_model", type=Path, metavar="STUDENT", help="the distilled weights: .pt or .safetensors")
    flag("--dataset", choices=sorted(DATASETS), default="edge2shoes", help="the layout of the data set")
    flag("--image_size", type=flag_type(read_size), help="side, or HxW; the teacher's if unset")
    add_flags(parser, DegradeConfig)
    add_flags(parser, ColumnsConfig)
    flag("--direction", choices=DIRECTIONS, default="AtoB", help="AtoB translates A into B")
    add_flags(parser, FileConfig)
    add_flags(parser, DistillConfig)
    command.add_run_flags(parser)
    parser.set_defaults(**DEFAULTS)
    return parser.parse_args(argv)


def build(args: argparse.Namespace, team: Processes) -> Trainer:
    """The run that the flags describe, at the step where it begins or resumes."""
    config = from_values(DistillConfig, vars(args))
    teacher = from_values(FileConfig, vars(args)).load(args.teacher)
    student = student_of(teacher, config.calls)
    codec = teacher.build_codec()
    size = args.image_size or teacher.image_size
    if size is None:
        raise ValueError(f"{args.teacher} does not hold the size of its pictures: give --image_size")
    verbose, report = command.shown(args) and team.first, print if team.first else lambda _: None
    folder = command.run_folder(args)
    resumed = command.find_resumed(args, folder, team)
    channels = teacher.unet.config.channels if codec is None else codec.image_channels
    splits = (args.dataset, args.data_dir, size, args.direction, channels)
    found = {"degrade": args.degrade, "degrade_seed": args.degrade_seed, "columns": args.columns}
    looking = {"skip_bad": args.skip_bad, "kept": folder.path, "progress": verbose, "report": report}
    with team.first_before_others():  # the others find what the first has seen
        pairs, validation = setup.load_splits(*splits, **found, **looking)
    torch.manual_seed(args.seed)
    callbacks: list[Callback] = [Profile()] if args.profile else []
    parts = student, teacher.bridge, config, pairs, validation, folder.path, codec, team, callbacks, StudentTask
    return command.resume(Trainer(*parts), args, resumed, team)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    command.run(__file__, argv, args, build)


if __name__ == "__main__":
    scripts.run(main, hints=HINTS)
