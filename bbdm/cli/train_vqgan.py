"""Train an autoencoder, for -vq: python examples/train_vqgan.py edge2shoes DATA OUTPUT_MODEL [flags].

It learns sources and targets: L1, LPIPS, an adversary, and a codebook (--kind vq) or a KL divergence
(--kind kl). If it ends early, the same command resumes. For several processes, one for each GPU, replace
python by torchrun --nproc_per_node N, or add --use_multi_gpus.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from bbdm.base import scripts
from bbdm.base.settings import add_flags, flag_type, from_values
from bbdm.cli import setup
from bbdm.cli import training as command
from bbdm.data.degradations import DegradeConfig
from bbdm.data.image_cache import ImageCache
from bbdm.data.pairs import DATASETS
from bbdm.data.survey import BadPicturesError
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_vqgan, load_vqgan_state
from bbdm.networks.vqgan import PRESETS, VQGAN
from bbdm.pictures.images import read_size
from bbdm.training import resume, run_folder
from bbdm.training.autoencoder import AutoencoderConfig, AutoencoderTask, PerceptualError, perceptual_loss
from bbdm.training.callback import Callback
from bbdm.training.loop import DivergedError, Training
from bbdm.training.profiling import Profile

DEFAULTS = {
    "epochs": 50,
    "batch_size": 8,
    "learning_rate": 2e-4,
    "lr_schedule": "cosine",
    "ema_decay": 0.999,
    "precision": "bf16",
}
HINTS: dict[type[Exception], str] = {
    run_folder.UnreadableRunError: "--overwrite starts the run anew",
    run_folder.FolderInUseError: "--experiment gives another folder",
    run_folder.LaterStepsError: "so does the command without --ckpt_path; --overwrite deletes it",
    resume.OtherRunError: "--overwrite starts anew, and --experiment gives another folder",
    BadPicturesError: "--skip_bad leaves such pairs out",
    DivergedError: "the flags of learning_rate and grad_clip are -lr and --grad_clip",
    PerceptualError: "--lpips_weights gives them as a file, and --perceptual none trains without",
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags. A trained codebook keeps its codes unless --restarts says otherwise."""
    parser = scripts.Parser(__doc__)
    flag = parser.add_argument
    flag("dataset", choices=sorted(DATASETS), help="'folder' is of pictures alone, and needs --degrade")
    flag("data_dir", help="the data set's folder; for 'paired', SOURCES,TARGETS")
    flag("output_model", type=Path, help="the trained weights: .pt or .safetensors")
    flag("--preset", choices=sorted(PRESETS), default="vq-f4", help="the network")
    flag("--kind", choices=["vq", "kl"], default="vq", help="with a codebook, or with latents that are drawn")
    flag("--init_from", type=Path, help="begin with this autoencoder, in place of a preset; restarts are 0 if unset")
    flag("--image_size", type=flag_type(read_size), default=256, help="side, or HxW, that pictures are resized to")
    flag("--channels", type=int, choices=[1, 3], help="1 for grey pictures; 3 if unset, or those of --init_from")
    add_flags(parser, DegradeConfig)
    flag("--cache_images", type=Path, help="folder of resized pictures: they are decoded once")
    flag("--lpips_weights", type=Path, help="torchvision's weights of the LPIPS network, if they are not downloaded")
    add_flags(parser, AutoencoderConfig)
    command.add_run_flags(parser)
    parser.set_defaults(**DEFAULTS)
    if parser.parse_args(argv).init_from is not None:
        parser.set_defaults(restarts=0)
    return parser.parse_args(argv)


def build_network(args: argparse.Namespace) -> VQGAN:
    """The autoencoder that a run begins with."""
    if args.init_from is None:
        settings = replace(PRESETS[args.preset], image_channels=args.channels or 3)
        return VQGAN.from_config(replace(settings, num_codes=0) if args.kind == "kl" else settings)
    vqgan = load_vqgan(args.init_from)
    if args.channels not in (None, vqgan.config.image_channels):
        raise ValueError(
            f"{args.init_from} is for images of {vqgan.config.image_channels} channels: leave --channels out"
        )
    if (args.kind == "kl") != (vqgan.config.num_codes == 0):
        raise ValueError(f"{args.init_from} is of the other --kind than {args.kind}")
    return vqgan


def build(args: argparse.Namespace, team: Processes) -> Training:
    """The training run that the flags describe, at the step where it begins or resumes."""
    config = from_values(AutoencoderConfig, vars(args))
    verbose, report = command.shown(args) and team.first, print if team.first else lambda _: None
    folder = command.run_folder(args, load_vqgan_state)
    resumed = command.find_resumed(args, folder, team)
    torch.manual_seed(args.seed)
    vqgan = build_network(args).to(team.device)
    splits = (args.dataset, args.data_dir, args.image_size, "AtoB", vqgan.config.image_channels)
    degraded = {"degrade": args.degrade, "degrade_seed": args.degrade_seed}
    looking = {"skip_bad": args.skip_bad, "kept": folder.path, "progress": verbose, "report": report}
    with team.first_before_others():  # the others find what the first has seen, caches and downloads
        pairs, validation = setup.load_splits(*splits, **degraded, **looking)
        if args.cache_images is not None:
            pairs = ImageCache(pairs, args.cache_images, "train", args.workers, verbose)
            if validation is not None:
                validation = ImageCache(validation, args.cache_images, "val", args.workers, verbose)
        perceptual = perceptual_loss(config, args.lpips_weights, team.device)
    step = AutoencoderTask(vqgan, config, pairs, team, perceptual)
    callbacks: list[Callback] = [Profile()] if args.profile else []
    return command.resume(Training(step, pairs, validation, folder.path, callbacks), args, resumed, team)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.dataset == "folder" and args.degrade is None:
        raise ValueError("the data set 'folder' has no targets: --degrade makes sources, and pictures are targets")
    if args.decoder_only and args.init_from is None:
        raise ValueError("--decoder_only trains the decoder of a trained autoencoder: --init_from names it")
    command.run(__file__, argv, args, build)


if __name__ == "__main__":
    scripts.run(main, hints=HINTS)
