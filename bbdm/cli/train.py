"""Train a bridge: python examples/train.py edge2shoes DATA OUTPUT_MODEL [flags].

If it ends early, the same command resumes. For several processes, one for each GPU, replace python by
torchrun --nproc_per_node N, or add --use_multi_gpus.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import torch

from bbdm.base import scripts
from bbdm.base.settings import add_flags, flag_type, from_values
from bbdm.bridges import Density, Objective
from bbdm.cli import setup
from bbdm.cli import training as command
from bbdm.data.degradations import DegradeConfig
from bbdm.data.image_cache import ImageCache
from bbdm.data.latents import LatentDataset, measure
from bbdm.data.pairs import DATASETS, DIRECTIONS, ColumnsConfig
from bbdm.data.survey import BadPicturesError
from bbdm.execution.processes import Processes
from bbdm.pictures.images import read_size
from bbdm.training import fine_tuning, resume, run_folder
from bbdm.training.callback import Callback
from bbdm.training.config import TrainConfig
from bbdm.training.loop import DivergedError
from bbdm.training.previews import ValidationScores
from bbdm.training.profiling import Profile
from bbdm.training.trainer import Trainer

OBJECTIVES = (*get_args(Objective), "scaled")  # the last is I2SB's
HINTS: dict[type[Exception], str] = {
    run_folder.UnreadableRunError: "--overwrite starts the run anew",
    run_folder.FolderInUseError: "--experiment gives another folder",
    run_folder.LaterStepsError: "so does the command without --ckpt_path; --overwrite deletes it, --experiment "
    "gives another folder",
    resume.OtherRunError: "--overwrite starts anew, and --experiment gives another folder",
    resume.OtherCodecError: "-vq gives the autoencoder, and --normalize_latents normalises its latents",
    BadPicturesError: "--skip_bad leaves such pairs out",
    setup.PresetError: "--preset names the network",
    fine_tuning.OtherNetworkError: "--preset names the network of this run",
    DivergedError: "the flags of learning_rate and grad_clip are -lr and --grad_clip",
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; a preset sets defaults, which the help shows, and flags that are given win."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument(
        "--preset", choices=sorted(setup.PRESETS), default="paper", help="the network, and defaults for it"
    )
    parser = scripts.Parser(__doc__, parents=[first])
    flag = parser.add_argument
    flag("dataset", choices=sorted(DATASETS), help="'folder' is of pictures alone, and needs --degrade")
    flag("data_dir", help="the data set's folder; for 'paired', SOURCES,TARGETS; for 'shards', see docs/data.md")
    flag("output_model", type=Path, help="the trained weights: .pt or .safetensors")
    flag("-t", "--t", "--time_steps", dest="time_steps", type=int, help="T of the bridge; 1000, of goub 100, if unset")
    flag("-l", "--c_lambda", type=float, default=2.0, help="noise scale of the A-Bridge")
    flag("--bridge", choices=get_args(setup.BridgeName), default="abridge", help="the path from source to target")
    flag("--objective", choices=OBJECTIVES, help="what the network predicts; the bridge's own if unset")
    flag("--density", choices=get_args(Density), default="uniform", help="of training times")
    flag("--image_size", type=flag_type(read_size), default=256, help="side, or HxW, that pictures are resized to")
    add_flags(parser, DegradeConfig)
    add_flags(parser, ColumnsConfig)
    flag("--direction", choices=DIRECTIONS, default="AtoB", help="AtoB translates A into B")
    flag("--channels", type=int, choices=[1, 3], help="1 for grey pictures; 3 if unset, or the autoencoder's")
    flag(
        "--condition", choices=get_args(setup.Condition), help="how the network sees the source; the preset's if unset"
    )
    flag("--cache_images", type=Path, help="folder of resized pictures: they are decoded once")
    flag("-vq", "--vqgan_path", type=Path, help="train on the latents of this VQGAN, or of a diffusers folder")
    flag("--cache_latents", type=Path, help="folder of latents: they are computed once")
    flag("--normalize_latents", action="store_true", help="to mean 0 and spread 1, as BBDM can")
    add_flags(parser, TrainConfig)
    flag("--gradient_checkpointing", action="store_true", help="less memory for a third more compute")
    flag("--init_from", type=Path, help="begin with the weights of this checkpoint")
    flag("--config", type=Path, help="its settings, a file or a name, if it is of another program")
    flag("--score", nargs="+", metavar="METRIC", help="scores of validation pairs, by eval.py's names, such as fid")
    flag("--fid_weights", type=Path, help="Inception's weights, if they cannot be downloaded")
    flag("--lpips_weights", type=Path, help="AlexNet's weights, if they cannot be downloaded")
    command.add_run_flags(parser)
    parser.set_defaults(**setup.PRESET_SETTINGS[first.parse_known_args(argv)[0].preset])
    return parser.parse_args(argv)


def check_flags(args: argparse.Namespace) -> None:
    """Raise ValueError where flags contradict each other."""
    if args.dataset == "folder" and args.degrade is None:
        raise ValueError("the data set 'folder' has no targets: --degrade makes sources, and pictures are targets")
    if args.vqgan_path is None and (args.cache_latents or args.normalize_latents):
        raise ValueError("--cache_latents and --normalize_latents need -vq")
    if args.vqgan_path is None and args.preset.startswith("lbbdm"):
        raise ValueError(f"--preset {args.preset} is of latents: it needs -vq")
    if args.channels and args.vqgan_path:
        raise ValueError("--channels is of pictures that are trained on: with -vq, it is the autoencoder's")
    if args.cache_images and args.cache_latents:
        raise ValueError("--cache_images and --cache_latents exclude each other: cached latents need no pictures")
    if (args.fid_weights or args.lpips_weights) and not args.score:
        raise ValueError("--fid_weights and --lpips_weights are of metrics, and --score names none")
    if args.init_from and args.ckpt_path:
        raise ValueError("--init_from and --ckpt_path exclude each other: one begins a run, the other resumes one")
    if args.config and not args.init_from:
        raise ValueError("--config is of the network that --init_from names, and there is none")


def build(args: argparse.Namespace, team: Processes) -> Trainer:
    """The training run that the flags describe, at the step where it begins or resumes."""
    config = from_values(TrainConfig, vars(args))
    verbose, report = command.shown(args) and team.first, print if team.first else lambda _: None
    folder = command.run_folder(args)
    resumed = command.find_resumed(args, folder, team)
    codec = None if args.vqgan_path is None else setup.codec_for(args.vqgan_path, args.preset, team.device)
    channels = args.channels or 3 if codec is None else codec.image_channels
    splits = (args.dataset, args.data_dir, args.image_size, args.direction, channels)
    found = {"degrade": args.degrade, "degrade_seed": args.degrade_seed, "columns": args.columns}
    looking = {"skip_bad": args.skip_bad, "kept": folder.path, "progress": verbose, "report": report}
    with team.first_before_others():  # the others find what the first has seen
        pairs, validation = setup.load_splits(*splits, **found, **looking)

    torch.manual_seed(args.seed)
    unet = setup.build_network(args.preset, channels if codec is None else codec.channels, args.condition)
    unet.gradient_checkpointing = args.gradient_checkpointing
    bridge = setup.build_bridge(args.bridge, args.time_steps, args.c_lambda, args.objective, args.density)
    if args.init_from is not None and resumed is None:
        trained = fine_tuning.load_trained(args.init_from, args.time_steps or 1000, args.c_lambda, args.config)
        for line in fine_tuning.begin_from(trained, args.init_from, unet, bridge, codec):
            report(line)

    with team.first_before_others():  # the others find what the first caches and downloads
        if args.cache_images is not None:
            pairs = ImageCache(pairs, args.cache_images, "train", args.workers, verbose)
            if validation is not None:
                validation = ImageCache(validation, args.cache_images, "val", args.workers, verbose)
        if codec is not None and args.cache_latents is not None:
            pairs = LatentDataset(pairs, codec, args.cache_latents, args.flip, verbose)
        callbacks: list[Callback] = [Profile()] if args.profile else []
        if args.score:
            from bbdm.evaluation.metrics import Scores  # needs torchmetrics

            weights = {"fid_weights": args.fid_weights, "lpips_weights": args.lpips_weights}
            callbacks.append(ValidationScores(Scores(args.score, **weights, device=team.device)))
    if codec is not None and args.normalize_latents:
        stored = resumed and resumed[1].codec and resumed[1].codec.statistics
        codec = codec.with_statistics(stored or measure(pairs, codec, args.flip, progress=verbose))

    trainer = Trainer(unet, bridge, config, pairs, validation, folder.path, codec, team, callbacks)
    return command.resume(trainer, args, resumed, team)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_flags(args)
    command.run(__file__, argv, args, build)


if __name__ == "__main__":
    scripts.run(main, hints=HINTS)
