"""What the app translates, and how: nothing here knows of Gradio, nor needs torch for an export."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from bbdm import bridges, solvers
from bbdm.base import demo
from bbdm.base.seeds import resolve_seeds
from bbdm.data.spec import check_eight_bit
from bbdm.files.bridge_json import conditions_of
from bbdm.networks.checks import check_pictures
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures import images
from bbdm.serving.config import AppConfig

if TYPE_CHECKING:
    from bbdm import BridgeSampler
    from bbdm.runtime import OnnxBridgeSampler

MAX_PIXELS = {False: 2**20, True: 2**24}  # of a source, by whether the network is called on windows of larger ones


class Model(NamedTuple):
    """A sampler and what the page must know of it."""

    sampler: BridgeSampler | OnnxBridgeSampler
    solver: str
    solvers: list[str]  # others that take the sampler's number of network calls
    size: images.Size | None  # that sources are made to fit; None: they stay as they are
    kept: bool  # whether sources other than drawings stay as they are all the same
    windows: dict[str, Any]  # the arguments of a call that say which windows of a source the network sees
    max_pixels: int  # of a source
    further: ConditionsConfig  # what the network is told besides the source

    def windowed(self, picture: Image.Image) -> bool:
        """Whether the network is called on windows of a picture."""
        window = self.windows["window"]
        return window is not None and any(map(int.__gt__, picture.size[::-1], images.sides(window)))


class Source(NamedTuple):
    """A picture to translate, and the name of its results."""

    name: str
    picture: Image.Image


class Call(NamedTuple):
    """What a visitor asks for."""

    sources: Sequence[Source]
    solver: str
    steps: int
    seed: int | None  # of the first result; None draws one
    results: int  # of each source
    told: Mapping[str, str | int | None] = {}  # classes; what is missing and may be is left out
    guidance: float = 1.0

    def settings(self, model: Model) -> dict[str, Any]:
        """The arguments of a call of the sampler besides the sources and seeds."""
        settings: dict[str, Any] = {"solver": self.solver, "steps": self.steps}
        if model.further.each:
            settings["conditions"] = dict.fromkeys(model.further.drop) | {**self.told}
            settings["guidance"] = None if self.guidance == 1 else self.guidance
        return settings


class Result(NamedTuple):
    """A translated picture, a preview of one, or a map of several."""

    source: Source
    seed: int  # of a map, the first one's
    picture: Image.Image
    map: str = ""  # mean or std, of a map


class Progress(NamedTuple):
    """What is there after a network call: finished results, then previews of those in work."""

    done: int
    total: int  # network calls, as if all pictures had the size of the one in work
    results: list[Result]  # none within a step
    first: int  # of the results in work


def load(config: AppConfig) -> Model:
    """The sampler of a checkpoint, of a model's folder or name on the Hub, or of an ONNX export.

    Raises:
        ValueError: the model cannot be read, or a setting is not for it.
    """
    if config.exported:
        from bbdm.runtime import OnnxBridgeSampler

        sampler = OnnxBridgeSampler(config.model)
        bridge, calls = bridges.from_config(sampler.settings["bridge"]), sampler.settings.get("calls")
        further = conditions_of(sampler.settings)
    else:
        import torch

        from bbdm import BridgeSampler
        from bbdm.execution.device import best_dtype

        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = config.dtype
        if dtype is None and config.model == demo.PHOTOGRAPHS:
            dtype = best_dtype(torch.device(device))
        sampler = BridgeSampler.from_pretrained(config.model, device=device, dtype=dtype, compile=config.compile)
        bridge, calls, further = sampler.bridge, sampler.calls, sampler.unet.further
    check_eight_bit(sampler.pictures, "the app")
    check_pictures(sampler.axes, "the app")
    if needed := [each.name for each in further.each.values() if each.kind != "class" and not each.droppable]:
        raise ValueError(f"this network is told {', '.join(needed)}: images and tokens, which the app cannot give")
    offered = list(solvers.choices(bridge, calls, len(sampler.table)))
    window = config.window_of(sampler.pictures.crop)
    windows = {**config.call, "window": window}
    if window is not None:  # refused now, and not when a visitor comes
        height, width = images.sides(window)
        told = {name: None if name in further.drop else 0 for name in further.each}
        sampler.stream(Image.new("RGB", (width + 1, height + 1)), 0, conditions=told or None, **windows)
    kept, most = window is not None and config.size is None, config.max_pixels or MAX_PIXELS[window is not None]
    size = config.size or sampler.image_size
    return Model(sampler, sampler.solver, offered, size, kept, windows, most, further)


def read(given: str | Image.Image, model: Model, max_pixels: int) -> Source:
    """An uploaded file or a drawing as the network takes it.

    Raises:
        ValueError: the file cannot be read, or the picture has more than ``max_pixels``. It is known by its
            name alone.
    """
    name, drawn = ("drawing", True) if isinstance(given, Image.Image) else (Path(given).stem, False)
    picture = given if isinstance(given, Image.Image) else _opened(Path(given))
    try:
        picture = images.convert(picture)
    except ValueError as error:
        raise ValueError(f"cannot take the picture {name}: {error}") from error
    if model.size is not None and (drawn or not model.kept):
        picture = images.resized(picture, model.size, "fit")
    if picture.width * picture.height > max_pixels:
        size = f"{picture.height} x {picture.width}"
        raise ValueError(f"a picture may have at most {max_pixels} pixels, got {name} of height x width {size}")
    return Source(name, picture)


def _opened(path: Path) -> Image.Image:
    """A visitor's file, which messages call by its name: where the server keeps it is nobody's business."""
    try:
        return images.open_image(path.read_bytes(), path.name)
    except OSError as error:
        raise ValueError(f"{path.name} is no longer there: upload it again") from error


def translate(model: Model, call: Call) -> Iterator[Progress]:
    """Translate each source, one after the other, and report after each network call.

    Result i of all has the call's seed + i. The last report has the results that a call of the sampler gives.
    Results by windows are made one after the other, since they may be large.
    """
    settings, count = call.settings(model), call.results
    seeds = resolve_seeds(call.seed, len(call.sources) * count)
    groups: list[tuple[Source, list[int]]] = []
    for i, source in enumerate(call.sources):
        own, each = seeds[i * count : (i + 1) * count], 1 if model.windowed(source.picture) else count
        groups += [(source, own[start : start + each]) for start in range(0, count, each)]
    finished: list[Result] = []
    before = 0
    for i, (source, own) in enumerate(groups):
        done, results = before, []
        for calls, of, previews in _calls(model, source, own, **settings):
            results = [Result(source, *each) for each in zip(own, previews, strict=True)] if previews else []
            done, total = before + calls, before + of * (len(groups) - i)
            yield Progress(done, total, finished + results if results else [], len(finished))
        before, finished = done, finished + results


def compare(model: Model, call: Call) -> Iterator[Progress]:
    """Translate each source as :func:`translate` does, and compare its results.

    The last report has for each source the mean of its results, their standard deviation, and the results, of
    the seeds of :meth:`bbdm.BridgeSampler.distribution`.
    """
    settings = call.settings(model) | model.windows
    sources, count = call.sources, call.results
    pictures = [source.picture for source in sources]

    def work(put: Callable[..., None]) -> None:
        def report(done: int, total: int) -> None:
            if done < total:
                put(Progress(done, total, [], 0))

        found = model.sampler.distribution(pictures, count, call.seed, progress=report, **settings)
        made: list[Result] = []
        for source, seeds, mean, std, *results in zip(
            sources, found.seeds, found.mean, found.std, *found.samples, strict=True
        ):
            made += [Result(source, seeds[0], mean, "mean"), Result(source, seeds[0], std, "std")]
            made += map(Result, [source] * count, seeds, results)
        put(Progress(count, count, made, 0))

    yield from _followed(work)


def _calls(
    model: Model, source: Source, seeds: list[int], **settings: Any
) -> Iterator[tuple[int, int, list[Image.Image]]]:
    """After each network call: how many are done, of how many, and at the end of a step its previews."""

    def work(put: Callable[..., None]) -> None:
        last = 0, 0

        def report(done: int, total: int) -> None:
            nonlocal last
            last = done, total
            if done % (total // settings["steps"]):
                put((done, total, []))

        given = [source.picture] * len(seeds)
        for step in model.sampler.stream(given, seeds, progress=report, **settings, **model.windows):
            put((*last, step.preview()))

    yield from _followed(work)


def _followed(work: Callable[[Callable[..., None]], None]) -> Iterator[Any]:
    """What ``work`` puts, from a thread; once nobody waits for it, ``work`` ends at the next that it puts."""
    made: queue.SimpleQueue[Any] = queue.SimpleQueue()
    left = threading.Event()

    def put(each: Any) -> None:
        if left.is_set():
            raise CancelledError
        made.put(each)

    pool = ThreadPoolExecutor(1)
    working = pool.submit(work, put)
    working.add_done_callback(lambda _: made.put(None))
    try:
        yield from iter(made.get, None)
        working.result()
    finally:
        left.set()
        pool.shutdown(wait=False)
