"""The scripts that write, with small networks and pictures; how they are killed at random, and run again."""

import io
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image

from bbdm import save_checkpoint
from bbdm.base.atomic import file_sha256
from bbdm.bridges import BrownianBridge
from bbdm.cli import eval, train, translate
from bbdm.cli.distill import Distill
from bbdm.cli.train_vqgan import TrainVQGAN
from bbdm.data import latents
from bbdm.data.rows import Row, read_rows
from bbdm.files.checkpoint import save_vqgan
from bbdm.networks import config as networks
from tests.conftest import TINY, SavePicture, save_random_pairs, tiny_unet
from tests.files.test_pretrained import save
from tests.networks import test_vqgan

RUN = "--device cpu -b 2 -e 3 --save_every 5 --show_verbose"  # it reports its checkpoints
TRAIN = f"--preset demo {RUN} --image_size 16 -t 50 --preview_every 2"
VQGAN = "--perceptual none --adversarial_start 2 --discriminator_width 4 --restarts 2 --flip --image_size 32"
PAIRS = "edge2shoes {place}/data"
TARS = "{place}/tars/{{split}}/*.tar {output}/model.pt"
# audit events of what changes in a folder, and "open"
CHANGES = {"os.rename", "os.remove", "os.chmod", "os.mkdir"}
TIMES = {"images_per_second", "seconds", "seconds_per_picture", "environment"}  # and where it ran
AGAIN = re.compile(r".*/(step_\d+\.(pt|png)|best\.pt)|.*\.jsonl?")  # what a run replaces
CONTEXT = multiprocessing.get_context("forkserver")  # which imports once, and forks for each


@dataclass(frozen=True)
class Script:
    """``words`` are the arguments, which read the folder ``{place}`` and write below ``{output}``.

    ``kills`` is how many every night. ``resumes`` is whether it trains for 3 epochs, and ``before`` are flags
    of a run that is interrupted, without which it resumes.
    """

    main: Callable[[list[str]], None]
    words: str
    kills: int = 0
    resumes: bool = True
    before: tuple[str, ...] = ()

    def argv(self, place: Path, output: Path) -> list[str]:
        """The arguments for two folders, whose names may have spaces."""
        return [word.format(place=place, output=output) for word in self.words.split()]


def make_place(folder: Path, save_picture: SavePicture) -> Path:
    """12 pairs to train on and 4 to validate, as files and in tars; a bridge, and what runs begin with."""
    save_random_pairs(folder / "data", 12, 4, save_picture, 32)
    for split in ("train", "val"):
        write_tars(read_rows("edge2shoes", str(folder / "data"), split), folder / "tars" / split)
    bridge = BrownianBridge(1000, objective="pinned")
    save_checkpoint(folder / "bridge.pt", tiny_unet(condition_channels=3), bridge, image_size=16)
    save_vqgan(folder / "vqgan.pt", test_vqgan.tiny_vqgan())
    save(folder / "pixels", DDPMScheduler())
    return folder


def write_tars(rows: Sequence[Row], folder: Path, in_each: int = 2) -> None:
    """Tars of WebDataset, with NAME.source.png and NAME.target.png of each row."""
    folder.mkdir(parents=True)
    for start in range(0, len(rows), in_each):
        with tarfile.open(folder / f"{start:06d}.tar", "w") as tar:
            for row, side in product(rows[start : start + in_each], ("source", "target")):
                half = np.split(np.asarray(Image.open(row[side].path)), 2, axis=1)[row[side].side]
                Image.fromarray(half).save(content := io.BytesIO(), "png")
                member = tarfile.TarInfo(f"{row['name']}.{side}.png")
                member.size = len(content.getvalue())
                tar.addfile(member, io.BytesIO(content.getvalue()))


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Tiny networks, and small parts of caches, so that there are several."""
    torch.set_num_threads(1)
    patch.setitem(
        networks.UNETS,
        "demo",
        networks.UNetConfig(condition_channels=3, **{**TINY, "channel_mult": (1,)}),
    )
    patch.setitem(networks.VQGANS, "demo", networks.VQGANConfig(**test_vqgan.TINY))
    patch.setattr(latents, "BLOCK", 2)
    patch.setattr(latents, "ENCODED_AT_ONCE", 2)


def from_tars(place: Path, output: Path, *flags: str, layout: str = "stream") -> list[str]:
    return [*_train(data=f"{layout} {TARS}").argv(place, output), *flags]


def _train(flags: str = "", data: str = f"{PAIRS} {{output}}/model.pt", **settings: Any) -> Script:
    return Script(train.main, f"{data} {TRAIN} {flags}", **settings)


SCRIPTS: dict[str, Script] = {
    "train": _train(kills=40),
    "train with LoRA": _train("--init_from {place}/pixels --lora 2", kills=10),
    "train_vqgan": Script(
        TrainVQGAN.main, f"{PAIRS} {{output}}/v.pt --preset demo {RUN} {VQGAN}", 30
    ),
    "distill": Script(
        Distill.main, f"{{place}}/bridge.pt {{place}}/data {{output}}/model.pt --calls 2 {RUN}", 10
    ),
    "train from a table": _train(data=f"hub {TARS}", before=("--workers", "1")),
    "train from a stream": _train(
        "--workers 2", f"stream {TARS}", kills=30, before=("--workers", "0")
    ),
    "a cache of pictures": _train("-e 1 --cache_images {output}/cache", kills=30, resumes=False),
    "a cache of latents": _train(
        "-e 1 -vq {place}/vqgan.pt --cache_latents {output}/cache --normalize_latents",
        kills=25,
        resumes=False,
    ),
    "eval": Script(
        eval.main,
        f"{PAIRS} {{place}}/bridge.pt {{output}}/scores --sweep dpm2m:2,3 --metrics psnr ssim -b 2 --device cpu",
        20,
        resumes=False,
    ),
    "generate": Script(
        translate.main,
        f"{PAIRS} {{place}}/bridge.pt {{output}}/results --split train --steps 2 --num_samples 2 -b 3 --device cpu",
        15,
        resumes=False,
    ),
}


# Killed


def begin(
    name: str, folder: Path, argv: list[str], changes: Any, at: int = 0, later: float = 0
) -> BaseProcess:
    """A script in a process of its own, from when its imports are done.

    ``changes`` counts those of files below the folder; number ``at`` kills it, some seconds ``later``. Its
    output is appended to a file beside the folder.
    """
    CONTEXT.set_forkserver_preload([__name__])
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=_run, args=(name, folder, argv, changes, at, later, started))
    process.start()
    assert started.wait(120)
    return process


def _run(
    name: str, folder: Path, argv: list[str], changes: Any, at: int, later: float, started: Any
) -> None:
    make_small(pytest.MonkeyPatch())
    output = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    changes.value = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (writes or event in CHANGES) and str(args[0]).startswith(str(folder)):
            changes.value += 1
            if changes.value == at:
                threading.Timer(later, os.kill, (os.getpid(), signal.SIGKILL)).start()

    sys.addaudithook(watch)
    started.set()
    SCRIPTS[name].main(argv)


def content(folder: Path) -> dict[str, Any]:
    """What is in a folder of results, without times; each file must be whole."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if "/." in f"/{name}" or "/tensorboard/" in name:  # hidden itself, or in a temporary folder
            continue
        if path.suffix == ".pt":
            found[name] = _comparable(torch.load(path, weights_only=True))
        elif path.suffix in (".json", ".jsonl"):
            documents = [path.read_text().replace(str(folder), "")]
            if path.suffix == ".jsonl":  # which grows by lines
                documents = [
                    line for line in documents[0].splitlines(keepends=True) if line.endswith("\n")
                ]
            found[name] = [_comparable(json.loads(document)) for document in documents]
        else:
            found[name] = file_sha256(path)
    return found


def _comparable(value: Any) -> Any:
    """Tensors as their bytes, and no times."""
    if isinstance(value, torch.Tensor):
        return (
            str(value.dtype),
            tuple(value.shape),
            value.flatten().contiguous().view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(value, dict):
        return {key: _comparable(each) for key, each in value.items() if key not in TIMES}
    return [_comparable(each) for each in value] if isinstance(value, list | tuple) else value


def assert_content(folder: Path, expected: dict[str, Any]) -> None:
    """The content of a folder is the expected one, and no temporary file is left.

    A cache keeps one for a day, since another process may be writing it.
    """
    found = content(folder)
    differing = [name for name in expected | found if found.get(name) != expected.get(name)]
    assert not differing, f"{differing} are not those of the undisturbed run"
    assert not [path for path in folder.rglob(".*.tmp") if path.parent.name != "cache"]


def check_left(folder: Path, before: dict[str, Any], undisturbed: dict[str, Any]) -> dict[str, Any]:
    """What a kill left: nothing torn, and nothing lost of what was there ``before`` or was reported."""
    found = content(folder)
    torn = [
        name
        for name, each in found.items()
        if not AGAIN.fullmatch(name) and undisturbed.get(name, each) != each
    ]
    assert not torn, f"{torn} are others"
    lost = [name for name in before if name not in found and not AGAIN.fullmatch(name)]
    assert not lost, f"{lost} are lost"
    reported = re.findall(r"checkpoint: (.*)", folder.with_suffix(".log").read_text())
    newest, known = (
        max(
            [int(step) for name in names for step in re.findall(r"/step_(\d+)\.pt$", name)],
            default=0,
        )
        for names in (found, [*before, *reported])
    )
    assert newest >= known, "the newest checkpoint is lost"
    return found


def kill_at_random(name: str, kills: int, place: Path, tmp_path: Path) -> int:
    """Runs that are killed, as often as asked for in all, and repeated, have the undisturbed run's files.

    Half of the kills come at a random time, and half just after a random change of a file. It returns how
    many left a file half-written.
    """
    script = SCRIPTS[name]
    moments = random.Random(kills)
    changes = CONTEXT.Value("i", 0)

    folder = tmp_path / "undisturbed"
    began = time.monotonic()
    process = begin(name, folder, script.argv(place, folder), changes)
    process.join()
    seconds = time.monotonic() - began
    assert process.exitcode == 0, log_of(folder)
    count = changes.value
    undisturbed = check_left(folder, {}, {})

    done = 0
    inside = 0
    run = 0
    while done < kills:
        run += 1
        folder = tmp_path / str(run)
        left: dict[str, Any] = {}
        killed = True
        while killed:
            change = 0  # after which it kills itself; 0 where it does not
            limit = None  # seconds after which it is killed; None where it is not
            if done < kills and moments.random() < 0.5:
                change = moments.randint(1, count)
            elif done < kills:
                limit = moments.uniform(0, seconds)
            process = begin(
                name, folder, script.argv(place, folder), changes, change, moments.uniform(0, 0.02)
            )
            process.join(limit)
            if process.exitcode is None:
                process.kill()
                process.join()
            killed = process.exitcode == -signal.SIGKILL
            if killed:
                done += 1
            if killed and list(folder.rglob(".*.tmp")):
                inside += 1
            left = check_left(folder, left, undisturbed)
        assert process.exitcode == 0, log_of(folder)
        assert_content(folder, undisturbed)
    return inside


def log_of(folder: Path) -> str:
    """The end of what a script printed, of the runs in a folder."""
    return folder.with_suffix(".log").read_text()[-2000:]
