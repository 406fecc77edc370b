"""Distance to the true distribution against calls: python benchmarks/solvers_plot.py OUT.png [BRIDGES.png].

For Gaussian data and the ideal denoiser, by the exact formulas of tests/gaussian.py: of the A-Bridge, and of
all bridges.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import numpy as np
from matplotlib import pyplot as plt

from bbdm import ABridge, solvers
from bbdm.bridges import Bridge
from bbdm.solvers import StepTable
from tests.gaussian import BRIDGES, CASES, SOURCE, mean_w2, w2

NFES = [2, 3, 5, 7, 10, 14, 20, 30, 40, 60, 90]


def with_exact_integral(bridge: Bridge, table: StepTable) -> StepTable:
    """``dpm2m`` with DBIM's second order (Zheng et al. 2025): the exact integral of a linear x0hat."""
    nu, rows = bridge.nu(table.timesteps), table.coefficients.copy()
    for i in range(1, len(table) - 1):
        if not rows[i, 3]:
            continue
        h, before = np.log(nu[i] / nu[i + 1]), np.log(nu[i - 1] / nu[i])
        gain, w = rows[i, 2] + rows[i, 3], (h - 1 + np.exp(-h)) / ((1 - np.exp(-h)) * before)
        rows[i, 2:4] = gain * (1 + w), -gain * w
    return StepTable(table.timesteps, table.prediction, rows, start=table.start)


def draw(path: Path) -> None:
    """Draw the distance of the A-Bridge against NFE, a panel for each case."""
    bridge = ABridge()
    figure, axes = plt.subplots(1, len(CASES), figsize=(13, 4), sharey=True, constrained_layout=True)
    for axis, (mu, s) in zip(axes, CASES, strict=True):
        for solver in ("dpm2m", "sde-dpm2m", "ddim", "posterior", "fast"):
            nfes = [*NFES, 200, 400, 1000]
            distances = [w2(bridge, solvers.build(bridge, solver, steps=n), mu, s) for n in nfes]
            axis.loglog(nfes, distances, marker=".", label="fast, karras times" if solver == "fast" else solver)
        for solver, marker in (("fast", "*"), ("ancestral", "D")):
            table = solvers.build(bridge, solver)
            label = f"{solver} as published ({len(table)})"
            axis.loglog(len(table), w2(bridge, table, mu, s), marker, color="black", markersize=9, label=label)
        axis.set(title=f"x0 ~ N({mu}, {s}²), y = {SOURCE:g}", xlabel="network calls")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("W2 to the true conditional")
    axes[1].legend(fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_bridges(path: Path) -> None:
    """Draw the mean distance over the cases against NFE, a panel for each bridge, and print it at 10."""
    figure, axes = plt.subplots(2, 4, figsize=(14, 6.5), sharex=True, sharey=True, constrained_layout=True)
    print("| bridge | dpm2m, 5 | 10 | 20 | DBIM's, 5 | 10 | 20 | sde-dpm2m, 10 | ddim, 10 | published |")
    print("|---" * 10 + "|")
    for axis, (name, (bridge, kind, own)) in zip(axes.flat, BRIDGES.items(), strict=True):
        for solver in ("dpm2m", "sde-dpm2m", "ddim", "posterior"):
            distances = [mean_w2(bridge, solvers.build(bridge, solver, steps=n)) for n in NFES]
            axis.loglog(NFES, distances, marker=".", label=solver)
        ours = [solvers.build(bridge, "dpm2m", steps=n) for n in (5, 10, 20)]
        others = [solvers.build(bridge, solver, steps=10) for solver in ("sde-dpm2m", "ddim")]
        tables = [*ours, *(with_exact_integral(bridge, table) for table in ours), *others]
        cells = [f"{mean_w2(bridge, table):.3f}" for table in tables]
        distance = mean_w2(bridge, own)
        axis.axhline(distance, color="black", linewidth=0.8, linestyle="--", label="as published")
        text = f"{kind}, {len(own)}: {distance:.3f}"
        print(f"| {name} | {' | '.join(cells)} | {text} |")
        axis.set(title=name)
        axis.grid(alpha=0.3, which="both")
    for axis in axes[-1]:
        axis.set_xlabel("network calls")
    for axis in axes[:, 0]:
        axis.set_ylabel("W2, mean of three cases")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    """Draw both plots."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("solvers", type=Path, help="of the A-Bridge")
    parser.add_argument("bridges", type=Path, nargs="?", help="of all bridges")
    args = parser.parse_args(argv)
    draw(args.solvers)
    if args.bridges is not None:
        draw_bridges(args.bridges)


if __name__ == "__main__":
    main()
