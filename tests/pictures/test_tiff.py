"""TIFF in all layouts, with what OME, ImageJ and GeoTIFF say besides, compared with tifffile and rasterio."""

import signal
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.control
import rasterio.rpc
import rasterio.transform
import tifffile

from bbdm.pictures import Geometry, Picture, header, read, write
from bbdm.pictures.formats import tifffile as tiff
from tests.pictures.formats import matrix, numbers, read_back

SIZE = 300, 271  # more than a tile
MICRO = {f"PhysicalSize{axis}Unit": "µm" for axis in "XYZ"}


@pytest.mark.parametrize(
    "layout", ["strips", "tiles", "plain tiles", "planes", "pages", "predictor", "big-endian"]
)
def test_layouts(layout: str, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "strips": {"rowsperstrip": 8, "compression": "zlib"},
        "tiles": {"tile": (16, 32), "compression": "lzw"},
        "plain tiles": {"tile": (32, 32)},
        "planes": {"planarconfig": "separate", "rowsperstrip": 16, "compression": "zstd"},
        "pages": {"tile": (32, 16), "compression": "zlib", "planarconfig": None},
        "predictor": {"rowsperstrip": 32, "compression": "zlib", "predictor": True},
        "big-endian": {"byteorder": ">", "rowsperstrip": 16},
    }
    extra: dict[str, Any] = {} if layout == "pages" else {"extrasamples": ["unspecified"] * 3}
    for kind in ("uint8", "uint16", "float32", "int8", "float16"):
        array = numbers((4, 70, 50), kind)
        stored = array if layout in ("planes", "pages") else array.transpose(1, 2, 0)
        tifffile.imwrite(
            tmp_path / "a.tif", stored, photometric="minisblack", **options[layout], **extra
        )
        head, found = header(tmp_path / "a.tif"), read(tmp_path / "a.tif")
        assert (head.windowed, head.photograph) == (True, False)
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        assert found.tobytes() == array.tobytes()
        for *rows, left, right in (
            (9, 41, 30, 33),
            (69, 70, 0, 50),
            (32, 64, 0, 32),
            (63, 65, 31, 32),
        ):
            window = slice(*rows), slice(left, right)
            assert (
                read(tmp_path / "a.tif", window).tobytes()
                == array[(slice(None), *window)].tobytes()
            )
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[:-8])
    with pytest.raises(
        ValueError, match=r"cannot read the picture .*a\.tif: .*(truncated|damaged)"
    ):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_jpeg_in_a_tiff_is_decoded_as_tifffile_does(photometric: str, tmp_path: Path) -> None:
    colours = np.kron(numbers((5, 4, 3), "uint8"), np.ones((8, 8, 1), np.uint8))
    tifffile.imwrite(
        path := tmp_path / "a.tif",
        colours,
        photometric=photometric,
        compression="jpeg",
        rowsperstrip=16,
    )
    wanted = tifffile.imread(path).transpose(2, 0, 1)
    assert (read(path) == wanted).all()
    assert (read(path, (slice(10, 30), slice(3, 9))) == wanted[:, 10:30, 3:9]).all()


def test_ome_axes(tmp_path: Path) -> None:
    """(C, Z, Y, X) in OME's other order, with sizes and units that come back."""
    array = numbers((2, 5, 7, 9), "uint16")
    sizes = {"PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 0.5}
    metadata = {"axes": "ZCYX", **sizes, **MICRO}
    stored = array.transpose(1, 0, 2, 3)
    tifffile.imwrite(tmp_path / "a.ome.tif", stored, metadata=metadata, compression="zlib")
    first = read(tmp_path / "a.ome.tif")
    assert (first == array).all()
    assert (
        read(tmp_path / "a.ome.tif", (slice(2, 4), slice(1, 3), slice(8, 9)))
        == array[:, 2:4, 1:3, 8:]
    ).all()
    assert first.geometry.affine == ((0, 0, 0.1, 0), (0, 0.2, 0, 0), (0.5, 0, 0, 0), (0, 0, 0, 1))
    assert read_back(tmp_path / "b.tif", array, first.geometry).geometry == first.geometry
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.series[0].axes == "CZYX"


@pytest.mark.parametrize(
    ("unit", "axes"), [*product(["um", "micron", "\\u00B5m", "mm", "inch"], [2, 3]), ("", 3)]
)
def test_imagej_sizes_and_units(unit: str, axes: int, tmp_path: Path) -> None:
    array = numbers((2, 5, 7, 9)[-1 - axes :], "uint16")
    stored = array.transpose(1, 0, 2, 3) if axes == 3 else array
    metadata = {"axes": "ZCYX"[-1 - axes :], "spacing": 3.0, "unit": unit}
    tifffile.imwrite(tmp_path / "a.tif", stored, imagej=True, metadata=metadata, resolution=(4, 2))
    found = read(tmp_path / "a.tif")
    assert (found == array).all()
    assert found.geometry.spacing == (3, 0.5, 0.25)[-axes:]
    write(tmp_path / "b.tif", found)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    # which OME would take for micrometres without a unit
    units = {"mm": "mm", "": "pixel", "inch": "in"}
    assert (pixels["PhysicalSizeY"], pixels["PhysicalSizeYUnit"]) == (0.5, units.get(unit, "µm"))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("program", ["ome", "imagej"])
def test_a_time_lapse_is_a_sequence_and_so_is_its_result(
    program: str, compression: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    array = numbers((2, 5, 30, 40), "uint16")
    if program == "ome":
        sizes = {
            "PhysicalSizeX": 0.25,
            "PhysicalSizeY": 0.5,
            **{k: MICRO[k] for k in list(MICRO)[:2]},
        }
        metadata = {"axes": "CTYX", "TimeIncrement": 2, "TimeIncrementUnit": "min", **sizes}
        tifffile.imwrite(
            path, array, ome=True, metadata=metadata, compression=compression, rowsperstrip=8
        )
    else:
        metadata = {"axes": "TCYX", "finterval": 120.0, "unit": "um"}
        stored = array.transpose(1, 0, 2, 3)
        tifffile.imwrite(
            path, stored, imagej=True, metadata=metadata, resolution=(4, 2), compression=compression
        )
    assert header(path).shape == array.shape
    sequence = read(path)
    assert (np.asarray(sequence) == array).all()
    assert sequence.geometry.kept["seconds"] == 120
    assert sequence.geometry.spacing == (120, 0.5, 0.25)
    window = slice(1, 3), slice(9, 21), slice(30, 33)
    assert (np.asarray(read(path, window)) == array[(slice(None), *window)]).all()
    write(tmp_path / "b.tif", sequence)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.series[0].axes == "CTYX"
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert (pixels["TimeIncrement"], pixels["TimeIncrementUnit"]) == (120, "s")
    again = read(tmp_path / "b.tif")
    assert (np.asarray(again) == array).all()
    assert again.geometry.spacing == (120, 0.5, 0.25)


def test_lengths_in_a_unit_that_is_not_known_are_left_out(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "spacing": 3.0, "unit": "furlong"}
    stored = numbers((5, 7, 9), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", stored, imagej=True, metadata=metadata, resolution=(4, 2))
    assert read(tmp_path / "a.tif").geometry.affine is None


def test_resolution_and_nodata(tmp_path: Path) -> None:
    array = numbers((1, 7, 9), "uint16")
    options: dict[str, Any] = {"resolution": ((72, 7), (31, 3)), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", array[0], extratags=[(42113, 2, 0, "7", True)], **options)
    first = read(tmp_path / "a.tif")
    assert first.nodata == 7
    assert read_back(tmp_path / "b.tif", array, first.geometry).geometry == first.geometry
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert (file.pages[0].tags["XResolution"].value, file.pages[0].resolutionunit) == (
            (72, 7),
            3,
        )


@pytest.mark.parametrize(
    ("channels", "kind", "shown"),
    [(3, "uint8", "RGB"), (3, "uint16", "RGB"), (4, "uint16", "MINISBLACK")],
)
def test_other_programs_show_three_channels_as_colours(
    channels: int, kind: str, shown: str, tmp_path: Path
) -> None:
    write(path := tmp_path / "a.tif", Picture(numbers((channels, 6, 5), kind)))
    with tifffile.TiffFile(path) as file:
        assert file.pages.first.photometric.name == shown


def test_a_thumbnail_is_no_page_and_12_bits_are_read(tmp_path: Path) -> None:
    array = numbers((1, 16, 16), "uint16") & 4095
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(array[0], metadata=None)
        file.write(array[0, ::3, 5:], subfiletype=1, metadata=None)
    # 16 of each value
    bits = np.unpackbits(array.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)
    packed = np.packbits(bits[:, 4:]).tobytes()
    tifffile.imwrite(
        tmp_path / "b.tif", iter([packed]), shape=(16, 16), dtype="uint16", bitspersample=12
    )
    assert (read(tmp_path / "a.tif") == array).all()
    assert (read(tmp_path / "b.tif") == array).all()


@pytest.mark.parametrize(
    ("fact", "options"),
    [
        ("0 is white", {"photometric": "miniswhite"}),
        ("turned by a tag", {"extratags": [(274, 3, 1, 3, True)]}),
        ("turned by a tag", {"extratags": [(274, 3, 1, 6, True)], "dtype": "uint16"}),
        (
            "indices of a palette",
            {"photometric": "palette", "colormap": numbers((3, 256), "uint16")},
        ),
        ("of fewer than 8 bits", {"bitspersample": 1, "photometric": "minisblack"}),
    ],
)
def test_values_that_would_be_read_wrongly(
    fact: str, options: dict[str, Any], tmp_path: Path
) -> None:
    options = dict(options)
    grey = numbers((16, 24), "uint8").astype(options.pop("dtype", "uint8"))
    tifffile.imwrite(
        tmp_path / "a.tif", grey > 99 if "bitspersample" in options else grey, **options
    )
    with pytest.raises(
        ValueError, match=rf"a\.tif: it has values .*{fact}: save .* upright grey or RGB"
    ):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("shape", "kind", "nodata"),
    [
        *(((1, *SIZE), "float32", None), ((3, *SIZE), "uint8", 0.0), ((4, *SIZE), "int16", -9.0)),
        *(((3, *SIZE), "float64", float("nan")), ((2, 3, *SIZE), "uint16", None)),
    ],
)
def test_large_pictures_are_written_in_tiles(
    shape: tuple[int, ...],
    kind: str,
    nodata: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiff, "TILED", 50_000)
    monkeypatch.setattr(tiff, "CLASSIC", 400_000)
    np.save(tmp_path / "a.npy", numbers(shape, kind))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    write(tmp_path / "a.tif", Picture(mapped, Geometry(None, "tiff", {}, nodata)))
    found = read(tmp_path / "a.tif")
    assert found.tobytes() == mapped.tobytes()
    assert str(found.nodata) == str(nodata)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].is_tiled
        assert file.is_bigtiff == (mapped.nbytes > 400_000)
        stored = file.asarray()
    assert stored.shape == (
        (*shape[1:], shape[0]) if len(shape) == 3 and shape[0] > 1 else mapped.squeeze().shape
    )


# x of columns and rows, y of columns and rows
PLACE = (10.0, 0.5, 500000.25, -0.25, -10.0, 4649776.0)


@pytest.mark.parametrize(
    ("channels", "kind"), [(1, "uint8"), (3, "uint8"), (13, "int8"), (4, "uint16"), (2, "float64")]
)
def test_all_of_a_geotiff_is_kept(channels: int, kind: str, tmp_path: Path) -> None:
    array = numbers((channels, *SIZE), kind)
    profile = {"count": channels, "height": SIZE[0], "width": SIZE[1], "dtype": array.dtype}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(*PLACE), "nodata": 7}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **place, **profile) as file:
        file.write(array)
    first = read(tmp_path / "a.tif")
    assert (first.shape, first.dtype, first.nodata) == (array.shape, array.dtype, 7)
    assert (first == array).all()
    assert not header(tmp_path / "a.tif").photograph
    x, y, _ = matrix(first.geometry) @ (3, 4, 1)  # row 3, column 4
    with rasterio.open(tmp_path / "a.tif") as file:
        assert (x, y) == rasterio.transform.xy(file.transform, 3, 4, offset="ul")
    assert read_back(tmp_path / "b.tif", array, first.geometry).geometry == first.geometry
    with rasterio.open(tmp_path / "b.tif") as file:
        assert file.crs == rasterio.CRS.from_string("EPSG:32632")
        assert (tuple(file.transform)[:6], file.nodata) == (PLACE, 7)
        assert file.block_shapes[0] == (256, 256)


@pytest.mark.parametrize(
    ("text", "kind", "nodata"),
    [
        ("255.0", "uint8", 255),
        ("-9999", "int16", -9999),
        (" 7 ", "uint16", 7),
        ("nan", "float32", float("nan")),
    ],
)
def test_a_nodata_tag_is_read_as_gdal_reads_it(
    text: str, kind: str, nodata: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", numbers((6, 5), kind), extratags=[(42113, 2, 0, text, True)]
    )
    with rasterio.open(tmp_path / "a.tif") as file:
        assert str(file.nodata) == str(float(nodata))
    assert str(read(tmp_path / "a.tif").nodata) == str(float(nodata))
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "kind"), [("-9999", "uint8"), ("nan", "uint16"), ("1.5", "int16"), ("none", "uint8")]
)
def test_black_is_there_where_the_type_cannot_hold_the_nodata_tag(
    text: str, kind: str, tmp_path: Path
) -> None:
    array = np.zeros((6, 5), kind)
    tifffile.imwrite(tmp_path / "a.tif", array, extratags=[(42113, 2, 0, text, True)])
    with pytest.warns(UserWarning, match=rf"a\.tif: its nodata '{text}' is no value of {kind}"):
        picture = read(tmp_path / "a.tif")
    assert picture.nodata is None
    assert not picture.absent().any()


def test_two_images_of_an_ome_file_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for _ in range(2):
            file.write(numbers((6, 5), "uint8"), photometric="minisblack")
    with pytest.raises(
        ValueError, match=r"a\.ome\.tif: it has 2 images: save each picture as a file of its own"
    ):
        read(tmp_path / "a.ome.tif")


@pytest.mark.parametrize(
    ("compression", "stored"), [("zlib", "ADOBE_DEFLATE"), ("lzw", "LZW"), ("zstd", "ZSTD")]
)
def test_a_result_is_compressed_as_its_source(
    compression: str, stored: str, tmp_path: Path
) -> None:
    array = numbers((1, 16, 24), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", array[0], compression=compression)
    read_back(tmp_path / "b.tif", array, read(tmp_path / "a.tif").geometry)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages.first.compression.name == stored


def test_lossy_sources_have_results_without_loss(tmp_path: Path) -> None:
    colours = numbers((3, 16, 16), "uint8")
    tifffile.imwrite(
        tmp_path / "a.tif", colours.transpose(1, 2, 0), compression="jpeg", photometric="rgb"
    )
    read_back(tmp_path / "b.tif", colours, read(tmp_path / "a.tif").geometry)


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 6, 5), (1, 4, 6, 5)])
def test_the_unit_of_values_stands_in_the_file(shape: tuple[int, ...], tmp_path: Path) -> None:
    write(tmp_path / "b.tif", Picture(numbers(shape, "int16"), unit="µmol"))
    assert read(tmp_path / "b.tif").unit == "µmol"
    write(tmp_path / "a.tif", Picture(numbers(shape, "int16"), unit="HU"))
    assert read(tmp_path / "a.tif").unit == "HU"
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert "unit of values: HU" in str(file.pages.first.tags[270].value)


def test_names_of_channels_come_back_where_their_number_fits(tmp_path: Path) -> None:
    array = numbers((2, 6, 5), "uint16")
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata=metadata, photometric="minisblack")
    source = read(tmp_path / "a.ome.tif")
    assert source.geometry.kept["descriptions"] == ("DAPI", "GFP")
    read_back(tmp_path / "b.tif", array, source.geometry)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        channels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]["Channel"]
        assert [channel["Name"] for channel in channels] == ["DAPI", "GFP"]
    write(tmp_path / "c.tif", Picture(array[:1], source.geometry))
    assert "descriptions" not in read(tmp_path / "c.tif").geometry.kept


BANDS: dict[str, Any] = {
    "driver": "GTiff",
    "count": 2,
    "height": 30,
    "width": 20,
    "dtype": "uint16",
}
UTM: dict[str, Any] = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500, 0, -10, 900)}
ARRAY = numbers((2, 30, 20), "uint16")


class TestGeotiff:
    """What a GeoTIFF says besides its values, by rasterio."""

    def test_ground_control_points_move_with_a_window(self, tmp_path: Path) -> None:
        """As of Sentinel-1 GRD, which has no other place."""
        corners = [(0, 0, 9.0, 50.0), (0, 20, 9.5, 50.1), (30, 0, 9.1, 49.0)]
        points = [rasterio.control.GroundControlPoint(*corner) for corner in corners]
        with rasterio.open(tmp_path / "a.tif", "w", **BANDS, compress="lzw") as file:
            file.write(ARRAY)
            file.gcps = points, rasterio.CRS.from_epsg(4326)
        read(tmp_path / "a.tif", (slice(4, 24), slice(5, 15))).save(tmp_path / "b.tif")
        with rasterio.open(tmp_path / "b.tif") as file:
            found, crs = file.gcps
            assert file.compression.name == "lzw"
        assert [(point.row, point.col, point.x, point.y) for point in found] == [
            (row - 4, column - 5, x, y) for row, column, x, y in corners
        ]
        assert crs.to_epsg() == 4326

    def test_names_tags_and_units_of_bands_are_kept_and_statistics_are_not(
        self, tmp_path: Path
    ) -> None:
        with rasterio.open(tmp_path / "a.tif", "w", **BANDS, **UTM) as file:
            file.write(ARRAY)
            file.descriptions = ("VV", "VH")
            file.units = ("dB", "dB")
            file.update_tags(ACQUIRED="2020-01-02")
            file.update_tags(2, POLARISATION="VH", STATISTICS_MEAN="3")
        source = read(tmp_path / "a.tif")
        assert source.unit == "dB"
        source.save(tmp_path / "b.tif")
        with rasterio.open(tmp_path / "b.tif") as file:
            assert (file.descriptions, file.units) == (("VV", "VH"), ("dB", "dB"))
            assert file.tags()["ACQUIRED"] == "2020-01-02"
            assert file.tags(2) == {"POLARISATION": "VH"}
        write(tmp_path / "c.tif", Picture(ARRAY[:1], source.geometry))
        with rasterio.open(tmp_path / "c.tif") as file:
            assert (file.descriptions, file.tags(1)) == ((None,), {})

    @pytest.mark.parametrize(
        ("kind", "nodata"), [("uint8", 0), ("int16", -32768), ("float32", float("nan"))]
    )
    def test_pixels_outside_an_internal_mask_are_absent(
        self, kind: str, nodata: float, tmp_path: Path
    ) -> None:
        array = numbers((2, 30, 20), kind)
        inside = np.indices((30, 20)).sum(axis=0) % 3 > 0
        profile = {**BANDS, **UTM, "dtype": kind}
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(tmp_path / "a.tif", "w", **profile) as file,
        ):
            file.write(array)
            file.write_mask(inside)
        picture = read(tmp_path / "a.tif", (slice(3, 20), slice(2, 19)))
        window = (slice(3, 20), slice(2, 19))
        assert str(picture.nodata) == str(float(nodata))
        assert (picture.absent() == ~inside[window]).all()
        expected = array[(slice(None), *window)]
        # is kept apart from it
        expected = np.where(expected == nodata, expected + expected.dtype.type(1), expected)
        assert (np.asarray(picture)[:, inside[window]] == expected[:, inside[window]]).all()

    def test_the_nodata_of_a_file_with_a_mask_is_its_own(self, tmp_path: Path) -> None:
        """Pixels outside of the mask have no value, and those with the file's nodata have none either."""
        profile = {**BANDS, **UTM, "dtype": "uint8", "nodata": 255}
        index = np.arange(600).reshape(30, 20)
        array = np.where(index < 300, 255, 7).astype(np.uint8)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(tmp_path / "a.tif", "w", **profile) as file,
        ):
            file.write(np.stack([array, array]))
            file.write_mask(index % 2 == 0)
        picture = read(tmp_path / "a.tif")
        assert picture.nodata == 255
        assert (picture.absent() == ((index < 300) | (index % 2 == 1))).all()
        assert (np.asarray(picture)[:, ~picture.absent()] == 7).all()

    @pytest.mark.skipif(sys.platform != "linux", reason="sizes of files are limited by Linux")
    def test_a_file_that_gdal_could_not_write_is_no_result(self, tmp_path: Path) -> None:
        """As on a full disk, of which GDAL says nothing when it closes a file."""
        import resource

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(OSError, match=r"(cannot be read again|cannot write).*a\.tif"):
                write(
                    tmp_path / "a.tif",
                    Picture(numbers((3, 90, 90), "uint16"), Geometry(None, "geotiff")),
                )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert not list(tmp_path.iterdir())

    def test_a_scale_is_not_applied_and_said(self, tmp_path: Path) -> None:
        with rasterio.open(tmp_path / "a.tif", "w", **BANDS, **UTM) as file:
            file.write(ARRAY)
            file.scales = (0.5, 0.5)
        with pytest.warns(
            UserWarning,
            match=r"a\.tif: bands have a scale of 0\.5 and an offset of 0, which are not",
        ):
            source = read(tmp_path / "a.tif")
        assert (source == ARRAY).all()
        source.save(tmp_path / "b.tif")  # of the same values
        with rasterio.open(tmp_path / "b.tif") as file:
            assert file.scales == (0.5, 0.5)

    def test_rational_polynomials_move_with_a_window(self, tmp_path: Path) -> None:
        """As of optical satellites; without an affine the file is known by their tag."""
        numbers_of = dict.fromkeys(
            ("line_num_coeff", "line_den_coeff", "samp_num_coeff", "samp_den_coeff"), [1.0] * 20
        )
        scales = dict.fromkeys(
            ("height_scale", "lat_scale", "long_scale", "line_scale", "samp_scale"), 1.0
        )
        offsets = {
            "height_off": 0.0,
            "lat_off": 1.0,
            "long_off": 2.0,
            "line_off": 15.0,
            "samp_off": 10.0,
        }
        with rasterio.open(tmp_path / "a.tif", "w", **BANDS) as file:
            file.write(ARRAY)
            errors: dict[str, Any] = {"err_bias": None, "err_rand": None}
            file.rpcs = rasterio.rpc.RPC(**numbers_of, **scales, **offsets, **errors)
        read(tmp_path / "a.tif", (slice(4, 24), slice(5, 15))).save(tmp_path / "b.tif")
        with rasterio.open(tmp_path / "b.tif") as file:
            assert (file.rpcs.line_off, file.rpcs.samp_off, file.rpcs.long_off) == (11, 5, 2)
