"""CZI as Zeiss' own library writes it; LIF and ND2 by a stand-in for their plugins of bioio."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from bbdm.pictures import Picture, header, read, write
from bbdm.pictures.addresses import parts

if sys.version_info < (3, 11):
    pytest.skip("bioio and its plugins are for later Pythons", allow_module_level=True)

import bioio_czi
from bioio import BioImage
from pylibCZIrw import czi

from tests.pictures.microscopes import Boundless, own_values, random, stand_in, write_czi


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A CZI of two scenes of different sizes with two channels."""
    path = tmp_path / "two.czi"
    write_czi(path, [random((1, 2, 1, 20, 24)), random((1, 2, 1, 16, 30), seed=1)], ["DAPI", "GFP"])
    return path


class TestCZI:
    @pytest.mark.parametrize("scene", [0, 1])
    def test_scenes_are_what_its_own_library_reads(self, two: Path, scene: int) -> None:
        values = own_values(two, scene, 2)
        picture = read(f"{two}#scene={scene}")
        assert np.array_equal(picture, values)
        assert picture.dtype == np.uint16
        assert picture.name == f"two.czi#scene={scene}"
        assert np.array_equal(read(f"{two}#scene={scene},channel=1"), values[1:])
        window = (slice(3, 9), slice(5, 20))
        assert np.array_equal(read(f"{two}#scene={scene}", window), values[(slice(None), *window)])

    def test_what_it_says_of_scale_and_channels(self, two: Path) -> None:
        geometry = header(f"{two}#scene=1").geometry
        assert geometry.spacing == pytest.approx((0.065, 0.065))
        assert geometry.kept["descriptions"] == ("DAPI", "GFP")
        assert geometry.kept["ome"]["PhysicalSizeXUnit"] == "µm"
        assert header(f"{two}#channel=1,scene=0").geometry.kept["descriptions"] == ("GFP",)

    def test_results_are_ome_tiff_that_say_it_again(self, two: Path) -> None:
        picture = read(f"{two}#scene=0")
        write(two.with_name("result.tif"), picture)
        again = read(two.with_name("result.tif"))
        assert np.array_equal(again, picture)
        assert again.geometry.spacing == pytest.approx((0.065, 0.065))
        assert again.geometry.kept["descriptions"] == ("DAPI", "GFP")

    def test_planes_are_a_volume_and_times_a_sequence(self, tmp_path: Path) -> None:
        planes = random((1, 2, 3, 10, 12))
        write_czi(tmp_path / "z.czi", [planes], ["a", "b"])
        volume = read(tmp_path / "z.czi")
        assert np.array_equal(volume, planes[0])
        assert volume.geometry.spacing == pytest.approx((0.26, 0.065, 0.065))
        times = random((4, 1, 1, 10, 12))
        write_czi(tmp_path / "t.czi", [times])
        assert np.array_equal(read(tmp_path / "t.czi"), times[:, :, 0].transpose(1, 0, 2, 3))
        window = (slice(1, 3), slice(2, 7), slice(0, 5))
        assert np.array_equal(read(tmp_path / "t.czi", window), times[1:3, 0, 0, 2:7, 0:5][None])
        assert np.array_equal(read(f"{tmp_path}/t.czi#time=2"), times[2, :, 0])

    def test_times_of_planes_are_volumes(self, tmp_path: Path) -> None:
        values = random((3, 1, 2, 10, 12))
        write_czi(tmp_path / "tz.czi", [values])
        assert np.array_equal(read(f"{tmp_path}/tz.czi#time=2"), values[2])
        with pytest.raises(
            ValueError, match=r"3 times of 2 planes: choose a time, such as tz\.czi#time=0"
        ):
            header(tmp_path / "tz.czi")

    def test_colours_have_red_first(self, tmp_path: Path) -> None:
        """The file has blue first."""
        blue_first = random((1, 1, 1, 10, 12, 3), "uint8")
        write_czi(tmp_path / "c.czi", [blue_first])
        assert np.array_equal(own_values(tmp_path / "c.czi", 0, 1), blue_first[0, 0, 0])
        colours = blue_first[0, 0, 0, ..., ::-1].transpose(2, 0, 1)
        assert np.array_equal(read(tmp_path / "c.czi"), colours)
        assert np.array_equal(
            read(f"{tmp_path}/c.czi#channel=2", (slice(1, 4), slice(2, 9))), colours[2:, 1:4, 2:9]
        )

    @pytest.mark.parametrize("kind", ["uint8", "float32"])
    def test_types(self, kind: str, tmp_path: Path) -> None:
        values = random((1, 1, 1, 10, 12), "uint8").astype(kind)
        write_czi(tmp_path / "a.czi", [values])
        picture = read(tmp_path / "a.czi")
        assert picture.dtype == kind
        assert np.array_equal(picture, values[0, 0])

    def test_another_library_agrees(self, tmp_path: Path) -> None:
        """That of bioio, of one scene; where scenes differ in size it overruns memory."""
        write_czi(tmp_path / "a.czi", [random((1, 2, 3, 10, 12))], ["a", "b"])
        image = BioImage(tmp_path / "a.czi", reader=bioio_czi.Reader)
        picture = read(tmp_path / "a.czi")
        assert np.array_equal(picture, image.get_image_data("CZYX"))
        assert picture.geometry.spacing == pytest.approx(tuple(image.physical_pixel_sizes))
        assert picture.geometry.kept["descriptions"] == tuple(image.channel_names)

    def test_scenes_of_other_sizes_are_read_again_and_again(self, two: Path) -> None:
        for _ in range(50):
            for scene in range(2):
                assert read(f"{two}#scene={scene}").shape[1:] == [(20, 24), (16, 30)][scene]

    def test_tiles_are_stitched_and_read_by_windows(self, tmp_path: Path) -> None:
        with czi.create_czi(str(tmp_path / "m.czi")) as file:
            for number in range(6):
                tile = random((10, 12, 1), seed=number)
                file.write(tile, location=(number % 3 * 12 - 5, number // 3 * 10))
        head = header(tmp_path / "m.czi")
        assert (head.shape, head.windowed) == ((1, 20, 36), True)
        window = (slice(5, 15), slice(7, 30))
        with czi.open_czi(str(tmp_path / "m.czi")) as file:
            values = file.read(plane={"C": 0})[None, ..., 0]
        assert np.array_equal(read(head), values)
        assert np.array_equal(read(head, window), values[(slice(None), *window)])

    def test_a_plane_of_one_tile_is_read_whole(self, two: Path) -> None:
        """Since a window of it costs as much."""
        assert not header(f"{two}#scene=0").windowed

    def test_more_pixels_than_the_file_can_have(self, tmp_path: Path) -> None:
        """Two tiles that lie far from each other."""
        with czi.create_czi(str(tmp_path / "far.czi")) as file:
            for left in (0, 2**30):
                file.write(random((10, 12, 1)), location=(left, left))
        with pytest.raises(ValueError, match="it is truncated or damaged"):
            header(tmp_path / "far.czi")
        with pytest.raises(ValueError, match="it is truncated or damaged"):
            parts(tmp_path / "far.czi")

    @pytest.mark.parametrize("dimensions", [-1, 2**31 - 1])
    def test_a_damaged_directory_of_tiles_is_refused(self, two: Path, dimensions: int) -> None:
        """Such an entry ends the process inside of pylibCZIrw."""
        content = bytearray(two.read_bytes())
        entry = content.rindex(b"DV")
        struct.pack_into("<i", content, entry + 28, dimensions)
        two.write_bytes(content)
        for read_file in (header, parts):
            with pytest.raises(ValueError, match=r"\.czi.* directory of tiles is damaged"):
                read_file(two)

    def test_a_file_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "a.czi").write_bytes(b"ZISRAWFILE" + bytes(300))
        with pytest.raises(ValueError, match=r"cannot read the picture .*a\.czi"):
            header(tmp_path / "a.czi")
        (tmp_path / "b.czi").write_bytes(b"")
        with pytest.raises(ValueError, match=r"cannot read the picture .*b\.czi"):
            header(tmp_path / "b.czi")

    def test_a_changed_file_is_read_anew(self, two: Path) -> None:
        read(f"{two}#scene=0")
        values = random((1, 2, 1, 20, 24), seed=9)
        two.unlink()
        write_czi(two, [values])
        assert np.array_equal(read(two), values[0, :, 0])


class TestStandIn:
    """What is read is what the plugin says, by parts; scale, names and time come from it too."""

    @pytest.mark.parametrize(("suffix", "plugin"), [("lif", "bioio_lif"), ("nd2", "bioio_nd2")])
    def test_scenes(
        self, suffix: str, plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scenes = [random((1, 2, 1, 9, 11)), random((5, 1, 1, 9, 11)), random((1, 1, 4, 9, 11))]
        reader = stand_in(monkeypatch, plugin, scenes)
        file = tmp_path / f"a.{suffix}"
        file.write_bytes(bytes(9999))
        assert np.array_equal(read(f"{file}#scene=0"), scenes[0][0, :, 0])
        sequence = read(f"{file}#scene=1", (slice(2, 4), slice(0, 9), slice(0, 5)))
        assert np.array_equal(sequence, scenes[1][2:4, 0, 0, :, :5][None])
        assert sequence.geometry.kept["seconds"] == 30
        volume = read(f"{file}#scene=2")
        assert np.array_equal(volume, scenes[2][0])
        assert volume.geometry.spacing == (2.0, 0.5, 0.25)
        assert volume.geometry.kept["descriptions"] == ("dye 0",)
        reader.computed = 0
        read(f"{file}#scene=1", (slice(2, 4), slice(0, 9), slice(0, 5)))
        assert reader.computed == 2

    def test_more_pixels_than_the_file_can_have(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is refused before an array is made, which would take all memory for its parts alone."""
        stand_in(monkeypatch, "bioio_lif", [random((1, 1, 1, 9, 11))], Boundless)
        (tmp_path / "a.lif").write_bytes(bytes(999))
        with pytest.raises(ValueError, match="it is truncated or damaged"):
            header(tmp_path / "a.lif")
        with pytest.raises(ValueError, match="it is truncated or damaged"):
            parts(tmp_path / "a.lif")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("scene=2", "it has 2 scenes, counted from 0: there is no scene=2"),
        ("scene=1,channel=5", "it has 2 channels, counted from 0: there is no channel=5"),
        ("scene=0,time=1", "it has 1 time, number 0: there is no time=1"),
        ("sceen=1", "must be of scene=N, time=N and channel=N"),
        ("scene=-1", "must be of scene=N, time=N and channel=N"),
        ("scene=1,scene=1", "each at most once"),
        ("scene=" + "9" * 5000, "must be of scene=N, time=N and channel=N"),
        ("channel=1", r"2 scenes: choose one, such as two\.czi#scene=0,channel=1"),
    ],
)
def test_addresses_that_lead_nowhere(two: Path, part: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        header(f"{two}#{part}")
    assert "\n" not in str(caught.value)


def test_a_file_of_the_full_name_comes_first(two: Path) -> None:
    other = two.with_name("two.czi#scene=1")
    write(two.with_name("grey.png"), Picture(random((1, 4, 5), "uint8")))
    two.with_name("grey.png").rename(other)
    with pytest.raises(ValueError, match="its name has none of"):
        header(other)
    other.rename(two.with_name("a#scene=0.png"))
    assert header(two.with_name("a#scene=0.png")).shape == (1, 4, 5)


def test_other_formats_take_no_part(tmp_path: Path) -> None:
    write(tmp_path / "a.png", random((1, 4, 5), "uint8"))
    with pytest.raises(ValueError, match=r"a file of png is one picture: leave out #scene=0"):
        header(tmp_path / "a.png#scene=0")
    with pytest.raises(FileNotFoundError, match=r"there is no picture .*b\.png#scene=0"):
        header(tmp_path / "b.png#scene=0")


def test_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nd2").touch()
    monkeypatch.setitem(sys.modules, "bioio_nd2", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"\.nd2 needs the plugin bioio-nd2 .*: pip install bioio-nd2$"
    ):
        header(tmp_path / "a.nd2")
    (tmp_path / "a.czi").touch()
    monkeypatch.setitem(sys.modules, "pylibCZIrw", None)
    monkeypatch.delitem(sys.modules, "bbdm.pictures.formats.czi", raising=False)
    with pytest.raises(
        ModuleNotFoundError, match=r"^\.czi needs pylibCZIrw, which is not installed: pip install"
    ):
        header(tmp_path / "a.czi")
    monkeypatch.setitem(sys.modules, "bioio", None)
    monkeypatch.delitem(sys.modules, "bbdm.pictures.formats.bioio", raising=False)
    with pytest.raises(
        ModuleNotFoundError, match=r"from Python 3\.11 on, needs bioio, .*: pip install"
    ) as caught:
        header(tmp_path / "a.nd2")
    assert "bbdm[bioio]" in str(caught.value) or "pip install -U bioio" in str(caught.value)
