"""The commands that score a network, and that calibrate intervals of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bbdm import solvers
from bbdm.base import manifest, optional
from bbdm.base.atomic import remove_leftovers
from bbdm.base.scripts import Command
from bbdm.base.settings import setting
from bbdm.bridges import Bridge
from bbdm.cli import GPUsCommand
from bbdm.data.rows import UNPAIRED
from bbdm.evaluation.calibration import CalibrateConfig, calibrate
from bbdm.evaluation.metrics import BONE, METRICS, LPIPSNet, Setup, defaults
from bbdm.translation.config import TranslateConfig

if TYPE_CHECKING:
    from bbdm.translation.translator import Translator

Run = tuple[str | None, int | None]  # solver, and its steps; None for the default
Report = dict[str, Any]  # as bbdm.evaluation.reports reads and writes it


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


@dataclass(frozen=True, kw_only=True)
class Eval(GPUsCommand, TranslateConfig):
    """Score a network on a data set: bbdm eval edge2shoes DATA MODEL OUTPUT_DIR [flags].

    OUTPUT_DIR gets the results, settings.json and scores.json; of volumes, with the scores of each. After an
    interruption, the same command resumes. With --sweep, OUTPUT_DIR gets a folder for each solver and number
    of steps; sweep.json and a plot compare them.

    For several processes, one for each GPU, which share the work, add --use_multi_gpus, or start it by
    torchrun --nproc_per_node N -m bbdm eval ...

    Raises:
        ValueError: there is no such metric, or settings contradict each other.
    """

    HEADING: ClassVar[str] = "scores"
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"maps", "intervals"})
    TARGETS: ClassVar[bool] = True
    PAIRS: ClassVar[bool] = False  # of two sets without pairs, FID alone compares results and targets as sets
    ENDING: ClassVar[str] = "-eval"
    FIRST: ClassVar[str] = (
        "dataset data_dir model output_dir metrics sweep solver steps num_samples "
        "image_size batch_size device overwrite"
    )

    metrics: tuple[str, ...] | None = setting(
        None,
        f"among {', '.join(METRICS)}; fid lpips if unset, of other pictures than 8-bit grey and RGB mae psnr ssim; "
        "diversity, energy and crps of several samples",
    )
    dice_above: float = setting(BONE, "dice is of values above it")
    sweep: tuple[str, ...] | None = setting(None, "solvers and their numbers of steps, such as dpm2m:5,10,20 fast:199")
    fid_weights: Path | None = setting(None, "Inception's weights, if they cannot be downloaded")
    lpips_net: LPIPSNet = setting("alex", "the network of LPIPS")
    lpips_weights: Path | None = setting(None, "that network's weights, if they cannot be downloaded")

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.metrics or () if name not in METRICS]:
            raise ValueError(f"metrics must be among {', '.join(METRICS)}, got {', '.join(unknown)}")
        if self.dataset == UNPAIRED and (self.metrics != ("fid",) or self.num_samples > 1):
            got = f"{' '.join(self.metrics or ()) or None} and {self.num_samples}"
            raise ValueError(f"metrics must be fid, and num_samples 1, for the data set {UNPAIRED!r}, got {got}")
        if self.sweep and (self.solver or self.steps or self.fast_sampling):
            raise ValueError("sweep names solvers and steps: leave out solver, steps and fast_sampling")
        if self.image_size in ("fit", "keep"):
            raise ValueError(f"scores need pictures of one size: image_size {self.image_size} is for bbdm translate")

    def run(self) -> None:
        """Make the results that are missing, score all, and print a table."""
        from bbdm.evaluation import reports
        from bbdm.translation.translator import Translator

        optional.package("torchmetrics", "bbdm eval")  # before a network is loaded
        translator = Translator(self)
        setup = Setup(translator.dataset.spec.target, translator.files.channels, self.num_samples)
        if self.sweep:
            self._sweep(translator, setup, self.sweep)
        elif report := self._evaluate(translator, setup, (self.chosen_solver, self.steps), self.folder):
            print(reports.table([report]))
            print(f"results and scores.json: {self.folder}")
        translator.processes.leave()

    def _evaluate(self, translator: Translator, setup: Setup, run: Run, folder: Path) -> Report:
        """Make and score the results of one solver; the report is empty in all processes but the first."""
        from bbdm.evaluation.scores import Scores

        processes, files, metrics = translator.processes, translator.files, self.metrics or defaults(setup)
        with processes.first_before_others():  # the others find what it downloads
            scores = Scores(  # before the translation, since it may fail
                metrics,
                setup.samples,
                device=processes.device,
                values=setup.values,
                channels=setup.channels,
                masked=files.pairs.masked,
                **{name: getattr(self, name) for name in ("dice_above", "fid_weights", "lpips_net", "lpips_weights")},
            )
        jobs, _, report = translator.run(*run, folder)
        for names, pictures in translator.pictures(jobs):
            scores.update(*pictures, names=names)
        scores.collect(processes)
        if not processes.first:
            return {}

        def known(found: Mapping[str, float]) -> dict[str, float | None]:
            return {name: None if isnan(score) else score for name, score in found.items()}

        by_patient = {name: known(found) for name, found in scores.by_source().items() if files.volumes}
        about: dict[str, Any] = {"scores": known(scores.compute()), "by_patient": by_patient}
        about |= {"lpips_net": self.lpips_net if "lpips" in metrics else None}
        about |= {"dice_above": self.dice_above} if "dice" in metrics else {}
        about |= {"masks": files.pairs.digest(["mask"])} if files.pairs.rows[0].get("mask") is not None else {}
        report = about | report
        manifest.write(folder / "scores.json", report)
        return report

    def _sweep(self, translator: Translator, setup: Setup, words: Sequence[str]) -> None:
        """Evaluate several solvers; the first process prints and draws."""
        from bbdm.evaluation import reports

        file, bridge, first = translator.checkpoint.defaults, translator.bridge, translator.processes.first
        if first:
            remove_leftovers(self.folder)
        done: list[Report] = []
        for solver, steps in read_sweep(words, bridge, file):
            nfe = steps or len(file.over(solver, None, None).table(bridge))
            done.append(self._evaluate(translator, setup, (solver, steps), self.folder / f"{solver}-{nfe}"))
            if first:
                rows = reports.table(done[-1:])
                print(rows if len(done) == 1 else rows.splitlines()[-1], flush=True)
                manifest.write(self.folder / "sweep.json", done)
        if first:
            reports.draw(done, plot := self.folder / "quality_nfe.png")
            print(f"to look at: {plot}")


@dataclass(frozen=True, kw_only=True)
class Calibrate(Command, CalibrateConfig):
    """Calibrate intervals of results: bbdm calibrate MODEL edge2shoes DATA [flags].

    The pairs must be ones that training has not seen, of the kind that the network will be used on. The
    intervals of OUT.pt are OUT.intervals.json, which bbdm translate --maps low,high and Intervals.load read.
    """

    FIRST: ClassVar[str] = "model dataset data_dir output alpha delta num_samples bound batch_size device"

    def run(self) -> None:
        """Calibrate, and print the share of values outside, lambda and the mean length."""
        intervals, output = calibrate(self)
        print(
            f"{intervals.pairs} pairs: {100 * intervals.loss:.3g} % of values outside; lambda {intervals.lambda_:.4g}"
        )
        print(f"mean length {100 * intervals.length:.3g} % of the range; {output}")


main = Eval.main
