"""Pairs that a network was trained on do not calibrate its intervals, as far as its run's records tell."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm import load_checkpoint
from bbdm.data.pairs import Pairs, as_pairs
from bbdm.data.spec import Condition
from bbdm.evaluation.unseen import SeenPairsError, check_unseen
from tests.conftest import SIZE, MakePairs, MakeTrainer, load_pairs, newest, tiny_unet


def check(file: Path, pairs: Any, seen_by: str | None = None) -> None:
    """That pairs are refused for a network's file, by a record, or are not."""
    pairs, origin = as_pairs(pairs), load_checkpoint(file).origin
    if seen_by is None:
        check_unseen(pairs, origin)
        return
    with pytest.raises(SeenPairsError, match=f"these {len(pairs)} pairs were in training, by {seen_by}: calibrate on"):
        check_unseen(pairs, origin)


def items(seed: int) -> list[tuple[torch.Tensor, ...]]:
    """A map-style data set."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1) for _ in range(4)]


def test_map_style_pairs_of_the_run_are_refused_and_others_are_not(make_trainer: MakeTrainer, tmp_path: Path):
    """By the bytes of items, in a checkpoint to resume from, and in the folder of weights alone."""
    trainer = make_trainer("w.run", train=items(0), epochs=1)
    trainer.fit()
    for file in ("w.pt", "w.run/last.pt", "alone/w.pt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        trainer.save(tmp_path / file)
    check(newest(trainer), items(0), "their names")
    for file in ("w.pt", "w.run/last.pt"):
        check(tmp_path / file, items(0), ".*w.run/config.json")
        check(tmp_path / file, items(1))
    check(tmp_path / "alone/w.pt", items(0))
    for content in ("", "[]", '{"pairs": 3}', '{"pairs": {"number": 4}}', "\udcff"):  # of another program
        (tmp_path / "alone" / "config.json").write_text(content, errors="surrogateescape")
        check(tmp_path / "alone/w.pt", items(0))


def test_files_of_the_run_are_refused_by_any_name(make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path):
    """By their names, or by their files with sizes and times; other pictures of other names are not."""
    trainer = make_trainer("w.run", epochs=1)
    trainer.fit()
    trainer.save(tmp_path / "w.pt")
    others, trained = make_pairs(tmp_path / "others", 4), trainer.train
    assert isinstance(trained, Pairs)
    renamed = [Pairs([{**row, "name": f"x{row['name']}"} for row in of.rows], of.spec) for of in (trained, others)]
    for pairs in (trained, others, renamed[0]):
        check(tmp_path / "w.pt", pairs, ".*w.run/config.json")
    check(tmp_path / "w.pt", renamed[1])


def test_pairs_are_known_whatever_is_made_of_them(make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path):
    """Training had a class of each pair, and crops; those that are to calibrate have none, or one for all."""
    make_pairs(tmp_path / "c", 4, 2 * SIZE)
    (tmp_path / "labels.csv").write_text("name,class\n0,a\n1,b\n2,a\n3,b\n")
    folders = f"{tmp_path}/c/A,{tmp_path}/c/B,style={tmp_path}/labels.csv"
    labels = {"style": Condition("class")}
    trained = load_pairs("paired", folders, crop=SIZE, crops=2, conditions=labels)
    trainer = make_trainer("w.run", unet=tiny_unet(classes={"style": ("a", "b")}), train=trained, epochs=1)
    trainer.fit()
    trainer.save(tmp_path / "w.pt")
    assert len(trainer.train) == 8
    for conditions in (labels, {"style": Condition("class", size=("a", "b"), label="a")}, {}):
        pairs = load_pairs("paired", folders, size=SIZE, conditions=conditions)
        check(newest(trainer), pairs, "their names" if conditions is labels else ".*w.run/config.json")
        check(tmp_path / "w.pt", pairs, ".*w.run/config.json")
