"""Quality of guided calls: python -m benchmarks.guidance DATA OUT.json --calls CALL... [flags].

DATA has the layout of edge2shoes. A CALL is the arguments of a sampler's call, such as "steps=5" or "steps=5
guidance=2", with the word "told" where each picture is told its class, of --labels. Energy scores (see
bbdm/evaluation/distributions.py) and mean chroma (largest less smallest of red, green and blue, of 255) of
samples; differences to the first call are paired by picture. OUT.json is written after each call, and an
interrupted command resumes from it.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bbdm import BridgeSampler, demo
from bbdm.base import scripts
from bbdm.base.atomic import write_atomically
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec
from bbdm.evaluation.distributions import energy_score
from bbdm.execution.device import best_dtype

BATCH = 16  # pictures


def arguments(call: str) -> dict[str, Any]:
    """The arguments of a call from text, without the word "told"."""
    made: dict[str, Any] = {"solver": "sde-dpm2m"}
    for name, value in (word.split("=") for word in call.split() if word != "told"):
        made[name] = int(value) if value.isdigit() else float(value) if value.replace(".", "").isdigit() else value
    return made


def classes(file: Path | None, pairs: Pairs, places: list[int]) -> list[str]:
    """The class of each pair, of a CSV of name,class."""
    if file is None:
        return []
    with file.open(newline="") as lines:
        by_name = dict(csv.reader(lines))
    return [by_name[pairs.rows[place]["name"]] for place in places]


def chroma(images: torch.Tensor) -> torch.Tensor:
    """(B,) mean chroma of (B, 3, H, W) images in [-1, 1], of 255."""
    return (images.amax(1) - images.amin(1)).mean((1, 2)) * 127.5


def measured(
    sampler: BridgeSampler,
    pairs: Pairs,
    places: list[int],
    call: str,
    told: Mapping[str, Sequence[Any]],
    samples: int,
) -> dict[str, Any]:
    """Energy score and chroma of each picture, chroma of the targets, and seconds in all."""
    energies: list[float] = []
    colours: list[float] = []
    wanted: list[float] = []
    began = time.perf_counter()
    for start in range(0, len(places), BATCH):
        batch = slice(start, start + BATCH)
        source, target = (torch.stack(side) for side in zip(*(pairs[i] for i in places[batch]), strict=True))
        given = {name: values[batch] for name, values in told.items()}
        results = torch.stack(
            [
                sampler(
                    source, [place + 1000 * k for place in places[batch]], conditions=given or None, **arguments(call)
                )
                for k in range(samples)
            ]
        )
        energies += [energy_score(results[:, i], each)[0] for i, each in enumerate(target)]
        colours += torch.stack([chroma(each) for each in results]).mean(0).tolist()
        wanted += chroma(target).tolist()
    return {"energy": energies, "chroma": colours, "target": wanted, "seconds": time.perf_counter() - began}


def row(call: str, found: dict[str, Any], first: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [f"| {call} "]
    for name in ("energy", "chroma"):
        values, others = np.array(found[name]), np.array(first[name])
        change = values - others
        error = change.std(ddof=1) / len(change) ** 0.5
        cells.append(f"| {values.mean():.2f} | {change.mean():+.2f} ± {error:.2f} ")
    return "".join([*cells, f"| {found['seconds']:.0f} |"])


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--calls", nargs="+", required=True, metavar="CALL")
    parser.add_argument("--checkpoint", type=Path, default=demo.WEIGHTS)
    parser.add_argument("--labels", type=Path, help="CSV of name,class")
    parser.add_argument("--condition", default="colour", help="name of the class condition")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--part", default="0:1", help="FIRST:STEP, every STEPth validation pair from FIRST")
    args = parser.parse_args(argv)
    sampler = BridgeSampler.from_checkpoint(args.checkpoint, dtype=best_dtype(torch.device("cpu")))
    pairs = Pairs(read_rows("edge2shoes", str(args.data), "val"), Spec(size=64))
    first, step = map(int, args.part.split(":"))
    places = list(range(first, len(pairs), step))
    own = classes(args.labels, pairs, places)
    done = json.loads(args.output.read_text()) if args.output.exists() else {}
    print("| call | energy score | to the first | chroma | to the first | s |\n|---|---|---|---|---|---|")
    for call in args.calls:
        if call not in done:
            none: dict[str, Any] = {name: [None] * len(places) for name in sampler.unet.classes}
            told: dict[str, Any] = {**none, args.condition: own} if "told" in call.split() else none
            done[call] = measured(sampler, pairs, places, call, told, args.samples)
            write_atomically(args.output, lambda temporary: temporary.write_text(json.dumps(done)))
        print(row(call, done[call], done[args.calls[0]]), flush=True)
    print(f"chroma of targets {np.mean(done[args.calls[0]]['target']):.2f}, {len(places)} pictures")


if __name__ == "__main__":
    main()
