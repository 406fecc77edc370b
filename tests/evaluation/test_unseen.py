"""Pairs that a network was trained on do not calibrate its intervals, as far as its run's records tell."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm import BridgeSampler, Intervals, load_checkpoint
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Condition
from bbdm.evaluation.pairs import SeenPairsError, check_unseen
from tests.conftest import SIZE, MakePairs, MakeTrainer, load_pairs, newest, tiny_unet


def calibrate(file: Path, pairs: Any) -> Intervals:
    sampler = BridgeSampler.from_checkpoint(file, solver="sde-dpm2m", steps=1)
    return Intervals.calibrate(sampler, pairs, 0.4, samples=2, bound="conformal")


def items(count: int, seed: int) -> list[tuple[torch.Tensor, ...]]:
    """A map-style data set."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1) for _ in range(count)]


def test_map_style_pairs_of_the_run_are_refused_and_others_are_not(make_trainer: MakeTrainer, tmp_path: Path):
    """By the bytes of items, in a checkpoint to resume from, and in the folder of weights alone."""
    trainer = make_trainer("w.run", train=items(4, 0), epochs=1)
    trainer.fit()
    for place in ("w.pt", "w.run/last.pt", "alone/w.pt"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        trainer.save(tmp_path / place)
    for file, where in (
        (newest(trainer), "their names"),
        *((tmp_path / each, ".*w.run/config.json") for each in ("w.pt", "w.run/last.pt")),
    ):
        with pytest.raises(SeenPairsError, match=f"these 4 pairs were in training, by {where}: calibrate"):
            calibrate(file, items(4, 0))
        assert calibrate(file, items(4, 1)).pairs == 4
    assert calibrate(tmp_path / "alone/w.pt", items(4, 0)).pairs == 4


def test_files_of_the_run_are_refused_by_any_name(make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path):
    """By their names, or by their files with sizes and times; other pictures of other names are not."""
    trainer = make_trainer("w.run", epochs=1)
    trainer.fit()
    trainer.save(tmp_path / "w.pt")
    others, trained = make_pairs(tmp_path / "others", 4), trainer.train
    assert isinstance(trained, Pairs)
    renamed = [Pairs([{**row, "name": f"x{row['name']}"} for row in of.rows], of.spec) for of in (trained, others)]
    for pairs in (trained, others, renamed[0]):
        with pytest.raises(SeenPairsError, match=r"these 4 pairs were in training, by .*w.run/config.json: calibrate"):
            calibrate(tmp_path / "w.pt", pairs)
    assert calibrate(tmp_path / "w.pt", renamed[1]).pairs == 4


def test_pairs_are_known_whatever_they_are_told(make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path):
    """Training was told a class of each pair; the pairs that are to calibrate have none, or one for all."""
    make_pairs(tmp_path / "c", 4)
    (tmp_path / "labels.csv").write_text("name,class\n0,a\n1,b\n2,a\n3,b\n")
    places = f"{tmp_path}/c/A,{tmp_path}/c/B,style={tmp_path}/labels.csv"
    labels = {"style": Condition("class")}
    trained = load_pairs("paired", places, size=SIZE, conditions=labels)
    trainer = make_trainer("w.run", unet=tiny_unet(classes={"style": ("a", "b")}), train=trained, epochs=1)
    trainer.fit()
    trainer.save(tmp_path / "w.pt")
    for told in (labels, {"style": Condition("class", size=("a", "b"), label="a")}, {}):
        pairs = load_pairs("paired", places, size=SIZE, conditions=told)
        for file in (tmp_path / "w.pt", newest(trainer)):
            with pytest.raises(SeenPairsError, match="these 4 pairs were in training, by"):
                check_unseen(pairs, load_checkpoint(file).origin)


def test_crops_are_known_by_the_names_of_their_pictures(
    make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path
):
    """Of which there are other numbers."""
    make_pairs(tmp_path / "c", 4, 2 * SIZE)
    places = f"{tmp_path}/c/A,{tmp_path}/c/B"
    trainer = make_trainer(train=load_pairs("paired", places, crop=SIZE, crops=2), epochs=1)
    trainer.fit()
    assert len(trainer.train) == 8
    with pytest.raises(SeenPairsError, match="these 4 pairs were in training, by their names: calibrate on others, or"):
        check_unseen(load_pairs("paired", places, size=SIZE), load_checkpoint(newest(trainer)).origin)


@pytest.mark.parametrize("content", ["", "[]", '{"pairs": 3}', '{"pairs": {"number": 4}}', "\udcff"])
def test_settings_of_another_program_refuse_nothing(make_trainer: MakeTrainer, tmp_path: Path, content: str):
    make_trainer().save(tmp_path / "w.pt")
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    assert calibrate(tmp_path / "w.pt", items(4, 0)).pairs == 4
