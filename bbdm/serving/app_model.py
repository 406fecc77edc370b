"""What the app translates, and how. Nothing here knows of Gradio, nor needs torch for an export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageOps

from bbdm import solvers
from bbdm.base import demo
from bbdm.base.seeds import resolve_seeds
from bbdm.data.spec import check_eight_bit
from bbdm.networks.arrays import check_pictures
from bbdm.pictures import images
from bbdm.serving.config import AppConfig

if TYPE_CHECKING:
    from bbdm import BridgeSampler
    from bbdm.runtime import OnnxBridgeSampler

EXAMPLES = ("drawings", "examples")  # folders beside a checkpoint
FORMATS = [".bmp", ".jpeg", ".jpg", ".png", ".webp"]
MAX_PIXELS = {False: 2**20, True: 2**24}  # of a source, by whether the network is called on windows of larger ones
SHOWN = 1600  # pixels along the longer side of what the page shows; the zip has all
DRAWING, PICTURES = "Drawing", "Pictures"  # the tabs of sources


class Result(NamedTuple):
    """A translated picture, a preview of one, or a map of several."""

    name: str  # of the source
    kind: str  # the seed, or mean or std
    source: Image.Image
    picture: Image.Image

    def pair(self) -> tuple[Image.Image, Image.Image]:
        """Source and picture as the page shows them, which takes no long time of larger ones; std in grey."""
        picture = self.picture
        if self.kind == "std":
            picture = picture.convert("L").point([min(255, 2 * level) for level in range(256)])
        both = self.source, picture
        first, second = (images.resized(each, SHOWN, "fit") if max(each.size) > SHOWN else each for each in both)
        return first, second


def load(config: AppConfig) -> BridgeSampler | OnnxBridgeSampler:
    """The sampler of a checkpoint, of a model's folder or name on the Hub, or of an ONNX export.

    Raises:
        ValueError: the model cannot be read, or a setting is not for it.
    """
    if config.exported:
        from bbdm.runtime import OnnxBridgeSampler

        sampler = OnnxBridgeSampler(config.model)
    else:
        import torch

        from bbdm import BridgeSampler
        from bbdm.execution.device import best_dtype

        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        faster = best_dtype(torch.device(device)) if config.model == demo.PHOTOGRAPHS else None
        dtype = config.dtype or faster
        sampler = BridgeSampler.from_pretrained(config.model, device=device, dtype=dtype, compile=config.compile)
    check_eight_bit(sampler.pictures, "the app")
    check_pictures(sampler.axes, "the app")
    conditions = sampler._shapes.conditions.each.values()
    if needed := [each.name for each in conditions if each.kind != "class" and not each.droppable]:
        raise ValueError(f"this network needs {', '.join(needed)}: images and tokens, which the app cannot give")
    sampler.window_grid(config)  # refused now, and not when a visitor comes
    if len(sampler.table) > config.max_steps:
        raise ValueError(f"max_steps must be at least the network's {len(sampler.table)}, got {config.max_steps}")
    return sampler


class Network:
    """A network on the page: what it takes, and what it makes of that. Errors as for :func:`load`."""

    def __init__(self, config: AppConfig) -> None:
        self.config = config
        self.sampler = load(config)
        self.conditions = self.sampler._shapes.conditions
        self.window = config.window_of(self.sampler.pictures.crop)
        bridge, calls = self.sampler.bridge, self.sampler.calls
        offered = solvers.choices(bridge, calls, len(self.sampler.table))
        self.solvers = [*dict.fromkeys([self.sampler.solver, *offered])]
        self.size = config.size or self.sampler.image_size  # of drawings; and of others, but for windows
        beside = [folder / name for folder in (config.model, config.model.parent) for name in EXAMPLES]
        folders = beside if config.examples is None else [config.examples]
        found = (sorted(str(path) for path in each.glob("*") if path.suffix.lower() in FORMATS) for each in folders)
        self.examples = next(filter(None, found), [])

    def read(self, file: str | Image.Image) -> Image.Image:
        """An uploaded file or a drawing as the network takes it.

        Raises:
            ValueError: the file cannot be read, or has too many pixels. It is known by its name alone.
        """
        drawn = isinstance(file, Image.Image)
        name = "drawing" if drawn else Path(file).name
        picture = images.convert(file if drawn else images.open_image(Path(file).read_bytes(), name))
        if self.size is not None and (drawn or self.window is None or self.config.size is not None):
            picture = images.resized(picture, self.size, "fit")
        most = self.config.max_pixels or MAX_PIXELS[self.window is not None]
        if picture.width * picture.height > most:
            got = f"{picture.height} x {picture.width}"
            raise ValueError(f"a picture may have at most {most} pixels, got {name} of height x width {got}")
        return picture

    def sources(
        self, tab: str, drawing: Mapping[str, Any] | None, files: Sequence[tuple[str, Any]] | None
    ) -> tuple[dict[str, Image.Image], list[str]]:
        """The pictures of a tab by name, and why others cannot be read.

        Raises:
            ValueError: there is none, or there are too many.
        """
        inputs: list[Any] = [path for path, _ in files or []]
        if tab == DRAWING:
            sheet = drawing["composite"] if drawing else None
            inputs = [sheet] if sheet and ImageOps.invert(images.convert(sheet)).getbbox() else []  # not all white
        if not inputs:
            raise ValueError("the sheet is empty: draw something" if tab == DRAWING else "choose a picture first")
        if len(inputs) > self.config.max_files:
            raise ValueError(f"there may be at most {self.config.max_files} pictures, got {len(inputs)}")
        sources: dict[str, Image.Image] = {}
        errors: list[str] = []
        for each in inputs:
            name = "drawing" if tab == DRAWING else Path(each).stem
            try:
                sources[f"{name}_{len(sources)}" if name in sources else name] = self.read(each)
            except ValueError as error:
                errors.append(str(error))
        if not sources:
            raise ValueError("; ".join(errors))
        return sources, errors

    def translate(
        self, sources: Mapping[str, Image.Image], count: int, seed: int | None, report: Any, **options: Any
    ) -> Iterator[list[Result]]:
        """Translate each source, one after the other. Result i of all has the seed + i; None draws one.

        ``report`` is called after each network call with the number that are done, and of all as if all
        sources had the size of the one in work. ``options`` are those of the sampler.

        Yields:
            After each step, the results that are finished, then previews.
        """
        seeds, parts = resolve_seeds(seed, len(sources) * count), list[tuple[str, list[int]]]()
        for i, (name, picture) in enumerate(sources.items()):
            large = self.window and any(map(int.__gt__, picture.size[::-1], images.sides(self.window)))
            own, each = seeds[i * count : (i + 1) * count], 1 if large else count  # at a time
            parts += [(name, own[start : start + each]) for start in range(0, count, each)]
        results: list[Result] = []
        for i, (name, part) in enumerate(parts):
            previews: list[Result] = []
            progress = partial(lambda i, done, total: report(i * total + done, len(parts) * total), i)
            for step in self.sampler.stream([sources[name]] * len(part), part, progress=progress, **options):
                shown = zip(part, step.preview(), strict=True)
                previews = [Result(name, str(each), sources[name], picture) for each, picture in shown]
                yield results + previews
            results += previews

    def compare(
        self, sources: Mapping[str, Image.Image], count: int, seed: int | None, report: Any, **options: Any
    ) -> Iterator[list[Result]]:
        """Mean, standard deviation and results of each source, by the sampler's ``distribution``."""
        found = self.sampler.distribution([*sources.values()], count, seed, progress=report, **options)
        pictures = [found.mean, found.std, *found.samples]
        kinds = [["mean", "std", *map(str, seeds)] for seeds in found.seeds]
        yield [
            Result(name, kind, source, column[i])
            for i, (name, source) in enumerate(sources.items())
            for kind, column in zip(kinds[i], pictures, strict=True)
        ]
