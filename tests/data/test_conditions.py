"""What examples have besides the source: images with their values, classes and tokens."""

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm.data.conditions import known_conditions
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from bbdm.data.rows import read_rows
from bbdm.data.spec import Condition, Spec, read_conditions
from bbdm.networks.conditions import ConditionsConfig
from tests.data.making import SIZE, SOURCE, TARGET, Array, load, located, pixels, save

COUNT, WIDTH = 4, 3
LABELS = ["ink", "oil", "ink", "10"]
ALL = "sar=image,style=class,text=tokens"
NETWORK = ConditionsConfig(
    images={"sar": 1}, classes={"style": ("10", "oil", "ink")}, tokens={"text": WIDTH}, drop={"text": 0.1}
)
FOUND = ConditionsConfig(images={"sar": 1}, classes={"style": ("10", "ink", "oil")}, tokens={"text": WIDTH})


def tokens(number: int) -> Array:
    """As many as the number, and one."""
    return np.arange(1, 1 + (number + 1) * WIDTH, dtype=np.float32).reshape(-1, WIDTH)


def grey(number: int, height: int = SIZE, width: int = SIZE) -> Array:
    return pixels(100 + number, height, width, 1)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs in A and B, sar/, text/ and labels.csv."""
    monkeypatch.chdir(tmp_path)
    for i in range(COUNT):
        for side in "AB":
            save(Path(side) / "x" / f"{i}.png", pixels(i))
        save(Path("sar/x") / f"{i}.png", grey(i))
        save(Path("text/x") / f"{i}.npy", np.concatenate([tokens(i), np.zeros((i, WIDTH), np.float32)]))
    write_labels()
    return tmp_path


def write_labels(*labels: str) -> None:
    lines = ["name,class", *(f"x/{i},{label}" for i, label in enumerate(labels or LABELS)), "others,wax"]
    Path("labels.csv").write_text("\n".join(lines))


def where(*columns: str) -> str:
    every = {"sar": "sar=sar", "style": "style=labels.csv", "text": "text=text"}
    return ",".join(["A,B", *(every[name] for name in columns or every)])


def pairs_of(conditions: str = ALL, data_dir: str = "", **settings: Any) -> Pairs:
    return load(data_dir or where(), conditions=read_conditions(conditions), **settings)


@pytest.mark.usefixtures("root")
class TestOfFiles:
    def test_sizes_and_classes_are_found(self) -> None:
        """Classes that are numbers come first, by their value; tokens end where only zeros follow."""
        pairs = pairs_of()
        assert pairs.further == FOUND
        assert pairs.complete.conditions["style"].classes == ("10", "ink", "oil")
        example = pickle.loads(pickle.dumps(pairs)).read(3)
        assert (example.conditions["sar"].numpy() == grey(3)[None]).all()
        assert (example.conditions["text"].numpy() == tokens(3)).all()
        assert (example.conditions["style"].dtype, example.conditions["style"].shape) == (torch.int64, ())
        assert [int(pairs.read(i).conditions["style"]) for i in range(COUNT)] == [1, 2, 1, 0]
        write_labels("10", "9", "b", "Ä")
        assert pairs_of().further.classes["style"] == ("9", "10", "b", "Ä")

    def test_a_batch_has_zeros_where_tokens_end(self) -> None:
        (batch,) = Batches(pairs_of(), COUNT, torch.device("cpu"))()
        found = batch.conditions["text"].numpy()
        assert found.shape == (COUNT, COUNT, WIDTH)
        for i in range(COUNT):
            assert (found[i] == np.pad(tokens(i), [(0, COUNT - 1 - i), (0, 0)])).all()
        assert batch.conditions["style"].tolist() == [1, 2, 1, 0]
        wanted = np.stack([grey(i)[None] for i in range(COUNT)]) / 127.5 - 1
        np.testing.assert_allclose(batch.conditions["sar"].numpy(), wanted, atol=1e-6)

    @pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
    def test_images_are_resized_as_sources_are(self, direction: Any) -> None:
        found = pairs_of(size=5, direction=direction).read(1).conditions["sar"]
        assert (found.numpy()[0] == np.asarray(Image.fromarray(grey(1)).resize((5, 5), Image.Resampling.BILINEAR))).all()

    def test_images_are_cropped_as_sources_are(self, root: Path) -> None:
        for i in range(COUNT):
            save(root / "sar/x" / f"{i}.png", pixels(i)[..., 0])
        pairs = pairs_of(crop=4)
        for seed in range(3):
            example = pairs.read(2, seed)
            assert torch.equal(example.conditions["sar"], example.source[:1])
        save(root / "sar/x/1.png", grey(0, 5, SIZE))
        with pytest.raises(ValueError, match=r"sar/x/1\.png and .*B/x/1\.png lie on different grids, 5 x 8 and 8 x 8"):
            pairs_of(crop=4).read(1)

    def test_images_have_values_of_their_own(self, root: Path) -> None:
        decibels = np.linspace(-25, 0, SIZE * SIZE, dtype=np.float32).reshape(1, SIZE, SIZE).repeat(2, 0)
        for path in (root / "sar/x").iterdir():
            save(path.with_suffix(".npy"), decibels)
            path.unlink()
        unit = decibels.astype(np.float64) / 12.5 + 1
        for text, wanted in (
            ("sar=image@-25:0", unit),
            ("sar=image@-25:0;-100:100", np.stack([unit[0], decibels[1] / 100])),
            ("sar=image@p0:100", unit),
        ):
            found = pairs_of(text).read(0).conditions["sar"]
            np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)
        with pytest.raises(ValueError, match=r"sar of A/x/0\.png has values from -25 to 0 in float32: give their range"):
            pairs_of().read(0)
        save(root / "sar/x/0.npy", decibels / 25)  # floats that are in the unit range
        assert (pairs_of().read(0).conditions["sar"].numpy() == decibels / 25).all()

    def test_digests_are_of_conditions_too(self, root: Path) -> None:
        before = pairs_of().digest(), pairs_of().names_digest()
        save(root / "text/x/0.npy", tokens(0) + 1)
        after = pairs_of().digest(), pairs_of().names_digest()
        assert (after[0] != before[0], after[1] == before[1]) == (True, True)
        write_labels(*reversed(LABELS))
        assert pairs_of().digest() != after[0]
        assert pairs_of().names_digest() != after[1]
        assert pairs_of("style=class").digest() != pairs_of("sar=image").digest()


def _wider(root: Path) -> None:
    save(root / "text/x/2.npy", np.ones((2, WIDTH + 1), np.float32))


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {  # a change, settings, message
    "no column": (None, {"data_dir": "A,B,sar=sar"}, "rows have no column 'style': add ',style=WHERE'"),
    "no token": (_wider, {}, r"text of A/x/2\.png: tokens must be \(L, 3\) of floats, got \(2, 4\) of float32"),
    "integers": (
        lambda root: save(root / "text/x/2.npy", np.ones((2, WIDTH), np.int32)),
        {},
        r"text of A/x/2\.png: tokens must be \(L, 3\) of floats, got \(2, 3\) of int32",
    ),
    "nan": (
        lambda root: save(root / "text/x/2.npy", tokens(1) * np.float32(np.nan)),
        {},
        r"text of A/x/2\.png: tokens have NaN or infinity",
    ),
    "damaged": (lambda root: (root / "sar/x/2.png").write_bytes(b"no picture"), {}, r"sar/x/2\.png"),
    "channels": (
        lambda root: save(root / "sar/x/2.npy", np.zeros((2, SIZE, SIZE), np.float32)) and (root / "sar/x/2.png").unlink(),
        {},
        r"sar of A/x/2\.png has 2 channels, and others have 1",
    ),
    "empty label": (lambda _: write_labels("a", "b", " ", "c"), {}, r"line 4 of labels\.csv must be NAME,CLASS"),
    "volume": (
        lambda root: save(root / "sar/x/2.npy", np.zeros((1, 2, SIZE, SIZE), np.float32))
        and (root / "sar/x/2.png").unlink(),
        {"crop": 4},
        r"sar/x/2\.npy and .*B/x/2\.png lie on different grids, 2 x 8 x 8 and 8 x 8",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(case: str, root: Path) -> None:
    change, settings, message = WRONG[case]
    if change is not None:
        change(root)
    with pytest.raises(ValueError, match=message):
        pairs_of(**settings).read(2)


@pytest.mark.usefixtures("root")
class TestOfANetwork:
    """Conditions that a trained network knows."""

    @staticmethod
    def known(*columns: str, network: ConditionsConfig = NETWORK, **labels: str) -> Pairs:
        rows = read_rows("paired", where(*columns) if columns != ("",) else "A,B")
        stored = read_conditions("sar=image@0:51")
        return Pairs(rows, Spec(conditions=known_conditions(network, stored, rows, labels)))

    def test_have_its_classes_and_values(self) -> None:
        pairs = self.known()
        assert pairs.further.classes == NETWORK.classes
        assert [int(pairs.read(i).conditions["style"]) for i in range(COUNT)] == [2, 1, 2, 0]
        wanted = (grey(1)[None] / 25.5 - 1).clip(-1, 1)
        np.testing.assert_allclose(pairs.read(1).conditions["sar"].numpy(), wanted, atol=1e-6)

    def test_a_label_may_be_that_of_all(self) -> None:
        """And what may be left out is left out."""
        pairs = self.known("sar", style="oil")
        assert [int(pairs.read(i).conditions["style"]) for i in range(COUNT)] == [1] * COUNT
        assert "text" not in pairs.read(0).conditions
        assert pairs.digest() != self.known("sar", style="ink").digest()
        numbered = replace(NETWORK, classes={"style": 12})
        assert int(self.known("sar", network=numbered, style="10").read(0).conditions["style"]) == 10

    @pytest.mark.parametrize(
        ("columns", "labels", "message"),
        [
            (("sar", "style"), {}, r"A/x/0\.png: 'ink' is no class of 'style', which are oil, wax"),
            (("sar",), {"style": "comik"}, "the network is told 'sar' .*oil, wax.*, got style=comik"),
            (("sar",), {"stile": "oil"}, "the network is told .*, got stile=oil"),
            (("style",), {}, r"this network is told .*: give a column 'sar', such as ',sar=WHERE'"),
        ],
    )
    def test_what_it_does_not_know_is_named(
        self, columns: tuple[str, ...], labels: Mapping[str, str], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            self.known(*columns, network=replace(NETWORK, classes={"style": ("oil", "wax")}), **labels).read(0)


@pytest.mark.parametrize("settings", [{"slices": "axial"}, {"axes": 3}], ids=str)
def test_conditions_of_volumes(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("A", "B", "sar"):
        save(Path(name) / "0.npy", located(0, (1, 3, 4, 5)) + np.int16(name == "B"))
    Path("labels.csv").write_text("0,mr")
    conditions = {"sar": Condition("image", SOURCE), "style": Condition("class")}
    spec = {"source": SOURCE, "target": TARGET, "crop": 2, "conditions": conditions, **settings}
    pairs = load("A,B,sar=sar,style=labels.csv", **spec)
    example = pairs.read(2 if "slices" in settings else 0, 5)
    assert torch.equal(example.conditions["sar"], example.source)
    assert int(example.conditions["style"]) == 0
    whole = pairs.pictures.conditions(0)["sar"].numpy()
    np.testing.assert_allclose(whole, located(0, (1, 3, 4, 5)) / 2000 - 1, atol=1e-6)
