"""Quality of restored photographs: python -m benchmarks.photographs FOLDER OUT.json [flags].

Each photograph of FOLDER is made at most 768 pixels long, damaged, and restored: by the network's mean, by
samples, and by others. PSNR and SSIM are of whole pictures in colour, energy scores (see
bbdm/evaluation/distributions.py) the mean over squares of 64 x 64. Differences to the damaged picture are
paired. OUT.json is written after each photograph, and an interrupted command resumes from it.

``--figure`` shows the middles of the photographs: damaged, by each method, and clean, a row for each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from bbdm import BridgeSampler, demo
from bbdm.base import scripts
from bbdm.base.atomic import write_atomically
from bbdm.data.degradations import Degradation
from bbdm.evaluation.distributions import energy_score
from bbdm.execution.device import best_dtype
from bbdm.pictures import images
from bbdm.pictures.picture import scale

LONGEST = 768
SQUARE = 64
SHOWN = 160  # pixels of a side of what a figure shows
DAMAGES = ["jpeg:10", "jpeg:20", "jpeg:40", "photo", "sr4"]
ONE_RESULT = {"damaged", "mean", "L1 regression", "non-local means"}
Restore = Callable[[Tensor, int], Tensor]  # (1, 3, H, W) in [-1, 1] and a seed


def photographs(folder: Path) -> dict[str, Image.Image]:
    """Those of a folder by name, at most LONGEST pixels long."""
    found: dict[str, Image.Image] = {}
    for path in sorted(each for each in folder.iterdir() if each.suffix.lower() in images.SUFFIXES):
        found[path.stem] = images.convert(images.open_image(path))
        found[path.stem].thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return found


def non_local_means(source: Tensor, seed: int) -> Tensor:
    """OpenCV's fastNlMeansDenoisingColored with its defaults."""
    import cv2

    pixels = np.asarray(images.from_array(source[0].numpy()))
    made = cv2.fastNlMeansDenoisingColored(np.ascontiguousarray(pixels[:, :, ::-1]))
    return torch.from_numpy(images.to_array(Image.fromarray(np.ascontiguousarray(made[:, :, ::-1]))))[None]


def has_opencv() -> bool:
    """Whether OpenCV is installed."""
    return find_spec("cv2") is not None


def methods(checkpoint: Path, steps: list[int], student: Path | None, other: Path | None) -> dict[str, Restore]:
    """What restores, by name."""
    dtype = best_dtype(torch.device("cpu"))

    def of(file: Path = checkpoint, **settings: Any) -> Restore:
        sampler = BridgeSampler.from_checkpoint(file, dtype=dtype, **settings)
        return lambda source, seed: sampler(source, seed=seed)

    found: dict[str, Restore] = {"damaged": lambda source, seed: source, "mean": of(solver="mean")}
    found |= {f"sde-dpm2m {count}": of(solver="sde-dpm2m", steps=count) for count in steps}
    if student is not None:
        found["student"] = of(student)
    if other is not None:
        found["L1 regression"] = of(other, solver="mean")
    return {**found, "non-local means": non_local_means} if has_opencv() else found


def squares(image: Tensor) -> Tensor:
    """(N, 3, SQUARE, SQUARE) of a (3, H, W) image, without what is left at two edges."""
    rows, columns = (side // SQUARE for side in image.shape[1:])
    cut = image[:, : rows * SQUARE, : columns * SQUARE].reshape(3, rows, SQUARE, columns, SQUARE)
    return cut.permute(1, 3, 0, 2, 4).flatten(0, 1)


def scores(restore: Restore, source: Tensor, target: Tensor, seeds: int) -> dict[str, float]:
    """Mean scores of results with some seeds; of one seed if all are the same."""
    began = time.perf_counter()
    results = [restore(source, 0)]
    seconds = time.perf_counter() - began
    if seeds > 1 and not restore(source, 1).equal(results[0]):
        results += [restore(source, seed) for seed in range(1, seeds)]
    results = [scale(torch.from_numpy(images.pixels(images.from_array(r[0].numpy())))) for r in results]
    errors = [(result - target).square().mean().item() for result in results]
    pairs = torch.stack([squares(result) for result in results]), squares(target)
    if len(results) == 1:
        energies = (pairs[0][0] - pairs[1]).flatten(1).norm(dim=1).tolist()
    else:
        energies = [energy_score(pairs[0][:, i], square)[0] for i, square in enumerate(pairs[1])]
    return {
        "psnr": float(np.mean([10 * np.log10(4 / error) for error in errors])),
        "ssim": float(np.mean([float(ssim(r[None], target[None], data_range=2.0)) for r in results])),  # pyright: ignore
        "energy": float(np.mean(energies)),
        "seconds": seconds,
    }


def table(done: dict[str, dict[str, dict[str, float]]], damage: str) -> str:
    """Markdown, one row for each method."""
    runs = {key.split("|")[1]: values for key, values in done.items() if key.split("|")[0] == damage}
    names = list(next(iter(runs.values())))
    lines = [f"| {damage} | PSNR, dB | above the damaged | SSIM | energy score | s |", "|---|---|---|---|---|---|"]
    for name in names:
        rows = [run[name] for run in runs.values()]
        gains = np.array([run[name]["psnr"] - run["damaged"]["psnr"] for run in runs.values()])
        mean = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
        error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
        lines.append(
            f"| {name} | {mean['psnr']:.2f} | {gains.mean():+.2f} ± {error:.2f} | {mean['ssim']:.4f} "
            f"| {mean['energy']:.3f} | {mean['seconds']:.1f} |"
        )
    return "\n".join(lines)


def middle(image: Tensor) -> Image.Image:
    """The middle of a (3, H, W) image, as a picture."""
    top, left = (max(0, side - SHOWN) // 2 for side in image.shape[1:])
    return images.from_array(image[:, top : top + SHOWN, left : left + SHOWN].numpy())


def figure(chosen: list[tuple[str, Image.Image]], restored_by: dict[str, Restore], damage: str) -> Image.Image:
    """Middles of photographs, a row for each: by each method, the first of which does nothing, and clean."""
    degradation, rows = Degradation.read(damage), list[list[Image.Image]]()
    for name, photograph in chosen:
        source = torch.from_numpy(images.to_array(degradation.picture(photograph, name)))[None]
        made = [restore(source, 0)[0] for restore in restored_by.values()]
        rows.append([*map(middle, made), middle(torch.from_numpy(images.to_array(photograph)))])
    return images.grid(rows)


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=demo.PHOTOGRAPHS)
    parser.add_argument("--student", type=Path, help="distilled weights, in their own calls")
    parser.add_argument("--regression", type=Path, help="weights of the same training with --density top --loss l1")
    parser.add_argument("--damages", nargs="+", default=DAMAGES, metavar="DEGRADATION")
    parser.add_argument("--steps", nargs="+", type=int, default=[2, 5])
    parser.add_argument("--seeds", type=int, default=2, help="results of samples")
    parser.add_argument("--most", type=int, help="photographs")
    parser.add_argument("--figure", type=Path, help="a picture of the middles of all, by the first degradation")
    args = parser.parse_args(argv)
    done = json.loads(args.output.read_text()) if args.output.exists() else {}
    chosen = list(photographs(args.folder).items())[: args.most]
    restored_by = methods(args.checkpoint, args.steps, args.student, args.regression)
    for damage in args.damages:
        degradation = Degradation.read(damage)
        for name, photograph in chosen:
            run = done.setdefault(f"{damage}|{name}", {})
            target = torch.from_numpy(images.to_array(photograph))
            source = torch.from_numpy(images.to_array(degradation.picture(photograph, name)))[None]
            for method, restore in restored_by.items():
                if method not in run:
                    run[method] = scores(restore, source, target, 1 if method in ONE_RESULT else args.seeds)
            write_atomically(args.output, lambda temporary: temporary.write_text(json.dumps(done)))
        print(table(done, damage), flush=True)
    if args.figure is not None:
        figure(chosen, restored_by, args.damages[0]).save(args.figure)


if __name__ == "__main__":
    main()
