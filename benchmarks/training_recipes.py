"""What in a training recipe makes few calls good: python -m benchmarks.training_recipes DATA OUT.json.

Each recipe trains a small network at 32 x 32 for equal seconds of one core: the time of its step is measured
beside the first recipe's, and gives it a number of steps. Then it translates the validation pairs, with the
same seeds for all. Differences to the recipe of --base are paired by image. OUT.json is written after each
recipe, and an interrupted command resumes from it; several processes may share the recipes, each with --only
and a file of its own, and ``--show OUT.json ...`` prints the table of several files.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bbdm.base import machine, scripts
from bbdm.base.atomic import write_atomically
from bbdm.bridges import Bridge
from bbdm.cli.setup import build_bridge
from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.execution.device import keep_freed_memory
from bbdm.networks.config import UNetConfig
from bbdm.networks.unet import UNet
from bbdm.sampling.sampler import BridgeSampler
from bbdm.training.bridge import BridgeTask
from bbdm.training.config import TrainConfig
from bbdm.training.task import Losses
from benchmarks import demo_quality

SIZE, SEEDS = 32, 4
RUNS = [("sde-dpm2m", 20), ("sde-dpm2m", 5), ("dpm2m", 5)]
NETWORK = UNetConfig(
    condition_channels=3,
    model_channels=32,
    channel_mult=(1, 2, 4),
    attention_resolutions=(8,),
    head_channels=32,
    num_groups=8,
)
CONFIG = TrainConfig(
    batch_size=16,
    learning_rate=4e-4,
    lr_schedule="cosine",
    warmup_steps=100,
    loss="l2",
    ema_decay=0.995,
    flip=True,
    precision="bf16",
)
FEW = {"objective": "pinned", "density": "log-normal"}


@dataclass(frozen=True)
class Recipe:
    """What differs from the defaults above."""

    bridge: dict[str, Any] = field(default_factory=lambda: dict(FEW))
    train: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    weight: Callable[[Bridge, torch.Tensor], torch.Tensor] | None = None  # of the loss, from (B,) times

    def build(self, seed: int, steps: int) -> BridgeTask:
        """Its first step."""
        torch.manual_seed(seed)
        bridge = build_bridge(**{"name": "abridge", **self.bridge})
        config = replace(CONFIG, seed=seed, **self.train)
        unet = UNet.from_config(replace(NETWORK, **self.network)).train()
        step = BridgeTask(unet, bridge, config, total=steps)
        if self.weight is not None:
            weight, losses = self.weight, step.losses

            def weighted(*args: Any, **keywords: Any) -> Losses:
                each, times = losses(*args, **keywords)
                return each * weight(bridge, times["t"]), times

            vars(step)["losses"] = weighted
        return step


def _of_x0hat(bridge: Bridge, t: torch.Tensor) -> torch.Tensor:
    """p_f^2, which makes the loss |x0hat - x0|^2."""
    return torch.from_numpy(bridge.prediction(t.numpy())[:, 2] ** 2).float()


RECIPES: dict[str, Recipe] = {
    "few": Recipe(),
    "residual, uniform": Recipe({}),
    "residual, log-normal": Recipe({"density": "log-normal"}),
    "pinned, uniform": Recipe({"objective": "pinned"}),
    "c_lambda 1": Recipe({**FEW, "c_lambda": 1.0}),
    "c_lambda 0.5": Recipe({**FEW, "c_lambda": 0.5}),
    "c_lambda 8": Recipe({**FEW, "c_lambda": 8.0}),
    "Brownian bridge": Recipe({**FEW, "name": "brownian"}),
    "Brownian bridge, wide density": Recipe({**FEW, "name": "brownian", "density": "wide"}),
    "Brownian bridge, high density": Recipe({**FEW, "name": "brownian", "density": "high"}),
    "Brownian bridge, high density, residual": Recipe({"name": "brownian", "density": "high"}),
    "wide density": Recipe({**FEW, "density": "wide"}),
    "loss of x0hat": Recipe(weight=_of_x0hat),
    "huber loss": Recipe(train={"loss": "huber"}),
    "l1 loss": Recipe(train={"loss": "l1"}),
    "EMA 0.98": Recipe(train={"ema_decay": 0.98}),
    "EMA 0.999": Recipe(train={"ema_decay": 0.999}),
    "no flips": Recipe(train={"flip": False}),
    "shifts of 0.1": Recipe(train={"shift": 0.1}),
    "shifts of 0.1, sizes of 0.2": Recipe(train={"shift": 0.1, "zoom": 0.2}),
    "dropout 0.1": Recipe(network={"dropout": 0.1}),
    "48 channels, 1 block a level": Recipe(network={"model_channels": 48, "num_res_blocks": 1, "head_channels": 48}),
    "24 channels, 4 blocks a level": Recipe(network={"model_channels": 24, "num_res_blocks": 4, "head_channels": 24}),
    "patches of 2 x 2 for the first level": Recipe(
        network={"patch": 2, "model_channels": 64, "channel_mult": (1, 2), "attention_resolutions": (4,)}
    ),
    "attention at 16 x 16 and 8 x 8 too": Recipe(network={"attention_resolutions": (2, 4)}),
    "rate 8e-4": Recipe(train={"learning_rate": 8e-4}),
    "batch 32": Recipe(train={"batch_size": 32}),
}


def step_seconds(recipes: list[Recipe], y: torch.Tensor, x0: torch.Tensor, rounds: int = 7) -> list[float]:
    """The median seconds of a step of each, in rounds A B C A B C."""
    steps = [recipe.build(0, 100) for recipe in recipes]
    times: list[list[float]] = [[] for _ in recipes]
    for index in range(rounds + 1):
        for step, into in zip(steps, times, strict=True):
            batch = slice(0, step.config.batch_size)
            started = time.perf_counter()
            step(Example(y[batch], x0[batch]), index)
            into.append(time.perf_counter() - started)
    return [statistics.median(each[1:]) for each in times]


def train(recipe: Recipe, y: torch.Tensor, x0: torch.Tensor, steps: int, seed: int) -> BridgeTask:
    """Train on all pairs in random order."""
    step, rng = recipe.build(seed, steps), np.random.default_rng(seed)
    order: list[int] = []
    for index in range(steps):
        if len(order) < step.config.batch_size:
            order.extend(rng.permutation(len(y)).tolist())
        batch, order = order[: step.config.batch_size], order[step.config.batch_size :]
        step(Example(y[batch], x0[batch]), index)
    return step


def measure(step: BridgeTask, y: torch.Tensor, x0: torch.Tensor) -> dict[str, Any]:
    """Scores of each validation pair, by solver."""
    found: dict[str, Any] = {}
    for solver, calls in RUNS:
        sampler = BridgeSampler(step.average, step.bridge, solver, steps=calls, device="cpu", dtype=torch.bfloat16)
        scores = demo_quality.measure(sampler, list(range(len(y))), y, x0, SEEDS, batch=77)
        mean = {name: float(np.nanmean(values)) for name, values in scores.items()}
        found[f"{solver} {calls}"] = {
            "energy": scores["energy"],
            "spread": mean["spread"],
            "saturation": mean["saturation"] / mean["target_saturation"],
            "flatness": mean["flatness"] / mean["target_flatness"],
        }
    return found


def table(recipes: dict[str, Any], base: str) -> str:
    """Markdown: scores of each recipe, and energy scores against the base, paired by image."""
    names = [f"{solver} {calls}" for solver, calls in RUNS]
    lines = ["| recipe | pairs seen | " + " | ".join(names) + f" | spread, saturation, flatness at {names[1]} |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for name, recipe in recipes.items():
        cells: list[str] = []
        for run in names:
            energy, other = np.array(recipe[run]["energy"]), np.array(recipes[base][run]["energy"])
            difference, scale = energy - other, 100 / other.mean()
            error = scale * difference.std(ddof=1) / np.sqrt(len(energy))
            against = "" if name == base else f", {scale * difference.mean():+.1f} % ± {error:.1f}"
            cells.append(f"{energy.mean():.2f}{against}")
        few = recipe[names[1]]
        cells.append(f"{few['spread']:.1f}, {few['saturation']:.2f}, {few['flatness']:.2f}")
        lines.append(f"| {name} | {recipe['pairs']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("data_dir", nargs="?", help="a folder with train/ and val/, source left and target right")
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=300, help="of each training, on one core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", default="few", choices=RECIPES)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--show", nargs="+", type=Path, metavar="OUT.json", help="print the table of these and end")
    args = parser.parse_args(argv)
    if args.show:
        every = [json.loads(path.read_text())["recipes"] for path in args.show]
        found = {name: recipe for each in every for name, recipe in each.items()}
        print(table({name: found[name] for name in RECIPES if name in found}, args.base))
        return
    if args.output is None:
        parser.error("name the data and the file to write, or --show")
    torch.set_num_threads(1)
    keep_freed_memory()
    splits = [Pairs(read_rows("edge2shoes", args.data_dir, split), Spec(size=SIZE)) for split in ("train", "val")]
    (y, x0), validation = ([torch.stack(v) for v in zip(*split, strict=True)] for split in splits)
    setting = {"seconds": args.seconds, "seed": args.seed, "pairs": len(y)}
    done = {"setting": setting, "recipes": {}}
    if args.output.exists():
        done = json.loads(args.output.read_text())
    if done["setting"] != setting:
        raise SystemExit(f"{args.output} was measured with {done['setting']}, not {setting}: name another file")
    left = [name for name in args.only if name not in done["recipes"]]
    for name in left:
        recipe = RECIPES[name]
        # the first recipe's step is measured beside it, as the machine drifts; its own first time is the unit
        base, own = step_seconds([RECIPES[args.base], recipe], y, x0)
        unit = done.setdefault("base_step", base)
        steps = round(args.seconds / (own / base * unit))
        started = time.perf_counter()
        trained = train(recipe, y, x0, steps, args.seed)
        row: dict[str, Any] = {"steps": steps, "pairs": steps * trained.config.batch_size}
        row |= {"seconds": time.perf_counter() - started, "machine": machine.describe(torch.device("cpu"), ["torch"])}
        done["recipes"][name] = {**row, **measure(trained, *validation)}
        write_atomically(args.output, lambda temporary: temporary.write_text(json.dumps(done)))
        print(f"{name}: {steps} steps", flush=True)


if __name__ == "__main__":
    main()
