"""What a translation does when its workers are lost; no Ray is started."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bbdm.base.scripts import StoppedError
from bbdm.serving import translation
from bbdm.serving.sources import Sources, Where
from bbdm.serving.translation import MOST_FRUITLESS

NAMES = ["a", "b"]


@pytest.mark.parametrize("lost", [MOST_FRUITLESS - 1, MOST_FRUITLESS])
def test_attempts_that_make_nothing_are_repeated(lost: int, monkeypatch: pytest.MonkeyPatch):
    """Such as while Ray still sends work to a machine that is gone."""
    import ray.exceptions as exceptions

    attempts: list[list[str]] = []
    files: list[str] = []

    def outcomes(task: Any, blocks: list[Sources]) -> Iterator[tuple[int, dict[str, str]]]:
        missing = [name for block in blocks for name in block]
        attempts.append(missing)
        if len(attempts) <= lost:
            raise exceptions.RayError("a machine is lost")
        files.extend(map(translation.result_of, missing))
        yield len(missing), {}

    monkeypatch.setattr(translation, "_outcomes", outcomes)
    task: Any = SimpleNamespace(at_once=8, results=SimpleNamespace(existing=lambda _: files))
    sources = {name: Where(f"{name}.png") for name in NAMES}
    bar = SimpleNamespace(update=lambda *_: None, refresh=lambda: None, n=0)
    if lost < MOST_FRUITLESS:
        assert translation._make(task, sources, set(), {}, bar) == {}
        assert attempts == [NAMES] * (lost + 1)
    else:
        with pytest.raises(StoppedError, match="makes no more results, 2 are missing: a machine is lost"):
            translation._make(task, sources, set(), {}, bar)
