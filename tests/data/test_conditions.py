"""What examples have besides the source: images with their values, classes and tokens."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.data.examples import known_conditions
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Spec, read_kinds
from bbdm.networks.conditions import ConditionsConfig
from tests.data.making import SIZE, Array, load, located, pixels, save, valued

COUNT, WIDTH = 4, 3
ALL = "sar=image,style=class,text=tokens"
DATA = "A,B,sar=sar,style=labels.csv,text=text"
NETWORK = ConditionsConfig(
    images={"sar": 1},
    classes={"style": ("10", "oil", "ink")},
    tokens={"text": WIDTH},
    drop={"text": 0.1},
)


def tokens(number: int) -> Array:
    """As many as the number, and one."""
    return np.arange(1, 1 + (number + 1) * WIDTH, dtype=np.float32).reshape(-1, WIDTH)


def grey(number: int, width: int = SIZE) -> Array:
    return pixels(100 + number, SIZE, width, 1)


def write_labels(*labels: str) -> None:
    lines = (f"{i},{label}" for i, label in enumerate(labels))
    Path("labels.csv").write_text("\n".join(["name,class", *lines, "x,wax"]))


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs in A and B, sar/, text/ and labels.csv."""
    monkeypatch.chdir(tmp_path)
    for i in range(COUNT):
        for side in "AB":
            save(Path(side) / f"{i}.png", pixels(i))
        save(Path(f"sar/{i}.png"), grey(i))
        save(Path(f"text/{i}.npy"), np.concatenate([tokens(i), np.zeros((i, WIDTH), np.float32)]))
    write_labels("ink", "oil", "ink", "10")


def pairs_of(conditions: str = ALL, data_dir: str = DATA, **settings: Any) -> Pairs:
    return load(data_dir, conditions=read_kinds(conditions), **settings)


class TestOfFiles:
    def test_colours_become_grey_where_a_network_takes_grey(self) -> None:
        save(Path("sar/1.png"), pixels(1))
        seen = {"sar": replace(read_kinds("sar=image")["sar"], size=1)}
        example = load("A,B,sar=sar", conditions=seen).read(1)
        assert (
            example.conditions["sar"].numpy() == np.asarray(Image.open("sar/1.png").convert("L"))
        ).all()

    def test_sizes_and_classes_are_found(self) -> None:
        """Classes that are numbers come first, by their value; tokens end where only zeros follow."""
        pairs = pairs_of()
        classes = {"style": ("10", "ink", "oil")}
        assert pairs.further == ConditionsConfig(
            images={"sar": 1}, classes=classes, tokens={"text": WIDTH}
        )
        (batch,) = Batches(pickle.loads(pickle.dumps(pairs)), COUNT, torch.device("cpu")).stored()
        for i, text in enumerate(batch.conditions["text"].numpy()):
            assert (text == np.pad(tokens(i), [(0, COUNT - 1 - i), (0, 0)])).all()
        assert (
            batch.conditions["sar"].numpy() == np.stack([grey(i)[None] for i in range(COUNT)])
        ).all()
        assert (batch.conditions["style"].dtype, batch.conditions["style"].tolist()) == (
            torch.int64,
            [1, 2, 1, 0],
        )
        with pytest.raises(ValueError, match="rows have no column 'depth': add ',depth=WHERE'"):
            pairs_of("depth=image")
        write_labels("10", "9", "b", "Ä")
        again = pairs_of()
        assert again.further.classes["style"] == ("9", "10", "b", "Ä")
        assert len({each.names_digest() for each in (pairs, again, pairs_of("sar=image"))}) == 3

    @pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
    def test_images_are_resized_and_cropped_as_sources_are(self, direction: Any) -> None:
        found = pairs_of(size=5, direction=direction).read(1).conditions["sar"].numpy()
        assert (
            found[0]
            == np.asarray(Image.fromarray(grey(1)).resize((5, 5), Image.Resampling.BILINEAR))
        ).all()
        for i in range(COUNT):
            save(Path(f"sar/{i}.png"), pixels(i)[..., 0])
        for seed in range(3):
            example = pairs_of(crop=4, direction=direction).read(2, seed)
            assert torch.equal(example.conditions["sar"], example.source[:1])

    def test_images_have_values_of_their_own(self) -> None:
        decibels = (
            np.linspace(-25, 0, SIZE * SIZE, dtype=np.float32).reshape(1, SIZE, SIZE).repeat(2, 0)
        )
        for i in range(COUNT):
            save(Path(f"db/{i}.npy"), decibels)
            save(Path(f"unit/{i}.npy"), decibels / 25)
        unit = decibels.astype(np.float64) / 12.5 + 1
        bands = np.stack([unit[0], decibels[1] / 100])
        for values, wanted in (("-25:0", unit), ("-25:0;-100:100", bands), ("p0:100", unit)):
            found = pairs_of(f"sar=image@{values}", "A,B,sar=db").read(0).conditions["sar"]
            np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)
        assert (
            pairs_of("sar=image", "A,B,sar=unit").read(0).conditions["sar"].numpy() == decibels / 25
        ).all()
        with pytest.raises(
            ValueError,
            match=r"sar of A/0\.png has values from -25 to 0 in float32: give their range",
        ):
            pairs_of("sar=image", "A,B,sar=db").read(0)

    @pytest.mark.parametrize("how", [{"slices": "axial"}, {"axes": 3}], ids=str)
    def test_of_volumes(self, how: dict[str, Any]) -> None:
        for name in ("C", "D", "depth"):
            save(Path(name) / "0.npy", located(0, (1, 3, 4, 5)) + np.int16(name == "D"))
        conditions = read_kinds("depth=image@0:4000,style=class")
        pairs = valued("C,D,depth=depth,style=labels.csv", crop=2, conditions=conditions, **how)
        example = pairs.read(len(pairs) - 1, 5)
        assert torch.equal(example.conditions["depth"], example.source)
        whole = pairs.conditions(pairs.rows[0])["depth"].numpy()
        np.testing.assert_allclose(whole, located(0, (1, 3, 4, 5)) / 2000 - 1, atol=1e-6)


WRONG: list[tuple[str, Any, str]] = [  # a file, its content or array, message
    (
        "text/2.npy",
        np.ones((2, 4), np.float32),
        r"text of A/2\.png: tokens must be \(L, 3\) .* \(2, 4\) of float32",
    ),
    (
        "text/2.npy",
        np.ones((2, 3), np.int32),
        r"text of A/2\.png: tokens must be \(L, 3\) .* got \(2, 3\) of int32",
    ),
    ("text/2.npy", np.full((2, 3), np.nan, np.float32), r"text of A/2\.png: tokens must .* finite"),
    (
        "sar/2.png",
        np.zeros((8, 5), np.uint8),
        r"sar/2\.png and .*B/2\.png lie on different grids, 8 x 5 and 8 x 8",
    ),
    ("sar/2.png", "no picture", r"sar/2\.png"),
    ("labels.csv", "0,a\n1,b\n2, \n3,c", r"line 3 of labels\.csv must be NAME,CLASS"),
]


@pytest.mark.parametrize(("file", "content", "message"), WRONG)
def test_what_does_not_fit_is_named(file: str, content: Any, message: str) -> None:
    Path(file).write_text(content) if isinstance(content, str) else save(Path(file), content)
    with pytest.raises(ValueError, match=message):
        pairs_of(crop=4).read(2)


class TestOfANetwork:
    """Conditions that a trained network knows."""

    @staticmethod
    def known(data_dir: str = DATA, network: ConditionsConfig = NETWORK, **labels: str) -> Pairs:
        rows = read_rows("paired", data_dir)
        conditions = known_conditions(network, read_kinds("sar=image@0:51"), rows, labels)
        return Pairs(rows, Spec(conditions=conditions))

    def test_have_its_classes_and_values(self) -> None:
        pairs = self.known()
        assert pairs.further.classes == NETWORK.classes
        assert [int(pairs.read(i).conditions["style"]) for i in range(COUNT)] == [2, 1, 2, 0]
        wanted = (grey(1)[None] / 25.5 - 1).clip(-1, 1)
        np.testing.assert_allclose(pairs.read(1).conditions["sar"].numpy(), wanted, atol=1e-6)

    def test_a_label_may_be_that_of_all(self) -> None:
        """And what may be left out is left out."""
        pairs = self.known("A,B,sar=sar", style="oil")
        assert [int(pairs.read(i).conditions["style"]) for i in range(COUNT)] == [1] * COUNT
        assert "text" not in pairs.read(0).conditions
        assert pairs.digest() != self.known("A,B,sar=sar", style="ink").digest()
        numbered = replace(NETWORK, classes={"style": 12})
        assert int(self.known(network=numbered, style="10").read(0).conditions["style"]) == 10

    @pytest.mark.parametrize(
        ("data_dir", "labels", "message"),
        [
            (DATA, {}, r"A/0\.png: 'ink' is no class of 'style', which are oil, wax"),
            (DATA, {"style": "comik"}, "the network takes 'sar' .*oil, wax.*, got style=comik"),
            (DATA, {"stile": "oil"}, "the network takes .*, got stile=oil"),
            (
                "A,B,style=labels.csv",
                {},
                r"this network takes .*: give a column 'sar', such as ',sar=WHERE'",
            ),
        ],
    )
    def test_what_it_does_not_know_is_named(self, data_dir: str, labels: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.known(
                data_dir, replace(NETWORK, classes={"style": ("oil", "wax")}), **labels
            ).read(0)
