"""Train a bridge: bbdm train edge2shoes DATA OUTPUT_MODEL [flags].

If it ends early, the same command resumes. For several processes, one for each GPU, add --use_multi_gpus, or
start it by torchrun --nproc_per_node N -m bbdm train ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, flag_type, from_values
from bbdm.bridges import Density, Objective
from bbdm.cli import training
from bbdm.cli.presets import PRESET_SETTINGS, PRESETS, BridgeName, SourceAs
from bbdm.networks.checks import check_pictures
from bbdm.training.config import TrainConfig

if TYPE_CHECKING:
    from bbdm.execution.processes import Processes
    from bbdm.training.callback import Callback
    from bbdm.training.trainer import Trainer

OBJECTIVES = (*get_args(Objective), "scaled")  # the last is I2SB's


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; a preset sets defaults, which the help shows, and flags that are given win."""
    first = Parser(None, add_help=False)
    first.add_argument("--preset", choices=sorted(PRESETS), default="paper", help="the network, and defaults for it")
    parser = Parser(__doc__, prog="bbdm train", parents=[first])
    flag = parser.add_argument
    training.add_layout(parser, help="'folder' is of pictures alone, and needs --degrade")
    flag("data_dir", help=training.DATA_DIR)
    flag("output_model", type=Path, help="the trained weights: .pt or .safetensors")
    flag("-t", "--t", "--time_steps", dest="time_steps", type=int, help="T of the bridge; 1000, of goub 100, if unset")
    flag("-l", "--c_lambda", type=float, default=2.0, help="noise scale of the A-Bridge")
    flag("--bridge", choices=get_args(BridgeName), default="abridge", help="the path from source to target")
    flag("--objective", choices=OBJECTIVES, help="what the network predicts; the bridge's own if unset")
    flag("--density", choices=get_args(Density), default="uniform", help="of training times")
    flag("--spread", type=float, help="of targets less sources, in [-1, 1]; measured if unset and it counts")
    training.add_data_flags(parser, 256, "that pictures are resized to")
    flag("--channels", type=int, choices=[1, 3], help="1 for grey pictures; 3 if unset, or the autoencoder's")
    flag("--source_as", choices=get_args(SourceAs), help="how the network sees the source; the preset's if unset")
    flag("--drop", type=flag_type(read_shares), help="NAME:SHARE with commas: examples that lack the condition")
    flag("-vq", "--vqgan_path", type=Path, help="train on the latents of this VQGAN, or of a diffusers folder")
    flag("--cache_latents", type=Path, help="folder of latents: they are computed once")
    flag("--normalize_latents", action="store_true", help="to mean 0 and spread 1, as BBDM can")
    add_flags(parser, TrainConfig)
    flag("--gradient_checkpointing", action="store_true", help="less memory for a third more compute")
    flag("--init_from", type=Path, help="begin with the weights of this checkpoint")
    flag("--whiten", action="store_true", help="begin with filters that see fine detail, for restoration")
    flag("--config", help="the name of its settings, if it is of another program")
    flag("--score", nargs="+", metavar="METRIC", help="scores of validation pairs, by eval's names, such as fid")
    flag("--fid_weights", type=Path, help="Inception's weights, if they cannot be downloaded")
    flag("--lpips_weights", type=Path, help="AlexNet's weights, if they cannot be downloaded")
    training.add_run_flags(parser)
    preset = first.parse_known_args(argv)[0].preset
    parser.set_defaults(**PRESET_SETTINGS[preset], axes=PRESETS[preset].axes)
    return parser.parse_args(argv)


def read_shares(text: str) -> dict[str, float]:
    """Shares by name from text, such as ``style:0.1,text:0.2``.

    Raises:
        ValueError: the text has another form, or a name is there twice.
    """
    parts = [each.partition(":") for each in text.split(",")]
    try:
        shares = {name: float(share) for name, _, share in parts}
    except ValueError:
        shares = {}
    if len(shares) < len(parts):
        raise ValueError(f"it is written as NAME:SHARE, with commas, each name once, got {text!r}")
    return shares


def check_flags(args: argparse.Namespace) -> None:
    """Raise ValueError where flags contradict each other."""
    training.check_targets(args)
    if args.vqgan_path is None and (args.cache_latents or args.normalize_latents):
        raise ValueError("--cache_latents and --normalize_latents need -vq")
    if args.vqgan_path is None and args.preset.startswith("lbbdm"):
        raise ValueError(f"--preset {args.preset} is of latents: it needs -vq")
    if args.vqgan_path is not None:
        check_pictures(args.axes, "-vq")
    if args.channels and args.vqgan_path:
        raise ValueError("--channels is of pictures that are trained on: with -vq, it is the autoencoder's")
    if args.whiten and args.init_from:
        raise ValueError("--whiten is of networks that are not trained: leave it or --init_from out")
    if args.vqgan_path and args.slices and args.slices.neighbours:
        raise ValueError(
            "neighbours of --slices are of pictures that are trained on, and -vq of latents: leave one out"
        )
    if args.cache_images and args.cache_latents:
        raise ValueError("--cache_images and --cache_latents exclude each other: cached latents need no pictures")
    if (args.fid_weights or args.lpips_weights) and not args.score:
        raise ValueError("--fid_weights and --lpips_weights are of metrics, and --score names none")
    names = args.conditions or {}
    if other := [name for name in args.drop or {} if name not in names]:
        raise ValueError(f"--drop must be of the conditions {', '.join(names) or '(there are none)'}, got {other[0]!r}")
    if args.init_from and args.ckpt_path:
        raise ValueError("--init_from and --ckpt_path exclude each other: one begins a run, the other resumes one")
    if args.config and not args.init_from:
        raise ValueError("--config is of the network that --init_from names, and there is none")


def build(args: argparse.Namespace, team: Processes) -> Trainer:
    """The training run that the flags describe, at the step where it begins or resumes."""
    import torch

    from bbdm.cli import setup
    from bbdm.data.cached import LatentDataset, measure
    from bbdm.training import fine_tuning, statistics
    from bbdm.training.previews import ValidationScores
    from bbdm.training.trainer import Trainer
    from bbdm.training.whitening import whiten

    config = from_values(TrainConfig, vars(args))
    verbose = training.shown(args) and team.first
    folder = training.run_folder(args)
    resumed = training.find_resumed(args, folder, team)
    codec = None if args.vqgan_path is None else setup.codec_for(args.vqgan_path, args.preset, team.device)
    channels = args.channels or 3 if codec is None else codec.image_channels
    known = None if resumed is None else resumed[1].unet.config
    pairs, validation = training.load_pairs(args, args.image_size, channels, team, known=known)

    torch.manual_seed(args.seed)
    channels = (pairs.channels, pairs.source_channels) if codec is None else (codec.channels, codec.channels)
    endpoint = pairs.spec.endpoint(pairs.source_channels, pairs.channels)
    further = replace(pairs.further, drop=args.drop or {})
    unet = setup.build_network(args.preset, channels[0], args.source_as, channels[1], endpoint, further)
    unet.gradient_checkpointing = args.gradient_checkpointing
    bridge = setup.build_bridge(args.bridge, args.time_steps, args.c_lambda, args.objective, args.density)
    given = {} if args.spread is None else {"spread": args.spread}
    known = {} if resumed is None else resumed[1].bridge.statistics
    if args.init_from is not None and resumed is None:
        trained = fine_tuning.load_trained(args.init_from, args.time_steps or 1000, args.c_lambda, args.config)
        known = trained.bridge.statistics
        for line in fine_tuning.begin_from(trained, args.init_from, unet, replace(bridge, **known | given), codec):
            if team.first:
                print(line)

    pairs, validation = training.cached_pictures(args, pairs, validation, team)
    callbacks: list[Callback] = []
    with team.first_before_others():  # the others find what the first caches and downloads
        if codec is not None and args.cache_latents is not None:
            pairs = LatentDataset(pairs, codec, args.cache_latents, args.flip, verbose)
        if args.score:
            from bbdm.evaluation.scores import Scores  # needs torchmetrics

            weights = {"fid_weights": args.fid_weights, "lpips_weights": args.lpips_weights}
            of = {"values": pairs.spec.target, "channels": pairs.channels, "masked": pairs.masked}
            callbacks.append(ValidationScores(Scores(args.score, **weights, **of, device=team.device)))
    if codec is not None and args.normalize_latents:
        stored = resumed and resumed[1].codec and resumed[1].codec.statistics
        codec = codec.with_statistics(stored or measure(pairs, codec, args.flip, progress=verbose))

    if args.whiten and resumed is None:
        whiten(unet, pairs, codec, team.device)
    bridge = replace(bridge, **known | given)
    if statistics.used(bridge) and not known | given:
        bridge = statistics.fitted(bridge, unet, pairs, codec, team.device)
        if team.first:
            print(f"measured: {', '.join(f'{name} {value:g}' for name, value in bridge.statistics.items())}")
    trainer = Trainer(unet, bridge, config, pairs, validation, folder.path, codec, team, callbacks)
    return training.resume(trainer, args, resumed, team)


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    args = parse(argv)
    check_flags(args)
    training.train("train", argv, args, build)
