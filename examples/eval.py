"""Score a network on a data set: python examples/eval.py edge2shoes DATA MODEL [OUTPUT_DIR] [flags].

OUTPUT_DIR gets the results, settings.json and scores.json. Interrupted, the same command goes on. With
--sweep, each solver and number of steps gets a folder in it, and sweep.json and two plots compare them, with
those of earlier sweeps of the same settings. Scores of other metrics that are there are kept.

In several processes, one a GPU: torchrun --nproc_per_node N in place of python. They share pictures and
scoring.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

from bbdm import solvers
from bbdm.base import scripts
from bbdm.base.atomic import write_atomically
from bbdm.bridges import Bridge
from bbdm.data.pairs import DATASETS
from bbdm.evaluation import metrics, translate
from bbdm.evaluation.results import save_json
from bbdm.evaluation.translate import Translator
from bbdm.execution.processes import start_on_each_gpu

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
    translate.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.sweep and (args.solver or args.steps or args.fast_sampling):
        parser.error("--sweep names solvers and steps: leave out --solver, --steps and --fast_sampling")
    translate.finish(parser, args)
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
    """Make and score the results of one solver, with the other processes.

    Returns:
        In the first process the report, which is in ``scores.json`` too; the others get an empty one.
    """
    args, processes = translator.args, translator.processes
    with processes.first_before_others():  # which then find what it downloads
        scores = metrics.Scores(  # first, since it may fail
            args.metrics,
            args.num_samples,
            fid_weights=args.fid_weights,
            lpips_net=args.lpips_net,
            lpips_weights=args.lpips_weights,
            device=processes.device,
        )
    jobs, report = translator.run(*run, folder)
    for results, targets in translator.pictures(jobs):
        scores.update(results, targets)
    scores.collect(processes)
    if not processes.first:
        return {}
    report = {"scores": scores.compute(), "lpips_net": args.lpips_net if "lpips" in args.metrics else None, **report}
    for before in [] if args.overwrite else read_reports(folder / "scores.json"):
        if before["settings"] == report["settings"]:
            report["scores"] = {**before["scores"], **report["scores"]}
            report["lpips_net"] = report["lpips_net"] or before.get("lpips_net")
    save_json(report, folder / "scores.json")
    return report


def read_reports(path: Path) -> list[dict[str, Any]]:
    """Reports of earlier runs in ``scores.json`` or ``sweep.json``; none where the file is not there.

    Raises:
        ValueError: it is not what this script writes.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        reports = content if isinstance(content, list) else [content]
        if all({"settings", "scores", "solver", "nfe"} <= report.keys() for report in reports):
            return reports
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"cannot read {path}: give another output_dir, or delete it")


def merge(before: list[dict[str, Any]], reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reports of a sweep with those of earlier ones that differ in solver and times alone."""

    def common(report: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in report["settings"].items() if k not in ("solver", "nfe", "timesteps")}

    made = [(report["solver"], report["nfe"]) for report in reports]
    kept = [r for r in before if common(r) == common(reports[0]) and (r["solver"], r["nfe"]) not in made]
    return [*kept, *reports]


def table(reports: list[dict[str, Any]], names: list[str]) -> str:
    """Markdown, one row a solver, of the metrics with these names."""
    rows = [
        ["solver", "NFE", "pictures", *(_title(name) for name in names), "s / picture"],
        ["---"] * (len(names) + 4),
    ]
    for report in reports:
        scores = [f"{report['scores'][name]:.{DIGITS.get(name, 4)}f}" for name in names]
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

    names = list(dict.fromkeys(name for report in reports for name in report["scores"]))
    figure = Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for solver in dict.fromkeys(report["solver"] for report in reports):
            of = [report for report in reports if report["solver"] == solver and name in report["scores"]]
            points = sorted((report[over], report["scores"][name]) for report in of if report[over])
            panel.plot([x for x, _ in points], [y for _, y in points], marker="o", label=solver)
        panel.set(xscale="log", xlabel=label, ylabel=_title(name))
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter("{x:g}")  # 20, not 2 x 10^1
        panel.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle(f"{reports[0]['pictures']} pictures", fontsize="medium")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def sweep(translator: Translator) -> None:
    """Evaluate several solvers, with the other processes; the first tells and draws."""
    args, first = translator.args, translator.processes.first
    path = args.output_dir / "sweep.json"
    before = read_reports(path)
    reports: list[dict[str, Any]] = []
    for solver, steps in read_sweep(args.sweep, translator.bridge):
        nfe = steps or len(solvers.build(translator.bridge, solver))
        reports.append(evaluate(translator, (solver, steps), args.output_dir / f"{solver}-{nfe}"))
        if first:
            rows = table(reports[-1:], args.metrics)
            print(rows if len(reports) == 1 else rows.splitlines()[-1], flush=True)
            save_json(merge(before, reports), path)
    if not first:
        return
    reports = merge(before, reports)
    others = {(report["solver"], report["nfe"]) for report in before}
    others -= {(report["solver"], report["nfe"]) for report in reports}
    if others:
        told = ", ".join(f"{solver}:{nfe}" for solver, nfe in sorted(others))
        print(f"left out of sweep.json, since other settings made them: {told}")
    draw(reports, "nfe", "network evaluations", args.output_dir / "quality_nfe.png")
    draw(reports, "seconds_per_picture", "seconds a picture", args.output_dir / "quality_seconds.png")
    print(f"to look at: {args.output_dir}/quality_nfe.png, {args.output_dir}/quality_seconds.png")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.use_multi_gpus:
        start_on_each_gpu(__file__, argv)
    translator = Translator(args)
    if args.sweep:
        sweep(translator)
    else:
        report = evaluate(translator, (args.solver, args.steps), args.output_dir)
        if translator.processes.first:
            print(table([report], args.metrics))
            print(f"results and scores.json: {args.output_dir}")
    translator.processes.leave()


if __name__ == "__main__":
    scripts.run(main, "results that are there are kept, and the same command goes on")
