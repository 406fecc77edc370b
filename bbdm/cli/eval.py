"""Score a network on a data set: bbdm eval edge2shoes DATA MODEL [OUTPUT_DIR] [flags].

OUTPUT_DIR gets the results, settings.json and scores.json; of volumes, with the scores of each. After an
interruption, the same command resumes. Existing scores of other metrics are kept. With --sweep, OUTPUT_DIR
gets a folder for each solver and number of steps; sweep.json and two plots compare them, and those of earlier
sweeps of the same settings. With --samples, the results of a source are scored as a distribution too, and
distribution.png shows it.

For several processes, one for each GPU, which share the work, add --use_multi_gpus, or start it by
torchrun --nproc_per_node N -m bbdm eval ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bbdm import solvers
from bbdm.base import manifest, optional
from bbdm.base.atomic import remove_all_leftovers
from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, from_values
from bbdm.bridges import Bridge
from bbdm.cli.training import DATA_DIR, add_layout
from bbdm.evaluation.table import BONE, METRICS, LPIPSNet, Setup, defaults
from bbdm.translation.config import TranslateConfig

if TYPE_CHECKING:
    from bbdm.translation.translator import Translator

Run = tuple[str | None, int | None]  # solver, and its steps; None for the default
Report = dict[str, Any]  # as bbdm.evaluation.reports reads and writes it


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, TranslateConfig]:
    """The flags with their defaults, and the settings of the translation."""
    parser = Parser(__doc__, prog="bbdm eval")
    add_layout(parser, help="'folder' is of pictures alone, and needs --degrade")
    parser.add_argument("data_dir", help=DATA_DIR)
    parser.add_argument("model", type=Path, help="a file, or a name on the Hub")
    parser.add_argument("output_dir", type=Path, nargs="?", help="out/MODEL-eval if left out")
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=[*METRICS],
        help="(default: fid lpips, of other pictures than 8-bit grey and RGB mae psnr ssim; diversity where possible)",
    )
    parser.add_argument("--dice_above", type=float, default=BONE, help="dice is of values above it")
    parser.add_argument("--per_channel", action="store_true", help="scores of each channel too, such as mae[3]")
    parser.add_argument("--sweep", nargs="+", metavar="SOLVER:NFE,NFE", help="such as dpm2m:5,10,20 fast:199")
    parser.add_argument("--fid_weights", type=Path, help="Inception's weights, if they cannot be downloaded")
    parser.add_argument("--lpips_net", choices=get_args(LPIPSNet), default="alex", help="the network of LPIPS")
    parser.add_argument("--lpips_weights", type=Path, help="that network's weights, if they cannot be downloaded")
    add_flags(parser, TranslateConfig)
    parser.set_defaults(image_size="train")  # scores need pictures of one size
    args = parser.parse_args(argv)
    if args.dataset == "folder" and args.degrade is None:
        parser.error("the data set 'folder' has no targets to compare with: --degrade makes sources of them")
    if args.sweep and (args.solver or args.steps or args.fast_sampling):
        parser.error("--sweep names solvers and steps: leave out --solver, --steps and --fast_sampling")
    if args.image_size in ("fit", "keep"):
        parser.error(f"scores need pictures of one size: --size {args.image_size} is for bbdm translate")
    args.output_dir = args.output_dir or Path("out") / f"{args.model.stem}-eval"
    return args, from_values(TranslateConfig, vars(args))


def read_sweep(words: list[str], bridge: Bridge, defaults: solvers.Defaults) -> list[tuple[str, int | None]]:
    """The runs of ``SOLVER`` and ``SOLVER:NFE,NFE``, all checked, so that none fails hours later."""
    runs: list[tuple[str, int | None]] = []
    for word in words:
        solver, colon, numbers = word.partition(":")
        if colon and not all(number.isdecimal() for number in numbers.split(",")):
            raise ValueError(f"--sweep takes SOLVER:NFE,NFE, got {word!r}")
        for nfe in map(int, numbers.split(",")) if colon else [None]:
            defaults.over(solver, nfe, None).table(bridge)
            runs.append((solver, defaults.fill(solver, nfe)[1]))
    return list(dict.fromkeys(runs))


def evaluate(translator: Translator, args: argparse.Namespace, run: Run, folder: Path) -> Report:
    """Make and score the results of one solver; the report is empty in all processes but the first."""
    from bbdm.evaluation import distributions, metrics, patients, reports

    processes = translator.processes
    with processes.first_before_others():  # the others find what it downloads
        scores = metrics.Scores(  # before the translation, since it may fail
            args.metrics,
            args.num_samples,
            fid_weights=args.fid_weights,
            lpips_net=args.lpips_net,
            lpips_weights=args.lpips_weights,
            device=processes.device,
            values=translator.dataset.spec.target,
            channels=translator.files.channels,
            masked=translator.files.masked,
            dice_above=args.dice_above,
            per_channel=args.per_channel,
        )
    jobs, report = translator.run(*run, folder)
    each: dict[str, dict[str, float]] = {}
    several = None
    batches = translator.pictures(jobs)
    if args.num_samples > 1:
        several = distributions.DistributionScores(args.num_samples, translator.dataset.spec.target)
        batches = several.counted(batches)
    if translator.files.volumes and all(METRICS[name].masks for name in args.metrics):
        each = patients.score(scores, translator, batches)
    else:
        for _, batch in batches:
            scores.update(*batch)
        scores.collect(processes)
    if several is not None:
        several.collect(processes)
    if processes.first:
        spread: Report = {}
        if several is not None:
            spread = {"distribution": several.compute()}
            distributions.draw(spread["distribution"], folder / "distribution.png")
        net = args.lpips_net if "lpips" in args.metrics else None
        above = {"dice_above": args.dice_above} if "dice" in args.metrics else {}
        of = {name: patients.summary(name, values) for name, values in each.items()}
        found = {name: found["mean"] for name, found in of.items()} if of else scores.compute()
        masks = {"masks": masked} if (masked := translator.files.masks_digest) else {}
        report = {"scores": found, "by_patient": of, "lpips_net": net, **above, **masks, **spread, **report}
        if not args.overwrite:
            report = reports.with_earlier_scores(report, folder / "scores.json")
        manifest.write(folder / "scores.json", report)
    return report


def sweep(translator: Translator, args: argparse.Namespace) -> None:
    """Evaluate several solvers; the first process prints and draws."""
    from bbdm.evaluation import reports

    first, folder = translator.processes.first, args.output_dir
    if first:
        remove_all_leftovers(folder)
    before = reports.read(folder / "sweep.json")
    made: list[Report] = []
    defaults = translator.checkpoint.defaults
    for solver, steps in read_sweep(args.sweep, translator.bridge, defaults):
        nfe = steps or len(defaults.over(solver, None, None).table(translator.bridge))
        made.append(evaluate(translator, args, (solver, steps), folder / f"{solver}-{nfe}"))
        if first:
            rows = reports.table(made[-1:], args.metrics)
            print(rows if len(made) == 1 else rows.splitlines()[-1], flush=True)
            manifest.write(folder / "sweep.json", reports.merge(before, made))
    if not first:
        return
    merged = reports.merge(before, made)
    others = sorted({reports.run_of(report) for report in before} - {reports.run_of(report) for report in merged})
    if others:
        names = ", ".join(f"{solver}:{nfe}" for solver, nfe in others)
        print(f"left out of sweep.json, since other settings made them: {names}")
    plots = folder / "quality_nfe.png", folder / "quality_seconds.png"
    drawn = [
        path
        for path, over in zip(plots, ("nfe", "seconds_per_picture"), strict=True)
        if reports.draw(merged, over, path)
    ]
    print(f"to look at: {', '.join(map(str, drawn))}")


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    args, config = parse(argv)
    from bbdm.evaluation import distributions, patients, reports
    from bbdm.execution.processes import start_on_each_gpu
    from bbdm.translation.translator import Translator

    optional.package("torchmetrics", "bbdm eval")  # before a network is loaded
    if config.use_multi_gpus:
        start_on_each_gpu(["eval", *argv])
    translator = Translator(config)
    setup = Setup(translator.dataset.spec.target, translator.files.channels, config.num_samples)
    args.metrics = args.metrics or defaults(setup)
    if args.sweep:
        sweep(translator, args)
    else:
        report = evaluate(translator, args, (config.chosen_solver, config.steps), config.output_dir)
        if translator.processes.first:
            print(reports.table([report], args.metrics))
            if report["by_patient"]:
                print("\n" + patients.table(report, args.metrics))
            if "distribution" in report:
                print(distributions.summary(report["distribution"]))
            print(f"results and scores.json: {config.output_dir}")
    translator.processes.leave()
