"""The output of a profile and its trace."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from bbdm.training import bridge, profiling
from bbdm.training.profiling import Profile
from tests.conftest import MakeTrainer

PARTS = ["waiting for pairs", "augment, encode", "forward", "backward", "optimizer", "average of weights"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "WAIT", 2)
    monkeypatch.setattr(profiling, "WARMUP", 2)
    monkeypatch.setattr(profiling, "RECORDED", 4)


def test_prints_where_the_time_goes(
    make_trainer: MakeTrainer, pairs: Pairs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of steps whose waiting and encoding are made to take 40 and 20 ms."""
    spent: dict[str, list[float]] = {"waiting for pairs": [], "augment, encode": []}  # milliseconds of calls

    def delayed(name: str, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            time.sleep(seconds)
            result = function(*arguments)
            spent[name].append(1000 * (time.perf_counter() - began))
            return result

        return call

    monkeypatch.setattr(Batches, "_placed", delayed("waiting for pairs", 0.02, Batches._placed))  # of two sides
    monkeypatch.setattr(bridge, "encode", delayed("augment, encode", 0.02, bridge.encode))  # of both
    trainer = make_trainer(epochs=5, callbacks=[Profile()])
    trainer.fit()
    lines = capsys.readouterr().out.splitlines()
    first = re.fullmatch(r"4 steps of 2 pairs, ([\d.]+) ms each, ([\d.]+) images/s", lines[0])
    assert first is not None
    assert float(first[2]) == pytest.approx(2000 / float(first[1]), rel=0.01)
    parts = {line[:20].strip(): re.findall(r"[\d.]+", line[20:]) for line in lines[1:8]}
    assert list(parts) == [*PARTS, "rest"]
    milliseconds = {name: float(numbers[0]) for name, numbers in parts.items()}
    for name, least in {"waiting for pairs": 40, "augment, encode": 20}.items():
        assert least <= milliseconds[name] < least + 2 * max(spent[name])  # on a busy machine, sleep takes longer
    assert sum(milliseconds.values()) == pytest.approx(float(first[1]), abs=1)
    assert sum(float(numbers[1]) for numbers in parts.values()) == pytest.approx(100, abs=1)
    assert lines[8] == "the slowest operators:"
    rows = [line.split() for line in lines[9:] if "convolution" in line]
    assert rows
    path = trainer.folder / "trace.json"
    assert lines[-1] == f"{path} shows all of these steps in https://ui.perfetto.dev"
    events = json.loads(path.read_text())["traceEvents"]
    assert {"forward", "backward", "optimizer"} <= {event.get("name") for event in events}


def test_a_run_that_is_too_short_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="a profile takes 8 optimizer steps, and 6 are left"):
        make_trainer(epochs=3, callbacks=[Profile()]).fit()
