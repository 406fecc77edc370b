"""Training from shards; that any readers give one run, stopped or not, is in tests/hardening."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bbdm.base.scripts import StoppedError
from bbdm.cli import distill, eval, shard, train
from tests.conftest import ROOT, SavePicture
from tests.hardening.killing import assert_content, content
from tests.hardening.scripts import from_shards, make_place, make_small


@pytest.fixture
def place(tmp_path: Path, save_picture: SavePicture, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_small(tmp_path / "small", monkeypatch)
    return make_place(tmp_path / "place", save_picture)


def test_shards_that_changed_are_another_run(place: Path, tmp_path: Path) -> None:
    train.main(from_shards(place, tmp_path, "-e", "1"))
    shard.main(["edge2shoes", str(place / "data"), str(tmp_path / "other" / "shards"), "--pairs_in_shard", "6"])
    with pytest.raises(ValueError, match="was trained with pairs of other names"):
        train.main(from_shards(tmp_path / "other", tmp_path))


def test_a_bad_sample_stops_the_run_or_is_skipped(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    victim = place / "shards" / "train" / "000007.tar"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"000007\.tar is a damaged tar"):  # before the run, when pairs are measured
        train.main(from_shards(place, tmp_path / "measured", "-e", "1"))
    known = "-e", "1", "--spread", "0.5"
    with pytest.raises(StoppedError, match=r"000007\.tar is a damaged tar.*Repair the file; "):
        train.main(from_shards(place, tmp_path / "stopped", *known))
    train.main(from_shards(place, tmp_path / "skipped", "-e", "1", "--skip_bad", "--workers", "1"))
    assert "left out: " in caplog.text
    assert "000007.tar is a damaged tar" in caplog.text
    victim.write_bytes(whole)
    train.main(from_shards(place, tmp_path / "stopped", *known))  # from where it was
    train.main(from_shards(place, tmp_path / "whole", *known))
    assert_content(tmp_path / "stopped", content(tmp_path / "whole"))


def test_distilled_and_evaluated(place: Path, tmp_path: Path) -> None:
    shards, network = place / "shards", str(place / "bridge.pt")
    common = ["--dataset", "shards", "--device", "cpu", "-e", "1", "-b", "4", "--calls", "1", "--image_size", "16"]
    distill.main([network, str(shards), str(tmp_path / "student.pt"), *common])
    scores: list[dict[str, Any]] = []
    for name, source in (("shards", shards), ("piped", f"pipe:cat {shards}/val/{{000000..000003}}.tar")):
        flags = ["--metrics", "psnr", "--device", "cpu", "--steps", "2"]
        eval.main(["shards", str(source), network, str(tmp_path / name), *flags])
        scores.append(json.loads((tmp_path / name / "scores.json").read_text())["scores"])
    assert scores[0] == scores[1]


MANY = """
import resource, sys
from pathlib import Path
from bbdm.data.loading import Batches
from bbdm.data.pairs import load_dataset
import torch
pairs = load_dataset("shards", sys.argv[1], image_size=8)
wanted = int(sys.argv[2])
assert len(pairs) == wanted
order = pairs.order(1)
def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
seen, total, sizes = 0, 0, []
batches = Batches(pairs, 500, torch.device("cpu"))
for batch in batches(i for start in range(0, wanted, 500) for i in order(start, start + 500)):
    y = batch.source
    seen, total = seen + len(y), total + int(((y[:, 0, 0, 0] + 1) * 127.5).round().sum())
    if seen % (wanted // 10) == 0:
        sizes.append(rss())
print(seen, total, *sizes)
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_pairs_in_flat_memory(tmp_path: Path) -> None:
    """1,000 shards of 1,000 pairs of 8 x 8 pixels, which are links to 10 files."""
    from tests.data import tars

    made = [tars.sample(i % 250, f"{i:03d}") for i in range(1000)]
    first = [tars.write(tmp_path / f"{i}.whole", made[i:] + made[:i]) for i in range(10)]
    for i in range(1000):
        (tmp_path / f"{i:06d}.tar").hardlink_to(first[i % 10])
    entries = [{"url": f"{i:06d}.tar", "nsamples": 1000} for i in range(1000)]
    (tmp_path / "index.json").write_text(json.dumps({"shardlist": entries}))
    command = [sys.executable, "-c", MANY, str(tmp_path), str(10**6)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seen, total, *sizes = map(float, done.stdout.split())
    assert (seen, total) == (10**6, 4000 * sum(range(250)))
    print("MiB:", sizes)
    assert max(sizes) < sizes[0] * 1.05 + 5, sizes
