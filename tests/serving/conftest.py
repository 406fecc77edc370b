"""What the app and the server show, and pictures of requests, good and bad."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbdm import BridgeSampler
from tests.conftest import noise
from tests.onnx.exports import checkpoint as saved_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bridge of 100 times, of pictures of 16 x 16."""
    return saved_checkpoint(tmp_path_factory.mktemp("served") / "c.pt")


@pytest.fixture(scope="session")
def sampler(checkpoint: Path) -> BridgeSampler:
    """That of the checkpoint."""
    return BridgeSampler.from_checkpoint(checkpoint)


def same(picture: Any, output: Any) -> bool:
    """Whether two pictures, or the first in a PNG, differ by rounding alone."""
    picture = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
    assert picture.size == output.size
    return (
        int(
            np.abs(
                np.asarray(picture.convert("RGB"), int) - np.asarray(output.convert("RGB"), int)
            ).max()
        )
        <= 1
    )


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(width: int, height: int, rows: bytes) -> bytes:
    """A PNG file whose header claims a size, with compressed rows of its own."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tree(folder: Path) -> set[str]:
    """All paths below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


GOOD = encoded(noise(0))
FOLDERS = [
    "",
    "../",
    "..\\",
    "/",
    "\\",
    "C:",
    "C:\\",
    "\\\\host\\share\\",
    "a/../../",
    "a\\..\\..\\",
    "./",
    "~/",
    "%2e%2e/",
]
STEMS = ["x", "", ".", "..", "x\0y", "con", "x\ny", "\u202egnp"]
HOSTILE_NAMES = [
    folder + stem + suffix for folder in FOLDERS for stem in STEMS for suffix in ("", ".png")
]
HOSTILE = {
    "empty": b"",
    "text": b"hello",
    "zip": b"PK\x03\x04" + bytes(100),
    "gif": encoded(noise(0), "gif"),
    "truncated": GOOD[: len(GOOD) // 2],
    "truncated jpeg": encoded(noise(0), "jpeg")[:-200],
    "damaged": GOOD[:60] + bytes([GOOD[60] ^ 255]) + GOOD[61:],
    "bomb": png_of(50000, 50000, bytes(1000)),
    "more pixels than Pillow takes": png_of(2**31 - 1, 2**31 - 1, b""),
    "no pixels": png_of(8, 8, b""),
}
