"""What a step of training would wait for on a card: its loss. It is counted on the CPU."""

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
from bbdm.training.config import TrainConfig
from bbdm.training.distillation import DistillConfig, StudentTask
from bbdm.training.run import TensorBoard
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


def bridge_task(
    kind: type[BridgeTask] = BridgeTask,
    bridge: Any = None,
    latents: bool = False,
    device: torch.device = CPU,
    **settings: Any,
) -> tuple[BridgeTask, Example]:
    config = (DistillConfig if kind is StudentTask else TrainConfig)(batch_size=4, epochs=1, **settings)
    own = codec().placed(device, torch.float32) if latents else None
    unet = short_unet().train().to(device)
    step = kind(unet, bridge or ABridge(50), config, None, Processes(device), own, total=10)
    step.latents = latents
    source, target = (each[:, None].repeat(1, 2, 1, 1, 1) if latents else each for each in (Y, X0))
    return step, Example(source.to(device), target.to(device))


class Tracked(BridgeTask):
    """A point in TensorBoard after each step."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.written: dict[str, float] = {}
        self.board = TensorBoard()
        self.board._writer = SimpleNamespace(add_scalar=lambda name, value, _: self.written.update({name: value}))

    def __call__(self, batch: Example, step: int) -> float:
        loss = super().__call__(batch, step)
        self.board.after_step(SimpleNamespace(task=self, step=step + 1), loss)
        return loss


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"precision": "bf16"},
    "all settings": {"lr_schedule": "plateau", **SETTINGS},
    "latents": {"latents": True, "flip": True},
    "distillation": {"kind": StudentTask, "bridge": BrownianBridge(50, objective="pinned"), "calls": 2},
    "wide density": {"bridge": BrownianBridge(50, density="wide")},
    "table of times": {"bridge": I2SB(50)},
    "TensorBoard": {"kind": Tracked},  # which gets the norm of gradients as a tensor
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_for_its_losses_alone(case: str, monkeypatch: pytest.MonkeyPatch):
    """They come at once, which is no operator on the CPU."""
    for module in ("run", "task"):
        monkeypatch.setattr(f"bbdm.training.{module}.SHOWN_EVERY", 1)
    step, batch = bridge_task(**CASES[case])
    assert waits(step, batch) == [[]] * (STEPS - 1)
    if isinstance(step, Tracked):
        assert step.written["gradient_norm"] > 0


class Edges(nn.Module):
    """The distance of edges, in place of the network of LPIPS."""

    def forward(self, image: Tensor, x: Tensor) -> Tensor:
        return (image.diff(dim=-1) - x.diff(dim=-1)).square().mean((1, 2, 3))


@pytest.mark.parametrize(
    ("codes", "restarts", "expected"),
    [({}, 2, [["training.autoencoder.restart: nonzero"], []]), ({"num_codes": 0}, 0, [[], []])],
    ids=["codes", "kl"],
)
def test_an_autoencoders_step_waits_for_its_losses_alone(
    codes: Any, restarts: int, expected: Any, make_pairs: MakePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And for codes that are not in use, at the start of two epochs."""
    monkeypatch.setattr("bbdm.evaluation.perceptual.lpips_network", lambda *_: Edges())
    pairs = Pairs(make_pairs(tmp_path / "pairs", 4).rows, Spec(size=24))
    settings: dict[str, Any] = {"precision": "bf16", "flip": True, "shift": 0.1, "grad_clip": 1.0, "restarts": restarts}
    config = AutoencoderConfig(2, batch_size=2, adversarial_start=1, discriminator_width=4, **settings)
    step = AutoencoderTask(tiny_vqgan(**codes), None, config, pairs)
    assert waits(step, batch_of(pairs, 2)) == expected
