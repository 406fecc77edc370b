"""The names of what is in the folder of a training run. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

METRICS = "metrics.jsonl"  # a line for each validation
BEST = "best.pt"  # the weights with the lowest validation loss


def files_by_step(folder: Path, suffix: str) -> dict[int, Path]:
    """The files ``step_N`` of a suffix by step, the newest first; others are not a run's."""
    files: dict[int, Path] = {}
    for path in folder.glob(f"step_????????{suffix}"):
        number = path.stem.removeprefix("step_")
        if number.isdigit():
            files[int(number)] = path
    return dict(sorted(files.items(), reverse=True))


def folder_beside(weights: Path) -> Path:
    """The folder of the run that writes a file of weights at its end."""
    return weights.with_suffix(".run")


def weights_in(folder: Path) -> list[Path]:
    """The files of weights that a run's folder has, of the best validation and of the newest step."""
    paths: list[Path] = []
    best = folder / BEST
    if best.is_file():
        paths.append(best)
    paths += list(files_by_step(folder, ".pt").values())[:1]
    return paths
