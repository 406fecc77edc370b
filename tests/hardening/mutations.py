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
Mutate = Callable[[bytes, random.Random], bytes]  # of a whole file


def _place(data: bytearray, rng: random.Random) -> int:
    """Somewhere; the beginning and the end, where headers and indices are, are likelier."""
    near = rng.randrange(min(len(data), 1024) or 1)
    return rng.choice([near, max(0, len(data) - 1 - near), rng.randrange(len(data) or 1)])


def _change(data: bytearray, rng: random.Random) -> None:
    place = _place(data, rng)
    match rng.choice(["flip", "flip", "cut", "remove", "insert", "repeat", "erase", "word", "word", "call"]):
        case "flip":
            for _ in range(rng.choice([1, 1, 2, 8])):
                data[_place(data, rng)] ^= 1 << rng.randrange(8)
        case "cut":
            del data[place:]
        case "remove":
            del data[place : place + rng.choice([1, 2, 16, 512])]
        case "insert":
            data[place:place] = rng.randbytes(rng.choice([1, 4, 100]))
        case "repeat":
            other = _place(data, rng)
            data[place:place] = data[other : other + rng.choice([8, 64, 1024])]
        case "erase":
            end = min(len(data), place + rng.choice([4, 64, 1024]))
            data[place:end] = bytes([rng.choice([0, 255])]) * (end - place)
        case "word":
            word = rng.choice(WORDS)
            data[place : place + len(word)] = word
        case _:
            data[place:place] = CALL


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of a file's bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if changed:
            _change(changed, rng)
    return bytes(changed)


def of_values(content: Any, rng: random.Random) -> Any:
    """One to three changes of the values in a JSON document: another value, a missing or a further entry."""
    changed = [copy.deepcopy(content)]
    for _ in range(rng.choice([1, 1, 2, 3])):
        parent, key = changed, 0
        while isinstance(parent[key], dict | list) and parent[key] and (parent is changed or rng.random() < 0.75):
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
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice([value + 1, -value, value * 1000, value * 10**9, value / 2, str(value)])
    if isinstance(value, str) and value and rng.random() < 0.5:
        return rng.choice([value[:-1], value * 3, value.upper(), "../" + value])
    return copy.deepcopy(rng.choice(VALUES))


def of_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with other values or, as often, with other bytes."""
    if rng.random() < 0.5:
        return of_bytes(data, rng)
    return json.dumps(of_values(json.loads(data), rng)).encode()


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
