"""What a step of training would wait for on a card: nothing, but where it looks. It is counted on the CPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bbdm.bridges import I2SB, ABridge, BrownianBridge
from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Spec
from bbdm.execution.processes import Processes
from bbdm.training.autoencoder import AutoencoderConfig, AutoencoderTask
from bbdm.training.bridge import BridgeTask
from bbdm.training.callbacks import TensorBoard
from bbdm.training.config import TrainConfig
from bbdm.training.distillation import DistillConfig, StudentTask
from bbdm.training.optimization import Optimization
from tests.conftest import SIZE, MakePairs, batch_of
from tests.cuda.card import Waits
from tests.cuda.test_graph import codec
from tests.execution.test_compiled import short_unet
from tests.networks.test_vqgan import tiny_vqgan

CPU = torch.device("cpu")
Y, X0 = torch.rand(2, 4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
STEPS = 3
ONLY_HERE = "adam", "bridges.base._rows"  # times on a card are not checked
SETTINGS: dict[str, Any] = {"flip": True, "shift": 0.1, "grad_accumulation": 2, "grad_clip": 1.0}


def waits(step: Any, batch: Example) -> list[list[str]]:
    """Of each step but the first."""
    seen: list[list[str]] = []
    for index in range(STEPS):
        with Waits(*ONLY_HERE) as found:
            step(batch, index)
        seen.append(found.seen)
    return seen[1:]


def bridge_step(
    kind: type[BridgeTask] = BridgeTask,
    bridge: Any = None,
    latents: bool = False,
    device: torch.device = CPU,
    **settings: Any,
) -> tuple[Optimization, Example]:
    config = (DistillConfig if kind is StudentTask else TrainConfig)(
        batch_size=4, epochs=1, **settings
    )
    own = codec().placed(device, torch.float32) if latents else None
    unet = short_unet().train().to(device)
    task = kind(unet, bridge or ABridge(50), config, None, Processes(device), own)
    task.latents = latents
    source, target = (each[:, None].repeat(1, 2, 1, 1, 1) if latents else each for each in (Y, X0))
    return Optimization(task, total=10), Example(source.to(device), target.to(device))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"precision": "bf16"},
    "all settings": {"lr_schedule": "plateau", **SETTINGS},
    "latents": {"latents": True, "flip": True},
    "distillation": {
        "kind": StudentTask,
        "bridge": BrownianBridge(50, objective="pinned"),
        "calls": 2,
    },
    "wide density": {"bridge": BrownianBridge(50, density="wide")},
    "table of times": {"bridge": I2SB(50)},
}


@pytest.fixture
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps look at the device where one with a GPU does; each is shown in TensorBoard."""
    for module in ("callbacks", "optimization"):
        monkeypatch.setattr(f"bbdm.training.{module}.SHOWN_EVERY", 1)
    monkeypatch.setattr(Optimization, "looks", lambda self, step: not self._skips or step % 10 == 9)


@pytest.mark.usefixtures("as_on_a_card")
@pytest.mark.parametrize("case", CASES)
def test_a_step_does_not_wait(case: str):
    """But for its loss where the rate depends on it. TensorBoard gets tensors, the norm of gradients too."""
    optimization, batch = bridge_step(**CASES[case])
    written: dict[str, Any] = {}
    board = TensorBoard()
    board._writer = SimpleNamespace(add_scalar=lambda name, value, _: written.update({name: value}))

    def step(batch: Example, index: int) -> None:
        loss = optimization.step(batch, index)
        board.after_step(SimpleNamespace(optimization=optimization, step=index + 1), loss)

    expected: list[str] = []
    if case == "all settings":
        expected = ["training.optimization.check: item", "training.optimization.step: item"]
    assert waits(step, batch) == [expected] * (STEPS - 1)
    assert float(written["gradient_norm"]) > 0


class Edges(nn.Module):
    """The distance of edges, in place of the network of LPIPS."""

    def forward(self, image: Tensor, x: Tensor) -> Tensor:
        return (image.diff(dim=-1) - x.diff(dim=-1)).square().mean((1, 2, 3))


@pytest.mark.usefixtures("as_on_a_card")
@pytest.mark.parametrize(
    ("codes", "restarts", "expected"),
    [({}, 2, [["training.autoencoder.restart: nonzero"], []]), ({"num_codes": 0}, 0, [[], []])],
    ids=["codes", "kl"],
)
def test_an_autoencoders_step_does_not_wait(
    codes: Any,
    restarts: int,
    expected: Any,
    make_pairs: MakePairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """But for codes that are not in use, at the start of two epochs."""
    monkeypatch.setattr("bbdm.evaluation.perceptual.lpips_network", lambda *_: Edges())
    pairs = Pairs(make_pairs(tmp_path / "pairs", 4).rows, Spec(size=24))
    settings: dict[str, Any] = {
        "precision": "bf16",
        "flip": True,
        "shift": 0.1,
        "grad_clip": 1.0,
        "restarts": restarts,
    }
    config = AutoencoderConfig(
        2, batch_size=2, adversarial_start=1, discriminator_width=4, **settings
    )
    optimization = Optimization(AutoencoderTask(tiny_vqgan(**codes), None, config, pairs), total=4)
    assert waits(optimization.step, batch_of(pairs, 2)) == expected
