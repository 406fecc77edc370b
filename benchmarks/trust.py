"""Intervals on many splits of a data set, and scores of means: python -m benchmarks.trust DATA OUT.json.

Several results of each validation pair are made once, and kept beside OUT.json, from which an interrupted
command resumes. Then the pairs are split at random, again and again: some calibrate, and the others test. For
each kind of interval: the share of splits whose risk is above alpha, the mean risk and length, both by
quartile of length, and Spearman's correlation of |error| and length. The risk of a split is of its test pairs
alone, so it varies around the true one. Then PSNR and energy score of the network's own mean, of one sample,
and of means of several.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from bbdm import BridgeSampler, demo
from bbdm.base import scripts
from bbdm.base.atomic import file_sha256, write_atomically
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.evaluation.distributions import energy_score
from bbdm.evaluation.excess import By, compared
from bbdm.evaluation.risk import Losses, needed
from bbdm.pictures import images

WAYS: tuple[By, By] = ("quantiles", "std")
KINDS = list(product(WAYS, ("hoeffding-bentkus", "conformal")))  # by, bound
SHOWN = 8  # pairs of a figure
Array = npt.NDArray[Any]


def measure(sampler: BridgeSampler, pair: Any, index: int, count: int, samples: int, alpha: float) -> dict[str, Array]:
    """What splits need of a pair: excess and uncertainty of both kinds, the mean's error, and scores."""
    source, target = (side[None] for side in pair)
    seeds = [[index + j * count for j in range(samples)]]
    found = sampler.distribution(source, samples, seeds)
    results, wanted = torch.stack(found.samples)[:, 0].double(), target[0].double()
    kept = {by: compared(found, by, alpha, wanted.numpy()) for by in WAYS}
    sizes = [size for size in (1, 4, 16) if size <= samples]
    means = [sampler(source, solver="mean", steps=1)[0].double(), *(results[:size].mean(0) for size in sizes)]
    psnr = [10 * np.log10(4 / float((mean - wanted).square().mean())) for mean in means]
    energies = [energy_score(results, wanted)[0], *(float((mean - wanted).norm()) for mean in means)]
    error = (results.mean(0) - wanted).abs().numpy()
    made: dict[str, Any] = {**kept, "error": error, "psnr": psnr, "energy": energies}
    return {name: np.asarray(value, np.float32) for name, value in made.items()}


def split(pairs: list[dict[str, Array]], chosen: Array, alpha: float, delta: float, kind: tuple[str, Any]) -> Any:
    """Risk, length and correlation on the pairs that were not chosen; risk and length by quartile."""
    by, bound = kind
    flat = [pair[by].reshape(2, -1) for pair in pairs]
    lambda_ = Losses.of([flat[i] for i in chosen]).calibrated(alpha, delta, bound)
    test = np.setdiff1d(np.arange(len(pairs)), chosen)
    outside, length = [], []
    for excess, uncertainty in (flat[i] for i in test):
        outside.append(excess > lambda_)
        half = uncertainty / 2 + lambda_ if by == "quantiles" else uncertainty * lambda_
        length.append(half.clip(0, 1))
    outside, length = np.stack(outside), np.stack(length)
    error = np.stack([pairs[i]["error"].ravel() for i in test])
    few = np.random.default_rng(0).integers(0, length.size, 20_000)
    order = np.array_split(np.argsort(length, axis=None, kind="stable"), 4)
    return {
        "risk": float(outside.mean()),
        "length": float(length.mean()),
        "correlation": float(spearmanr(error.ravel()[few], length.ravel()[few])[0]),  # pyright: ignore[reportArgumentType]
        "quartiles": [(float(outside.ravel()[part].mean()), float(length.ravel()[part].mean())) for part in order],
    }


def on_splits(pairs: list[dict[str, Array]], kinds: Sequence[tuple[str, Any]], args: Namespace) -> dict[str, list[Any]]:
    """What :func:`split` finds, by kind of interval, on random splits that are the same for any measure."""
    count = args.calibrating or len(pairs) // 2
    rng = np.random.default_rng(0)
    splits = [rng.permutation(len(pairs))[:count] for _ in range(args.splits)]
    results: dict[str, list[Any]] = {}
    for kind in kinds:
        if count >= needed(args.alpha, args.delta, kind[1]):
            name = ":".join(kind)
            results[name] = [split(pairs, chosen, args.alpha, args.delta, kind) for chosen in tqdm(splits, name)]
    return results


def add_split_flags(parser: scripts.Parser) -> None:
    """The flags of :func:`on_splits`."""
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--calibrating", type=int, help="pairs of a split that calibrate; half of all if unset")


def table(results: dict[str, list[Any]], alpha: float) -> str:
    """Markdown, a row for each kind of interval; lengths are in percent of the range of values."""
    lines = [
        f"| interval | bound | splits of a risk above {alpha:g} | risk | length, % "
        "| by quartile of length: risk | length, % | correlation of length and error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, splits in results.items():
        risks, lengths = (np.array([each[key] for each in splits]) for key in ("risk", "length"))
        quartiles = np.mean([each["quartiles"] for each in splits], axis=0)
        by = [
            ", ".join(f"{scale * value:.{digits}f}" for value in quartiles[:, i])
            for i, scale, digits in ((0, 1, 3), (1, 100, 1))
        ]
        related = np.mean([each["correlation"] for each in splits])
        lines.append(
            f"| {' | '.join(name.split(':'))} | {(risks > alpha).mean():.2f} | {risks.mean():.3f} ± {risks.std():.3f} "
            f"| {100 * lengths.mean():.1f} ± {100 * lengths.std():.1f} | {by[0]} | {by[1]} | {related:.2f} |"
        )
    return "\n".join(lines)


def scores(pairs: list[dict[str, Array]], samples: int) -> str:
    """Markdown: PSNR and energy score, which is of a single picture its distance to the target."""
    sizes = [size for size in (1, 4, 16) if size <= samples]
    names = ["the network's mean, one call", *(f"mean of {size}" if size > 1 else "one sample" for size in sizes)]
    psnr, energy = (np.stack([pair[key] for pair in pairs]) for key in ("psnr", "energy"))

    def shown(values: Array) -> str:
        return f"{values.mean():.2f} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"

    lines = [
        "| result | PSNR, dB | energy score |",
        "|---|---|---|",
        f"| {samples} samples | | {shown(energy[:, 0])} |",
    ]
    lines += [f"| {name} | {shown(psnr[:, i])} | {shown(energy[:, i + 1])} |" for i, name in enumerate(names)]
    return "\n".join(lines)


def figure(sampler: BridgeSampler, dataset: Any, pairs: list[dict[str, Array]], samples: int, alpha: float) -> Any:
    """Of some pairs, in columns: source, a sample, mean, spread, the interval's length, mean's error, target.

    The interval is the mean with standard deviations on both sides, calibrated on all other pairs. Spread,
    length and error are means over colours, on one scale: black is 0, white is half of the range of values.
    """
    shown = np.linspace(0, len(dataset) - 1, SHOWN).round().astype(int).tolist()
    losses = Losses.of([pair["std"].reshape(2, -1) for i, pair in enumerate(pairs) if i not in shown])
    lambda_ = losses.calibrated(alpha, alpha, "conformal")
    rows: list[list[Image.Image]] = []
    for index in shown:
        source, target = dataset[index]
        found = sampler.distribution(source[None], samples, [[index + j * len(dataset) for j in range(samples)]])
        std, mean = found.std[0], found.mean[0]
        maps = [each.mean(0, keepdim=True) for each in (std, (2 * lambda_ * std).clip(0, 2), (mean - target).abs())]
        shown = (source, found.samples[0][0], mean, *(2 * v - 1 for v in maps), target)
        rows.append([images.from_array(v.numpy()) for v in shown])
    return images.grid(rows)


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("data_dir", help="a folder with val/, source left and target right in each picture")
    parser.add_argument("output", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=demo.WEIGHTS)
    parser.add_argument("--solver", default="sde-dpm2m")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--samples", type=int, default=16, help="results for each pair")
    add_split_flags(parser)
    parser.add_argument("--figure", type=Path, help="a picture of some pairs with their maps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    sampler = BridgeSampler.from_checkpoint(args.checkpoint, solver=args.solver, steps=args.steps, device=args.device)
    dataset = Pairs(read_rows("edge2shoes", args.data_dir, "val"), Spec(size=sampler.image_size or 256))
    setting = {key: getattr(args, key) for key in ("solver", "steps", "samples", "alpha")}
    setting |= {"weights": file_sha256(args.checkpoint), "files": dataset.digest()}
    place = args.output.with_suffix(".pairs")
    place.mkdir(parents=True, exist_ok=True)
    about = place / "settings.json"
    if about.exists() and json.loads(about.read_text()) != setting:
        raise SystemExit(f"{place} was measured with {about.read_text()}, not {setting}: name another file")
    write_atomically(about, lambda temporary: temporary.write_text(json.dumps(setting)))
    pairs: list[dict[str, Array]] = []
    for index in tqdm(range(len(dataset)), unit="pair"):
        path = place / f"{index:05d}.npz"
        if not path.exists():
            made = measure(sampler, dataset[index], index, len(dataset), args.samples, args.alpha)
            with (temporary := path.with_suffix(".part")).open("wb") as file:
                np.savez(file, **made)  # pyright: ignore[reportArgumentType]
            temporary.replace(path)
        pairs.append(dict(np.load(path)))
    results = on_splits(pairs, KINDS, args)
    count = args.calibrating or len(pairs) // 2
    report = {"setting": setting, "calibrating": count, "delta": args.delta, "splits": results}
    write_atomically(args.output, lambda temporary: temporary.write_text(json.dumps(report)))
    print(table(results, args.alpha))
    print(scores(pairs, args.samples))
    if args.figure is not None:
        figure(sampler, dataset, pairs, args.samples, args.alpha).save(args.figure)


if __name__ == "__main__":
    main()
