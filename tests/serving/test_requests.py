"""Requests of `bbdm serve`: pictures, queries and headers that are refused, and settings."""

import numpy as np
import pytest
from PIL import Image

from bbdm.cli import serve
from bbdm.serving.requests import HEADER_BYTES, RequestError, check_headers, read_picture, read_query
from tests.serving.pictures import HOSTILE, SERVED, SIZE, encoded, png_of


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_good_picture_is_refused(name: str):
    data, status = HOSTILE[name]
    with pytest.raises(RequestError) as caught:
        read_picture(data, SERVED)
    assert caught.value.status == status, caught.value


def test_pictures_are_read_and_a_bomb_is_not():
    """10 MB of zeros in 10 KB."""
    for kind in ("png", "jpeg", "webp"):
        read = read_picture(encoded(Image.new("L", (SIZE, 2 * SIZE), 99), kind), SERVED)
        assert (read.mode, read.size) == ("RGB", (SIZE, 2 * SIZE))
        assert abs(int(np.asarray(read).mean()) - 99) <= 1
    with pytest.raises(RequestError, match=r"at most 4096 pixels, .* multiples of 8; got 4000 x 2500"):
        read_picture(png_of(4000, 2500, bytes(10**7)), SERVED)


def test_queries_are_checked():
    assert read_query([("solver", "ddim"), ("seed", "7")], SERVED) == ("ddim", 10, 7)
    assert read_query([("steps", "3"), ("seed", "0")], SERVED) == ("dpm2m", 3, 0)
    *unset, drawn = read_query([], SERVED)
    assert unset == [None, None]
    assert 0 <= drawn < 2**32
    for given, message in (
        (("steps", "21"), r"steps must be an integer from 1 to 20, got '21'"),
        (("steps", "-1"), "steps must be an integer"),
        (("steps", "1e1"), "steps must be an integer"),
        (("steps", "٣"), "steps must be an integer"),
        (("seed", str(2**63)), "seed must be an integer from 0"),
        (("seed", "9" * 5000), "seed must be an integer from 0"),
        (("solver", "../dpm2m"), r"solver must be one of .*dpm2m.*; got '\.\./dpm2m'"),
        (("model", "x"), "the query takes solver, steps, seed, each once; got 'model'"),
    ):
        with pytest.raises(RequestError, match=message) as caught:
            read_query([given], SERVED)
        assert caught.value.status == 422
    with pytest.raises(RequestError, match="each once; got 'seed'"):
        read_query([("seed", "1"), ("seed", "2")], SERVED)


def test_headers_are_checked():
    check_headers([("content-length", "4096"), ("host", "x")], SERVED)
    for header, status in (
        (("Content-Length", "4097"), 413),
        (("content-length", "9" * 30), 413),
        (("content-length", "-1"), 400),
        (("x", "y" * HEADER_BYTES), 431),
    ):
        with pytest.raises(RequestError) as caught:
            check_headers([header], SERVED)
        assert caught.value.status == status


def test_settings_are_checked():
    assert serve.parse(["c.pt"]).host == "127.0.0.1"
    for flag in ("--replicas", "--max_batch_size", "--max_queued", "--max_bytes", "--max_pixels", "--max_steps"):
        with pytest.raises(ValueError, match=f"{flag[2:]} must be at least 1, got 0"):
            serve.parse(["c.pt", flag, "0"])
    for port, message in (("-1", "at least 0, got -1"), ("65536", "at most 65535, got 65536")):
        with pytest.raises(ValueError, match=f"port must be {message}"):
            serve.parse(["c.pt", "--port", port])
