"""Mutated files of one kind, in a process of their own.

python -m tests.hardening.run KIND COUNT SEED FOLDER [FIRST] prints an Outcome as JSON, or one for each of
several kinds and counts with semicolons between. The same seed makes the same files. The name of a fault has
its number: with it as FIRST and COUNT 1, the file is left in FOLDER.
"""

import json
import random
import shutil
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from tests.hardening.subjects import SUBJECTS
from tests.hardening.watch import Outcome, Watch, judge


def run(kind: str, count: int, seed: int, folder: Path, first: int = 0) -> Outcome:
    """Mutate the file ``count`` times; number ``first`` is the first."""
    make, _ = SUBJECTS[kind]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subject = make(folder)
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

        judge(read, len(data), watch, outcome, f"{kind} {index}", subject.room, str(folder))
    return outcome


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # odd settings are as good as none here
    kinds, counts, seed, folder, *first = sys.argv[1:]
    for kind, count in zip(kinds.split(";"), counts.split(";"), strict=True):
        print(json.dumps(asdict(run(kind, int(count), int(seed), Path(folder), *map(int, first)))))
