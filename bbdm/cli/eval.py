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

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbdm import solvers
from bbdm.base import manifest, optional
from bbdm.base.atomic import remove_all_leftovers
from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, from_values, setting
from bbdm.bridges import Bridge
from bbdm.cli.training import DATA_DIR, add_layout
from bbdm.evaluation.metrics import BONE, METRICS, LPIPSNet, Setup, defaults
from bbdm.translation.config import TranslateConfig

if TYPE_CHECKING:
    from bbdm.translation.translator import Translator

Run = tuple[str | None, int | None]  # solver, and its steps; None for the default
Report = dict[str, Any]  # as bbdm.evaluation.reports reads and writes it


@dataclass(frozen=True, kw_only=True)
class EvalConfig(TranslateConfig):
    """What is scored, and how.

    Raises:
        ValueError: there is no such metric, or settings contradict each other.
    """

    metrics: tuple[str, ...] | None = setting(
        None,
        f"among {', '.join(METRICS)}; fid lpips if unset, of other pictures than 8-bit grey and RGB mae psnr ssim; "
        "diversity where possible",
    )
    dice_above: float = setting(BONE, "dice is of values above it")
    per_channel: bool = setting(False, "scores of each channel too, such as mae[3]")
    sweep: tuple[str, ...] | None = setting(None, "solvers and their numbers of steps, such as dpm2m:5,10,20 fast:199")
    fid_weights: Path | None = setting(None, "Inception's weights, if they cannot be downloaded")
    lpips_net: LPIPSNet = setting("alex", "the network of LPIPS")
    lpips_weights: Path | None = setting(None, "that network's weights, if they cannot be downloaded")

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.metrics or () if name not in METRICS]:
            raise ValueError(f"metrics must be among {', '.join(METRICS)}, got {', '.join(unknown)}")
        if self.dataset == "folder" and self.degrade is None:
            raise ValueError("dataset 'folder' has no targets to compare with: degrade makes sources of them")
        if self.sweep and (self.solver or self.steps or self.fast_sampling):
            raise ValueError("sweep names solvers and steps: leave out solver, steps and fast_sampling")
        if self.image_size in ("fit", "keep"):
            raise ValueError(f"scores need pictures of one size: image_size {self.image_size} is for bbdm translate")


def parse(argv: Sequence[str]) -> EvalConfig:
    """The settings of the command line."""
    parser = Parser(__doc__, prog="bbdm eval")
    add_layout(parser, help="'folder' is of pictures alone, and needs --degrade")
    parser.add_argument("data_dir", help=DATA_DIR)
    parser.add_argument("model", type=Path, help="a file, or a name on the Hub")
    parser.add_argument("output_dir", type=Path, nargs="?", help="out/MODEL-eval if left out")
    add_flags(parser, EvalConfig)
    parser.set_defaults(image_size="train")  # scores need pictures of one size
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or Path("out") / f"{args.model.stem}-eval"
    return from_values(EvalConfig, vars(args))


def read_sweep(words: Sequence[str], bridge: Bridge, defaults: solvers.Defaults) -> list[tuple[str, int | None]]:
    """The runs of ``SOLVER`` and ``SOLVER:NFE,NFE``, all checked, so that none fails hours later."""
    runs: list[tuple[str, int | None]] = []
    for word in words:
        solver, colon, numbers = word.partition(":")
        if colon and not all(number.isdecimal() for number in numbers.split(",")):
            raise ValueError(f"sweep is written as SOLVER:NFE,NFE, got {word!r}")
        for nfe in map(int, numbers.split(",")) if colon else [None]:
            defaults.over(solver, nfe, None).table(bridge)
            runs.append((solver, defaults.fill(solver, nfe)[1]))
    return list(dict.fromkeys(runs))


def setup_of(translator: Translator) -> Setup:
    """What scores of the results are built for."""
    return Setup(translator.dataset.spec.target, translator.files.channels, translator.config.num_samples)


def evaluate(translator: Translator, config: EvalConfig, metrics: Sequence[str], run: Run, folder: Path) -> Report:
    """Make and score the results of one solver; the report is empty in all processes but the first."""
    from bbdm.evaluation import distributions, reports
    from bbdm.evaluation.scores import Scores

    processes, files, setup = translator.processes, translator.files, setup_of(translator)
    spread = {"distribution": distributions.DISTRIBUTION} if setup.samples > 1 else {}
    with processes.first_before_others():  # the others find what it downloads
        scores = Scores(  # before the translation, since it may fail
            {name: METRICS[name] for name in metrics} | spread,
            setup.samples,
            device=processes.device,
            values=setup.values,
            channels=setup.channels,
            masked=files.masked,
            **{name: getattr(config, name) for name in ("dice_above", "per_channel")},
            **{name: getattr(config, name) for name in ("fid_weights", "lpips_net", "lpips_weights")},
        )
    jobs, report = translator.run(*run, folder)
    for names, pictures in translator.pictures(jobs):
        scores.update(*pictures, names=names)
    scores.collect(processes)
    if not processes.first:
        return {}
    found: dict[str, Any] = {**scores.compute()}
    shown = {name: None if isnan(each) else each for name, each in found.items() if name not in spread}
    if spread:
        distributions.draw(found["distribution"], folder / "distribution.png")
        report |= {"distribution": found["distribution"]}
    patients: dict[str, Any] = {}
    for name, each in scores.by_source().items() if files.volumes else ():
        patients[name] = reports.by_patient(name, {k: each[k] for k in files.names if k in each})
    about = {"scores": shown, "by_patient": patients, "lpips_net": config.lpips_net if "lpips" in metrics else None}
    about |= {"dice_above": config.dice_above} if "dice" in metrics else {}
    about |= {"masks": digest} if (digest := files.masks_digest) else {}
    report = about | report
    if not config.overwrite:
        report = reports.with_earlier_scores(report, folder / "scores.json")
    manifest.write(folder / "scores.json", report)
    return report


def sweep(translator: Translator, config: EvalConfig, metrics: Sequence[str]) -> None:
    """Evaluate several solvers; the first process prints and draws."""
    from bbdm.evaluation import reports

    file, bridge = translator.checkpoint.defaults, translator.bridge
    first, path = translator.processes.first, config.output_dir / "sweep.json"
    if first:
        remove_all_leftovers(config.output_dir)
    before, merged, done = reports.read(path), [], []
    for solver, steps in read_sweep(config.sweep or (), bridge, file):
        nfe = steps or len(file.over(solver, None, None).table(bridge))
        done.append(evaluate(translator, config, metrics, (solver, steps), config.output_dir / f"{solver}-{nfe}"))
        if first:
            rows = reports.table(done[-1:], metrics)
            print(rows if len(done) == 1 else rows.splitlines()[-1], flush=True)
            merged = reports.merge(before, done)
            manifest.write(path, merged)
    others = {reports.run_of(report) for report in before} - {reports.run_of(report) for report in merged}
    if first and others:
        names = ", ".join(f"{solver}:{nfe}" for solver, nfe in sorted(others))
        print(f"left out of sweep.json, since other settings made them: {names}")
    if first:
        print(f"to look at: {', '.join(map(str, reports.draw(merged, config.output_dir)))}")


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    config = parse(argv)
    from bbdm.evaluation import distributions, reports
    from bbdm.execution.processes import start_on_each_gpu
    from bbdm.translation.translator import Translator

    optional.package("torchmetrics", "bbdm eval")  # before a network is loaded
    if config.use_multi_gpus:
        start_on_each_gpu(["eval", *argv])
    translator = Translator(config)
    metrics = config.metrics or defaults(setup_of(translator))
    if config.sweep:
        sweep(translator, config, metrics)
    elif report := evaluate(translator, config, metrics, (config.chosen_solver, config.steps), config.output_dir):
        print(reports.table([report], metrics))
        if report["by_patient"]:
            print("\n" + reports.patients_table(report, metrics))
        if "distribution" in report:
            print(distributions.summary(report["distribution"]))
        print(f"results and scores.json: {config.output_dir}")
    translator.processes.leave()
