"""Training on a card: the CPU's losses and weights, and the host waits once a step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bbdm.bridges import DDBM, I2SB, ABridge, BrownianBridge
from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_checkpoint
from bbdm.training.bridge import VALIDATION_STEPS, BridgeTask
from bbdm.training.config import TrainConfig
from bbdm.training.distillation import DistillConfig, StudentTask
from bbdm.training.profiling import Profile
from bbdm.training.trainer import Trainer
from tests.conftest import SIZE, TINY, metrics_of, newest, tiny_unet
from tests.cuda.card import DEVICE, Card, CardTensor, aten, off_the_card
from tests.cuda.test_sampler import vqgan_codec
from tests.execution.test_compiled import Short

BRIDGE = ABridge(num_steps=50)
Y, X0 = torch.rand(2, 4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
STEPS = 3
LOSS = "training.bridge.__call__: item"


def short() -> Short:
    torch.manual_seed(0)
    return Short(**{**TINY, "channel_mult": (1, 1), "condition_channels": 3})


def losses(device: str, kind: type[BridgeTask], config: TrainConfig, bridge: Any = BRIDGE, **given: Any) -> Any:
    """The losses of a few steps, the step itself, and what it waited for by step."""
    unet, codec = given.get("make", short)().to(device), given.get("codec")
    codec = None if codec is None else codec.placed(torch.device(device), torch.float32)
    processes = given.get("processes") or Processes(torch.device(device))
    step = kind(unet, bridge, config, codec, processes, given.get("latents", False), 10)
    batch = Example(given.get("y", Y).to(device), given.get("x0", X0).to(device))
    return step, [step(batch, index) for index in range(STEPS)]


def check(card: Card, waits: list[str], tolerance: float = 1e-5, kind: type[BridgeTask] = BridgeTask, **given: Any):
    """Steps on the card are the CPU's; the host waits so in each step but the first."""
    bridge = given.pop("bridge", BRIDGE)
    more = {key: given.pop(key) for key in ("codec", "latents", "processes", "y", "x0", "make") if key in given}
    config = (DistillConfig if kind is StudentTask else TrainConfig)(batch_size=4, epochs=1, **given)
    with off_the_card():
        wanted = losses("cpu", kind, config, bridge, **{k: v for k, v in more.items() if k != "processes"})
    watched, seen = card.watched(kind)
    found = losses("cuda:0", watched, config, bridge, **more)
    torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=tolerance)
    for mine, theirs in zip(found[0].ema.unet.parameters(), wanted[0].ema.unet.parameters(), strict=True):
        assert isinstance(mine, CardTensor)
        torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=10 * tolerance)
    assert seen[1:] == [waits] * (STEPS - 1)
    return found[0]


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_float32(card: Card, optimizer: str):
    step = check(card, [LOSS], optimizer=optimizer)
    assert step.optimizer.defaults["fused"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast(card: Card, precision: str):
    check(card, [LOSS], 1e-3, precision=precision)


def test_all_settings(card: Card):
    settings: dict[str, Any] = {"flip": True, "shift": 0.1, "zoom": 0.1, "grad_accumulation": 2, "grad_clip": 1.0}
    check(card, [LOSS], 1e-3, precision="fp16", lr_schedule="plateau", **settings)
    assert aten._amp_update_scale_.default in card.launches


def test_with_a_codec(card: Card):
    y, x0 = (v.repeat(1, 1, 2, 2) for v in (Y, X0))
    check(card, [LOSS], codec=vqgan_codec(), y=y, x0=x0)


def test_latents_of_a_cache(card: Card):
    check(card, [LOSS], codec=vqgan_codec(), latents=True, flip=True, y=Y[:, None].repeat(1, 2, 1, 1, 1),
          x0=X0[:, None].repeat(1, 2, 1, 1, 1))  # fmt: skip


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 1e-2)])
def test_distillation(card: Card, precision: str, tolerance: float):
    bridge = BrownianBridge(num_steps=50, objective="pinned")
    settings: dict[str, Any] = {"kind": StudentTask, "calls": 2, "bridge": bridge, "precision": precision}
    step = check(card, [LOSS], tolerance, **settings)
    batch, seeds = Example(Y.to(DEVICE), X0.to(DEVICE)), torch.arange(len(Y)).to(DEVICE)
    card.waits.clear()
    assert step.validation_loss(batch, seeds) > 0
    assert [wait.split(": ")[1] for wait in card.waits] == ["item"] * len(VALIDATION_STEPS)


class Tracked(BridgeTask):
    """A point in TensorBoard after each step."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.tracker: Any = SimpleNamespace(due=lambda _: True, write=lambda *_, **points: self.written.append(points))
        self.written: list[dict[str, float]] = []


def test_points_in_tensorboard(card: Card):
    """They wait for a norm of gradients, and for losses by time, whose sums stay on the card until then."""
    waits = [LOSS, "training.tracking.take: to the CPU", "training.base.record: item"]
    assert check(card, waits, kind=Tracked).written[-1]["gradient_norm"] > 0


class Profiled(BridgeTask):
    """The phases of each step are recorded."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.phase = Profile()._phase


@pytest.mark.parametrize(
    "given", [{"kind": Profiled}, {"bridge": BrownianBridge(50, density="wide")}, {"bridge": I2SB(50)}]
)
def test_profiles_and_tables_of_times_do_not_wait(card: Card, given: dict[str, Any]):
    check(card, [LOSS], **given)


def test_times_that_are_real_come_to_the_host(card: Card):
    """Once for their weights, once for what the network sees."""
    names = ("bridges.base.add_noise", "bridges.base.seen")
    check(card, [*(f"{n}: to the {where}" for n in names for where in ("CPU", "card")), LOSS], bridge=DDBM())


def test_several_processes(card: Card, processes: Processes):
    check(card, [LOSS], grad_accumulation=2, processes=processes, make=lambda: tiny_unet(condition_channels=3))


def test_a_whole_run(card: Card, pairs: Pairs, tmp_path: Path):
    """Loader, steps, validation, previews and checkpoints; what is saved is read on the CPU, and resumes."""
    config = TrainConfig(batch_size=2, epochs=1, preview_every=1, save_every=1, workers=0)

    def run(device: str, folder: str, **changes: Any) -> Trainer:
        unet = short().to(device)
        trainer = Trainer(unet, BRIDGE, TrainConfig(**{**vars(config), **changes}), pairs, pairs, tmp_path / folder)
        trainer.resume_newest()
        trainer.fit()
        return trainer

    with off_the_card():
        wanted = metrics_of(run("cpu", "cpu", epochs=2))
    first = run("cuda:0", "card")
    with off_the_card():
        saved = load_checkpoint(newest(first))
    assert saved.unet.ema is not None
    for mine, theirs in zip(first.ema.unet.state_dict().values(), saved.unet.ema.values(), strict=True):
        assert torch.equal(mine.cpu(), theirs)
    card.waits.clear()
    found = metrics_of(run("cuda:0", "card", epochs=2))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=1e-5)
    unpinned = [wait for wait in card.waits if "not pinned" in wait or "_placed" in wait]
    assert unpinned == ["data.loading._placed: to the card from memory that is not pinned"] * 2  # the preview's sides
    assert card.waits.count(LOSS) == 2
