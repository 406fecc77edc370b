"""Train a bridge: python examples/train.py edge2shoes DATA OUTPUT_MODEL [flags].

Killed at any moment, the same command goes on. In several processes, one a GPU: torchrun --nproc_per_node N
in place of python, or --use_multi_gpus.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import torch

from bbdm.base import scripts
from bbdm.base.atomic import check_suffix, remove_leftovers
from bbdm.base.images import read_size
from bbdm.base.settings import flag_type
from bbdm.bridges import ABridge, Bridge, BrownianBridge, Objective
from bbdm.codec import Codec, LatentStatistics, VQGANCodec
from bbdm.data.image_cache import ImageCache
from bbdm.data.latents import LatentDataset, measure
from bbdm.data.pairs import DATASETS, DIRECTIONS, PairedDataset, load_dataset
from bbdm.execution.processes import Processes, start_on_each_gpu
from bbdm.files.checkpoint import load_checkpoint, load_vqgan
from bbdm.files.content import Checkpoint
from bbdm.networks.unet import PRESETS, UNet, UNetConfig
from bbdm.training.callback import Callback
from bbdm.training.config import Loss, Optimizer, Precision, Schedule, TrainConfig
from bbdm.training.fine_tuning import begin_from
from bbdm.training.previews import ValidationScores
from bbdm.training.profiling import Profile
from bbdm.training.run_folder import RunFolder
from bbdm.training.trainer import Trainer

BBDM: dict[str, Any] = {  # the original's templates
    "bridge": "bbdm",
    "batch_size": 8,
    "lr_schedule": "plateau",
    "ema_start": 30000,
    "ema_every": 8,
}
PRESET_FLAGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "bbdm": BBDM,
    "lbbdm-f4": BBDM,
    "lbbdm-f8": BBDM,
    "lbbdm-f16": BBDM,
    "demo": {
        "image_size": 64,
        "batch_size": 16,
        "epochs": 50,
        "learning_rate": 4e-4,
        "lr_schedule": "cosine",
        "warmup_steps": 200,
        "loss": "l2",
        "ema_decay": 0.999,
        "flip": True,
        "precision": "bf16",
    },
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; a preset sets defaults, which the help shows, and flags that are given win."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=sorted(PRESETS), default="paper", help="the network, and defaults for it")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, parents=[first]
    )
    parser.add_argument("dataset", choices=sorted(set(DATASETS) - {"folder"}))
    parser.add_argument("data_dir", help="the data set's folder; for 'paired', SOURCES,TARGETS")
    parser.add_argument("output_model", type=Path, help="the trained weights: .pt or .safetensors")
    parser.add_argument("-b", "--batch_size", type=int, default=64, help="pairs in an optimizer step")
    parser.add_argument("--grad_accumulation", type=int, default=1, help="parts to compute a batch in: less memory")
    parser.add_argument("-e", "--epochs", type=int, default=100, help="passes over the pairs")
    parser.add_argument("-t", "--t", "--time_steps", dest="time_steps", type=int, default=1000, help="T of the bridge")
    parser.add_argument("-l", "--c_lambda", type=float, default=2.0, help="noise scale of the A-Bridge")
    parser.add_argument("-lr", "--learning_rate", type=float, default=1e-4, help="of the optimizer")
    parser.add_argument("--image_size", type=flag_type(read_size), default=256, help="side, or HxW, of pictures")
    parser.add_argument("--bridge", choices=["abridge", "brownian", "bbdm"], default="abridge", help="path")
    parser.add_argument("--objective", choices=get_args(Objective), default="residual", help="prediction")
    parser.add_argument("--loss", choices=get_args(Loss), default="l1", help="of the prediction")
    parser.add_argument("--optimizer", choices=get_args(Optimizer), default="adam", help="with or without decay")
    parser.add_argument("--weight_decay", type=float, default=0.01, help="of adamw")
    parser.add_argument("--grad_clip", type=float, default=0.0, help="norm that gradients are cut to; 0: as they are")
    parser.add_argument(
        "--lr_schedule",
        choices=get_args(Schedule),
        default="constant",
        help="cosine: to 0 over all epochs; plateau: halved when the training loss stops falling",
    )
    parser.add_argument("--warmup_steps", type=int, default=0, help="optimizer steps of a rising learning rate")
    parser.add_argument("--plateau_patience", type=int, default=3000, help="steps before halving, and of rest after")
    parser.add_argument("--ema_decay", type=float, default=0.995, help="of the weights' average")
    parser.add_argument("--ema_start", type=int, default=0, help="steps during which the average is a copy")
    parser.add_argument("--ema_every", type=int, default=1, help="steps between updates of the average")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=False, help="mirror half of the pairs")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of the network's arithmetic")
    parser.add_argument("--compile", action="store_true", help="faster steps after minutes of compiling")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="less memory for a third more compute")
    parser.add_argument("--cache_images", type=Path, help="folder to keep resized pictures in: they are decoded once")
    parser.add_argument("-vq", "--vqgan_path", type=Path, help="train on the latents of this VQGAN")
    parser.add_argument("--cache_latents", type=Path, help="folder to keep latents in: they are computed only once")
    parser.add_argument("--normalize_latents", action="store_true", help="to mean 0 and spread 1, as BBDM can")
    parser.add_argument("--channels", type=int, choices=[1, 3], help="1 for grey pictures; 3 if unset, or the VQGAN's")
    parser.add_argument("--condition", choices=["concat", "none"], help="whether it sees the source; as the preset")
    parser.add_argument("--init_from", type=Path, help="begin from the weights of this checkpoint")
    parser.add_argument("--config", type=Path, help="its YAML file, where it is of the original BBDM")
    parser.add_argument("--direction", choices=DIRECTIONS, default="AtoB")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, times and noise")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--preview_every", type=int, default=10, help="epochs between grids of validation pairs")
    parser.add_argument(
        "--score", nargs="+", metavar="METRIC", help="of eval.py, such as fid: validation pairs' scores"
    )
    parser.add_argument("--fid_weights", type=Path, help="Inception's weights, where they cannot be downloaded")
    parser.add_argument("--lpips_weights", type=Path, help="AlexNet's weights, where they cannot be downloaded")
    parser.add_argument("--save_every", type=int, default=500, help="optimizer steps between checkpoints")
    parser.add_argument("--keep", type=int, default=2, help="checkpoints that stay, the newest")
    parser.add_argument(
        "--experiment", type=Path, help="folder of losses, grids and checkpoints; OUTPUT_MODEL.run if unset"
    )
    parser.add_argument("--ckpt_path", type=Path, help="go on from this checkpoint, not from the newest of the folder")
    parser.add_argument("--overwrite", action="store_true", help="delete what the folder has of later steps, and begin")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--use_multi_gpus", "-use_multi_gpus", action="store_true", help="a process for each GPU here")
    parser.add_argument("--profile", action="store_true", help="print where the time of some steps goes; a trace too")
    parser.add_argument("--show_verbose", action="store_true", help="a progress bar, and the losses of each epoch")
    preset = first.parse_known_args(argv)[0].preset
    parser.set_defaults(**PRESET_FLAGS[preset])
    return parser.parse_args(argv)


def build_config(args: argparse.Namespace) -> TrainConfig:
    """How the flags say to train."""
    return TrainConfig(**{field.name: getattr(args, field.name) for field in fields(TrainConfig)})


def build_bridge(args: argparse.Namespace) -> Bridge:
    """The bridge that the flags describe."""
    if args.bridge == "abridge":
        return ABridge(args.time_steps, args.c_lambda, args.objective)
    if args.bridge == "brownian":
        return BrownianBridge(args.time_steps, objective=args.objective)
    return BrownianBridge.bbdm(args.time_steps, objective=args.objective)


def build_network(args: argparse.Namespace, channels: int) -> UNetConfig:
    """The preset's network for pictures or latents of so many channels, with a condition where one is asked for."""
    preset = PRESETS[args.preset]
    conditional = args.condition == "concat" if args.condition else preset.condition_channels > 0
    condition = channels if conditional else 0
    return replace(preset, in_channels=channels, out_channels=channels, condition_channels=condition)


def check_preset(name: str, codec: Codec) -> None:
    """Raise ValueError where a preset's network is of another number of channels than a codec's latents."""
    channels = PRESETS[name].in_channels
    if channels != codec.channels:
        fitting = [other for other, config in PRESETS.items() if config.in_channels == codec.channels]
        raise ValueError(
            f"--preset {name} takes {channels} channels, and this VQGAN's latents have {codec.channels}; "
            f"presets for it: {', '.join(fitting) or 'none'}"
        )


def start(args: argparse.Namespace, folder: RunFolder) -> tuple[Path, Checkpoint] | None:
    """The checkpoint that the run goes on from, with its content; None for a run that begins."""
    if args.ckpt_path is not None:
        return args.ckpt_path, load_checkpoint(args.ckpt_path)
    return None if args.overwrite else folder.newest()


def statistics(
    args: argparse.Namespace,
    pairs: PairedDataset | LatentDataset,
    codec: Codec,
    begun: tuple[Path, Checkpoint] | None,
) -> LatentStatistics:
    """Those of the run that goes on, where there is one; else they are measured."""
    stored = None if begun is None else begun[1].build_codec()
    if stored is not None and stored.statistics is not None:
        return stored.statistics
    return measure(pairs, codec, args.flip, progress=args.show_verbose)


def load_trained(args: argparse.Namespace) -> Checkpoint:
    """What --init_from names. Files that leave out T and the noise scale have those of this run."""
    try:
        return load_checkpoint(args.init_from, config=args.config)
    except ValueError:
        return load_checkpoint(args.init_from, args.time_steps, args.c_lambda, config=args.config)


def begin(args: argparse.Namespace, trained: Checkpoint, unet: UNet, bridge: Bridge, codec: Codec | None) -> list[str]:
    """Take over the weights that --init_from names; lines that tell what is different now."""
    try:
        told = begin_from(unet, trained)
    except ValueError as error:
        raise ValueError(f"{args.init_from}: {error}; --preset names the network of this run") from error
    if trained.bridge != bridge:
        told.append(f"it was trained as {trained.bridge}, and this run is {bridge}")
    spaces = [None if each is None else each.description() for each in (trained.build_codec(), codec)]
    if spaces[0] != spaces[1]:
        told.append("it was trained in another space: of pictures, or of another VQGAN's latents")
    return [f"{args.init_from}: {line}" for line in told]


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.use_multi_gpus:
        start_on_each_gpu(__file__, argv)
    if args.vqgan_path is None and (args.cache_latents or args.normalize_latents):
        raise ValueError("--cache_latents and --normalize_latents need -vq")
    if args.cache_images and args.cache_latents:
        raise ValueError("--cache_images and --cache_latents exclude each other: cached latents need no pictures")
    if (args.fid_weights or args.lpips_weights) and not args.score:
        raise ValueError("--fid_weights and --lpips_weights are of metrics, and --score names none")
    if args.init_from and args.ckpt_path:
        raise ValueError(
            "--init_from and --ckpt_path exclude each other: the one begins a run, the other goes on with it"
        )
    if args.config and not args.init_from:
        raise ValueError("--config is of the network that --init_from names, and there is none")
    if args.channels and args.vqgan_path:
        raise ValueError("--channels is of pictures that are trained on: with -vq, the VQGAN says what it takes")
    if args.vqgan_path is None and args.preset.startswith("lbbdm"):
        raise ValueError(f"--preset {args.preset} is of latents: it needs -vq")
    remove_leftovers(args.output_model)
    check_suffix(args.output_model)
    team = Processes.join(args.device)
    run(args, team)
    team.leave()


def run(args: argparse.Namespace, team: Processes) -> None:
    """Train, as one of the processes of the run."""
    args.show_verbose &= team.first
    tell = print if team.first else lambda _: None
    config = build_config(args)
    folder = args.experiment or args.output_model.with_suffix(".run")
    with team.first_before_others():
        begun = start(args, RunFolder(folder, args.keep))
    trained = load_trained(args) if args.init_from is not None and begun is None else None
    codec, channels = None, args.channels or 3
    if args.vqgan_path is not None:
        codec = VQGANCodec(load_vqgan(args.vqgan_path)).placed(team.device, torch.float32)
        check_preset(args.preset, codec)
        channels = codec.image_channels
    kind = (args.image_size, args.direction, channels)
    train = load_dataset(args.dataset, args.data_dir, "train", *kind)
    try:
        validation = load_dataset(args.dataset, args.data_dir, "val", *kind)
    except FileNotFoundError as error:
        tell(f"no validation: {error}")
        validation = None
    if validation is not None and validation.pairs == train.pairs:
        tell("no validation: these are the training pairs; {split} in the paths tells them apart")
        validation = None
    if args.cache_images is not None:
        making = (args.workers, args.show_verbose)
        with team.first_before_others():
            train = ImageCache(train, args.cache_images, "train", *making)
            if validation is not None:
                validation = ImageCache(validation, args.cache_images, "val", *making)
    torch.manual_seed(args.seed)
    unet = UNet.from_config(build_network(args, channels if codec is None else codec.channels)).to(team.device)
    unet.gradient_checkpointing = args.gradient_checkpointing
    pairs = train
    if codec is not None:
        if args.cache_latents is not None:
            with team.first_before_others():
                pairs = LatentDataset(train, codec, args.cache_latents, args.flip, args.show_verbose)
        if args.normalize_latents:
            codec = codec.with_statistics(statistics(args, pairs, codec, begun))
    bridge = build_bridge(args)
    if trained is not None:
        for line in begin(args, trained, unet, bridge, codec):
            tell(line)
    callbacks: list[Callback] = [Profile()] if args.profile else []
    if args.score:
        from bbdm.evaluation.metrics import Scores  # which needs the extra eval

        weights = {"fid_weights": args.fid_weights, "lpips_weights": args.lpips_weights}
        with team.first_before_others():  # which then find what it downloads
            callbacks.append(ValidationScores(Scores(args.score, **weights, device=team.device)))
    trainer = Trainer(unet, bridge, config, pairs, validation, folder, codec, team, callbacks)
    if begun is not None:
        trainer.resume(*begun)
        if begun[0].resolve().parent != folder.resolve() or args.overwrite:
            trainer.best = None  # that of epochs which are not this run's
        del begun  # which is as large as the network's training state
    if args.overwrite:
        with team.first_before_others():
            trainer.run.forget_after(trainer.step)
    if trainer.epoch >= config.epochs:
        tell(f"nothing is left to train: {folder} has {trainer.epoch} epochs already")
    try:
        with scripts.termination() as asked:
            trainer.fit(args.show_verbose, asked)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(trainer.how_to_go_on()) from None
    if team.first:
        trainer.save(args.output_model)
    tell(f"{args.output_model}: weights after epoch {trainer.epoch}; losses and grids are in {folder}")


if __name__ == "__main__":
    scripts.run(main)
