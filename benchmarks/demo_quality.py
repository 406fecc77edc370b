"""Quality of solvers on trained weights: python -m benchmarks.demo_quality DATA OUT.json [flags].

For each validation pair and each solver, several results with the same seeds: the energy score, saturation
and flatness beside the target's (see benchmarks/scores.py), the spread, and seconds. Differences to the first
run are paired by image. OUT.json is written after each run, and an interrupted command resumes from it.

A run is SOLVER:NFE, or SOLVER:NFE:N for N images spread evenly over the split (ancestral:1000 over all takes
hours on a CPU).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bbdm import demo
from bbdm.base import flags, optional, scripts
from bbdm.base.atomic import write_atomically
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.evaluation.metrics import energy
from bbdm.files.bridge_json import SETTINGS
from bbdm.files.checkpoint import load_checkpoint
from bbdm.sampling.sampler import BridgeSampler
from benchmarks.scores import closed_areas, flatness, saturation

RUNS = ["fast:199"] + [
    f"{solver}:{steps}" for solver in ("dpm2m", "sde-dpm2m") for steps in (5, 10, 20, 40)
]
Sampler = Callable[..., torch.Tensor]  # called with (B, C, H, W) sources, seed and batch_size


def build_sampler(weights: Path, solver: str, steps: int, device: str, dtype: str) -> Sampler:
    """A sampler of a checkpoint, or on ONNX Runtime of an export's folder, with PyTorch's threads."""
    if weights.is_dir():
        from bbdm.runtime.sampler import OnnxBridgeSampler

        exported = partial(
            OnnxBridgeSampler(weights, threads=torch.get_num_threads()), solver=solver, steps=steps
        )
        return lambda sources, **settings: torch.from_numpy(exported(sources.numpy(), **settings))
    checkpoint = load_checkpoint(weights)
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    return BridgeSampler(checkpoint.build_unet(), checkpoint.bridge, solver, steps=steps, **kind)


def measure(
    sampler: Sampler,
    indices: list[int],
    sources: torch.Tensor,
    targets: torch.Tensor,
    seeds: int,
    batch: int,
) -> dict[str, Any]:
    """Scores of each image. Sample j of image i of the split has the seed i + 10^6 j."""
    started = time.perf_counter()
    each = [[i + 10**6 * j for i in indices] for j in range(seeds)]
    results = torch.stack([sampler(sources, seed=given, batch_size=batch) for given in each], dim=1)
    seconds = time.perf_counter() - started
    areas = [closed_areas(source) for source in sources]
    return {
        "energy": energy(results, targets).tolist(),
        "spread": [torch.pdist(each.flatten(1).double()).mean().item() for each in results],
        "saturation": saturation(results).mean(1).tolist(),
        "target_saturation": saturation(targets).tolist(),
        "flatness": [float(flatness(r, a).mean()) for r, a in zip(results, areas, strict=True)],
        "target_flatness": [
            float(flatness(t[None], a)[0]) for t, a in zip(targets, areas, strict=True)
        ],
        "seconds_per_image": seconds / (len(sources) * seeds),
    }


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Markdown, one row for each solver; differences are to the first run."""
    first, other = next(iter(runs.items()))
    lines = [
        f"| solver | NFE | images | energy score | against {first.replace(':', ' ')}, paired | saturation (target) "
        "| flatness, of the target's | spread | s / image |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        energy, base = np.array(run["energy"]), np.array(other["energy"])
        _, here, there = np.intersect1d(run["images"], other["images"], return_indices=True)
        difference = energy[here] - base[there]
        error = difference.std(ddof=1) / np.sqrt(len(here))
        relative = 100 / base[there].mean()
        solver, nfe = name.split(":")[:2]
        standard_error = energy.std(ddof=1) / np.sqrt(len(energy))
        lines.append(
            f"| {solver} | {nfe} | {len(energy)} | {energy.mean():.2f} ± {standard_error:.2f} "
            f"| {relative * difference.mean():+.1f} % ± {relative * error:.1f} "
            f"| {np.mean(run['saturation']):.3f} ({np.mean(run['target_saturation']):.3f}) "
            f"| {np.nanmean(run['flatness']) / np.nanmean(run['target_flatness']):.2f} "
            f"| {np.mean(run['spread']):.1f} | {run['seconds_per_image']:.3f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = flags.Parser(__doc__)
    parser.add_argument(
        "data_dir", help="a folder with val/, source left and target right in each picture"
    )
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=demo.WEIGHTS,
        help="or an export's folder, which runs on ONNX Runtime",
    )
    parser.add_argument("--runs", nargs="+", default=RUNS, metavar="SOLVER:NFE[:N]")
    parser.add_argument("--seeds", type=int, default=8, help="results for each image")
    parser.add_argument("-b", "--batch_size", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    optional.package("scipy", "flatness")  # before a network is loaded
    if args.checkpoint.is_dir():
        file = args.checkpoint / SETTINGS  # which holds the digests of the other files
        settings = json.loads(file.read_text())
        size, dtype = settings["image_size"], settings["dtype"]
    else:
        file, size, dtype = args.checkpoint, load_checkpoint(args.checkpoint).image_size, args.dtype
    dataset = Pairs(read_rows("edge2shoes", args.data_dir, "val"), Spec(size=size or 256))
    weights = hashlib.sha256(file.read_bytes()).hexdigest()
    setting = {"pairs": len(dataset), "seeds": args.seeds, "dtype": dtype, "weights": weights}
    done = (
        json.loads(args.output.read_text())
        if args.output.exists()
        else {"setting": setting, "runs": {}}
    )
    if done["setting"] != setting:
        raise SystemExit(
            f"{args.output} was measured with {done['setting']}, not {setting}: name another file"
        )
    for run in args.runs:
        if run in done["runs"]:
            continue
        solver, steps, *images = run.split(":")
        count = int(images[0]) if images else len(dataset)
        chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
        sources, targets = (torch.stack(v) for v in zip(*(dataset[i] for i in chosen), strict=True))
        sampler = build_sampler(args.checkpoint, solver, int(steps), args.device, args.dtype)
        scores = measure(sampler, chosen, sources, targets, args.seeds, args.batch_size)
        done["runs"][run] = {"images": chosen, **scores}
        write_atomically(args.output, lambda temporary: temporary.write_text(json.dumps(done)))
        print(table(done["runs"]), flush=True)


if __name__ == "__main__":
    scripts.run(main)
