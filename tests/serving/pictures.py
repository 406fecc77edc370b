"""Pictures of requests, good and bad."""

import io
import struct
import zlib
from typing import Any

from PIL import Image

from tests.conftest import noise


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(width: int, height: int, rows: bytes) -> bytes:
    """A PNG file whose header claims a size, with compressed rows of its own."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


GOOD = encoded(noise(0))
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
