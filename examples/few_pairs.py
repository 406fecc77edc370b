"""What helps a bridge of few pairs: a network that knows pictures, more pictures, and made sources.

    npm pack emoji-datasource-twitter emoji-datasource-google     # pictures of other makers; unpack both
    python examples/few_pairs.py OPENMOJI64 TWITTER/img/twitter/64 GOOGLE/img/google/64 FOLDER [RECIPE ...]

OPENMOJI64 has pairs of line art and colour in the layout of edges2shoes; examples/demo/drawings.py makes
them. A recipe is START-PAIRS-SEED, such as others-100-0; see STARTS. Its scores on the validation pairs are
FOLDER/scores/RECIPE.json, and the table of all that are there is printed. Recipes that are done are kept.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from emoji_without_pairs import SIZE, TONES, small_on_white
from PIL import Image

import bbdm
from bbdm import BridgeSampler, BrownianBridge, TrainConfig, Trainer
from bbdm.data import Pairs, Spec, read_rows
from bbdm.data.degradations import Degradation
from bbdm.evaluation.metrics import energy
from bbdm.pictures import images
from bbdm.training.callbacks import Callback

BATCH, SAMPLES, CALLS = 16, 4, 5
BRIDGE = BrownianBridge(density="high")
PRETRAINING_STEPS, STEPS = 4000, 800
SCORED_AT = (100, 200, 400, 800)
AUGMENTATION = {"shift": 0.1, "turn": 15.0, "zoom": 0.15}
# of denoisers of the other makers' emoji
PREDICTIONS: dict[str, Any] = {"others": "v_prediction", "noise": "epsilon"}


@dataclass(frozen=True)
class Start:
    """What a bridge begins with, and what it is trained on beside its pairs."""

    denoiser: str | None = None  # in PREDICTIONS; None for a network without training
    aligned: bool = True  # whether the denoiser is told the noise of the bridge
    # first a bridge to all targets of training, from sources that are made of them (degrade any)
    own: bool = False
    moved: bool = False  # pairs are moved, turned and scaled
    # sources of all targets are drawn by a bridge from colour to lines, trained on the pairs
    drawn: bool = False


STARTS = {
    "nothing": Start(),
    "others": Start("others"),
    "noise": Start("noise"),
    "unaligned": Start("others", aligned=False),
    "own": Start("others", own=True),
    "moved": Start(moved=True),
    "othersmoved": Start("others", moved=True),
    "ownmoved": Start("others", own=True, moved=True),
    "drawn": Start("others", drawn=True),
    "drawnown": Start("others", own=True, drawn=True),
}


def code_point(path: Path) -> str:
    """The emoji of a file, as all makers would name it."""
    parts = [part.lstrip("0") for part in path.stem.lower().split("-")]
    return "-".join(part for part in parts if part != "fe0f")


def save_others(folders: Sequence[Path], validation: set[str], folder: Path) -> None:
    """Save the other makers' emoji as small pictures on white, without the emoji of the validation pairs."""
    folder.mkdir(parents=True)
    for place in folders:
        for path in sorted(place.glob("*.png")):
            if code_point(path) in validation or any(tone in path.stem for tone in TONES):
                continue
            small_on_white(path).save(folder / f"{place.parent.name}_{path.name}")


def new_network() -> UNet2DModel:
    """The network of all recipes, as diffusers initialises it."""
    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(16, 32, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=32,
    )


def save_pipeline(network: UNet2DModel, scheduler: DDPMScheduler, folder: Path) -> None:
    """Save a network and its schedule as a pipeline of diffusers has them."""
    network.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")


def pretrain(pictures: Path, folder: Path, prediction: Any) -> None:
    """Train a denoiser as diffusers' own example does, at 1,000 levels of noise."""
    torch.manual_seed(0)
    paths = sorted(pictures.glob("*.png"))
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    pictures_of_all = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    network, scheduler = new_network(), DDPMScheduler(prediction_type=prediction)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PRETRAINING_STEPS)
    for _ in range(PRETRAINING_STEPS):
        chosen = torch.randint(len(pictures_of_all), (BATCH,))
        clean = pictures_of_all[chosen].float() / 127.5 - 1
        noise, t = torch.randn_like(clean), torch.randint(1000, (BATCH,))
        noisy = scheduler.add_noise(clean, noise, t)  # pyright: ignore[reportArgumentType]
        target = noise
        if prediction == "v_prediction":
            target = scheduler.get_velocity(clean, noise, t)  # pyright: ignore[reportArgumentType]
        loss = (network(noisy, t).sample - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(network)
    network.load_state_dict(average.module.state_dict())
    save_pipeline(network, scheduler, folder)


class Scores(Callback):
    """Scores the averaged weights on validation pairs at some steps; lower is better."""

    def __init__(self, validation: Pairs) -> None:
        pairs = examples_of(validation)
        self.sources = torch.stack([source for source, _ in pairs])
        self.targets = torch.stack([target for _, target in pairs])
        self.by_step: dict[str, dict[str, Any]] = {}

    def after_step(self, trainer: Any, loss: torch.Tensor) -> None:
        """Score at the steps that are listed."""
        if trainer.step not in SCORED_AT:
            return
        results = results_of(trainer.average, trainer.task.bridge, self.sources)
        energies = energy(results, self.targets) / self.targets[0].numel() ** 0.5
        errors = (results.mean(dim=1) - self.targets).square().mean().sqrt()
        self.by_step[str(trainer.step)] = {
            "energy": float(energies.mean()),
            "rmse": float(errors),
            "energies": energies.tolist(),
        }


def results_of(network: Any, bridge: Any, sources: torch.Tensor) -> torch.Tensor:
    """(N, S, 3, H, W) several results of each source."""
    sampler = BridgeSampler(network, bridge, "sde-dpm2m", CALLS)
    samples = [
        torch.cat([sampler(part, seed=seed) for part in sources.split(BATCH)])
        for seed in range(SAMPLES)
    ]
    return torch.stack(samples, dim=1)


def train(
    network: Any,
    bridge: Any,
    pairs: Pairs,
    folder: Path,
    seed: int,
    scores: Scores | None,
    **settings: Any,
) -> Any:
    """Train a bridge; returns its averaged network."""
    settings = {"max_steps": STEPS, **settings}
    config = TrainConfig(
        batch_size=BATCH,
        learning_rate=1e-3,
        warmup_steps=50,
        grad_clip=1.0,
        ema_decay=0.99,
        loss="l2",
        seed=seed,
        save_every=10**6,
        validate_every=10**6,
        **settings,
    )
    callbacks = [] if scores is None else [scores]
    trainer = Trainer(network, bridge, config, pairs, None, folder, callbacks=callbacks)
    trainer.fit(overwrite=True)
    return trainer.average


class Experiment:
    """The data, the starts and the recipes.

    Args:
        data: the pairs, with ``train`` and ``val``.
        others: folders of the other makers' emoji.
        folder: of all that is made.
    """

    def __init__(self, data: Path, others: Sequence[Path], folder: Path) -> None:
        self.folder = folder
        self.rows = list(read_rows("edge2shoes", f"{data}", "train"))
        validation = list(read_rows("edge2shoes", f"{data}", "val"))
        self.validation = Pairs(validation, Spec(size=SIZE))
        self.pictures = folder / "others"
        if not self.pictures.exists():
            save_others(
                others, {code_point(path) for path in (data / "val").glob("*.png")}, self.pictures
            )

    def chosen(self, count: int, seed: int) -> list[Any]:
        """The rows of some pairs, drawn by a seed."""
        return random.Random(seed).sample(self.rows, count)

    def denoiser(self, name: str) -> Path:
        """The folder of a denoiser, or of a network without training; made where it is not there."""
        place = self.folder / f"start_{name}"
        if place.exists():
            return place
        if name in PREDICTIONS:
            pretrain(self.pictures, place, PREDICTIONS[name])
        else:
            torch.manual_seed(int(name))
            save_pipeline(new_network(), DDPMScheduler(prediction_type="v_prediction"), place)
        return place

    def own_start(self) -> Any:
        """Weights of a bridge that learned to undo degradations of all targets of training."""
        place = self.folder / "own.pt"
        if not place.exists():
            targets = self.folder / "targets"
            if not targets.exists():
                targets.mkdir()
                for number, (_, target) in enumerate(examples_of(self.pairs(self.rows))):
                    images.from_array(target.numpy()).save(targets / f"{number:04d}.png")
            pairs = Pairs(
                read_rows("folder", f"{targets}"), Spec(size=SIZE), prepare=Degradation("any")
            )
            network, bridge = bbdm.pretrained(self.denoiser("others"), BRIDGE)
            average = train(
                network, bridge, pairs, self.folder / "runs/own", 0, None, max_steps=2 * STEPS
            )
            torch.save(average.state_dict(), place)
        return torch.load(place)

    def pairs(self, rows: Sequence[Any], direction: Any = "AtoB") -> Pairs:
        """Pairs of rows, in memory."""
        return Pairs(rows, Spec(size=SIZE, direction=direction))

    def begin(self, start: Start, seed: int) -> tuple[Any, Any]:
        """The network and the bridge that a recipe begins with."""
        network, bridge = bbdm.pretrained(self.denoiser(start.denoiser or f"{seed}"), BRIDGE)
        if start.own:
            network.load_state_dict(self.own_start())
        if not start.aligned:
            # the bridge's own, evenly
            levels = tuple(np.linspace(np.log(0.05), np.log(40.0), 1000).tolist())
            config = replace(network.config, log_levels=levels)
            other = type(network)(config)
            other.load_state_dict(network.state_dict())
            network = other
        return network, bridge

    def drawn(self, start: Start, rows: Sequence[Any], recipe: str, seed: int) -> list[Any]:
        """The rows, and all other targets with sources that a bridge from colour to lines draws."""
        network, bridge = self.begin(start, seed)
        place = self.folder / "runs" / f"{recipe}_back"
        back = train(network, bridge, self.pairs(rows, "BtoA"), place, seed, None, **AUGMENTATION)
        used = {row["name"] for row in rows}
        others = [row for row in self.rows if row["name"] not in used]
        sampler = BridgeSampler(back, bridge, "sde-dpm2m", CALLS)
        targets = torch.stack([target for _, target in examples_of(self.pairs(others))])
        lines = torch.cat([sampler(part, seed=seed) for part in targets.split(BATCH)])
        folder = self.folder / "drawn" / recipe
        folder.mkdir(parents=True, exist_ok=True)
        both = [*rows]
        for row, source, target in zip(others, lines, targets, strict=True):
            path = folder / f"{row['name']}.png"
            images.from_array(source.numpy()).save(path)
            other = folder / f"{row['name']}_target.png"
            images.from_array(target.numpy()).save(other)
            both.append({"name": row["name"], "source": path, "target": other})
        return both

    def run(self, recipe: str) -> None:
        """Train by a recipe, and write its scores."""
        place = self.folder / "scores" / f"{recipe}.json"
        if place.exists():
            return
        name, count, seed = recipe.split("-")
        start = STARTS[name]
        rows = self.chosen(int(count), int(seed))
        if start.drawn:
            rows = self.drawn(start, rows, recipe, int(seed))
        network, bridge = self.begin(start, int(seed))
        scores = Scores(self.validation)
        augmentation = AUGMENTATION if start.moved else {}
        train(
            network,
            bridge,
            self.pairs(rows),
            self.folder / "runs" / recipe,
            int(seed),
            scores,
            **augmentation,
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(scores.by_step))

    def table(self) -> str:
        """Energy scores by recipe and step, and the root mean square error of means at the best step."""
        lines = ["recipe | " + " | ".join(map(str, SCORED_AT)) + " | best | rmse"]
        for path in sorted((self.folder / "scores").glob("*.json")):
            scores = json.loads(path.read_text())
            best = min(scores.values(), key=lambda score: score["energy"])
            cells = [f"{scores[str(step)]['energy']:.4f}" for step in SCORED_AT]
            lines.append(
                " | ".join([path.stem, *cells, f"{best['energy']:.4f}", f"{best['rmse']:.4f}"])
            )
        return "\n".join(lines)


def examples_of(pairs: Pairs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All (source, target) of a data set."""
    return [pairs[index] for index in range(len(pairs))]


def main() -> None:
    """Run the recipes."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind, allow_abbrev=False)
    parser.add_argument("data", type=Path)
    parser.add_argument("twitter", type=Path)
    parser.add_argument("google", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipes", nargs="*")
    args = parser.parse_args()
    experiment = Experiment(args.data, [args.twitter, args.google], args.folder)
    for recipe in args.recipes:
        experiment.run(recipe)
    print(experiment.table())


if __name__ == "__main__":
    main()
