"""Where a session of ONNX Runtime keeps its values, by a stand-in for its names."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bbdm.runtime import sampler as session

CARD, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("providers", "device"),
    [(None, ("cuda", 0)), ([(CARD, {"device_id": 1}), CPU], ("cuda", 1)), ([CPU], ("cpu", 0))],
)
def test_values_stay_on_the_device_of_the_first_provider(
    providers: Any, device: tuple[str, int], monkeypatch: pytest.MonkeyPatch
):
    seen: list[Any] = []
    binding = SimpleNamespace(
        bind_ortvalue_input=lambda name, value: seen.append((name, value)),
        bind_output=lambda name, *device: seen.append((name, device)),
        get_outputs=lambda: ["result"],
    )

    def started(path: Path, options: Any, providers: list[Any]) -> Any:
        names, outputs = [name for name, _ in providers], [SimpleNamespace(name="b")]
        run = {"io_binding": lambda: binding, "run_with_iobinding": seen.append}
        return SimpleNamespace(get_providers=lambda: names, get_outputs=lambda: outputs, **run)

    values = SimpleNamespace(ortvalue_from_numpy=lambda array, *device: device)
    stand_in = SimpleNamespace(InferenceSession=started, SessionOptions=SimpleNamespace, OrtValue=values)
    stand_in.get_available_providers = lambda: [CARD, CPU]
    monkeypatch.setattr(session, "onnxruntime", stand_in)
    made = session.Session(Path("a.onnx"), session.with_options(providers), None)
    assert made.run({"a": made.put(np.zeros(1))}) == ["result"]
    assert seen == [("a", device), ("b", device), binding]
