"""Training an autoencoder: its step against plain autograd, and a run that resumes bit for bit."""

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as torchs_kl_divergence

from bbdm import load_codec, load_vqgan
from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Spec
from bbdm.execution.processes import Processes
from bbdm.kernels import philox
from bbdm.training import autoencoder
from bbdm.training.autoencoder import AutoencoderConfig, AutoencoderTask, CodebookUse
from bbdm.training.optimization import Optimization
from bbdm.training.trainer import Trainer
from tests.conftest import MakePairs, batch_of, metrics_of
from tests.evaluation.test_metrics import put_backbone
from tests.networks.test_vqgan import tiny_vqgan

SIDE = 24
ALONE = Processes(torch.device("cpu"))
Make = Callable[..., Trainer]


@pytest.fixture
def pairs(make_pairs: MakePairs, tmp_path: Path) -> Pairs:
    return Pairs(make_pairs(tmp_path / "pairs", 4).rows, Spec(size=SIDE))


@pytest.fixture
def make(pairs: Pairs, tmp_path: Path) -> Make:
    """make(folder="run", seed=0, num_codes=40, **config): 2 epochs of 2 steps with an adversary."""

    def make(
        folder: str = "run", seed: int = 0, num_codes: int = 40, train: Pairs = pairs, **more: Any
    ) -> Trainer:
        settings: dict[str, Any] = {
            "epochs": 2,
            "batch_size": 2,
            "perceptual": "none",
            "adversarial_start": 0,
        }
        settings |= {"discriminator_width": 4, "learning_rate": 1e-3, **more}
        vqgan, config = tiny_vqgan(seed, num_codes=num_codes), AutoencoderConfig(**settings)
        return Trainer(vqgan, None, config, train, pairs, tmp_path / folder, task=AutoencoderTask)

    return make


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.mark.parametrize("num_codes", [40, 0], ids=["vq", "kl"])
def test_gradients_are_those_of_the_whole_loss(num_codes: int, make: Make, pairs: Pairs):
    """L1 + codebook or KL + weight G, with the weight of gradients at the last layer, by autograd alone."""
    training = make(
        num_codes=num_codes, adversarial_weight=0.5, codebook_weight=2.0, kl_weight=1e-2
    )
    update = training.task
    assert isinstance(update, AutoencoderTask)
    vqgan, discriminator = copy.deepcopy(update.network), copy.deepcopy(update.discriminator)
    y, x0, *_ = batch_of(pairs, 2)
    x = torch.stack([y[0], x0[0], y[1], x0[1]])
    z = vqgan.quant_conv(vqgan.encoder(x))
    if num_codes:
        distances = (
            (z.permute(0, 2, 3, 1)[..., None, :] - vqgan.quantize.embedding.weight).square().sum(-1)
        )
        codes = vqgan.quantize.embedding.weight[distances.argmin(-1)].permute(0, 3, 1, 2)
        latent = 2 * (
            (codes - z.detach()).square().mean() + 0.25 * (z - codes.detach()).square().mean()
        )
        image = vqgan.decoder(vqgan.post_quant_conv(z + (codes - z).detach()))
    else:
        seeds = torch.arange(2) << 32
        noise = torch.stack(
            [philox.normal(seeds, 0, (3, SIDE // 2, SIDE // 2), i) for i in (2, 3)], 1
        ).flatten(0, 1)
        mean, log_variance = z.chunk(2, 1)
        posterior = Normal(mean, log_variance.exp().sqrt())
        latent = 1e-2 * torchs_kl_divergence(posterior, Normal(0.0, 1.0)).sum() / x.numel()
        image = vqgan.decoder(vqgan.post_quant_conv(posterior.loc + posterior.scale * noise))
    distance, adversarial = (image - x).abs().mean(), -discriminator(image).mean()
    last = vqgan.decoder.conv_out.weight
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (distance, adversarial)
    ]
    (distance + latent + 0.5 * (norms[0] / (norms[1] + 1e-4)) * adversarial).backward()

    found: dict[str, torch.Tensor] = {}
    training.optimization.optimizer.register_step_pre_hook(
        lambda *_: found.update(
            {k: p.grad.clone() for k, p in update.network.named_parameters() if p.grad is not None}
        )
    )
    loss = training.train_step(Example(y, x0))
    assert float(loss) == pytest.approx((distance + latent).item(), rel=1e-5)
    wanted = {key: p.grad for key, p in vqgan.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys() == dict(vqgan.named_parameters()).keys()
    for key, gradient in wanted.items():
        assert (found[key] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, key
    report = training.optimization.reported.means()
    assert report["adversarial_weight"] == pytest.approx(
        0.5 * (norms[0] / (norms[1] + 1e-4)).item(), rel=1e-4
    )
    discriminator.zero_grad()
    hinge = (
        torch.relu(1 - discriminator(x)).mean() / 2
        + torch.relu(1 + discriminator(image.detach())).mean() / 2
    )
    hinge.backward()
    assert report["discriminator"] == pytest.approx(hinge.item(), rel=1e-5)
    for weight, old in zip(
        update.discriminator.parameters(), discriminator.parameters(), strict=True
    ):
        assert old.grad is not None
        # Adam's first step is the rate, against the sign of the gradient
        clear = old.grad.abs() > 1e-5
        torch.testing.assert_close(
            (weight - old)[clear], -1e-3 * old.grad.sign()[clear], rtol=2e-2, atol=1e-6
        )


def test_the_adversary_begins_at_its_step_and_its_weight_is_clamped(
    make: Make, pairs: Pairs, monkeypatch: Any
):
    monkeypatch.setattr(autoencoder, "LARGEST", 10)
    training = make(adversarial_start=1, adversarial_weight=0.5)
    assert isinstance(training.task, AutoencoderTask)
    discriminator = training.task.discriminator
    before = weights_of(discriminator)
    training.train_step(batch_of(pairs, 2))
    assert "adversarial" not in training.optimization.reported.means()
    assert_equal(weights_of(discriminator), before)
    for parameter in discriminator.parameters():
        parameter.data.zero_()  # whose gradient at the images is 0
    training.train_step(batch_of(pairs, 2))
    assert training.optimization.reported.means()["adversarial_weight"] == pytest.approx(0.5 * 10)


def test_what_needs_no_gradient_stays_bit_for_bit(make: Make):
    """Encoder and codebook, in the average too, so latents of before still fit."""
    training = make()
    training.network.requires_grad_(False)
    training.network.decoder.requires_grad_(True)
    training.optimization.optimizer = training.optimization.new_optimizer(training.network)
    before = weights_of(training.network)
    training.fit()
    for vqgan in (training.network, training.average):
        same = {key for key, value in weights_of(vqgan).items() if torch.equal(value, before[key])}
        assert same == {key for key in before if not key.startswith("decoder.")}


def test_lpips_is_part_of_the_loss(pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Random weights; L1, and LPIPS by its weight, as the metric has it of pictures in [0, 1]."""
    from bbdm.evaluation.metrics import lpips
    from bbdm.evaluation.perceptual import lpips_network

    put_backbone("squeeze", tmp_path, monkeypatch)
    config = AutoencoderConfig(
        perceptual="squeeze", batch_size=2, perceptual_weight=3.0, adversarial_weight=0
    )
    vqgan, wide = tiny_vqgan(num_codes=0), Pairs(pairs.rows, Spec(size=64))
    vqgan.decoder.conv_out.weight.data *= 0.1
    step = AutoencoderTask(vqgan, None, config, wide)
    y, x0, *_ = batch_of(wide, 2)
    x = torch.stack([y[0], x0[0], y[1], x0[1]])
    with torch.no_grad():
        image = step.average.decode(step.average.encode(x))
        assert image.abs().max() <= 1  # as the metric wants
        network = lpips_network("squeeze")
        wanted = (image - x).abs().mean() + 3 * lpips((image + 1) / 2, (x + 1) / 2, network).mean()
    losses = step.validation_losses(Example(y, x0), torch.arange(2))
    assert losses == {"validation_loss": pytest.approx(2 * wanted.item(), rel=1e-4)}
    optimization = Optimization(step)
    assert math.isfinite(optimization.step(Example(y, x0), 0))
    assert optimization.reported.means()["lpips"] > 0


def test_a_run_without_an_adversary(make: Make, pairs: Pairs, tmp_path: Path):
    """Its files are codecs with the averaged weights, and its best is of them on validation pairs."""
    training = make(epochs=1, adversarial_weight=0.0)
    training.fit()
    (record,) = metrics_of(training)
    assert "discriminator" not in record
    assert record["codes_used"] > 0
    training.save(tmp_path / "final.safetensors")
    for path in (
        training.folder / "step_00000002.pt",
        training.run_folder.best,
        tmp_path / "final.safetensors",
    ):
        codec = load_codec(path)
        assert codec.kind == "vqgan"
        assert_equal(weights_of(codec.module), weights_of(training.average))
    batch, vqgan = batch_of(pairs, 4), load_vqgan(training.run_folder.best)
    source, made, target, made_too = training.task.columns(batch).values()
    for side, result, wanted in ((source, made, batch.source), (target, made_too, batch.target)):
        assert torch.equal(side, wanted)
        with torch.no_grad():
            torch.testing.assert_close(result, vqgan.decode(vqgan.encode(wanted)))
    errors = (made - source).abs().mean() + (made_too - target).abs().mean()
    assert training.best is not None
    assert training.best["validation_loss"] == pytest.approx(float(errors) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"size": 25}, "x must have sides that are multiples of 2 x 2, got 25 x 25"),
        ({"size": SIDE, "channels": 1}, r"x must be \(B, 3, H, W\), got shape \(0, 1, 24, 24\)"),
        ({"size": 16}, r"an adversary needs pictures of at least 24 x 24, got \(16, 16\)"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(spec: Any, reason: str, make: Make, pairs: Pairs):
    with pytest.raises(ValueError, match=reason):
        make(train=Pairs(pairs.rows, Spec(**spec)))


def test_report():
    """Of 6 codes, one is taken 4 times of 8, two twice: p = 1/2, 1/4, 1/4, and the perplexity is 2^1.5."""
    use = CodebookUse(6, ALONE)
    for index in ([[[0, 3], [3, 5]]], [[[0, 0], [0, 5]]]):
        use.add(torch.tensor(index))
    assert use.report() == {"codes_used": 0.5, "perplexity": pytest.approx(2**1.5)}
    use.add(torch.arange(6).repeat(3))  # the next epoch counts anew
    assert use.report() == {"codes_used": 1.0, "perplexity": pytest.approx(6)}
    assert math.isfinite(use.report()["perplexity"])  # of an epoch without steps


def test_unused_codes_move_to_latents_of_the_batch():
    codes, average = torch.zeros(5, 2), torch.zeros(5, 2)
    z = torch.arange(16.0).view(2, 2, 2, 2) + 1  # no vector is zero
    use, vectors = CodebookUse(5, ALONE), z.permute(0, 2, 3, 1).reshape(-1, 2)
    use.add(torch.tensor([1, 3]))
    use.restart([codes, average], z, seed=0)
    assert (codes[[1, 3]] == 0).all()
    assert all(code in vectors.tolist() for code in codes[[0, 2, 4]].tolist())
    assert torch.equal(codes, average)
    use.restart([codes], -z, seed=0)  # none was used since
    assert all(code in (-vectors).tolist() for code in codes.tolist())
