"""Training an autoencoder, VQGAN or KL: Esser et al. 2021, and Rombach et al. 2022, appendix G.

The loss is |x - image| + LPIPS + w G, and the codebook's (van den Oord et al. 2017, equation 3) or the KL
divergence of the latents from a standard normal. All are means over values, so that the KL divergence of an
image is divided by the number of its values.

The adversary is a discriminator that learns to tell its images from real ones. With the loss L of
reconstruction and G = -mean D(image), w = |grad L| / (|grad G| + 1e-4), clamped to 1e4, compares the
gradients at the weights of the decoder's last layer (Esser et al., section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_vqgan_state
from bbdm.files.content import NetworkState, vqgan_snapshot
from bbdm.files.weights import Snapshot
from bbdm.kernels import philox
from bbdm.networks.vqgan import VQGAN, PatchGAN
from bbdm.pictures.images import sides
from bbdm.training.batches import mixed
from bbdm.training.config import AutoencoderConfig
from bbdm.training.task import Forward, Losses, Task

COMMITMENT = 0.25  # weight of the distance that moves latents to codes, against 1 of codes to latents
STREAMS = (2, 3)  # of noise, of sources and of targets
SMALLEST, LARGEST = 1e-4, 1e4  # of the adversary's weight
Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def perceptual_loss(config: AutoencoderConfig, weights: Path | None, device: torch.device) -> Perceptual | None:
    """LPIPS (Zhang et al. 2018) of images and pictures (B, C, H, W) in [-1, 1], their mean; None without.

    ``weights`` is a file of torchvision's ImageNet weights; None downloads them.

    Raises:
        ValueError: torchmetrics is not installed, or there are no weights.
    """
    if config.perceptual == "none":
        return None
    try:
        from bbdm.evaluation.perceptual import lpips_network

        network = lpips_network(config.perceptual, weights).to(device)
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(
            f"without the network of perceptual={config.perceptual!r}, LPIPS: {error}; lpips_weights gives its "
            "weights as a file, and perceptual='none' trains without"
        ) from error
    return lambda image, x: network(image.expand(-1, 3, -1, -1), x.expand(-1, 3, -1, -1)).mean()


def pictures(y: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """(2 B, C, H, W) the pictures of pairs, each source before its target."""
    return torch.stack([y, x0], dim=1).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """The KL divergence of latents (B, C, H, W) from a standard normal in nats, the mean over the batch."""
    each = mean.square() + log_variance.exp() - 1 - log_variance
    return each.sum((1, 2, 3)).mean() / 2


def hinge_loss(real: torch.Tensor, false: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss of its logits, (mean max(0, 1 - real) + mean max(0, 1 + false)) / 2."""
    return (F.relu(1 - real).mean() + F.relu(1 + false).mean()) / 2


def adaptive_weight(reconstruction: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
    """The weight of the adversarial loss, of the gradients of both losses at the last layer."""
    return (reconstruction.norm() / (adversarial.norm() + SMALLEST)).clamp(max=LARGEST)


class Adversary:
    """A discriminator of ``width`` channels with its optimizer, whose rate is that of the task's step."""

    def __init__(self, task: Task, width: int) -> None:
        channels = task.network.config.image_channels
        self.discriminator = PatchGAN(channels, width).to(task.device)
        self.network = task.processes.parallel(self.discriminator)
        self.optimizer = task.new_optimizer(self.discriminator)

    def logits(self, x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of real and of false images, float32; :meth:`learn` uses their graph."""
        real, false = self.network(torch.cat([x, image])).float().chunk(2)
        return real, false

    def learn(self, real: torch.Tensor, false: torch.Tensor) -> torch.Tensor:
        """Do an optimizer step on the logits of :meth:`logits`; returns the loss before it."""
        loss = hinge_loss(real, false)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """The state that :meth:`load_state_dict` restores."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict` of the same settings."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


class CodebookUse(nn.Module):
    """Counts which of a number of codes batches take. Each of several processes has a share of a batch."""

    def __init__(self, codes: int, processes: Processes) -> None:
        super().__init__()
        self.processes = processes
        self.counts = nn.Buffer(torch.zeros(codes, dtype=torch.int64, device=processes.device))  # in this epoch
        self.used = nn.Buffer(torch.zeros(codes, dtype=torch.bool, device=processes.device))  # since the last restart
        self.restarted = nn.Buffer(torch.tensor(0))  # in this epoch

    def add(self, index: torch.Tensor) -> None:
        """Count the codes of this process's share of a batch, indices of any shape."""
        index = index.flatten()  # bincount would wait for the largest
        counts = torch.zeros_like(self.counts).scatter_add_(0, index, torch.ones_like(index))
        counts = self.processes.total(counts)
        self.counts += counts
        self.used |= counts > 0

    @torch.no_grad()
    def restart(self, weights: list[torch.Tensor], z: torch.Tensor, seed: int) -> None:
        """Move codes that no batch took since the last call to random latents of a batch.

        Args:
            weights: the codes, (codes, C), and their moving average.
            z: (B, C, H, W) this process's latents.
            seed: of the choice; the same in each process.
        """
        unused = (~self.used).nonzero().flatten()
        self.used.zero_()
        self.restarted += len(unused)
        if not len(unused):
            return
        vectors = torch.cat(self.processes.gather(z.detach().permute(0, 2, 3, 1).flatten(0, 2).cpu()))
        chosen = torch.randint(len(vectors), (len(unused),), generator=torch.Generator().manual_seed(seed))
        for codes in weights:
            codes[unused] = vectors[chosen].to(codes)

    def report(self) -> dict[str, float]:
        """The share of codes that the epoch used, their perplexity, and how many were moved; begins anew.

        The perplexity is exp(-sum p log p), with the share p of latents that take a code: the number of codes
        if all are taken equally often.
        """
        shares = self.counts.double() / self.counts.sum().clamp(min=1)
        found = {
            "codes_used": (self.counts > 0).double().mean().item(),
            "perplexity": torch.special.entr(shares).sum().exp().item(),
            "codes_restarted": int(self.restarted),
        }
        self.counts.zero_()
        self.restarted.zero_()
        return found


class AutoencoderTask(Task):
    """The training of an autoencoder, and of its adversary.

    The sources and targets of ``train`` are its pictures, and ``perceptual`` is what :func:`perceptual_loss`
    returns. The other arguments are those of a :class:`~bbdm.training.task.Task`.

    Raises:
        ValueError: fewer pairs than one batch, or pictures that the autoencoder or the discriminator cannot
            take.
    """

    betas = (0.5, 0.9)  # in both papers
    network: VQGAN
    config: AutoencoderConfig
    read = staticmethod(load_vqgan_state)

    def __init__(
        self,
        network: VQGAN,
        bridge: None,
        config: AutoencoderConfig,
        train: Pairs,
        processes: Processes | None = None,
        codec: None = None,
        *,
        perceptual: Perceptual | None = None,
        **functions: Any,
    ) -> None:
        settings, size = network.config, sides(train.image_size)
        if not train.source_channels == train.channels == settings.image_channels:
            raise ValueError(
                f"the autoencoder takes {settings.image_channels} channels, and pairs have {train.channels}"
            )
        if any(side % settings.stride for side in size):
            raise ValueError(f"image_size {train.image_size} is not a multiple of the autoencoder's {settings.stride}")
        if config.adversarial_weight and min(size) < PatchGAN.least:
            raise ValueError(f"an adversary needs pictures of at least {PatchGAN.least} x {PatchGAN.least}, got {size}")
        if config.decoder_only:
            network.requires_grad_(False)
            network.decoder.requires_grad_(True)
            network.post_quant_conv.requires_grad_(True)
        super().__init__(network, config, train, processes, **functions)
        self.perceptual = perceptual
        self.use = CodebookUse(settings.num_codes, self.processes) if settings.num_codes else None
        self.adversary = Adversary(self, config.discriminator_width) if config.adversarial_weight else None
        self.stateful |= {} if self.use is None else {"use": self.use}
        self.stateful |= {} if self.adversary is None else {"adversary": self.adversary}

    def losses(self, network: Forward, batch: Example, seeds: torch.Tensor, step: int) -> Losses:
        """See :meth:`~bbdm.training.task.Task.losses`. The adversary, where it has begun, does its own step.

        ``loss`` leaves out the adversary's, which is no distance.
        """
        x = pictures(batch.source, batch.target)
        with self.autocast():
            h, z, more = network(x, *self._noise(x, seeds, step))
            image = self.network.decoder.conv_out(h).float()
        z = self._latents = z.float()
        latent, parts = self._latent_loss(z, more, x[0].numel())
        seen = image.detach().requires_grad_()
        distance = self._distance(seen, x, parts)
        gradient = torch.autograd.grad(distance, seen)[0]
        parts["loss"] = distance + latent
        if self.adversary is not None and step >= self.config.adversarial_start:
            with self.autocast():
                real, false = self.adversary.logits(x, seen)
            parts["adversarial"] = -false.mean()
            against = torch.autograd.grad(parts["adversarial"], seen, retain_graph=True)[0]
            parts["adversarial_weight"] = self._adversarial_weight(image, gradient, against)
            gradient = gradient + parts["adversarial_weight"] * against
            parts["discriminator"] = self.adversary.learn(real, false)
        if self.use is not None:
            self.use.add(more)
        return (image * gradient).sum().add(latent), parts  # the gradient at the images is this one

    def _distance(self, image: torch.Tensor, x: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """The distance of images from pictures, of which ``parts`` gets L1 and LPIPS."""
        distance = parts["l1"] = F.l1_loss(image, x)
        if self.perceptual is not None:
            parts["lpips"] = self.perceptual(image, x)
            distance = distance + self.config.perceptual_weight * parts["lpips"]
        return distance

    def _noise(self, x: torch.Tensor, seeds: torch.Tensor, step: int) -> tuple[torch.Tensor, ...]:
        """The noise of a KL autoencoder's latents, from seeds of pairs."""
        config = self.network.config
        if config.num_codes:
            return ()
        shape = (config.latent_channels, *(side // config.stride for side in x.shape[2:]))
        return (pictures(*(philox.normal(seeds, step, shape, stream) for stream in STREAMS)),)

    def _latent_loss(
        self, z: torch.Tensor, more: torch.Tensor, values: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted loss of latents, of images with a number of values; and itself by its name."""
        if not self.network.config.num_codes:
            kl = kl_divergence(z, more)
            return self.config.kl_weight * kl / values, {"kl": kl}
        codes = self.network.quantize.look_up(more)
        loss = F.mse_loss(codes, z.detach()) + COMMITMENT * F.mse_loss(z, codes.detach())
        return self.config.codebook_weight * loss, {"codebook": loss}

    def _adversarial_weight(self, image: torch.Tensor, gradient: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
        """The adversarial loss's weight, of the gradients of both losses at the images."""
        last = self.network.decoder.conv_out.weight
        both = [torch.autograd.grad(image, last, each, retain_graph=True)[0] for each in (gradient, against)]
        means = self.processes.total(torch.stack(both)) / self.processes.count
        return self.config.adversarial_weight * adaptive_weight(*means)

    def after_step(self, step: int) -> None:
        """Move unused codes, if that is due: ``restarts`` times over the first half of the run."""
        times = 0 if self.config.decoder_only or self.use is None else self.config.restarts
        if times and step < self.total // 2 and step % max(1, self.total // (2 * times)) == 0:
            assert self.use is not None
            codes = [vqgan.quantize.embedding.weight for vqgan in (self.network, self.average)]
            self.use.restart(codes, self._latents, mixed(self.config.seed, step))
        del self._latents

    def report(self) -> dict[str, float]:
        """The mean of each part of the loss over the epoch, and the use of codes."""
        return super().report() | ({} if self.use is None else self.use.report())

    @torch.no_grad()
    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W) through the averaged autoencoder and back."""
        with self.autocast():
            return self.average.decode(self.average.encode(x)).float()

    @torch.no_grad()
    def validation_losses(self, batch: Example, seeds: torch.Tensor) -> dict[str, float]:
        """The distance of reconstructions by the averaged weights, L1 and LPIPS; the sum over pairs."""
        x = pictures(batch.source, batch.target)
        return {"validation_loss": self._distance(self.reconstruct(x), x, {}).item() * len(batch.source)}

    def columns(self, batch: Example) -> dict[str, torch.Tensor]:
        """Sources and targets, each before its reconstruction."""
        y, x0 = batch.source, batch.target
        sources, targets = self.reconstruct(pictures(y, x0)).unflatten(0, (-1, 2)).unbind(1)
        return {"source": y, "its reconstruction": sources, "target": x0, "the target's": targets}

    def release(self) -> None:
        """See :meth:`~bbdm.training.task.Task.release`."""
        super().release()
        if self.adversary is not None:
            self.adversary.network = self.adversary.discriminator

    @property
    def description(self) -> dict[str, Any]:
        """See :class:`~bbdm.training.task.Task`."""
        return {"vqgan": asdict(self.network.config)}

    def snapshot(self, training: dict[str, Any] | None = None) -> Snapshot:
        """The averaged weights; with training state, the weights beside them."""
        if training is None:
            return vqgan_snapshot(self.average)
        return vqgan_snapshot(self.network, self.average, training)

    def stored(self, checkpoint: NetworkState) -> tuple[NetworkState, dict[str, Any], dict[str, Any]]:
        """See :meth:`~bbdm.training.task.Task.stored`."""
        return checkpoint, asdict(checkpoint.config), asdict(self.network.config)
