"""The command ``python -m bbdm.runtime``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bbdm import solvers
from bbdm.base.atomic import check_folder
from bbdm.base.scripts import Command
from bbdm.base.seeds import resolve_seeds
from bbdm.base.settings import position, setting
from bbdm.files.bridge_json import conditions_of
from bbdm.networks.conditions import DIRECTION, ConditionsConfig, Direction
from bbdm.pictures import Picture, formats, header, images, write
from bbdm.pictures.values import Values
from bbdm.sampling.base import Sampler
from bbdm.sampling.options import GuidanceOptions


def read_words(words: Sequence[str], known: ConditionsConfig) -> dict[str, Any]:
    """Conditions of a call from words NAME=VALUE of ``--condition``, each name once, else ValueError."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known.each or name in values:
            raise ValueError(
                f"--condition takes NAME=VALUE, once of the conditions {known.described}; got {word!r}"
            )
        values[name] = known.each[name].parse(value)
    return values


@dataclass(frozen=True, kw_only=True)
class Runtime(Command, GuidanceOptions):
    """Translate pictures without PyTorch: python -m bbdm.runtime FOLDER PICTURE... -o OUT.

    Raises:
        ValueError: a number is out of range, or results would replace each other.
    """

    HEADING: ClassVar[str] = "run"
    PROGRAM: ClassVar[str] = "python -m bbdm.runtime"
    FIRST: ClassVar[str] = "output seed steps solver condition"

    folder: Path = position("an export of `bbdm export`")
    pictures: tuple[Path, ...] = position("sources", metavar="PICTURE")
    output: Path = setting(
        ..., "folder for the results; files of the same names are replaced", "-o"
    )
    batch_size: int = setting(16, "pictures at once, or windows of one", "-b", least=1)
    seed: int | None = setting(None, "picture i gets SEED + i; drawn and printed if unset")
    steps: int | None = setting(None, "network calls; as exported, or --solver's default, if unset")
    solver: str | None = setting(None, "as exported if unset", choices=solvers.SOLVERS)
    provider: str | None = setting(
        None, "such as CUDAExecutionProvider; CUDA where there is one, else the CPU, if unset"
    )
    threads: int | None = setting(None, "threads of the CPU provider; one a core if unset", least=1)
    condition: tuple[str, ...] = setting(
        (),
        "a class, a .npy of tokens (L, D) or of an image (C, H, W) in [-1, 1], or none",
        metavar="NAME=VALUE",
    )
    direction: Direction | None = setting(
        None, "of a network of both directions: AtoB if unset, or BtoA"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for path in self.pictures:
            if path.is_dir():
                raise ValueError(f"{path} is a folder: give pictures, such as {path}/*.png")
        for stem, count in Counter(map(formats.stem_of, self.pictures)).items():
            if count > 1:
                raise ValueError(
                    f"{count} of the pictures have the name {stem}, and so would their results"
                )

    def _towards(self, sampler: Sampler[Any], conditions: dict[str, Any]) -> Sampler[Any]:
        """The sampler of the direction of ``--direction``, or of a condition, which leaves ``conditions``."""
        # else a class of this name is a condition as any other
        two_way = sampler.direction is not None
        if self.direction is None:
            if two_way and DIRECTION in conditions:
                return sampler.towards(conditions.pop(DIRECTION))
            return sampler
        if not two_way:
            raise ValueError(f"the network has one direction, got --direction {self.direction}")
        if DIRECTION in conditions:
            also = f"--condition {DIRECTION}={conditions[DIRECTION]}"
            raise ValueError(f"give the direction once, by --direction; got {also} too")
        return sampler.towards(self.direction)

    def _results(self, channels: int, values: Values) -> list[Path]:
        """The path of each picture's result; all pictures are opened before any is translated."""
        results: list[Path] = []
        sources = {path.resolve() for path in self.pictures}
        for path in self.pictures:
            _ = header(path)
            suffix = formats.suffix_of_result(path, channels, values)
            result = self.output / f"{formats.stem_of(path)}{suffix}"
            if result.resolve() in sources:
                raise ValueError(f"{result} would replace a source: give another output folder")
            results.append(result)
        return results

    def run(self) -> None:
        """Translate, and print where the results are and their seeds."""
        from bbdm.runtime.sampler import OnnxBridgeSampler  # the help needs no ONNX Runtime

        check_folder(self.output)
        providers = None
        if self.provider is not None:
            providers = [self.provider]
        exported = OnnxBridgeSampler(self.folder, providers, self.threads)
        conditions = read_words(self.condition, conditions_of(exported.settings))
        sampler = self._towards(exported, conditions)
        results = self._results(exported.settings["image_channels"], sampler.pictures.target_values)
        seeds = resolve_seeds(self.seed, len(results))
        settings = dict(self.call)
        settings["solver"] = self.solver
        settings["steps"] = self.steps
        settings["conditions"] = conditions or None
        at_once = self.batch_size
        # pictures may be large, and windows are the batch
        if self.window_of(sampler.pictures.crop) is not None:
            at_once = 1
            settings["batch_size"] = self.batch_size
        for start in range(0, len(results), at_once):
            batch = slice(start, start + at_once)
            pictures = sampler([*self.pictures[batch]], seeds[batch], **settings)
            for path, picture in zip(results[batch], pictures, strict=True):
                if not isinstance(picture, Picture):
                    picture = images.pixels(picture)
                write(path, picture)
        print(f"{len(results)} results in {self.output}, seeds {seeds[0]} to {seeds[-1]}")
