"""ONNX Runtime on a card: a stand-in for its sessions, whose values say where they are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from bbdm.runtime import session
from bbdm.runtime.sampler import OnnxBridgeSampler
from tests.onnx.exports import SIZE, checkpoint, export

pytestmark = pytest.mark.nightly  # for the export

CARD, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
SOURCE = np.random.default_rng(0).uniform(-1, 1, (2, 3, SIZE, SIZE)).astype(np.float32)
STEPS = 4
Array = npt.NDArray[Any]


class Value:
    """An OrtValue; copies from and to a card are in ``copies``."""

    def __init__(self, array: Array, device: str, copies: list[str]) -> None:
        self.array, self.device, self.copies = array, device, copies

    def shape(self) -> list[int]:
        return [*self.array.shape]

    def numpy(self) -> Array:
        if self.device == "cuda":
            self.copies.append(f"from the card {self.array.shape}")
        return self.array


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, str] = {}
        self.made: list[Value] = []

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value

    def bind_output(self, name: str, device: str, number: int) -> None:
        self.outputs[name] = device

    def get_outputs(self) -> list[Value]:
        return self.made


def stand_in(copies: list[str]) -> Any:
    """The names of onnxruntime that sessions use."""

    class InferenceSession:
        def __init__(self, path: Path, options: Any, providers: list[tuple[str, Any]]) -> None:
            self.session = onnxruntime.InferenceSession(path, options, providers=[CPU])
            self.providers = [name for name, _ in providers]
            self.get_outputs = self.session.get_outputs
            self.io_binding = Binding

        def get_providers(self) -> list[str]:
            return self.providers

        def run_with_iobinding(self, binding: Binding) -> None:
            for name, value in binding.inputs.items():
                if value.device != "cuda":
                    raise AssertionError(f"{name} is on the CPU: ONNX Runtime would copy it for each run")
            arrays = {name: value.array for name, value in binding.inputs.items()}
            results = self.session.run([*binding.outputs], arrays)
            pairs = zip(results, binding.outputs.values(), strict=True)
            binding.made = [Value(np.asarray(result), device, copies) for result, device in pairs]

    def put(array: Array, device: str, number: int) -> Value:
        if device == "cuda":
            copies.append(f"to the card {array.shape}")
        return Value(array.copy(), device, copies)

    return SimpleNamespace(
        InferenceSession=InferenceSession,
        SessionOptions=onnxruntime.SessionOptions,
        OrtValue=SimpleNamespace(ortvalue_from_numpy=put),
        get_available_providers=lambda: [CARD, CPU],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("export")
    return export(checkpoint(place / "bridge.pt"), place / "onnx", "--solver", "sde-dpm2m", "--steps", str(STEPS))


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    monkeypatch.setattr(session, "onnxruntime", stand_in(made))
    return made


def test_the_state_stays_on_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch, copies: list[str]):
    """The source goes there, the noise of each step that has some, and the result comes back."""
    with monkeypatch.context() as patch:
        patch.setattr(session, "onnxruntime", onnxruntime)
        wanted = OnnxBridgeSampler(folder, [CPU])(SOURCE, seed=1)
    sampler = OnnxBridgeSampler(folder)
    assert sampler.providers[0][0] == CARD
    copies.clear()
    np.testing.assert_allclose(sampler(SOURCE, seed=1), wanted, rtol=0, atol=1e-5)
    noisy = int(np.count_nonzero(sampler.table.coefficients[:, 4]))
    assert copies == [f"to the card {SOURCE.shape}"] * (1 + noisy) + [f"from the card {SOURCE.shape}"]
