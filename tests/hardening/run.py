"""Mutated files of one kind, in a process of their own: python -m tests.hardening.run KIND COUNT SEED FOLDER.

It prints an Outcome as JSON. The same seed makes the same files; the name of a fault has its number.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

from tests.hardening.subjects import FILES, PICTURES, clean, quiet
from tests.hardening.watch import Outcome, Watch, judge


def run(kind: str, count: int, seed: int, folder: Path, first: int = 0) -> Outcome:
    """Mutate the file ``count`` times; number ``first`` is the first."""
    make, _ = {**FILES, **PICTURES}[kind]
    subject = make(clean(folder))
    whole = subject.path.read_bytes()
    wanted = subject.read()
    subject.read()  # what is imported and kept at a second call
    outcome, watch = Outcome(), Watch()
    for index in range(first, first + count):
        subject.path.write_bytes(whole)
        data = subject.mutate(whole, random.Random(f"{seed} {index}"))
        subject.path.write_bytes(data)

        def read() -> bool:
            found = subject.read()
            return found == wanted or not subject.exact

        judge(read, len(data), watch, outcome, f"{kind} {index}", subject.room)
    return outcome


if __name__ == "__main__":
    quiet()
    print(json.dumps(asdict(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))))
