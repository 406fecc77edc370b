"""Twemoji <-> Noto emoji without pairs, judged by held-back code points that both have.

    npm pack emoji-datasource-twitter emoji-datasource-google     # pictures of 64 pixels; unpack both
    python examples/emoji_without_pairs.py TWITTER/img/twitter/64 GOOGLE/img/google/64 FOLDER

The same command resumes. FOLDER gets the pictures, the run, ``out.pt`` and ``scores.json``.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from PIL import Image

from bbdm import BridgeSampler, BrownianBridge, Trainer, UNet
from bbdm.data import Pairs, Spec, read_rows
from bbdm.networks.conditions import DIRECTIONS
from bbdm.training import fitted
from bbdm.training.config import UnpairedConfig
from bbdm.training.unpaired import UnpairedTask, between_sets, energy_distance

SIZE, HELD_BACK, VALIDATED = 32, 200, 32
TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")


def small_on_white(path: Path) -> Image.Image:
    """An emoji as a small picture on white."""
    picture = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)


def save_sets(sources: dict[str, Path], folder: Path) -> None:
    """Write A/train and B/train, which share no code point, and A/val and B/val, which have the same ones."""
    names = sorted(
        set.intersection(*({path.stem for path in each.glob("*.png")} for each in sources.values()))
    )
    names = [name for name in names if not any(tone in name for tone in TONES)]
    random.Random(0).shuffle(names)
    middle = (len(names) + HELD_BACK) // 2
    trained = {"A": names[HELD_BACK:middle], "B": names[middle:]}
    for letter, source in sources.items():
        for split, chosen in (("train", trained[letter]), ("val", names[:HELD_BACK])):
            (folder / letter / split).mkdir(parents=True, exist_ok=True)
            for name in chosen:
                small_on_white(source / f"{name}.png").save(folder / letter / split / f"{name}.png")


def scores(
    results: torch.Tensor, counterparts: torch.Tensor, others: torch.Tensor
) -> dict[str, float]:
    """Root mean square distance to true counterparts, and energy distance to other pictures of the set."""
    error = (results - counterparts).flatten(1).square().mean(1).sqrt().mean()
    return {
        "distance": round(float(error), 4),
        "energy": round(energy_distance(results, others), 4),
    }


def main() -> None:
    """Train or resume, and score."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind, allow_abbrev=False)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=140)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--eps", type=float, default=0.36)
    parser.add_argument("--pairing_steps", type=int, default=4240)
    parser.add_argument("--simulation_steps", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    args = parser.parse_args()

    data = args.folder / "data"
    if not data.exists():
        save_sets({"A": args.a, "B": args.b}, data)
    spec = Spec(size=SIZE, direction="both")
    rows = {
        split: read_rows("unpaired", f"{data}/A/{split},{data}/B/{split}")
        for split in ("train", "val")
    }
    train = Pairs(rows["train"], spec)
    val = Pairs([rows["val"][index] for index in range(VALIDATED)], spec)
    torch.manual_seed(0)
    shape = {
        "model_channels": args.width,
        "channel_mult": (1, 2, 3),
        "head_channels": args.width,
        "patch": 2,
    }
    shape |= {"num_res_blocks": 1, "attention_resolutions": (4,), "num_groups": 8}
    unet = UNet(3, 3, classes={"direction": DIRECTIONS}, **shape)
    bridge = between_sets(fitted(BrownianBridge(objective="preconditioned"), unet, train), args.eps)
    config = UnpairedConfig(epochs=args.epochs, batch_size=args.batch_size, learning_rate=1e-3, warmup_steps=100,
                            loss="l2", lr_schedule="cosine", ema_decay=0.998, flip=True, preview_every=20,
                            save_every=100, pairing_steps=args.pairing_steps,
                            simulation_steps=args.simulation_steps)  # fmt: skip
    trainer = Trainer(unet, bridge, config, train, val, args.folder / "run", task=UnpairedTask)
    trainer.resume_newest()
    trainer.fit(progress=True)
    score(args.folder, trainer)


def pictures(folder: Path) -> torch.Tensor:
    """(N, 3, H, W) the pictures of a folder by their names."""
    rows = [
        {"name": path.stem, "source": path, "target": path} for path in sorted(folder.glob("*.png"))
    ]
    return torch.stack([source for source, _ in Pairs(rows, Spec(size=SIZE))])


def score(folder: Path, trainer: Trainer) -> None:
    """Write the scores of held-back code points, of sources, and of random pictures of the set."""
    trainer.save(folder / "out.pt")
    sampler = BridgeSampler.from_checkpoint(folder / "out.pt")
    found = {}
    for way, letters in zip(DIRECTIONS, ("AB", "BA"), strict=True):
        source, target = (pictures(folder / "data" / letter / "val") for letter in letters)
        others = pictures(folder / "data" / letters[1] / "train")
        made = sampler(source, seed=0, direction=way)
        kinds = {"result": made, "source": source, "random": target.roll(1, 0), "truth": target}
        found[way] = {name: scores(each, target, others) for name, each in kinds.items()}
    (folder / "scores.json").write_text(json.dumps({"step": trainer.step, **found}, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
