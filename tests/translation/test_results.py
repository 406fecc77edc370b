"""What results are: their seeds, their kinds, the settings of intervals, and the manifest beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bbdm import ABridge, BridgeSampler
from bbdm.translation.results import Job, Record, make, missing
from tests.conftest import tiny_unet


def test_kinds_are_those_of_calls_and_distributions():
    sampler = BridgeSampler(tiny_unet(), ABridge(num_steps=50), "sde-dpm2m", 2)
    sources = [*torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1]
    seeds = [[3, 9, 5], [4, 1, 2]]
    found = sampler.distribution(sources, 3, seeds)
    results = make(sampler, sources, seeds, ["std", "mean"])
    assert [list(each) for each in results] == [["std", "mean"]] * 2
    samples = make(sampler, sources, [[9], [1]], batch_size=1)
    for kind, expected in {"mean": found.mean, "std": found.std, "sample": sampler(sources, [9, 1])}.items():
        for result, each in zip(samples if kind == "sample" else results, expected, strict=True):
            torch.testing.assert_close(result[kind], each, rtol=0, atol=1e-5)


def test_a_job_is_done_kind_by_kind(tmp_path: Path):
    paths = {kind: tmp_path / f"{kind}.png" for kind in ("mean", "std")}
    job = Job(0, (1, 2), paths)
    assert (job.path, missing([job])) == (paths["mean"], [job])
    paths["mean"].touch()
    assert missing([job]) == [Job(0, (1, 2), {"std": paths["std"]})]


@pytest.mark.parametrize("further", [False, True])
def test_results_of_other_settings_are_refused(further: bool, tmp_path: Path):
    """Or without settings; of results that may become more, those that no settings name."""
    folder = tmp_path / "out"
    Record(folder, {"seed": 0}, ["a.png"], False, further).close()
    assert not folder.exists()  # no result was made
    record = Record(folder, {"seed": 0}, ["a.png"], False, further)
    (folder / "a.png").touch()
    record.close()
    for names, existing in ((["b.png"], set()), (["a.png", "b.png"], {"a.png"})):  # a stays known
        assert Record(folder, {"seed": 0}, names, False, further).existing == existing
    with pytest.raises(ValueError, match=r"results of other settings \(seed 0, now 1\)"):
        Record(folder, {"seed": 1}, ["b.png"], False, further)
    (folder / "c.png").touch()
    if further:
        with pytest.raises(ValueError, match=r"c\.png exists, but no .*settings\.json says what made it"):
            Record(folder, {"seed": 0}, ["c.png"], False, further)
    record = Record(folder, {"seed": 1}, ["b.png", "c.png"], True, further)
    assert (record.existing, (folder / "c.png").exists(), (folder / "a.png").exists()) == (set(), False, True)
    content = json.loads((folder / "settings.json").read_text())
    assert content == {"settings": {"seed": 1}, **({"results": ["b.png", "c.png"]} if further else {})}
    (folder / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"a\.png exists, but no .*settings\.json says what made it"):
        Record(folder, {"seed": 1}, ["a.png"], False, further)
