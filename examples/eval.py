"""Score a network on a data set: python examples/eval.py edge2shoes DATA MODEL [OUTPUT_DIR] [flags].

OUTPUT_DIR gets the results, settings.json and scores.json. Interrupted, the same command goes on. With --sweep, each
solver and number of steps gets a folder in it, and sweep.json and two plots compare them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from bbdm import generation, metrics, scripts, solvers
from bbdm.bridges import Bridge
from bbdm.data import DATASETS
from bbdm.files import write_atomically
from bbdm.generation import Translator

Run = tuple[str, int | None]  # solver, and its steps where they are not its own choice
DIGITS = {"fid": 2, "psnr": 2, "diversity": 2}  # others have 4


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, with those that are left out filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(set(DATASETS) - {"folder"}))
    parser.add_argument("data_dir", help="the data set's folder; for 'paired', SOURCES,TARGETS")
    parser.add_argument("model", type=Path)
    parser.add_argument("output_dir", type=Path, nargs="?", help="out/MODEL-eval if left out")
    parser.add_argument(
        "--metrics", nargs="+", choices=get_args(metrics.Name), help="(default: fid lpips, diversity where it can be)"
    )
    parser.add_argument("--sweep", nargs="+", metavar="SOLVER:NFE,NFE", help="such as dpm2m:5,10,20 fast:199")
    parser.add_argument("--fid_weights", type=Path, help="Inception's weights, where they cannot be downloaded")
    parser.add_argument("--lpips_net", choices=get_args(metrics.LPIPSNet), default="alex", help="(default: alex)")
    parser.add_argument("--lpips_weights", type=Path, help="that network's weights, where they cannot be downloaded")
    generation.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.sweep and (args.solver or args.steps or args.fast_sampling):
        parser.error("--sweep names solvers and steps: leave out --solver, --steps and --fast_sampling")
    generation.finish(parser, args)
    args.metrics = args.metrics or ["fid", "lpips", *(["diversity"] if args.num_samples > 1 else [])]
    args.output_dir = args.output_dir or Path("out") / f"{args.model.stem}-eval"
    return args


def read_sweep(words: list[str], bridge: Bridge) -> list[Run]:
    """The runs of ``SOLVER`` and ``SOLVER:NFE,NFE``, all checked, so that none fails hours later."""
    runs: list[Run] = []
    for word in words:
        solver, colon, numbers = word.partition(":")
        if colon and not all(number.isdecimal() for number in numbers.split(",")):
            raise ValueError(f"--sweep takes SOLVER:NFE,NFE, got {word!r}")
        for nfe in map(int, numbers.split(",")) if colon else [None]:
            own = nfe is None or nfe == len(solvers.build(bridge, solver))  # so that fast:199 is the published list
            steps = None if own else nfe
            solvers.build(bridge, solver, steps=steps)
            runs.append((solver, steps))
    return list(dict.fromkeys(runs))


def evaluate(translator: Translator, run: Run, folder: Path) -> dict[str, Any]:
    """Make and score the results of one solver; the report is in ``scores.json`` too."""
    args = translator.args
    scores = metrics.Scores(  # first, since it may fail
        args.metrics,
        args.num_samples,
        fid_weights=args.fid_weights,
        lpips_net=args.lpips_net,
        lpips_weights=args.lpips_weights,
        device=translator.device,
    )
    jobs, report = translator.run(*run, folder)
    for results, targets in translator.pictures(jobs):
        scores.update(results, targets)
    report = {"scores": scores.compute(), "lpips_net": args.lpips_net if "lpips" in args.metrics else None, **report}
    generation.save_json(report, folder / "scores.json")
    return report


def table(reports: list[dict[str, Any]]) -> str:
    """Markdown, one row a solver."""
    names = list(reports[0]["scores"])
    rows = [
        ["solver", "NFE", "pictures", *(_title(name) for name in names), "s / picture"],
        ["---"] * (len(names) + 4),
    ]
    for report in reports:
        scores = [f"{value:.{DIGITS.get(name, 4)}f}" for name, value in report["scores"].items()]
        seconds = report["seconds_per_picture"]
        rows.append(
            [
                report["solver"],
                str(report["nfe"]),
                str(report["pictures"]),
                *scores,
                "unknown" if seconds is None else f"{seconds:.4f}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _title(name: str) -> str:
    return f"{name if name == 'diversity' else name.upper()} {'↑' if metrics.HIGHER_IS_BETTER[name] else '↓'}"


def draw(reports: list[dict[str, Any]], over: str, label: str, path: Path) -> None:
    """A panel for each metric, a line for each solver, over NFE or seconds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    names = list(reports[0]["scores"])
    figure = Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for solver in dict.fromkeys(report["solver"] for report in reports):
            points = sorted((r[over], r["scores"][name]) for r in reports if r["solver"] == solver and r[over])
            panel.plot([x for x, _ in points], [y for _, y in points], marker="o", label=solver)
        panel.set(xscale="log", xlabel=label, ylabel=_title(name))
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter("{x:g}")  # 20, not 2 x 10^1
        panel.grid(alpha=0.3)
    figure.axes[0].legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    translator = Translator(args)
    if not args.sweep:
        print(table([evaluate(translator, (args.solver, args.steps), args.output_dir)]))
        print(f"results and scores.json: {args.output_dir}")
        return
    reports: list[dict[str, Any]] = []
    for solver, steps in read_sweep(args.sweep, translator.bridge):
        nfe = steps or len(solvers.build(translator.bridge, solver))
        reports.append(evaluate(translator, (solver, steps), args.output_dir / f"{solver}-{nfe}"))
        print(table(reports[-1:]) if len(reports) == 1 else table(reports[-1:]).splitlines()[-1], flush=True)
        generation.save_json(reports, args.output_dir / "sweep.json")
    draw(reports, "nfe", "network evaluations", args.output_dir / "quality_nfe.png")
    draw(reports, "seconds_per_picture", "seconds a picture", args.output_dir / "quality_seconds.png")
    print(f"to look at: {args.output_dir}/quality_nfe.png, {args.output_dir}/quality_seconds.png")


if __name__ == "__main__":
    scripts.run(main, "results that are there are kept, and the same command goes on")
