"""The lengths in a file of DICOM, checked before a library asks for memory by them."""

from __future__ import annotations

import struct
from pathlib import Path

PREAMBLE, MARK = 128, b"DICM"  # where a file of DICOM has which bytes
SYNTAX, PIXELS = (2, 0x10), (0x7FE0, 0x10)  # elements: how the others are written, and the values
ITEM, LAST = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)  # elements that begin a part of a sequence, and end a sequence
IMPLICIT, BIG, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
SHORT = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"}
SHORT |= {b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}  # types of values whose lengths have 2 bytes
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # 4 bytes
UNDEFINED = 2**32 - 1


def is_dicom(path: Path) -> bool:
    """Whether a file begins as one of DICOM."""
    with path.open("rb") as file:
        file.seek(PREAMBLE)
        return file.read(len(MARK)) == MARK


def check(path: Path) -> None:
    """Raise ValueError where an element (PS3.5, section 7) is longer than the rest of the file."""
    size = path.stat().st_size
    syntax, order, explicit, fragments = "", "<", True, False
    with path.open("rb") as file:
        file.seek(PREAMBLE + len(MARK))
        while len(head := file.read(8)) == 8:
            (group,) = struct.unpack_from(order + "H", head)
            if group != SYNTAX[0] and explicit and order == "<":  # of group 2 all are explicit and little-endian
                if not syntax or syntax == DEFLATED:
                    raise ValueError(f"{path.name} has the transfer syntax {syntax!r}, which is not read")
                explicit, order = syntax != IMPLICIT, ">" if syntax == BIG else "<"
            tag = struct.unpack_from(order + "HH", head)
            kind, length = head[4:6], struct.unpack_from(order + "I", head, 4)[0]
            if explicit and tag[0] != ITEM[0]:
                if kind not in SHORT | LONG:
                    raise ValueError(f"{path.name} is damaged at byte {file.tell() - 8}")
                wide = file.read(4) if kind in LONG else b""
                length = struct.unpack(*((order + "I", wide) if wide else (order + "H", head[6:])))[0]
            if length == UNDEFINED and explicit and kind == b"UN" and tag[0] != ITEM[0]:
                return  # what follows is implicit
            fragments = (fragments and tag != LAST) or (tag == PIXELS and length == UNDEFINED)
            if length == UNDEFINED or (tag == ITEM and not fragments) or (explicit and kind == b"SQ"):
                continue  # what is inside comes next
            if length > size - file.tell():
                raise ValueError(f"{path.name} is damaged or cut off: an element of {length} bytes ends after it")
            value = file.read(length) if tag == SYNTAX else b""
            syntax = value.decode("latin-1").strip(" \0") or syntax
            file.seek(length - len(value), 1)
