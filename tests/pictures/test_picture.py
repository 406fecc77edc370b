"""A picture is an array that knows where it lies: its parts, what is made of it, and formats from outside."""

import copy
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from bbdm import BridgeSampler, cli, save_checkpoint
from bbdm.base import scripts
from bbdm.base.seeds import seed_of
from bbdm.data import Spec
from bbdm.pictures import Geometry, Picture, formats, header, read, write
from bbdm.pictures.values import EIGHT_BIT, Values
from tests.conftest import BRIDGE, tiny_unet
from tests.pictures.formats import numbers

AFFINE = ((0.0, 0.0, 0.5, -10.0), (0.0, 0.25, 0.0, 5.0), (2.0, 0.0, 0.0, 7.0), (0.0, 0.0, 0.0, 1.0))
PLACE = Geometry(AFFINE, "itk", nodata=-1.0)
Change = Callable[[Picture], Any]


def volume() -> Picture:
    return Picture(numbers((2, 5, 7, 9), "int16"), PLACE, "HU", "a")


class TestParts:
    @pytest.mark.parametrize(
        ("index", "first"),
        [
            ((slice(None), slice(1, 4)), (1, 0, 0)),
            ((slice(None), slice(-3, None), slice(2, 6), slice(4, None)), (2, 2, 4)),
            ((..., slice(3, 5)), (0, 0, 3)),
            ((slice(None, None, -1), ..., slice(1, None)), (0, 0, 1)),
            (([1, 0], slice(2, 3)), (2, 0, 0)),
            (slice(1, 2), (0, 0, 0)),
            (..., (0, 0, 0)),
        ],
        ids=str,
    )
    def test_a_window_lies_where_its_first_pixel_does(
        self, index: Any, first: tuple[int, ...], tmp_path: Path
    ) -> None:
        """As SimpleITK says of the file that is written of it."""
        part = volume()[index]
        assert (part.geometry.nodata, part.unit, part.name) == (-1, "HU", "a")
        part.save(tmp_path / "a.nrrd")
        image = sitk.ReadImage(str(tmp_path / "a.nrrd"))
        np.testing.assert_allclose(image.GetOrigin(), (np.array(AFFINE) @ (*first, 1))[:3])
        stored = np.asarray(volume())[index]
        assert (
            sitk.GetArrayFromImage(image).reshape(*stored.shape[1:], -1)
            == np.moveaxis(stored, 0, -1)
        ).all()

    @pytest.mark.parametrize(
        "change",
        [
            lambda picture: picture + 1,
            lambda picture: np.clip(picture, 0, 5),
            lambda picture: np.int16(2) * picture,
            lambda picture: picture.astype(np.float32),
            lambda picture: picture.mean(axis=0, keepdims=True),
            lambda picture: np.nan_to_num(picture),
            lambda picture: np.zeros_like(picture),
            lambda picture: np.ones_like(picture) * picture,
            lambda picture: np.cos(picture, out=np.empty_like(picture, dtype=np.float64)),
            lambda picture: picture - picture.mean(axis=(1, 2, 3), keepdims=True),
            lambda picture: picture.view(),
            lambda picture: picture.reshape(picture.shape),
            lambda picture: picture[:1].squeeze()[None],
            lambda picture: picture.mean(0)[None],
            lambda picture: np.median(picture, 0)[None],
            lambda picture: picture[1][None],
            lambda picture: picture[1, None],
            copy.copy,
            copy.deepcopy,
            lambda picture: pickle.loads(pickle.dumps(picture)),
        ],
    )
    def test_arithmetic_and_copies_stay_where_they_were(self, change: Change) -> None:
        result = change(volume())
        assert (result.geometry, result.unit, result.name) == (PLACE, "HU", "a")

    @pytest.mark.parametrize(
        "change",
        [
            lambda picture: picture[:, ::-1],
            lambda picture: picture[:, :, ::2],
            lambda picture: picture[:, [3, 0, 1]],
            lambda picture: np.flip(picture, 3),
            lambda picture: np.roll(picture, 1, axis=2),
            lambda picture: picture.transpose(0, 2, 1, 3),
            lambda picture: picture.swapaxes(1, 2),
            lambda picture: picture.reshape(2, 7, 5, 9),
        ],
    )
    def test_what_is_moved_is_no_file_with_a_place(self, change: Change, tmp_path: Path) -> None:
        """It is one of a format without, and of an array without."""
        result = change(volume())
        assert (result.geometry.affine, result.geometry.nodata, result.unit) == (None, -1, "HU")
        for name in ("a.nii", "a.mha", "a.tif"):
            with pytest.raises(
                ValueError,
                match=rf"{name}: a step, a flip, .* lost where its pixels lie: say it by Pic",
            ):
                result.save(tmp_path / name)
        result.save(tmp_path / "a.npy")
        write(tmp_path / "a.nii", np.asarray(result))
        placed = Picture(result, Geometry(AFFINE))
        placed.save(tmp_path / "a.nii")
        assert read(tmp_path / "a.nii").geometry.affine == AFFINE

    @pytest.mark.parametrize(
        "change",
        [
            lambda picture: picture[:, ::-1][0][None],
            lambda picture: np.maximum(picture * 0, picture[:, ::-1]),
            lambda picture: np.maximum(picture[:, ::-1], picture * 0),
            lambda picture: np.nan_to_num(picture[:, ::-1]),
            lambda picture: np.multiply(picture, picture[:, ::-1], out=picture.copy()),
            lambda picture: np.rot90(picture, axes=(1, 2)),
            lambda picture: np.rot90(picture, 2, axes=(1, 2)),
            lambda picture: np.flip(picture, 2),
            lambda picture: np.moveaxis(picture, 1, 2),
            lambda picture: picture.transpose(0, 2, 1, 3),
            lambda picture: picture.transpose(0, 2, 1, 3).copy(),
            lambda picture: picture.swapaxes(1, 3),
            lambda picture: picture.T,
            lambda picture: np.take(picture, [4, 3, 2, 1, 0], axis=1),
            lambda picture: picture @ np.eye(5)[::-1],
            lambda picture: picture.mean(1)[None],
            lambda picture: picture[:, 2][:, None],
        ],
    )
    def test_a_cube_that_was_moved_has_no_place(self, change: Change, tmp_path: Path) -> None:
        """Whose shape does not show it."""
        result = change(Picture(numbers((5, 5, 5, 5), "int16"), PLACE))
        assert result.geometry == Geometry(format="itk", nodata=-1, lost=True)
        with pytest.raises(ValueError, match="lost where its pixels lie"):
            result.save(tmp_path / "a.nii")

    def test_an_integer_takes_an_axis_away(self, tmp_path: Path) -> None:
        """That of a spatial axis the place too, and a channel alone is no picture of fewer axes."""
        picture = volume()
        for part, shape in ((picture[:, 2], (2, 7, 9)), (picture[..., 4], (2, 5, 7))):
            assert (part.shape, part.geometry) == (
                shape,
                Geometry(format="itk", nodata=-1, lost=True),
            )
        assert (picture[1].shape, picture[1].geometry) == ((5, 7, 9), PLACE)
        for part in (picture[:, 2], picture[1]):
            for name in ("a.tif", "a.nii", "a.mha"):
                with pytest.raises(ValueError, match=r"an index .* lost where its pixels lie"):
                    part.save(tmp_path / name)
        assert picture[0, 1, 2, 3] == np.asarray(picture)[0, 1, 2, 3]
        assert (
            picture[picture > 0].tolist() == np.asarray(picture)[np.asarray(picture) > 0].tolist()
        )

    def test_a_flipped_photograph_is_one(self, tmp_path: Path) -> None:
        """It has no place that could be lost."""
        write(tmp_path / "a.png", array := numbers((3, 5, 7), "uint8"))
        flipped = read(tmp_path / "a.png")[:, :, ::-1]
        assert flipped.photograph
        flipped.save(tmp_path / "b.tif")
        assert (read(tmp_path / "b.tif") == array[:, :, ::-1]).all()


@pytest.mark.parametrize("unit", ["HU", "µmol / l"])
def test_nrrd_has_the_unit(unit: str, tmp_path: Path) -> None:
    """In the field of its standard, which pynrrd reads, and beside which SimpleITK reads the values."""
    array = numbers((1, 5, 7, 9), "int16")
    write(path := tmp_path / "a.nrrd", Picture(array, PLACE, unit))
    assert (header(path).unit, read(path).unit) == (unit, unit)
    assert f"\nsample units: {unit}\n".encode() in path.read_bytes()
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == array[0]).all()


class TestLinks:
    def test_links_to_folders_are_followed_but_not_in_circles(self, tmp_path: Path) -> None:
        write(tmp_path / "there" / "sub" / "a.png", numbers((1, 4, 4), "uint8"))
        (tmp_path / "here" / "sub").mkdir(parents=True)
        (tmp_path / "here" / "linked").symlink_to(tmp_path / "there")
        (tmp_path / "here" / "again").symlink_to(tmp_path / "there")
        (tmp_path / "here" / "sub" / "circle").symlink_to(tmp_path / "here")
        found = sorted(
            path.relative_to(tmp_path).as_posix() for path in formats.pictures_in(tmp_path / "here")
        )
        assert found == ["here/again/sub/a.png", "here/linked/sub/a.png"]

    def test_a_folder_without_permission_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "a.png", numbers((1, 4, 4), "uint8"))
        (tmp_path / "locked").mkdir()
        scandir = os.scandir

        def refusing(path: Path) -> Any:  # as it does for all but root
            if Path(path).name == "locked":
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        with pytest.warns(UserWarning, match=f"the folder {tmp_path / 'locked'} may not be read"):
            assert formats.pictures_in(tmp_path) == [tmp_path / "a.png"]

    def test_a_link_to_no_file_is_named(self, tmp_path: Path) -> None:
        """As git-annex leaves it until the file is fetched."""
        (tmp_path / "a.png").symlink_to(".git/annex/objects/a.png")
        assert formats.pictures_in(tmp_path) == [tmp_path / "a.png"]
        assert formats.is_picture(tmp_path / "a.png")
        with pytest.raises(
            FileNotFoundError,
            match=r"a\.png: it is a link to \.git/annex/objects/a\.png, .*git annex get",
        ):
            read(tmp_path / "a.png")


FORMAT = '''
"""Tables of numbers: one channel."""

import numpy as np

from bbdm import pictures


class Table:
    """What reads and writes them."""

    @staticmethod
    def header(path):
        values = np.loadtxt(path, ndmin=2)
        return pictures.Header(path, (1, *values.shape), values.dtype)

    @staticmethod
    def read(header, window):
        return np.loadtxt(header.path, ndmin=2)[None][(slice(None), *window)]

    @staticmethod
    def write(path, picture):
        np.savetxt(path, picture[0])


def register(name="table", suffixes=(".dat",), **options):
    kinds = {"types": ("float32", "float64"), "axes": (2,), "channels": (1,), "holds_place": False}
    pictures.register(name, pictures.Library(Table, suffixes, **kinds | options))


register()
'''


@pytest.fixture
def mine(own_names: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that registers a format, which is forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(scripts, "imported", [])
    Path("table_format.py").write_text(FORMAT)
    scripts.import_modules(["--import", "table_format"])
    yield sys.modules.pop("table_format")
    sys.modules.pop("table_format", None)  # a command's --import brought it back


class TestFormatsFromOutside:
    def test_it_is_read_and_written(self, mine: ModuleType) -> None:
        array = numbers((1, 5, 7), "float32").astype(np.float64)
        write(path := Path("a.dat"), array)
        assert (read(path) == array).all()
        assert (read(path, (slice(1, 3), slice(2, 6))) == array[:, 1:3, 2:6]).all()
        assert formats.pictures_in(Path()) != []
        assert formats.is_picture(path)
        for wrong, reason in (
            (numbers((2, 5, 7), "float64"), "holds 1 channels, got 2"),
            (array[0, 0], r"\(C, H, W\)"),
        ):
            with pytest.raises(
                ValueError, match=rf"a\.dat: \.dat {reason}|a\.dat: \.dat holds {reason}"
            ):
                write(path, wrong)
        mine.register(suffixes=(".num",))  # a cell of a notebook that runs again
        assert not formats.is_picture(path)
        write(Path("a.num"), array)

    def test_what_it_cannot_take(self, mine: ModuleType) -> None:
        with pytest.raises(ValueError, match=r"the suffix \.nii is read by nibabel: give claims"):
            mine.register("other", (".nii",))
        with pytest.raises(ValueError, match="the format 'numpy' is taken by"):
            mine.register("numpy", (".num",))
        with pytest.raises(ValueError, match=r"a suffix is written as \.tif, got 'TIF'"):
            mine.register("other", ("TIF",))

    def test_of_files_of_one_suffix_it_reads_those_that_it_claims(self, mine: ModuleType) -> None:
        mine.register("text", (".npy",), claims=lambda path: path.read_bytes()[:1] != b"\x93")
        Path("a.npy").write_text("1 2\n3 4\n")
        assert read("a.npy").tolist() == [[[1, 2], [3, 4]]]
        write("b.npy", np.ones((1, 2, 2)))
        assert np.load("b.npy").tolist() == [[[1, 1], [1, 1]]]

    def test_a_folder_that_is_one_picture(self, mine: ModuleType) -> None:
        """Its files are its own, also those below; results have the suffix that the format says."""
        mine.register(
            "stack", (), is_folder=lambda path: (path / "rows").exists(), results=".nii", types=()
        )
        for name in ("data/a/rows/0", "data/b/1.png"):
            Path(name).parent.mkdir(parents=True)
            Path(name).touch()
        assert sorted(map(str, formats.pictures_in(Path("data")))) == [
            "data/a",
            "data/a/rows/0",
            "data/b/1.png",
        ]
        assert formats.files_of(Path("data/a")) == [Path("data/a/rows/0")]
        assert formats.suffix_of_result(Path("data/a"), 1, EIGHT_BIT) == ".nii"
        mine.register("seen", (".vsi",), types=(), results=".npy")
        assert formats.suffix_of_result(Path("a.vsi"), 1, EIGHT_BIT) == ".npy"

    def test_commands_know_it(self, mine: ModuleType) -> None:
        """Results of tables are tables, of the sampler's values."""
        spec = Spec(source=Values(0, 7, dtype="float32"), target=Values(-2, 2, dtype="float32"))
        network = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)
        save_checkpoint("c.pt", network, BRIDGE, image_size=8, pictures=spec)
        write(Path("data/a.dat"), np.random.default_rng(0).uniform(0, 7, (1, 8, 8)))
        words = [
            "translate",
            "folder",
            "data",
            "c.pt",
            "out",
            "--steps",
            "2",
            "--seed",
            "3",
            "--quiet",
        ]
        cli.main(["--import", "table_format", *words])
        (expected,) = BridgeSampler.from_checkpoint("c.pt", steps=2)(
            "data/a.dat", seed=seed_of("a", 3)
        )
        np.testing.assert_allclose(np.loadtxt("out/a.dat"), expected[0], atol=1e-6)


def test_names_that_are_only_a_suffix(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(path := tmp_path / ".png")
    assert (formats.suffix_of(path), formats.stem_of(path), formats.is_picture(path)) == (
        "",
        ".png",
        False,
    )
    for act in (read, lambda path: write(path, numbers((1, 4, 4), "uint8"))):
        with pytest.raises(ValueError, match=r"/\.png: its name is only a suffix: rename it"):
            act(path)
