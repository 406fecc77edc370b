"""Train an autoencoder, for -vq: bbdm train-vqgan edge2shoes DATA OUTPUT_MODEL [flags].

It learns sources and targets: L1, LPIPS, an adversary, and a codebook (--kind vq) or a KL divergence
(--kind kl). If it ends early, the same command resumes. For several processes, one for each GPU, add
--use_multi_gpus, or start it by torchrun --nproc_per_node N -m bbdm train-vqgan ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, flag_type, from_values
from bbdm.cli import training
from bbdm.cli.presets import VQGAN_PRESETS
from bbdm.data.config import RowsConfig
from bbdm.pictures.images import read_size
from bbdm.training.config import AutoencoderConfig

if TYPE_CHECKING:
    from bbdm.execution.processes import Processes
    from bbdm.networks.vqgan import VQGAN
    from bbdm.training.trainer import Trainer

DEFAULTS = {
    "epochs": 50,
    "batch_size": 8,
    "learning_rate": 2e-4,
    "lr_schedule": "cosine",
    "ema_decay": 0.999,
    "precision": "bf16",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags. A trained codebook keeps its codes unless --restarts says otherwise."""
    parser = Parser(__doc__, prog="bbdm train-vqgan")
    flag = parser.add_argument
    training.add_layout(parser, help="'folder' is of pictures alone, and needs --degrade")
    flag("data_dir", help="the data set's folder; for 'paired', SOURCES,TARGETS")
    flag("output_model", type=Path, help="the trained weights: .pt or .safetensors")
    flag("--preset", choices=sorted(VQGAN_PRESETS), default="vq-f4", help="the network")
    flag("--kind", choices=["vq", "kl"], default="vq", help="with a codebook, or with latents that are drawn")
    flag("--init_from", type=Path, help="begin with this autoencoder, in place of a preset; restarts are 0 if unset")
    flag("--image_size", type=flag_type(read_size), default=256, help="side, or HxW, that pictures are resized to")
    flag("--channels", type=int, choices=[1, 3], help="1 for grey pictures; 3 if unset, or those of --init_from")
    add_flags(parser, RowsConfig)
    flag("--cache_images", type=Path, help="folder of what is decoded and resized once")
    flag("--lpips_weights", type=Path, help="torchvision's weights of the LPIPS network, if they are not downloaded")
    add_flags(parser, AutoencoderConfig)
    training.add_run_flags(parser)
    parser.set_defaults(**DEFAULTS)
    if parser.parse_args(argv).init_from is not None:
        parser.set_defaults(restarts=0)
    return parser.parse_args(argv)


def check_flags(args: argparse.Namespace) -> None:
    """Raise ValueError where flags contradict each other."""
    training.check_targets(args)
    if args.decoder_only and args.init_from is None:
        raise ValueError("--decoder_only trains the decoder of a trained autoencoder: --init_from names it")


def build_network(args: argparse.Namespace) -> VQGAN:
    """The autoencoder that a run begins with."""
    from bbdm.files.checkpoint import load_vqgan
    from bbdm.networks.vqgan import VQGAN

    if args.init_from is None:
        settings = replace(VQGAN_PRESETS[args.preset], image_channels=args.channels or 3)
        return VQGAN.from_config(replace(settings, num_codes=0) if args.kind == "kl" else settings)
    vqgan = load_vqgan(args.init_from)
    if args.channels not in (None, vqgan.config.image_channels):
        raise ValueError(
            f"{args.init_from} is for images of {vqgan.config.image_channels} channels: leave --channels out"
        )
    if (args.kind == "kl") != (vqgan.config.num_codes == 0):
        raise ValueError(f"{args.init_from} is of the other --kind than {args.kind}")
    return vqgan


def build(args: argparse.Namespace, team: Processes) -> Trainer:
    """The training run that the flags describe, at the step where it begins or resumes."""
    import torch

    from bbdm.files.checkpoint import load_vqgan_state
    from bbdm.training.autoencoder import AutoencoderTask, perceptual_loss
    from bbdm.training.trainer import Trainer

    config = from_values(AutoencoderConfig, vars(args))
    folder = training.run_folder(args, load_vqgan_state)
    resumed = training.find_resumed(args, folder, team)
    torch.manual_seed(args.seed)
    vqgan = build_network(args).to(team.device)
    splits = training.load_pairs(args, args.image_size, vqgan.config.image_channels, team)
    pairs, validation = training.cached_pictures(args, *splits, team)
    with team.first_before_others():  # the others find what the first downloads
        perceptual = perceptual_loss(config, args.lpips_weights, team.device)
    task = partial(AutoencoderTask, perceptual=perceptual)
    trainer = Trainer(vqgan, None, config, pairs, validation, folder.path, processes=team, task=task)
    return training.resume(trainer, args, resumed, team)


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    args = parse(argv)
    check_flags(args)
    training.train("train-vqgan", argv, args, build)
