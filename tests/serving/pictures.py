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
HOSTILE: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 415),
    "text": (b"hello", 415),
    "zip": (b"PK\x03\x04" + bytes(100), 415),
    "gif": (encoded(noise(0), "gif"), 415),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
    "truncated": (GOOD[: len(GOOD) // 2], 400),
    "truncated jpeg": (encoded(noise(0), "jpeg")[:-200], 400),
    "signature alone": (GOOD[:8], 415),
    "damaged": (GOOD[:60] + bytes([GOOD[60] ^ 255]) + GOOD[61:], 400),
    "bomb": (png_of(50000, 50000, bytes(1000)), 422),
    "more pixels than Pillow takes": (png_of(2**31 - 1, 2**31 - 1, b""), 422),
    "thin": (png_of(1, 4096, bytes(2 * 4096)), 422),  # 8 x 4096 where padded
    "no pixels": (png_of(8, 8, b""), 400),
    "float": (encoded(Image.new("F", (8, 8)), "tiff"), 415),
}
