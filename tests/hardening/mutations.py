"""What can happen to a file: bytes that change, move, vanish or come in, and JSON of other values."""

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

from tests.hardening.watch import CANARY

CALL = f"cbuiltins\nexec\n(S'import {CANARY}'\ntR.".encode()  # a pickle that calls code
WORDS = [
    struct.pack(kind, value)
    for kind in ("<I", "<q", "<Q", ">I")
    for value in (0, 1, 2**31 - 1, 2**20)
]
WORDS += [struct.pack("<Q", 2**63), struct.pack("<q", -1), b"\xff" * 4]
VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        3,
        7,
        2**15,
        2**31,
        2**63,
        10**30,
        0.5,
        -1e308,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        "x",
        "abridge",
        "../../a",
        "\0",
        "kl",
        [],
        {},
        [1, 2],
        [2**40],
        {"a": 1},
        [[]],
        "9" * 5000,
    ),
]
Mutate = Callable[[bytes, random.Random], bytes]  # of a whole file


def _index(data: bytearray, rng: random.Random) -> int:
    """Of any byte; the beginning and the end, where headers and indices are, are likelier."""
    near = rng.randrange(min(len(data), 1024))
    return rng.choice([near, len(data) - 1 - near, rng.randrange(len(data))])


def _edit(data: bytearray, rng: random.Random) -> None:
    """A few flipped bits, or another piece in place of one."""
    if rng.random() < 0.2:
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[_index(data, rng)] ^= 1 << rng.randrange(8)
        return
    first = _index(data, rng)
    other = _index(data, rng)
    length = rng.choice([1, 4, 64, 1024])
    word = rng.choice(WORDS)
    removed, piece = rng.choice(
        [
            (len(data), b""),
            (length, b""),
            (0, rng.randbytes(min(length, 100))),
            (0, data[other : other + length]),
            (length, bytes([rng.choice([0, 255])]) * min(length, len(data) - first)),
            (len(word), word),
            (len(word), word),
            (0, CALL),
        ]
    )
    data[first : first + removed] = piece


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of a file's bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if changed:
            _edit(changed, rng)
    return bytes(changed)


def of_bit(data: bytes, rng: random.Random) -> bytes:
    """One flipped bit anywhere."""
    changed = bytearray(data)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def of_values(content: Any, rng: random.Random) -> Any:
    """One to three changes of the values in a JSON document: another value, a missing or a further entry."""
    changed = [copy.deepcopy(content)]
    for _ in range(rng.choice([1, 1, 2, 3])):
        parent, key = changed, 0
        while (
            isinstance(parent[key], dict | list)
            and parent[key]
            and (parent is changed or rng.random() < 0.75)
        ):
            parent = parent[key]
            key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        action = rng.random()
        if action < 0.7 or parent is changed:
            parent[key] = _other(parent[key], rng)
        elif action < 0.85:
            del parent[key]
        elif isinstance(parent, dict):
            parent[rng.choice(["x", "kind", "config", "version", f"{key}s"])] = _other(None, rng)
        else:
            parent.extend(copy.deepcopy(parent) * rng.choice([1, 1000]))
    return changed[0]


def _other(value: Any, rng: random.Random) -> Any:
    """One that nothing else has: what is put into it stays there."""
    near: list[Any] = []
    if isinstance(value, int | float) and not isinstance(value, bool):
        near = [value + 1, -value, value * 1000, value * 10**9, value / 2, str(value)]
    elif isinstance(value, str) and value:
        near = [value[:-1], value * 3, value.upper(), "../" + value]
    return copy.deepcopy(rng.choice(near if near and rng.random() < 0.5 else VALUES))


def of_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with other values or, as often, with other bytes."""
    if rng.random() < 0.5:
        return of_bytes(data, rng)
    return json.dumps(of_values(json.loads(data), rng)).encode()
