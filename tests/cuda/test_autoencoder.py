"""Training an autoencoder and its adversary on a card: the CPU's losses and weights, one wait a step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Spec
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_vqgan_state
from bbdm.training.autoencoder import AutoencoderConfig, AutoencoderTask, perceptual_loss
from bbdm.training.trainer import Training
from tests.conftest import MakePairs, metrics_of, newest
from tests.cuda.card import DEVICE, Card, CardTensor, off_the_card
from tests.networks.test_vqgan import tiny_vqgan

SIDE = 24
STEPS = 3
LOSS = "training.autoencoder.__call__: to the CPU"
RESTART = [f"training.codebook.restart: {why}" for why in ("nonzero", "to the CPU", "to the card", "to the card")]
CPU = torch.device("cpu")


@pytest.fixture
def pairs(make_pairs: MakePairs, tmp_path: Path) -> Pairs:
    return Pairs(make_pairs(tmp_path / "pairs", 4).rows, Spec(size=SIDE))


class Edges(nn.Module):
    """The distance of edges, in place of the network of LPIPS."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.tensor([-1.0, 0.0, 1.0]).expand(3, 1, 1, 3).clone(), requires_grad=False)

    def forward(self, image: Tensor, x: Tensor) -> Tensor:
        one, other = (F.conv2d(v, self.kernel, groups=3) for v in (image, x))
        return (one - other).square().mean((1, 2, 3))


@pytest.fixture(autouse=True)
def edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bbdm.evaluation.metrics.lpips", lambda *_: SimpleNamespace(net=Edges()))


def step_of(
    device: torch.device, pairs: Pairs, num_codes: int = 40, processes: Processes | None = None, **settings: Any
) -> AutoencoderTask:
    """A step whose adversary is there from the second on."""
    given = {"epochs": 2, "adversarial_start": 1, "discriminator_width": 4, **settings}
    config = AutoencoderConfig(batch_size=2, **given)
    vqgan = tiny_vqgan(num_codes=num_codes).to(device)
    return AutoencoderTask(vqgan, config, pairs, processes, perceptual_loss(config, None, device))


def run(step: AutoencoderTask, pairs: Pairs) -> list[float]:
    sides = zip(*(pairs[i] for i in range(2)), strict=True)
    source, target = (torch.stack(side).to(step.device) for side in sides)
    batch = Example(source, target)
    return [step(batch, index) for index in range(STEPS)]


def check(
    card: Card,
    pairs: Pairs,
    waits: list[list[str]],
    tolerance: float = 1e-5,
    processes: Processes | None = None,
    **settings: Any,
) -> None:
    """Steps on the card are the CPU's; the host waits so in each."""
    with off_the_card():
        wanted = step_of(CPU, pairs, **settings)
        losses = run(wanted, pairs)
    found = step_of(DEVICE, pairs, processes=processes, **settings)
    found.__class__, seen = card.watched(AutoencoderTask)
    assert run(found, pairs) == pytest.approx(losses, abs=tolerance)
    assert seen == waits
    assert found.adversary is not None
    assert wanted.adversary is not None
    networks = (found.ema.unet, wanted.ema.unet), (found.adversary.discriminator, wanted.adversary.discriminator)
    for mine, theirs in networks:
        for ours, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert isinstance(ours, CardTensor)
            torch.testing.assert_close(ours.cpu(), other, rtol=0, atol=10 * tolerance)
    assert found.report() == pytest.approx(wanted.report(), rel=20 * tolerance)


@pytest.mark.parametrize("num_codes", [40, 0], ids=["vq", "kl"])
def test_float32(card: Card, pairs: Pairs, num_codes: int):
    check(card, pairs, [[LOSS]] * STEPS, num_codes=num_codes, restarts=0)


def test_bfloat16_with_all_settings(card: Card, pairs: Pairs):
    """Of a KL autoencoder: a code that is nearly as near as another would be chosen by rounding."""
    settings: dict[str, Any] = {"flip": True, "shift": 0.1, "zoom": 0.1, "grad_clip": 1.0, "num_codes": 0}
    check(card, pairs, [[LOSS]] * STEPS, 1e-3, precision="bf16", **settings)


def test_codes_that_restart(card: Card, pairs: Pairs):
    """Unused codes come to the host, and their new places from there, to the weights and to their average."""
    check(card, pairs, [[*RESTART, LOSS], [LOSS], [LOSS]], restarts=1)


def test_decoder_alone(card: Card, pairs: Pairs):
    check(card, pairs, [[LOSS]] * STEPS, decoder_only=True)


def test_several_processes(card: Card, pairs: Pairs, processes: Processes):
    check(card, pairs, [[LOSS]] * STEPS, restarts=0, processes=processes)


def test_a_whole_run(card: Card, pairs: Pairs, tmp_path: Path):
    """Loader, steps, validation, grids, checkpoints that a thread writes, which resume on the card."""

    def fit(device: torch.device, folder: str, epochs: int = 1) -> Training:
        step = step_of(device, pairs, epochs=epochs, restarts=1)
        training = Training(step, pairs, pairs, tmp_path / folder)
        training.resume_newest()
        training.fit()
        return training

    with off_the_card():
        wanted = metrics_of(fit(CPU, "cpu", epochs=2))
    first = fit(DEVICE, "card")
    with off_the_card():
        saved = load_vqgan_state(newest(first))
    assert saved.ema is not None
    for mine, theirs in zip(first.task.ema.unet.state_dict().values(), saved.ema.values(), strict=True):
        assert torch.equal(mine.cpu(), theirs)
    card.waits.clear()
    found = metrics_of(fit(DEVICE, "card", epochs=2))
    for mine, theirs in zip(found, wanted, strict=True):
        # The adversary's weight is a ratio of gradients, of which L1's are signs. Rounding turns them: on an
        # EPYC by 3 % of the ratio, and the epoch after that follows.
        assert mine.pop("adversarial_weight") == pytest.approx(theirs.pop("adversarial_weight"), rel=0.1)
        of_the_clock = {"seconds", "images_per_second"}
        assert {k: v for k, v in mine.items() if k not in of_the_clock} == pytest.approx(
            {k: v for k, v in theirs.items() if k not in of_the_clock}, rel=1e-4 if mine["epoch"] == 1 else 0.02
        )
    unpinned = [wait for wait in card.waits if "not pinned" in wait or "_placed" in wait]
    assert unpinned == ["data.loading._placed: to the card from memory that is not pinned"] * 2  # the preview's sides
    assert card.waits.count(LOSS) == 2
