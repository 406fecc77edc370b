"""The commands that score a network, and that calibrate intervals of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bbdm.base import manifest, optional
from bbdm.base.atomic import remove_leftovers
from bbdm.base.scripts import Command
from bbdm.base.settings import setting
from bbdm.bridges import Bridge
from bbdm.cli.calibrated import CalibratedCommand
from bbdm.data.cells import ROLES
from bbdm.data.columns import GROUP
from bbdm.data.provenance import same_rows
from bbdm.data.rows import FRAMES, UNPAIRED, only_columns, read_rows, shown
from bbdm.data.trained import Overlap, Trained
from bbdm.defaults import Defaults
from bbdm.evaluation.calibration import Bound, check_unseen
from bbdm.evaluation.intervals import By, Intervals, check_risk, file_of
from bbdm.evaluation.metrics import BONE, METRICS, LPIPSNet, Setup, defaults
from bbdm.files.header import read_header
from bbdm.translation.config import TranslateConfig

if TYPE_CHECKING:
    from bbdm.translation.translator import Translator


def read_sweep(
    words: Sequence[str], bridge: Bridge, defaults: Defaults
) -> dict[str, tuple[str, int | None]]:
    """The runs of ``SOLVER`` and ``SOLVER:NFE,NFE`` by name, all checked, so that none fails hours later."""
    runs: dict[str, tuple[str, int | None]] = {}
    for word in words:
        solver, colon, numbers = word.partition(":")
        if colon and not all(number.isdecimal() for number in numbers.split(",")):
            raise ValueError(f"--sweep is written as SOLVER:NFE,NFE, got {word!r}")
        steps: list[int | None] = [None]
        if colon:
            steps = [int(number) for number in numbers.split(",")]
        for nfe in steps:
            try:
                chosen = defaults.over(solver, nfe)
                calls = len(chosen.table(bridge))
            except ValueError as error:  # which names the arguments solver and steps
                raise ValueError(f"sweep cannot be {word}: {error}") from error
            runs[f"{solver}-{calls}"] = solver, chosen.steps
    return runs


@dataclass(frozen=True, kw_only=True)
class Eval(CalibratedCommand):
    """Score a network on a data set: bbdm eval edge2shoes DATA MODEL OUTPUT_DIR [flags].

    OUTPUT_DIR gets the results, settings.json and results.jsonl, which say what made them, scores.json, of
    volumes with the scores of each, and scores.png, their distribution. After an interruption, the same
    command resumes. With --sweep, OUTPUT_DIR gets a folder for each solver and number of steps; sweep.json
    and a plot compare them, and the last lines say which is best. With --intervals, a file of bbdm calibrate,
    the mean of the results is scored, and its error compared with the length of the intervals.

    Raises:
        ValueError: there is no such metric, or settings contradict each other.
    """

    HEADING: ClassVar[str] = "scores"
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"maps", "outside", "film"})
    TARGETS: ClassVar[bool] = True
    # of two sets without pairs, FID alone compares results and targets as sets
    PAIRS: ClassVar[bool] = False
    ENDING: ClassVar[str] = "-eval"
    FIRST: ClassVar[str] = "metrics sweep solver steps batch_size device overwrite"

    metrics: tuple[str, ...] | None = setting(
        None,
        "fid lpips if unset, of other pictures than 8-bit grey and RGB mae psnr ssim; diversity, energy and crps "
        "are of several samples",
        choices=METRICS,
    )
    dice_above: float = setting(BONE, "dice is of values above it")
    sweep: tuple[str, ...] | None = setting(
        None, "solvers and their numbers of steps, such as dpm2m:5,10,20 fast:199"
    )
    lpips_net: LPIPSNet = setting("alex", "the network of LPIPS")
    intervals: Path | None = setting(
        None,
        "the file of the intervals: scores the mean of the results, and its error against the length of the intervals",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == UNPAIRED and (self.metrics != ("fid",) or self.num_samples > 1):
            got = f"{' '.join(self.metrics or ()) or None} and {self.num_samples}"
            raise ValueError(
                f"metrics must be fid, and num_samples 1, for the data set {UNPAIRED!r}, got {got}"
            )
        if self.sweep and (self.solver or self.steps or self.fast_sampling):
            raise ValueError(
                "--sweep names solvers and steps: leave out --solver, --steps and --fast_sampling"
            )
        if self.intervals and (self.sweep or self.dataset == UNPAIRED):
            raise ValueError(
                f"--intervals are of pairs and of one solver: leave out --sweep and {UNPAIRED!r}"
            )
        if self.image_size in ("fit", "keep"):
            raise ValueError(
                f"scores need pictures of one size: image_size {self.image_size} is for bbdm translate"
            )

    @property
    def opening(self) -> str:
        """Of which network, on what, and by how many steps."""
        network = read_header(self.model)
        calls = network.calls(self.solver, self.steps)
        if self.sweep:
            calls = f", {' '.join(self.sweep)}"
        elif self.intervals:
            calls = f", as {self.intervals} was calibrated"
        return f"scoring {network} on {self.data_dir}{calls}"

    def run(self) -> None:
        """Make the results that are missing, score all, and print a table; of a sweep, draw a plot."""
        from bbdm.evaluation import reports
        from bbdm.evaluation.lengths import MAPS
        from bbdm.translation.translator import Translator

        for package in ("torchmetrics", "matplotlib"):  # before a network is loaded
            optional.package(package, "bbdm eval")
        config = self
        load = None
        if self.intervals:
            config = replace(self.as_calibrated(self.intervals), maps=MAPS)
            load = partial(Intervals.load, self.intervals)
        translator = Translator(config, load_intervals=load)
        first = translator.processes.first
        targets = self._have_targets(translator)
        overlap = self._overlap(translator) if first else None
        if self.sweep:
            self._sweep(translator, self.sweep, overlap)
        elif targets:
            report = config._evaluate(translator, config.solver, config.steps, self.folder, overlap)
            if first:
                print(reports.table([report]), flush=True)
                print(f"results, scores.json and their plot: {self.folder}")
        else:
            report = self._evaluate_stills(translator)
            if first:
                print(reports.table([report]), flush=True)
                print(f"results and scores.json: {self.folder}")
        translator.processes.leave()

    def _have_targets(self, translator: Translator) -> bool:
        """Whether rows have targets. Sequences without them are scored by their flicker alone.

        Raises:
            ValueError: a row has none, and settings or other rows need it.
        """
        if (
            self.dataset == UNPAIRED or self.degrade is not None
        ):  # whose targets are rows, and the pictures
            return True
        rows = translator.dataset.rows
        missing = [row for row in rows if row.get("target") is None]
        if not missing:
            return True
        message = f"{shown(missing[0])} has no target to compare with"
        if self.dataset != FRAMES:
            raise ValueError(message)
        if len(missing) < len(rows):
            raise ValueError(f"{message}, and other frames have one")
        if self.metrics or self.sweep or self.intervals:
            raise ValueError(
                f"{message}: without --metrics, --sweep and --intervals, its flicker is measured where it stays"
            )
        return False

    def _sweep(self, translator: Translator, words: Sequence[str], overlap: Overlap | None) -> None:
        """Score each solver and number of steps, print a row for each and the best ones, and draw a plot."""
        from bbdm.evaluation import reports

        runs = read_sweep(words, translator.bridge, translator.checkpoint.defaults)
        first = translator.processes.first
        if first:
            remove_leftovers(self.folder)
        all_reports: list[dict[str, Any]] = []
        for name, (solver, steps) in runs.items():
            all_reports.append(
                self._evaluate(translator, solver, steps, self.folder / name, overlap)
            )
            if not first:
                continue
            rows = reports.table(all_reports[-1:])
            if len(all_reports) > 1:  # the heading stands already
                rows = rows.splitlines()[-1]
            print(rows, flush=True)
            manifest.write(self.folder / "sweep.json", all_reports)
        if first:
            print("\n".join(reports.best(all_reports)))
            defaults = translator.checkpoint.defaults
            print(f"without --solver: {defaults.chosen}:{len(defaults.table(translator.bridge))}")
            plot = self.folder / "quality_nfe.png"
            reports.draw_sweep(all_reports, plot)
            print(f"to look at: {plot}")

    def _overlap(self, translator: Translator) -> Overlap | None:
        """What the pairs and those of training have in common, printed; None where these are unknown.

        Raises:
            ValueError: a group has pairs that were in training, and others here.
        """
        trained = Trained.of_origin(translator.checkpoint.origin)
        if trained is None:
            return None
        overlap = trained.overlap(translator.dataset)
        overlap.check_groups("score others")
        if overlap.names:
            print(overlap)
        return overlap

    def _evaluate(
        self,
        translator: Translator,
        solver: str | None,
        steps: int | None,
        folder: Path,
        overlap: Overlap | None,
    ) -> dict[str, Any]:
        """Make and score the results of one solver; the report is empty in all processes but the first."""
        from bbdm.evaluation.flicker import of_sequences
        from bbdm.evaluation.lengths import Lengths
        from bbdm.evaluation.reports import PLOT, draw_scores
        from bbdm.evaluation.scores import Scores

        processes = translator.processes
        files = translator.files
        values = translator.dataset.spec.target_values
        samples = 1 if self.intervals else self.num_samples  # the mean alone
        lengths = Lengths(values)
        metrics = self.metrics or defaults(Setup(values, files.channels, samples))
        with processes.first_before_others():  # the others find what it downloads
            scores = Scores(  # before the translation, since it may fail
                metrics,
                samples,
                device=processes.device,
                values=values,
                channels=files.channels,
                masked=files.pairs.masked,
                volumes=files.volumes,
                lpips_net=self.lpips_net,
                dice_above=self.dice_above,
            )
        jobs, _, report = translator.run(solver, steps, folder)
        for names, (results, targets, masks) in translator.pictures(jobs):
            scores.update(results[:, :samples], targets, masks, names)
            if self.intervals:
                lengths.update(results, targets, masks)
        scores.collect(processes)
        lengths.collect(processes)
        if not processes.first:
            return {}
        by_patient: dict[str, Any] = {}
        if files.volumes:
            by_patient = {
                name: known(of_sources) for name, of_sources in scores.by_source().items()
            }
        scored: dict[str, Any] = {
            "scores": known(scores.compute()),
            "by_patient": by_patient,
            "lpips_net": self.lpips_net if "lpips" in metrics else None,
            "in_training": None if overlap is None else [*overlap.pairs, *overlap.targets],
            "source_in_training": None if overlap is None else [*overlap.sources],
            "training_unknown": None if overlap is None else [*overlap.unknown],
        }
        if self.intervals:
            scored["intervals"] = {
                "expected": 1 - Intervals.load(self.intervals, None).alpha,
                **lengths.compute(),
            }
        if samples > 1:
            scored["coverage"] = [
                {"expected": wanted, "found": found} for wanted, found in scores.coverage()
            ]
        if self.dataset == FRAMES:
            scored["flicker"] = of_sequences(files, jobs)
        if "dice" in metrics:
            scored["dice_above"] = self.dice_above
        if files.pairs.rows[0].get("mask") is not None:
            scored["masks"] = files.pairs.digest(["mask"])
        report = scored | report
        manifest.write(folder / "scores.json", report)
        draw_scores(report, scores.of_sources(), folder / PLOT)
        return report

    def _evaluate_stills(self, translator: Translator) -> dict[str, Any]:
        """Make the results of sequences without targets, and measure their flicker where sources stay.

        The report is empty in all processes but the first.
        """
        from bbdm.evaluation.flicker import of_sequences

        jobs, _, report = translator.run(self.solver, self.steps, self.folder)
        if not translator.processes.first:
            return {}
        stills = of_sequences(translator.files, jobs, without_targets=True)
        report = {"scores": {}, "flicker_of_stills": stills} | report
        manifest.write(self.folder / "scores.json", report)
        return report


def known(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores as JSON has them: None where there is none."""
    return {name: None if isnan(score) else score for name, score in scores.items()}


@dataclass(frozen=True, kw_only=True)
class Calibrate(Command, TranslateConfig):
    """Calibrate intervals of results: bbdm calibrate MODEL edge2shoes DATA [flags].

    The pairs must be ones that training has not seen, of the kind that the network will be used on. The
    intervals of OUT.pt are OUT.intervals.json, which bbdm translate --maps low,high and Intervals.load read.

    Raises:
        ValueError: a number is out of range, or settings contradict each other.
    """

    HEADING: ClassVar[str] = "intervals"
    HIDDEN: ClassVar[frozenset[str]] = frozenset(
        {"output_dir", "maps", "intervals", "memory", "outside", "plain_files", "film"}
    )
    TARGETS: ClassVar[bool] = True
    FIRST: ClassVar[str] = (
        "model dataset data_dir output alpha delta num_samples bound batch_size device"
    )

    alpha: float = setting(0.1, "the largest share of values outside that is expected of a picture")
    delta: float = setting(0.1, "the probability that the guarantee fails")
    num_samples: int = setting(16, "results of each source", "-r", "--repeat", "--samples", least=2)
    by: By = setting(
        "quantiles", "what is widened: the samples' quantiles, or their mean by standard deviations"
    )
    bound: Bound = setting(
        "hoeffding-bentkus", "of the risk; conformal is for few pairs, and in expectation"
    )
    batch_size: int | None = setting(  # pyright: ignore[reportIncompatibleVariableOverride]  (the sampler's own)
        None, "results in a batch; 16 or fewer if unset", "-b", least=1
    )
    output: Path | None = setting(
        None, "where intervals are written; MODEL.intervals.json if unset", "-o"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_risk(self.alpha, self.delta, self.by, self.bound)

    @property
    def opening(self) -> str:
        """Of which network, on what, and by how many steps."""
        network = read_header(self.model)
        calls = network.calls(self.solver, self.steps)
        return f"calibrating intervals of {network} on {self.data_dir}, {self.num_samples} results of each{calls}"

    def run(self) -> None:
        """Calibrate, write the intervals, and print the share of values outside, lambda and the mean length.

        Raises:
            FileNotFoundError: the network or the data set is missing.
            ValueError: the file exists, or a setting is refused; see :meth:`Intervals.calibrate`.
        """
        from bbdm.translation.translator import Translator

        output = self.output or file_of(self.model)
        if output.exists() and not self.overwrite:
            raise ValueError(
                f"{output} exists already: --overwrite calibrates again, --output gives another file"
            )
        translator = Translator(replace(self, output_dir=output.parent))
        pairs = translator.dataset.without(translator.bad)
        check_unseen(pairs, self._part_train())
        intervals = Intervals.calibrate(
            translator.sampler(self.solver, self.steps),
            pairs,
            self.alpha,
            self.delta,
            self.num_samples,
            self.by,
            self.bound,
            seed=self.seed,
            batch_size=self.batch_size,
            progress=self.shown,
            **self.call,
        )
        intervals.save(output)
        outside = f"{100 * intervals.loss:.3g} % of values outside"
        print(f"{intervals.pairs} pairs: {outside}; lambda {intervals.lambda_:.4g}")
        print(f"mean length {100 * intervals.length:.3g} % of the range; {output}")

    def _part_train(self) -> Trained | None:
        """The part ``train`` of the data set; None where there is none, or it is what calibrates.

        Raises:
            ValueError: it cannot be read.
        """
        if self.split == "train":
            return None
        data_dir = only_columns(self.data_dir, (*ROLES, GROUP))  # others may be of the pairs alone
        try:
            rows = read_rows(self.dataset, data_dir, "train")
        except FileNotFoundError:
            return None
        if "{split}" not in data_dir and same_rows(
            rows, read_rows(self.dataset, data_dir, self.split)
        ):
            return None
        return Trained.of(rows, f"the part 'train' of {self.data_dir}")


main = Eval.main
