"""What commands that train share, and those that train a student or an autoencoder.

In Python, ``Distill.of(...)`` and ``TrainVQGAN.of(...)`` have the defaults of the commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bbdm.base import scripts
from bbdm.base.atomic import check_suffix, remove_leftovers
from bbdm.base.settings import ShownConfig, from_values, position, setting
from bbdm.cli import GPUsCommand
from bbdm.data.config import Crops, DataConfig, DatasetConfig
from bbdm.data.rows import read_layout
from bbdm.data.spec import Spec
from bbdm.networks.conditions import DIRECTION, DIRECTIONS, ConditionsConfig
from bbdm.networks.config import VQGANS
from bbdm.pictures.images import Size, read_size
from bbdm.training.config import AutoencoderConfig, DistillConfig, RunConfig
from bbdm.translation.config import FileConfig

if TYPE_CHECKING:
    from bbdm.data.pairs import Pairs
    from bbdm.execution.processes import Processes
    from bbdm.training.trainer import Trainer

SHORT = {"lr_schedule": "cosine", "ema_decay": 0.999, "precision": "bf16"}  # defaults of trainings of some epochs


@dataclass(frozen=True, kw_only=True)
class TrainingCommand(GPUsCommand, DatasetConfig, ShownConfig, RunConfig):
    """A training: which pairs, where it is written, and where it resumes."""

    HEADING: ClassVar[str] = "run"

    output_model: Path = position("the trained weights: .pt or .safetensors")
    image_size: Size | None = setting(None, "side, or HxW, that pictures are resized to", parse=read_size)
    cache_images: Path | None = setting(None, "folder of what is decoded and resized once", group="data")
    experiment: Path | None = setting(None, "folder of losses, grids and checkpoints; OUTPUT_MODEL.run if unset")
    ckpt_path: Path | None = setting(None, "resume from this, not the newest; the same command resumes")
    overwrite: bool = setting(False, "delete later steps of the run, and begin anew")
    device: str | None = setting(None, "cpu, cuda, cuda:1, ...; cuda if unset and there is one, else cpu")
    skip_bad: bool = setting(False, "the next pair takes the place of one that cannot be read", group="data")
    check: bool = setting(False, "read all pairs before training, and list what is wrong", group="data")

    def run(self) -> None:
        """Train to the end, and write the weights."""
        import torch

        from bbdm.execution.processes import Processes

        remove_leftovers(self.output_model.parent, self.output_model.name)
        check_suffix(self.output_model)
        team = Processes.join(self.device)
        if team.device.type == "cpu":
            count = torch.get_num_threads()
            report(team, f"threads: {count} (OMP_NUM_THREADS sets it; fewer are faster on a busy machine)")
        trainer = self._begin(team)
        if trainer.step >= trainer.total:
            report(team, f"nothing is left to train: {trainer.folder} has {trainer.epochs:g} epochs already")
        try:
            with scripts.termination() as asked:
                done = trainer.fit(self.shown, asked, self.overwrite)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(trainer.run_folder.how_to_resume()) from None
        if not done:
            raise scripts.StoppedError(f"asked to end; {trainer.run_folder.how_to_resume()}", scripts.TERMINATED)
        trainer.save(self.output_model)
        folder = f"losses and checkpoints: {trainer.folder}"
        report(team, f"{self.output_model}: weights after epoch {trainer.epochs:g}; {folder}")
        trainer.optimization.release()
        team.leave()

    def _begin(self, team: Processes) -> Trainer:
        """The run at the step where it begins or resumes."""
        from bbdm.training.run import RunFolder

        folder = RunFolder(self.experiment or self.output_model.with_suffix(".run"), self.keep, self.read)
        for path in (folder.path, self.cache_images, getattr(self, "cache_latents", None)):
            if path is not None:
                team.check_shared(path)
        with team.first_before_others():
            path, newest = self.ckpt_path, not self.overwrite
            resumed = (path, folder.read(path)) if path is not None else folder.newest() if newest else None
        trainer = self.build(team, folder.path, None if resumed is None else resumed[1])
        if resumed is not None:
            trainer.resume(*resumed)
            if resumed[0].resolve().parent != trainer.folder.resolve() or self.overwrite:
                trainer.best = None  # of epochs of another run
        return trainer

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
        from bbdm.data.kinds import kind_of
        from bbdm.data.pairs import Pairs
        from bbdm.data.provenance import check_groups
        from bbdm.data.rows import BadPicturesError, read_rows

        conditions, progress = getattr(self, "conditions", None) or {}, self.shown and team.first
        if known is not None:
            if known.two_way and self.direction != "both":
                got = f"got direction {self.direction!r}"
                raise ValueError(f"the network has two directions, and trains on both; {got}")
            for name, each in conditions.items():
                if name not in known.each or known.each[name].kind != kind_of(name, conditions).network:
                    raise ValueError(f"the network takes {known.described}, got {name}={each}")
        crops = getattr(self, "crop", None) or (Crops(learned.crop) if learned is not None and learned.crop else None)
        about: dict[str, Any] = {"size": size, "channels": channels, "axes": axes, "crops": crops, "learned": learned}
        of: tuple[Any, ...] = (self.cache_images, self.degrade, self.skip_bad)
        with team.first_before_others():  # the others find what the first caches
            rows = read_rows(self.dataset, self.data_dir, "train")
            if known is not None:
                both = {DIRECTION: DIRECTIONS[0]} if known.two_way else {}
                conditions = known_conditions(known, learned.conditions if learned else conditions, rows, both)
            train = Pairs(rows, self.spec(self.dataset, rows, **about, conditions=conditions), *of)
            splits, missing = {"train": train}, "write {split} in the paths"
            try:
                validation = Pairs(read_rows(self.dataset, self.data_dir, "val"), train.spec, *of)
                splits |= {} if validation.same_rows(train) else {"val": validation}
            except FileNotFoundError as error:
                missing = str(error)
            if "val" in splits:
                check_groups(train.rows, splits["val"].rows)
            else:
                report(team, f"without validation pairs, no validation loss, grids and best.pt: {missing}")
            for split, pairs in splits.items() if self.check else ():
                reasons = [*loading.check_rows(pairs, self.workers, progress).values()]
                if reasons and not self.skip_bad:
                    first = f"{len(reasons)} of {len(pairs.rows)} pairs of {split} (skip_bad leaves them out):"
                    raise BadPicturesError("\n".join([first, *reasons]))
                for reason in reasons:
                    report(team, f"left out: {reason}")
        for line in loading.first_look(train):
            report(team, line)
        if known is not None and (unseen := [name for name in known.each if name not in train.further.each]):
            raise ValueError(f"the network takes {unseen[0]!r} too, and `drop` does not name it")
        return train, splits.get("val")


def report(team: Processes, line: str) -> None:
    """Print a line, once in a team."""
    if team.first:
        print(line)


@dataclass(frozen=True, kw_only=True)
class Distill(TrainingCommand, DataConfig, FileConfig, DistillConfig):
    """Distil a trained bridge into one of few calls: bbdm distill TEACHER DATA STUDENT --calls 2.

    The student begins with the teacher's weights and is trained on the same pairs, by the energy score of its
    own results. If it ends early, the same command resumes.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **SHORT,
        "epochs": 20,
        "batch_size": 32,
        "warmup_steps": 100,
        "flip": True,
    }
    FIRST: ClassVar[str] = "teacher data_dir output_model dataset calls epochs batch_size device ckpt_path overwrite"

    teacher: Path = position("a file that bbdm.load_checkpoint reads")
    output_model: Path = position("the distilled weights: .pt or .safetensors", metavar="STUDENT")
    dataset: str = setting("edge2shoes", "the layout of the data set", parse=read_layout)

    def build(self, team: Processes, folder: Path, resumed: Any) -> Trainer:
        """The run before its first step; see the base class."""
        import torch

        from bbdm.files.checkpoint import load_checkpoint
        from bbdm.training.distillation import StudentTask, student_of
        from bbdm.training.trainer import Trainer

        config = from_values(DistillConfig, vars(self))
        teacher = load_checkpoint(self.teacher, **self.missing)
        student, codec, known = student_of(teacher, self.calls), teacher.build_codec(), teacher.unet.config
        size = self.image_size or teacher.image_size
        if size is None:
            raise ValueError(f"{self.teacher} does not hold the size of its pictures: give image_size")
        channels = known.source_channels if codec is None else codec.image_channels
        pairs, validation = self.load_pairs(size, channels, team, known.axes, teacher.pictures, known)
        torch.manual_seed(self.seed)
        return Trainer(student, teacher.bridge, config, pairs, validation, folder, codec, team, task=StudentTask)


@dataclass(frozen=True, kw_only=True)
class TrainVQGAN(TrainingCommand, AutoencoderConfig):
    """Train an autoencoder, for -vq: bbdm train-vqgan edge2shoes DATA OUTPUT_MODEL [flags].

    It learns sources and targets: L1, LPIPS, an adversary, and a codebook (--kind vq) or a KL divergence
    (--kind kl). If it ends early, the same command resumes.
    """

    HEADING: ClassVar[str] = "autoencoder"
    PAIRS: ClassVar[bool] = False
    DEFAULTS: ClassVar[Mapping[str, Any]] = {**SHORT, "epochs": 50, "batch_size": 8, "learning_rate": 2e-4}
    FIRST: ClassVar[str] = "preset kind epochs batch_size image_size device ckpt_path overwrite"

    preset: str = setting("vq-f4", "the network", choices=sorted(VQGANS))
    kind: Literal["vq", "kl"] = setting("vq", "with a codebook, or with latents that are drawn")
    image_size: Size | None = setting(256, "side, or HxW, that pictures are resized to", parse=read_size)
    channels: Literal[1, 3] = setting(3, "of its pictures; 1 for grey ones", group="data")

    def read(self, path: Path) -> Any:
        """The content of a checkpoint of the run, which is an autoencoder."""
        from bbdm.files.checkpoint import load_vqgan_state

        return load_vqgan_state(path)

    def build(self, team: Processes, folder: Path, resumed: Any) -> Trainer:
        """The run before its first step; see the base class."""
        import torch

        from bbdm.networks.vqgan import VQGAN
        from bbdm.training.autoencoder import AutoencoderTask
        from bbdm.training.trainer import Trainer

        config = from_values(AutoencoderConfig, vars(self))
        torch.manual_seed(self.seed)
        settings = replace(VQGANS[self.preset], image_channels=self.channels)
        settings = replace(settings, num_codes=0) if self.kind == "kl" else settings
        vqgan = VQGAN.from_config(settings).to(team.device)
        pairs, validation = self.load_pairs(self.image_size, self.channels, team)
        return Trainer(vqgan, None, config, pairs, validation, folder, processes=team, task=AutoencoderTask)
