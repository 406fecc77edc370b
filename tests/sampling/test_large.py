"""Pictures larger than memory: the result is that of a call, whatever memory there is and what happens."""

import errno
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bbdm import DDBM, ABridge, BridgeSampler, wrap
from bbdm.base.atomic import InUseError
from bbdm.base.scripts import StoppedError
from bbdm.bridges import Bridge
from bbdm.data.reading import Reader, Strips
from bbdm.data.spec import Spec
from bbdm.pictures import formats, header, read, write
from bbdm.pictures.picture import Geometry, Header, Picture
from bbdm.pictures.values import AnyValues, Percentiles, Values
from bbdm.sampling.large import MARKER, FileArray, LargePicture, folder_of
from bbdm.sampling.options import GuidanceOptions
from tests.conftest import tiny_unet
from tests.onnx.exports import tiny_codec
from tests.sampling.test_windows import of_square

HEIGHT, WIDTH, WINDOW = 53, 46, 16  # no multiples of the stride
BRIDGE = ABridge(num_steps=100)
SETTINGS: dict[str, Any] = {"window": WINDOW, "overlap": 0.3}
LITTLE, MUCH = 500_000, 2**30  # bytes, that are enough for three rows of windows, and for all
U16 = Values(0, 4000, dtype="uint16")
zarr_only = pytest.mark.skipif(sys.version_info < (3, 11), reason="zarr 3 is of Python 3.11")
SCALED = ((0.0, 0.5, 3.0), (0.25, 0.0, 4.0), (0.0, 0.0, 1.0))
PLACE = Geometry(((0.0, 10.0, 5.0), (-10.0, 0.0, 9.0), (0.0, 0.0, 1.0)), "geotiff")


class Net(nn.Module):
    """Sees its source, the time and three pixels around."""

    def __init__(self, channels: int, source_channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels + source_channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(torch.cat([x, source], 1)) * (1 + t.reshape(-1, 1, 1, 1) / 100))


def make(
    solver: str = "dpm2m",
    channels: int = 3,
    source_channels: int = 3,
    source: AnyValues = U16,
    target: Values = U16,
    bridge: Bridge = BRIDGE,
) -> BridgeSampler:
    network = wrap(Net(channels, source_channels), channels, source_channels, stride=4)
    sampler = BridgeSampler(network, bridge, solver, 3)
    sampler.pictures = Spec(source=source, target=target)
    return sampler


def numbers(channels: int = 3, kind: str = "uint16") -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 4000, (channels, HEIGHT, WIDTH)).astype(kind)


def strips_of(sampler: BridgeSampler, *paths: Path) -> Strips:
    return Reader(sampler.pictures).strips({"name": "a", "source": paths})


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "source.npy", numbers())
    return tmp_path / "source.npy"


def stream(
    sampler: BridgeSampler,
    source: Path | Strips,
    result: Path,
    memory: int = LITTLE,
    report: Callable[[int, int], Any] = lambda done, total: None,
    batch_size: int | None = 4,
    seed: int = 5,
    **settings: Any,
) -> Any:
    """The values of the result that is made of a source."""
    strips = strips_of(sampler, source) if isinstance(source, Path) else source
    grid = sampler.window_grid(
        GuidanceOptions(**{**SETTINGS, **settings}), strips.shape[1:], batch_size
    )
    assert grid is not None
    LargePicture(sampler, strips, grid, seed, memory, report).run(result, {"of": "a test"})
    assert not folder_of(result).exists()
    return np.asarray(read(result))


def called(sampler: BridgeSampler, picture: Picture, **settings: Any) -> Any:
    return np.asarray(sampler(picture, seed=5, **{**SETTINGS, **settings}))


def same(one: Any, other: Any) -> None:
    """Equal to one level: sums of batches of other sizes may be rounded otherwise."""
    assert one.dtype == other.dtype
    assert np.abs(one.astype(np.float64) - other).max() <= 1


@pytest.mark.parametrize(("memory", "batch_size"), [(LITTLE, 4), (MUCH, None), (LITTLE, 1)])
@pytest.mark.parametrize(
    ("solver", "bridge"), [("dpm2m", DDBM()), ("posterior", BRIDGE)], ids=["dpm2m", "posterior"]
)
def test_the_result_is_that_of_a_call_at_every_memory_and_batch_size(
    solver: str, bridge: Bridge, memory: int, batch_size: int | None, source: Path, tmp_path: Path
):
    """The first reads the estimate before and shows another input than the state; the second draws noise."""
    sampler = make(solver, bridge=bridge)
    expected = called(sampler, Picture(numbers()))
    assert expected.std() > 100
    same(stream(sampler, source, tmp_path / "result.npy", memory, batch_size=batch_size), expected)


def test_pixels_without_a_value_have_none_in_the_result(tmp_path: Path):
    sampler = make(source=U16, target=Values(-1, 1, dtype="float32"))
    array = numbers(kind="float32")
    array[1, 20:40, 7] = np.nan
    array[:, -1, -1] = np.nan
    geometry = Geometry(PLACE.affine, "geotiff", nodata=float("nan"))
    write(tmp_path / "source.tif", Picture(array, geometry))
    made = stream(sampler, tmp_path / "source.tif", tmp_path / "result.tif")
    absent = np.isnan(array).any(axis=0)
    assert (np.isnan(made) == absent).all()
    expected = called(sampler, Picture(array, geometry))
    np.testing.assert_allclose(made[:, ~absent], expected[:, ~absent], atol=1e-5)
    written = read(tmp_path / "result.tif")
    assert written.geometry.affine == PLACE.affine
    assert np.isnan(written.nodata or 0)


def test_channels_of_two_files_and_percentiles_of_the_whole(tmp_path: Path):
    sampler, array = make(channels=2, source_channels=5, source=Percentiles(1, 99)), numbers(5)
    files = tmp_path / "0.npy", tmp_path / "1.npy"
    for file, part in zip(files, (array[:2], array[2:]), strict=True):
        np.save(file, part)
    strips = strips_of(sampler, *files)
    same(stream(sampler, strips, tmp_path / "result.npy"), called(sampler, Picture(array)))


def stop() -> None:
    raise StoppedError("as asked")


class Counted:
    """A report that stops at a call, or does something else."""

    def __init__(self, at: float = math.inf, act: Callable[[], Any] = stop) -> None:
        self.at, self.act, self.seen = at, act, [0]

    def __call__(self, done: int, total: int) -> None:
        self.total = total
        self.seen += [done] if done > self.seen[-1] else []
        if done >= self.at:
            self.act()


def interrupted(sampler: BridgeSampler, source: Path, result: Path, at: int) -> None:
    """Stop at a network call."""
    with pytest.raises(StoppedError, match="as asked"):
        stream(sampler, source, result, report=Counted(at))
    assert folder_of(result).is_dir()
    assert not result.exists()


def test_an_interrupted_run_goes_on_at_the_next_step(source: Path, tmp_path: Path):
    sampler, result, whole = make("sde-dpm2m"), tmp_path / "result.npy", Counted()
    stream(sampler, source, result, report=whole)
    expected, calls = result.read_bytes(), whole.total // 3
    assert whole.seen == [*range(3 * calls + 1)]
    result.unlink()
    interrupted(sampler, source, result, 2 * calls + 1)
    (folder_of(result) / "x.3").write_bytes(b"half of a file")
    again = Counted()
    stream(sampler, source, result, report=again)
    assert result.read_bytes() == expected
    # the first two steps are not made again
    assert again.seen == [0, *range(2 * calls + 1, 3 * calls + 1)]


@pytest.mark.parametrize("change", ["seed", "solver", "window", "marker"])
def test_states_of_other_work_are_not_used(change: str, source: Path, tmp_path: Path):
    sampler, result = make(), tmp_path / "result.npy"
    interrupted(sampler, source, result, 15)
    settings: dict[str, Any] = {"seed": {"seed": 6}, "window": {"overlap": 0.5}}.get(change, {})
    if change == "marker":
        (folder_of(result) / MARKER).write_text("{")
    sampler = make("sde-dpm2m") if change == "solver" else sampler
    report = Counted()
    made = stream(sampler, source, result, report=report, **settings)
    assert report.seen == [*range(report.total + 1)]
    assert (made == stream(sampler, source, tmp_path / "anew.npy", **settings)).all()


@pytest.mark.parametrize("at", [0, 1, 15, "result", "disk"])
def test_an_error_leaves_nothing(
    at: int | str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also a full disk: files take their space before they are mapped, where it would be a signal.

    An interruption before the first state leaves nothing either.
    """
    calls, create = list[int](), FileArray.create

    def report(done: int, total: int) -> None:
        calls.append(done)
        # the last call, and a part of the result
        if done == at or (at == "result" and calls.count(total) == 2):
            raise StoppedError("as asked") if at == 0 else RuntimeError("as asked")

    def full(self: FileArray) -> FileArray:
        made = create(self)
        assert self.path.stat().st_blocks * 512 >= self.nbytes
        if at == "disk" and self.path.name == "prediction" and calls[-1] > 0:
            raise OSError(errno.ENOSPC, "as asked")
        return made

    monkeypatch.setattr(FileArray, "create", full)
    with pytest.raises((RuntimeError, OSError), match="as asked"):
        stream(make(), source, tmp_path / "result.npy", report=report)
    assert [path.name for path in tmp_path.iterdir()] == ["source.npy"]


@pytest.mark.parametrize(
    ("memory", "windows", "rows"), [(2 * 73_728 + 4 * 18_432, 1, 3), (500_000, 3, 6)]
)
def test_memory_is_for_windows_and_rows(
    memory: int, windows: int, rows: int, source: Path, tmp_path: Path
):
    """Half for windows of 16 x 16 x 6 values of 48 bytes, a quarter for rows of 48 x 6 of 64 bytes."""
    sampler, seen, calls = make(), list[int](), list[int]()
    body = sampler.backend.body
    sampler.backend.body = lambda x, *others: seen.append(len(x)) or body(x, *others)
    stream(
        sampler, source, tmp_path / "result.npy", memory, lambda done, _: calls.append(done), None
    )
    assert max(seen) == windows
    assert calls.count(0) == 2 * math.ceil(56 / rows)  # parts of the source, and of the first state
    with pytest.raises(ValueError, match="memory must be at least 216 KB for windows of 16 x 16"):
        stream(make(), source, tmp_path / "less.npy", 2 * 73_728 + 4 * 18_432 - 1)


def test_a_second_run_and_a_disk_that_is_too_small_are_refused(
    source: Path, tmp_path: Path, monkeypatch: Any
):
    """The first run goes on."""
    result, refused = tmp_path / "result.npy", []

    def second() -> None:
        with pytest.raises(
            InUseError,
            match=r"another process works in .*\.result\.npy\.steps: wait for it, or give",
        ):
            stream(make(), source, result)
        refused.append(True)

    first = stream(make(), source, result, report=Counted(1, second))
    assert refused
    assert (first == stream(make(), source, tmp_path / "alone.npy")).all()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    message = r"the state of this picture in .*\.other\.npy\.steps needs .* KB, and the disk has .* KB: free .* KB"
    with pytest.raises(OSError, match=message):
        stream(make(), source, tmp_path / "other.npy")
    assert not list(tmp_path.glob("*other*"))


class Pointwise(nn.Module):
    """Sees a pixel alone, and the time."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor, t: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return torch.sin(x + self.factor * source) * (1 + t.reshape(-1, 1, 1, 1) / 100)


def with_holes(path: Path, fill: float = 0, kind: str = "uint16") -> np.ndarray[Any, Any]:
    """An OME-Zarr of chunks of 8 x 8 of which few are stored, and where those are."""
    array = numbers(kind=kind)
    geometry = Geometry(
        SCALED, "ome-zarr", {"chunk": (8, 8)}, math.nan if math.isnan(fill) else None
    )
    blank = Picture(np.broadcast_to(array.dtype.type(fill), array.shape), geometry)
    canvas = formats.module("omezarr").create(path, blank, fill)
    stored = np.zeros((HEIGHT, WIDTH), bool)
    for top, left in [(0, 0), (0, 8), (24, 16), (48, 40)]:
        window = slice(top, min(top + 8, HEIGHT)), slice(left, min(left + 8, WIDTH))
        canvas.write(window, array[(slice(None), *window)])
        stored[window] = True
    canvas.finish()
    return stored


@zarr_only
@pytest.mark.parametrize("memory", [LITTLE, MUCH])
@pytest.mark.parametrize("solver", ["dpm2m", "posterior"])
@pytest.mark.parametrize(("fill", "kind"), [(0, "uint16"), (7, "uint16"), (math.nan, "float32")])
def test_windows_without_a_stored_chunk_are_not_computed(
    fill: float, kind: str, solver: str, memory: int, tmp_path: Path
):
    """Where chunks are stored, the result is that of a call. Elsewhere it is the fill."""
    sampler = BridgeSampler(wrap(Pointwise(), 3, 3, stride=4), BRIDGE, solver, 3)
    sampler.pictures = Spec(source=U16, target=Values(0, 4000, dtype=kind))
    stored = with_holes(tmp_path / "source.zarr", fill, kind)
    report = Counted()
    made = stream(
        sampler,
        tmp_path / "source.zarr",
        tmp_path / "result.ome.zarr",
        memory,
        report,
        batch_size=1,
    )
    expected = called(sampler, read(tmp_path / "source.zarr"))
    np.testing.assert_allclose(made[:, stored], expected[:, stored], atol=1)
    assert expected[:, stored].std() > 100
    np.testing.assert_array_equal(made[:, ~stored], np.full_like(made[:, ~stored], fill))
    grid = sampler.window_grid(GuidanceOptions(**SETTINGS), (HEIGHT, WIDTH), 1)
    assert grid is not None
    picture = LargePicture(sampler, strips_of(sampler, tmp_path / "source.zarr"), grid, 5, memory)
    said = r"4 of 42 chunks are stored: (\d+) of (\d+) windows are computed, and where .* the result is (.*)"
    computed, windows, value = re.fullmatch(said, picture.left_out).groups()  # pyright: ignore
    assert (report.total, float(value)) == (3 * int(computed), pytest.approx(fill, nan_ok=True))
    assert 4 < int(computed) < int(windows) / 2
    chunks = formats.module("omezarr").chunks(header(tmp_path / "result.ome.zarr"))
    assert int(chunks.stored.sum()) == 4
    assert header(tmp_path / "result.ome.zarr").geometry.affine == SCALED
    as_array = stream(sampler, tmp_path / "source.zarr", tmp_path / "result.npy", memory)
    np.testing.assert_allclose(as_array, made, atol=1)


@zarr_only
@pytest.mark.parametrize("memory", [LITTLE, MUCH])
def test_pixels_beside_windows_that_are_not_computed_are_those_of_a_call(
    memory: int, tmp_path: Path
):
    """The network sees a pixel around, where windows that are left out have a part of the weights."""
    network = wrap(Net(3, 3), 3, 3, stride=4)
    sampler = BridgeSampler(network, BRIDGE, "dpm2m", 6)
    sampler.pictures = Spec(source=U16, target=U16)
    stored = with_holes(tmp_path / "source.zarr")
    settings = {"overlap": 0.5, "margin": 1}  # which hides the sides of windows
    result = stream(sampler, tmp_path / "source.zarr", tmp_path / "result.npy", memory, **settings)
    expected = called(sampler, read(tmp_path / "source.zarr"), **settings)
    assert expected[:, stored].std() > 100
    same(result[:, stored], expected[:, stored])


@zarr_only
@pytest.mark.parametrize("holes", [True, False])
def test_an_ome_zarr_goes_on_after_an_interruption(holes: bool, tmp_path: Path):
    sampler, source, result = make("sde-dpm2m"), tmp_path / "source.zarr", tmp_path / "result.zarr"
    if holes:
        with_holes(source)
    else:
        write(source, Picture(numbers(), Geometry(PLACE.affine, "ome-zarr", {"chunk": (8, 8)})))
    expected = stream(sampler, source, tmp_path / "whole.zarr")
    if not holes:
        same(expected, called(sampler, Picture(numbers())))
    whole = Counted()
    stream(sampler, source, tmp_path / "counted.zarr", report=whole)
    interrupted(sampler, source, result, 2 * whole.total // 3 + 1)
    used = sum(512 * file.stat().st_blocks for file in folder_of(result).iterdir())
    assert used > 0
    assert (stream(sampler, source, result) == expected).all()
    with pytest.raises(RuntimeError, match="as asked"):
        stream(
            sampler,
            source,
            tmp_path / "error.zarr",
            report=_stops_while_the_result_is_written(whole.total),
        )
    assert not [*tmp_path.glob("*error*")]


def _stops_while_the_result_is_written(total: int) -> Callable[[int, int], Any]:
    calls: list[int] = []

    def report(done: int, _: int) -> None:
        calls.append(done)
        # after the last call, blocks of the last step, and a part of the result
        if calls.count(total) == 4:
            raise RuntimeError("as asked")

    return report


@pytest.mark.skipif(
    not hasattr(os.stat_result, "st_blocks"), reason="the system does not say what files take"
)
def test_a_sparse_file_takes_disk_where_it_was_written(tmp_path: Path):
    array = FileArray(tmp_path / "a", (1, 2, 3000, 5000), np.float32, sparse=True).create()
    box = (slice(None), slice(None), slice(1000, 1010), slice(700, 900))
    array[box] = values = torch.randn(1, 2, 10, 200)
    assert (array[box] == values).all()
    assert array[:, :, :1000].abs().max() == 0
    assert array.path.stat().st_size == array.nbytes
    assert array.path.stat().st_blocks * 512 < array.nbytes / 100


def test_refusals(source: Path, tmp_path: Path):
    array = numbers(kind="float32")
    array[2, 50, 3] = np.inf
    np.save(tmp_path / "infinite.npy", array)
    whole = tmp_path / "whole.mha"  # of which no part is read alone
    write(whole, numbers())
    decoded = (
        r"must be decoded whole, which needs 57.1 KB, and half of the memory, 48.8 KB, is for that"
    )
    for of, memory, name, message in (
        (
            source,
            LITTLE,
            "result.npz",
            r"one of \.npy, \.ome\.zarr, \.png, \.tif, \.tiff, \.zarr, got .*result\.npz",
        ),
        (whole, 100_000, "result.npy", decoded),
        (
            tmp_path / "infinite.npy",
            LITTLE,
            "result.npy",
            "inf stands in channel 2, where a finite",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            stream(make(), of, tmp_path / name, memory)
    same(stream(make(), whole, tmp_path / "result.npy"), called(make(), Picture(numbers())))


@pytest.mark.usefixtures("own_names")
def test_a_format_of_your_own_may_take_results_larger_than_memory(source: Path, tmp_path: Path):
    def write_raw(path: Path, picture: Picture) -> None:
        np.save(path.open("wb"), np.asarray(picture))

    def read_header(path: Path) -> Header:
        array = np.load(path, mmap_mode="r")
        return Header(path, array.shape, array.dtype)

    def read_raw(header: Header, window: tuple[slice, ...]) -> Any:
        return np.load(header.path)[(slice(None), *window)]

    module = SimpleNamespace(header=read_header, read=read_raw, write=write_raw)
    formats.register("raw", formats.Library(module, (".raw",), large=True))
    result = stream(make(), source, tmp_path / "result.raw")
    same(result, called(make(), Picture(numbers())))


def test_networks_that_see_more_than_windows_are_refused(source: Path, tmp_path: Path):
    latent = BridgeSampler(tiny_unet(), BRIDGE, codec=tiny_codec())
    for sampler, message in (
        (latent, "only networks of image space translate pictures larger than memory"),
        (
            BridgeSampler(of_square(), BRIDGE),
            "the network prepares the whole source, which a picture",
        ),
    ):
        sampler.pictures = Spec(source=U16, target=U16)
        with pytest.raises(ValueError, match=message):
            stream(sampler, source, tmp_path / "result.npy", MUCH)
