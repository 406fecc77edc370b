"""Record what bbdm does, and compare it with what another version of it did.

    python tests/recorded.py OLD.json                      # run all cases, write what they did
    python tests/recorded.py NEW.json --compare OLD.json   # the same, print what differs; status 1 if any
    python tests/recorded.py SOME.json -k geotiff          # the cases whose names have this word

It uses the bbdm that Python imports, as PYTHONPATH says. A case is a call, or some commands, in a folder of
small files. It records results, messages, exit statuses and the content of files. Two runs of the same code
on one machine write the same. It is for those who write a part anew; no test runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHOWN = 300  # characters of a value in the printed differences
OFFLINE = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "100",  # of help
}


def prepare(folder: Path) -> None:
    """Make imports find bbdm as Python does, and the cases; keep other libraries quiet and offline."""
    if Path(sys.path[0]).resolve() == ROOT / "tests":
        del sys.path[0]  # its folders have names of packages, such as onnx
    sys.path.append(str(ROOT))
    import bbdm  # noqa: F401  (before the next line, which must not decide it)

    sys.path.insert(0, str(ROOT))
    os.environ.update(OFFLINE)
    os.environ["HF_HOME"] = os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")


def record(word: str) -> dict[str, Any]:
    """What the cases did whose names have a word, by name."""
    with tempfile.TemporaryDirectory(prefix="bbdm-recorded-") as temporary:
        folder = Path(temporary).resolve()
        prepare(folder)
        import torch

        from tests.recording import cases, running, world

        torch.set_num_threads(1)
        world.make_world(folder / "world")
        cases.make_presets_tiny()
        records: dict[str, Any] = {}
        for name, case in cases.CASES.items():
            if word in name:
                began = time.perf_counter()
                records[name] = running.run_case(case, folder / "world", folder / "case")
                print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
    return records


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Print what differs; returns the number of differences."""
    from tests.recording.running import differences

    count = 0
    for name in sorted({*old, *new}):
        found: dict[tuple[str, str], list[str]] = {}  # where a value became another
        for path, before, after in differences(old.get(name), new.get(name)):
            found.setdefault((str(before), str(after)), []).append(path)
        for (before, after), paths in found.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            print(
                f"\n{name}: {paths[0]}{more}\n  old: {before[:SHOWN]!r}\n  new: {after[:SHOWN]!r}"
            )
            count += len(paths)
    return count


def main() -> int:
    """Record, and compare if asked; returns the exit status."""
    parser = argparse.ArgumentParser(description="Record what bbdm does.")
    parser.add_argument("output", type=Path, help="the file of the record")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="a record of before")
    parser.add_argument(
        "-k", dest="word", default="", help="run the cases whose names have this word"
    )
    settings = parser.parse_args()
    output = settings.output.resolve()
    old: dict[str, Any] = json.loads(settings.compare.read_text()) if settings.compare else {}
    began = time.perf_counter()
    new = record(settings.word)
    output.write_text(json.dumps(new, indent=1, sort_keys=True))
    print(f"{len(new)} cases in {time.perf_counter() - began:.0f} s: {output}")
    if settings.compare is None:
        return 0
    count = compare({name: each for name, each in old.items() if settings.word in name}, new)
    print(f"{count} differences")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
