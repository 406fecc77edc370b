"""Pairs that a network was trained on do not calibrate its intervals, as far as its run's records tell."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm import BridgeSampler, Intervals, load_checkpoint
from bbdm.data.config import PicturesConfig
from bbdm.data.pairs import load_dataset
from bbdm.data.survey import survey
from bbdm.evaluation.unseen import SeenPairsError, check_unseen
from tests.conftest import SIZE, MakePairs, MakeTrainer, newest, tiny_unet


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
        (newest(trainer), ""),
        *((tmp_path / each, " in .*w.run/config.json") for each in ("w.pt", "w.run/last.pt")),
    ):
        with pytest.raises(SeenPairsError, match=f"these 4 pairs were in training, by their names{where}: calibrate"):
            calibrate(file, items(4, 0))
        assert calibrate(file, items(4, 1)).pairs == 4
    assert calibrate(tmp_path / "alone/w.pt", items(4, 0)).pairs == 4


def test_files_that_the_command_looked_at_are_refused_by_their_digest(
    make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path
):
    """Other files of the same names are not: validation pairs may be numbered as those of training are."""
    trainer = make_trainer("w.run", epochs=1)
    trainer.fit()
    trainer.save(tmp_path / "w.pt")
    trained, others = (make_pairs(tmp_path / name, 4) for name in ("pairs", "others"))
    assert trained.names_digest() == others.names_digest()
    with pytest.raises(SeenPairsError, match=r"by their names in .*w.run/config.json"):
        calibrate(tmp_path / "w.pt", others)
    survey(trained, kept=tmp_path / "w.run" / "pictures_train.json")
    with pytest.raises(SeenPairsError, match=r"these 4 pairs were in training, by .*w.run/pictures_train.json"):
        calibrate(tmp_path / "w.pt", trained)
    assert calibrate(tmp_path / "w.pt", others).pairs == 4


def test_pairs_are_known_whatever_they_are_told(make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path):
    """Training was told a class of each pair; the pairs that are to calibrate have none, or one for all."""
    make_pairs(tmp_path / "c", 4)
    (tmp_path / "labels.csv").write_text("name,class\n0,a\n1,b\n2,a\n3,b\n")
    places = f"{tmp_path}/c/A,{tmp_path}/c/B"
    labels = PicturesConfig(classes={"style": f"{tmp_path}/labels.csv"})
    trained = load_dataset("paired", places, image_size=SIZE, pictures=labels)
    trainer = make_trainer(unet=tiny_unet(classes={"style": ("a", "b")}), train=trained, epochs=1)
    trainer.fit()
    file = newest(trainer)
    origin, known = load_checkpoint(file).origin, trained.further
    others = [PicturesConfig(classes={"style": "a"}), labels]
    for told in others:
        pairs = load_dataset("paired", places, image_size=SIZE, pictures=told, known=known)
        with pytest.raises(SeenPairsError, match="these 4 pairs were in training, by their names"):
            check_unseen(pairs, origin)
    survey(trained, kept=tmp_path / "w.run" / "pictures_train.json")
    trainer.save(tmp_path / "w.pt")
    for told in others:
        pairs = load_dataset("paired", places, image_size=SIZE, pictures=told, known=known)
        with pytest.raises(SeenPairsError, match=r"by .*w.run/pictures_train.json"):
            check_unseen(pairs, load_checkpoint(tmp_path / "w.pt").origin)
    content = torch.load(file, weights_only=True)
    del content["training"]["pairs"]["names_alone"]  # as older files are
    torch.save(content, file)
    make_trainer(unet=tiny_unet(classes={"style": ("a", "b")}), train=trained, epochs=2).resume(file)


def test_crops_are_known_by_the_names_of_their_pictures(
    make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path
):
    """Of which there are other numbers."""
    make_pairs(tmp_path / "c", 4, 2 * SIZE)
    places = f"{tmp_path}/c/A,{tmp_path}/c/B"
    crops = PicturesConfig(crop=SIZE, crops_per_picture=2)
    trainer = make_trainer(train=load_dataset("paired", places, image_size=SIZE, pictures=crops), epochs=1)
    trainer.fit()
    assert len(trainer.train) == 8
    with pytest.raises(SeenPairsError, match="these 4 pairs were in training, by their names: calibrate on others, or"):
        check_unseen(load_dataset("paired", places, image_size=SIZE), load_checkpoint(newest(trainer)).origin)


@pytest.mark.parametrize("content", ["", "[]", '{"pairs": 3}', '{"pairs": {"number": 4}}', "\udcff"])
def test_settings_of_another_program_refuse_nothing(make_trainer: MakeTrainer, tmp_path: Path, content: str):
    make_trainer().save(tmp_path / "w.pt")
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    assert calibrate(tmp_path / "w.pt", items(4, 0)).pairs == 4
