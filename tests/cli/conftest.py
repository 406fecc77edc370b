"""What tests of several commands use."""

from typing import Any

import pytest

from bbdm import BridgeSampler


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures of each call of the sampler."""
    calls: list[int] = []
    original = BridgeSampler.__call__

    def counted(self: BridgeSampler, source: Any, *args: Any, **settings: Any) -> Any:
        calls.append(len(source))
        return original(self, source, *args, **settings)

    monkeypatch.setattr(BridgeSampler, "__call__", counted)
    return calls
