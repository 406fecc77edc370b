"""What commands that train share: which pairs, where a run is written, and where it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bbdm.base import scripts
from bbdm.base.atomic import check_suffix, remove_leftovers
from bbdm.base.runs import folder_beside
from bbdm.base.settings import ShownConfig, position, setting
from bbdm.cli import GPUsCommand
from bbdm.data.config import Crops, DatasetConfig
from bbdm.data.spec import Spec
from bbdm.networks.conditions import DIRECTION, DIRECTIONS, ConditionsConfig
from bbdm.pictures.images import Size, read_size
from bbdm.training.config import RunConfig

if TYPE_CHECKING:
    from bbdm.data.pairs import Pairs
    from bbdm.execution.processes import Processes
    from bbdm.training.trainer import Trainer

# defaults of trainings of some epochs
SHORT = {"lr_schedule": "cosine", "ema_decay": 0.999, "precision": "bf16"}


@dataclass(frozen=True, kw_only=True)
class TrainingCommand(GPUsCommand, DatasetConfig, ShownConfig, RunConfig):
    """A training: which pairs, where it is written, and where it resumes."""

    HEADING: ClassVar[str] = "run"

    output_model: Path = position("the trained weights: .pt or .safetensors")
    image_size: Size | None = setting(
        None, "side, or HxW, that pictures are resized to", parse=read_size
    )
    cache_images: Path | None = setting(
        None, "folder of what is decoded and resized once", group="data"
    )
    experiment: Path | None = setting(
        None, "folder of losses, grids and checkpoints; OUTPUT_MODEL.run if unset"
    )
    ckpt_path: Path | None = setting(
        None, "resume from this, not from the newest, as the same command resumes"
    )
    overwrite: bool = setting(False, "delete later steps of the run, and begin anew")
    device: str | None = setting(
        None, "cpu, cuda, cuda:1, ...; cuda if unset and there is one, else cpu"
    )
    skip_bad: bool = setting(
        False, "the next pair takes the place of one that cannot be read", group="data"
    )
    check: bool = setting(
        False, "read all pairs before training, and list what is wrong", group="data"
    )

    def run(self) -> None:
        """Train to the end, and write the weights."""
        import torch

        from bbdm.execution.processes import Processes

        remove_leftovers(self.output_model.parent, self.output_model.name)
        check_suffix(self.output_model)
        team = Processes.join(self.device)
        if team.device.type == "cpu":
            count = torch.get_num_threads()
            report(
                team,
                f"threads: {count} (OMP_NUM_THREADS sets it; fewer are faster on a busy machine)",
            )
        trainer = self._begin(team)
        if trainer.step >= trainer.total:
            report(
                team,
                f"nothing is left to train: {trainer.folder} has {trainer.epochs:g} epochs already",
            )
        try:
            with scripts.termination() as asked:
                done = trainer.fit(self.shown, asked, self.overwrite)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(trainer.run_folder.how_to_resume()) from None
        if not done:
            raise scripts.StoppedError(
                f"asked to end; {trainer.run_folder.how_to_resume()}", scripts.TERMINATED
            )
        epoch = self.save(trainer)
        folder = f"losses and checkpoints: {trainer.folder}"
        report(team, f"{self.output_model}: weights after epoch {epoch:g}; {folder}")
        trainer.optimization.release()
        team.leave()

    def save(self, trainer: Trainer) -> float:
        """Write the trained weights; returns the number of epochs that they have learned from."""
        trainer.save(self.output_model)
        return trainer.epochs

    def _begin(self, team: Processes) -> Trainer:
        """The run at the step where it begins or resumes."""
        from bbdm.training.run import RunFolder

        folder = RunFolder(folder_of(vars(self)), self.keep, self.read)
        for path in (folder.path, *self.caches):
            team.check_shared(path)
        resumed: tuple[Path, Any] | None = None
        with team.first_before_others():
            if self.ckpt_path is not None:
                resumed = self.ckpt_path, folder.read(self.ckpt_path)
            elif not self.overwrite:
                resumed = folder.newest()
        if resumed is None:
            return self.build(team, folder.path, None)
        path, checkpoint = resumed
        trainer = self.build(team, folder.path, checkpoint)
        trainer.resume(path, checkpoint)
        is_own = path.resolve().parent == trainer.folder.resolve()
        if self.overwrite or not is_own:
            trainer.best = None  # of another run
        return trainer

    @property
    def caches(self) -> list[Path]:
        """The folders of what is computed once, which all processes must see."""
        return [] if self.cache_images is None else [self.cache_images]

    def read(self, path: Path) -> Any:
        """The content of a checkpoint of the run; a ValueError says that it is damaged."""
        from bbdm.files.checkpoint import load_checkpoint

        return load_checkpoint(path)

    def build(self, team: Processes, folder: Path, resumed: Any) -> Trainer:
        """The run before its first step, whose checkpoints are in ``folder``.

        ``resumed`` is the content of the checkpoint that it resumes from; None if it begins.
        """
        raise NotImplementedError

    def load_pairs(
        self,
        size: Size | None,
        channels: int | None,
        team: Processes,
        axes: Literal[2, 3] = 2,
        learned: Spec | None = None,
        known: ConditionsConfig | None = None,
    ) -> tuple[Pairs, Pairs | None]:
        """The training pairs, and those for validation if there are any; prints what the first ones show.

        ``size`` and ``channels`` are of the pictures, None for those of the files. ``learned`` and ``known``
        are what a trained network has learned of pictures, and its conditions. Errors are those of reading.
        """
        from bbdm.data import loading
        from bbdm.data.examples import known_conditions
        from bbdm.data.pairs import Pairs
        from bbdm.data.provenance import check_groups
        from bbdm.data.rows import read_rows

        conditions = dict(getattr(self, "conditions", None) or {})
        if known is not None:
            self._check_conditions(known, conditions)
        crops = getattr(self, "crop", None)
        if crops is None and learned is not None and learned.crop:
            crops = Crops(learned.crop)
        shape: dict[str, Any] = {"size": size, "channels": channels, "axes": axes, "crops": crops}
        with team.first_before_others():  # the others find what the first caches
            rows = read_rows(self.dataset, self.data_dir, "train", axes)
            if known is not None:
                usual = conditions if learned is None else learned.conditions
                way = {DIRECTION: DIRECTIONS[0]} if known.two_way else {}
                conditions = known_conditions(known, usual, rows, way)
            spec = self.spec(self.dataset, rows, **shape, learned=learned, conditions=conditions)
            train = Pairs(rows, spec, self.cache_images, self.degrade, self.skip_bad)
            validation = self._validation_pairs(train, team)
            self._check_rows("train", train, team)
            if validation is not None:
                check_groups(train.rows, validation.rows)
                self._check_rows("val", validation, team)
        for line in loading.first_look(train):
            report(team, line)
        if known is not None:
            unseen = [name for name in known.each if name not in train.further.each]
            if unseen:
                raise ValueError(
                    f"the network takes {unseen[0]!r} too, and `drop` does not name it"
                )
        return train, validation

    def _check_conditions(self, known: ConditionsConfig, conditions: Mapping[str, Any]) -> None:
        """Raise ValueError where a trained network does not take directions or conditions of the pairs."""
        from bbdm.data.kinds import kind_of

        if known.two_way and self.direction != "both":
            got = f"got direction {self.direction!r}"
            raise ValueError(f"the network has two directions, and trains on both; {got}")
        for name, condition in conditions.items():
            if name not in known.each or known.each[name].kind != kind_of(name, conditions).network:
                raise ValueError(f"the network takes {known.described}, got {name}={condition}")

    def _validation_pairs(self, train: Pairs, team: Processes) -> Pairs | None:
        """The pairs for validation; None, which is said, where there are none but those of training."""
        from bbdm.data.pairs import Pairs
        from bbdm.data.provenance import same_rows
        from bbdm.data.rows import read_rows

        missing = "write {split} in the paths"
        try:
            rows = read_rows(self.dataset, self.data_dir, "val", train.spec.axes)
            validation = Pairs(rows, train.spec, self.cache_images, self.degrade, self.skip_bad)
            if not same_rows(validation.rows, train.rows):
                return validation
        except FileNotFoundError as error:
            missing = str(error)
        report(team, f"without validation pairs, no validation loss, grids and best.pt: {missing}")
        return None

    def _check_rows(self, split: str, pairs: Pairs, team: Processes) -> None:
        """With --check, read all pairs, and print what is wrong, and whether targets lie off their sources.

        Raises:
            BadPicturesError: some cannot be read, without ``skip_bad``.
        """
        from bbdm.data import loading
        from bbdm.data.rows import BadPicturesError

        if not self.check:
            return
        reasons = [*loading.check_rows(pairs, self.workers, self.shown and team.first).values()]
        if reasons and not self.skip_bad:
            first = (
                f"{len(reasons)} of {len(pairs.rows)} pairs of {split} (skip_bad leaves them out):"
            )
            raise BadPicturesError("\n".join([first, *reasons]))
        for reason in reasons:
            report(team, f"left out: {reason}")
        if pairs.paired and team.first:
            self._check_shifts(split, pairs)

    def _check_shifts(self, split: str, pairs: Pairs) -> None:
        """Print whether the targets of pairs seem to lie off their sources."""
        from bbdm.data import registration

        try:
            line = registration.described(registration.shifts(pairs, self.shown))
        except ModuleNotFoundError as error:
            line = str(error)
        if line:
            print(f"{split}: {line}")


def folder_of(values: Mapping[str, Any]) -> Path:
    """The folder of the run of a :class:`TrainingCommand`, of its fields by name."""
    return Path(values.get("experiment") or folder_beside(Path(values["output_model"])))


def report(team: Processes, line: str) -> None:
    """Print a line, once in a team."""
    if team.first:
        print(line)
