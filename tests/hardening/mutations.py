"""What can happen to a file: bytes that change, move, vanish or come in, and JSON of other values."""

import copy
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hardening.watch import CANARY, ROOM

CALL = f"cbuiltins\nexec\n(S'import {CANARY}'\ntR.".encode()  # a pickle that calls code
WORDS = [struct.pack(kind, value) for kind in ("<I", "<q", "<Q", ">I") for value in (0, 1, 2**31 - 1, 2**20)]
WORDS += [struct.pack("<Q", 2**63), struct.pack("<q", -1), b"\xff" * 4]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 3, 7, 2**15, 2**31, 2**63, 10**30, 0.5, -1e308, 1e308, float("nan"), float("inf")),
    *("", "x", "abridge", "../../a", "\0", "kl", [], {}, [1, 2], [2**40], {"a": 1}, [[]], "9" * 5000),
]
Mutation = Callable[[bytearray, random.Random], None]
Mutate = Callable[[bytes, random.Random], bytes]  # of a whole file


def _place(data: bytearray, rng: random.Random) -> int:
    """Somewhere; the beginning and the end, where headers and indices are, are likelier."""
    near = rng.randrange(min(len(data), 1024) or 1)
    return rng.choice([near, max(0, len(data) - 1 - near), rng.randrange(len(data) or 1)])


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    place = _place(data, rng)
    del data[place : place + rng.choice([1, 2, 16, 512])]


def _insert(data: bytearray, rng: random.Random) -> None:
    data[(place := _place(data, rng)) : place] = rng.randbytes(rng.choice([1, 4, 100]))


def _repeat(data: bytearray, rng: random.Random) -> None:
    place, other = _place(data, rng), _place(data, rng)
    data[place:place] = data[other : other + rng.choice([8, 64, 1024])]


def _erase(data: bytearray, rng: random.Random) -> None:
    place = _place(data, rng)
    end = min(len(data), place + rng.choice([4, 64, 1024]))
    data[place:end] = bytes([rng.choice([0, 255])]) * (end - place)


def _word(data: bytearray, rng: random.Random) -> None:
    word, place = rng.choice(WORDS), _place(data, rng)
    data[place : place + len(word)] = word


def _call(data: bytearray, rng: random.Random) -> None:
    data[(place := _place(data, rng)) : place] = CALL


BYTES: list[Mutation] = [_flip, _flip, _cut, _remove, _insert, _repeat, _erase, _word, _word, _call]


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of a file's bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if changed:
            rng.choice(BYTES)(changed, rng)
    return bytes(changed)


def of_values(content: Any, rng: random.Random) -> Any:
    """One to three changes of the values in a JSON document: another value, a missing or a further entry."""
    changed = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        parent, key = changed, None
        while isinstance(parent, dict | list) and parent:
            key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
            if not isinstance(parent[key], dict | list) or not parent[key] or rng.random() < 0.25:
                break
            parent = parent[key]
        if not isinstance(parent, dict | list) or key is None:
            return _value(rng)
        action = rng.random()
        if action < 0.7:
            parent[key] = _other(parent[key], rng)
        elif action < 0.85:
            del parent[key]
        elif isinstance(parent, dict):
            parent[rng.choice(["x", "kind", "config", "version", str(key) + "s"])] = _value(rng)
        else:
            parent.extend(copy.deepcopy(parent) * rng.choice([1, 1000]))
    return changed


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice([value + 1, -value, value * 1000, value * 10**9, value / 2, str(value)])
    if isinstance(value, str) and value and rng.random() < 0.5:
        return rng.choice([value[:-1], value * 3, value.upper(), "../" + value])
    return _value(rng)


def _value(rng: random.Random) -> Any:
    """One that nothing else has: what is put into it stays there."""
    return copy.deepcopy(rng.choice(VALUES))


def of_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with other values or, as often, with other bytes."""
    if rng.random() < 0.5:
        return of_bytes(data, rng)
    return json.dumps(of_values(json.loads(data), rng)).encode()


# Tars, of which each header has a checksum

BLOCK = 512


def _base_256(number: int) -> bytes:
    """A number as GNU tar writes what has no room in octal, and what is negative."""
    return (b"\xff" if number < 0 else b"\x80") + (number % 2**88).to_bytes(11, "big")


CHECKSUM = slice(148, 156)
USTAR = b"ustar"  # at 257 of a header
FIELDS: list[tuple[int, int, list[bytes]]] = [  # of a header: place, length and values
    (0, 100, [b"", b"a", b"../../a.source.png", b"/a.target.png", b"00.source.png", b"\xff" * 100, b"a\nb.target.png"]),
    (124, 12, [b"0", b"1", b"777", b"77777777777", b"x", *(_base_256(n) for n in (-BLOCK, -1, 2**40, 2**62, 2**80))]),
    (156, 1, [bytes([kind]) for kind in b"0123456xgLKSDMV\0"]),
    (157, 100, [b"", b"../../a", b"/etc/hosts"]),
    (257, 8, [b"ustar  \0", bytes(8)]),
    (345, 155, [b"..", b"/", b"b" * 155]),
]
RECORDS = ["size=-512", f"size={10**19}", "path=../../a.source.png", "path=00.source.png", "hdrcharset=BINARY"]
RECORDS += ["GNU.sparse.major=1", "GNU.sparse.size=99999999999", "GNU.sparse.map=0,9,9", "x" * 600 + "="]


def of_tar(data: bytes, rng: random.Random) -> bytes:
    """A tar with other bytes or, as often, with another header whose checksum fits."""
    headers = [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == USTAR]
    if rng.random() < 0.5 or not headers:
        return of_bytes(data, rng)
    changed, at = bytearray(data), rng.choice(headers)
    header = changed[at : at + BLOCK]
    if rng.random() < 0.7:
        place, length, values = rng.choice(FIELDS)
        header[place : place + length] = rng.choice(values).ljust(length, b"\0")
        changed[at : at + BLOCK] = _checked(header)
    else:  # an extended header before it
        text = "".join(f"{len(record) + 5:03d} {record}\n" for record in rng.choices(RECORDS, k=2)).encode()
        header[124:136], header[156:157] = f"{len(text):011o}\0".encode(), rng.choice([b"x", b"g", b"L"])
        changed[at:at] = _checked(header) + text.ljust(-len(text) % BLOCK + len(text), b"\0")
    return bytes(changed)


def _checked(header: bytearray) -> bytes:
    header[CHECKSUM] = b" " * 8
    header[CHECKSUM] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


@dataclass(frozen=True)
class Subject:
    """A file in a folder of its own.

    ``read`` returns what was read, which is right where it equals what the whole file gave. ``exact`` is
    False where a change of values makes another valid file, or where a format has no checksums. ``room`` is
    the memory besides twice the file's size: a small picture may say that it is a large white one.
    """

    path: Path
    read: Callable[[], Any]
    mutate: Mutate = of_bytes
    exact: bool = True
    room: int = ROOM
