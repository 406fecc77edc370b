"""Training an autoencoder, VQGAN or KL: Esser et al. 2021, and Rombach et al. 2022, appendix G.

The loss is |x - image| + LPIPS + w G, and the codebook's (van den Oord et al. 2017, equation 3) or the KL
divergence of the latents from a standard normal. All are means over values, so that the KL divergence of an
image is divided by the number of its values.

The adversary is a discriminator that learns to tell its images from real ones. With the loss L of
reconstruction and G = -mean D(image), w = |grad L| / (|grad G| + 1e-4), clamped to 1e4, compares the
gradients at the weights of the decoder's last layer (Esser et al., section 3.1).
"""

from __future__ import annotations

from dataclasses import asdict
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
from bbdm.networks.arrays import check_images
from bbdm.networks.vqgan import VQGAN, PatchGAN
from bbdm.pictures.images import sides
from bbdm.training.config import AutoencoderConfig
from bbdm.training.optimization import Optimization
from bbdm.training.task import Forward, Losses, Task, mixed

# weight of the distance that moves latents to codes, against 1 of codes to latents
COMMITMENT = 0.25
STREAMS = (2, 3)  # of noise, of sources and of targets
SMALLEST, LARGEST = 1e-4, 1e4  # of the adversary's weight


def pictures(y: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """(2 B, C, H, W) the pictures of pairs, each source before its target."""
    return torch.stack([y, x0], dim=1).flatten(0, 1).contiguous(memory_format=torch.channels_last)


class CodebookUse(nn.Module):
    """Which codes batches take. Each of several processes has a share of a batch."""

    def __init__(self, codes: int, processes: Processes) -> None:
        super().__init__()
        self.processes = processes
        # since the last report
        self.counts = nn.Buffer(torch.zeros(codes, dtype=torch.int64, device=processes.device))
        # since the last restart
        self.used = nn.Buffer(torch.zeros(codes, dtype=torch.bool, device=processes.device))

    def add(self, index: torch.Tensor) -> None:
        """Count the codes of this process's share of a batch, indices of any shape."""
        index = index.flatten()  # bincount would wait for the largest
        counts = torch.zeros_like(self.counts).scatter_add_(0, index, torch.ones_like(index))
        counts = self.processes.total(counts)
        self.counts += counts
        self.used |= counts > 0

    @torch.no_grad()
    def restart(self, weights: list[torch.Tensor], z: torch.Tensor, seed: int) -> None:
        """Move codes that no batch took since the last call to random ones of all latents (B, C, H, W).

        ``weights`` are the codes, (codes, C), and their average; ``seed`` is the same in each process.
        """
        unused = (~self.used).nonzero().flatten()
        self.used.zero_()
        vectors = torch.cat(
            self.processes.gather(z.detach().permute(0, 2, 3, 1).flatten(0, 2).cpu())
        )
        chosen = torch.randint(
            len(vectors), (len(unused),), generator=torch.Generator().manual_seed(seed)
        )
        for codes in weights:
            codes[unused] = vectors[chosen].to(codes)

    def report(self) -> dict[str, float]:
        """The share of codes that were used since the last report, and their perplexity; begins anew.

        The perplexity is exp(-sum p log p), with the share p of latents that take a code: the number of codes
        if all are taken equally often.
        """
        shares = self.counts.double() / self.counts.sum().clamp(min=1)
        measured = {
            "codes_used": (self.counts > 0).double().mean().item(),
            "perplexity": torch.special.entr(shares).sum().exp().item(),
        }
        self.counts.zero_()
        return measured


class AutoencoderTask(Task):
    """The training of an autoencoder, and of its adversary.

    The sources and targets of ``train`` are its pictures. The arguments are those of a
    :class:`~bbdm.training.task.Task`.

    Raises:
        ValueError: fewer pairs than one batch, pictures that the autoencoder or the discriminator cannot
            take, or see :func:`~bbdm.evaluation.perceptual.lpips_network`.
    """

    betas = (0.5, 0.9)  # in both papers
    paired = False
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
    ) -> None:
        settings = network.config
        size = sides(train.image_size)
        check_images(
            torch.empty(0, train.channels, *size), settings.image_channels, (settings.stride,) * 2
        )
        if config.adversarial_weight and min(size) < PatchGAN.least:
            raise ValueError(
                f"an adversary needs pictures of at least {PatchGAN.least} x {PatchGAN.least}, got {size}"
            )
        super().__init__(network, config, train, processes)
        self.perceptual: Any = None
        if config.perceptual != "none":
            from bbdm.evaluation.perceptual import lpips_network  # of an extra

            with self.processes.first_before_others():  # the others find what the first downloads
                self.perceptual = lpips_network(config.perceptual).to(self.device)
        self.use = CodebookUse(settings.num_codes, self.processes) if settings.num_codes else None
        if self.use is not None:
            self.stateful["use"] = self.use
        self.critic: Any = None  # the discriminator as it is called
        self.total = 1

    def begin(self, optimization: Optimization) -> None:
        """Make the adversary, where there is one, with an optimizer of its own."""
        self.total = optimization.total
        if not self.config.adversarial_weight:
            return
        channels = self.network.config.image_channels
        self.discriminator = PatchGAN(channels, self.config.discriminator_width).to(self.device)
        self.critic = optimization.parallel(self.discriminator)
        self.critic_optimizer = optimization.new_optimizer(self.discriminator)
        self.stateful |= {
            "discriminator": self.discriminator,
            "critic_optimizer": self.critic_optimizer,
        }

    def release(self) -> None:
        """See :meth:`~bbdm.training.task.Task.release`."""
        self.critic = None

    def losses(self, network: Forward, batch: Example, seeds: torch.Tensor, step: int) -> Losses:
        """See :meth:`~bbdm.training.task.Task.losses`. The adversary, where it has begun, does its own step.

        ``loss`` leaves out the adversary's, which is no distance.
        """
        x = pictures(batch.source, batch.target)
        with self.autocast():
            h, z, more = network(x, *self._noise(x, seeds, step))
            image = self.network.decoder.conv_out(h).float()
        z = z.float()
        self._latents = z
        latent, parts = self._latent_loss(z, more, x[0].numel())
        seen = image.detach().requires_grad_()
        distance = self._distance(seen, x, parts)
        gradient = torch.autograd.grad(distance, seen)[0]
        parts["loss"] = distance + latent
        if self.config.adversarial_weight and step >= self.config.adversarial_start:
            gradient = gradient + self._adversary(x, image, seen, gradient, parts)
        return (image * gradient).sum().add(latent), parts  # the gradient at the images is this one

    def _noise(self, x: torch.Tensor, seeds: torch.Tensor, step: int) -> tuple[torch.Tensor, ...]:
        """The noise of a KL autoencoder's latents of pictures, from seeds of pairs; nothing of a codebook."""
        config = self.network.config
        if config.num_codes:
            return ()
        shape = (config.latent_channels, *(side // config.stride for side in x.shape[2:]))
        sources, targets = (philox.normal(seeds, step, shape, stream) for stream in STREAMS)
        return (pictures(sources, targets),)

    def _latent_loss(
        self, z: torch.Tensor, more: torch.Tensor, values: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted loss of latents, and what is reported of it.

        Args:
            z: the latents (B, C, H, W).
            more: the logarithm of their variance, or the indices of their codes.
            values: the number of values of a picture.
        """
        if self.use is None:
            # from a standard normal, in nats
            kl = (z.square() + more.exp() - 1 - more).sum((1, 2, 3)).mean() / 2
            return self.config.kl_weight * kl / values, {"kl": kl}
        self.use.add(more)
        codes = self.network.quantize.look_up(more)
        codebook = F.mse_loss(codes, z.detach()) + COMMITMENT * F.mse_loss(z, codes.detach())
        return self.config.codebook_weight * codebook, {"codebook": codebook}

    def _distance(
        self, image: torch.Tensor, x: torch.Tensor, parts: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The distance of images from pictures, of which ``parts`` gets L1 and LPIPS (Zhang et al. 2018)."""
        parts["l1"] = F.l1_loss(image, x)
        if self.perceptual is None:
            return parts["l1"]
        parts["lpips"] = self.perceptual(
            image.expand(-1, 3, -1, -1), x.expand(-1, 3, -1, -1)
        ).mean()
        return parts["l1"] + self.config.perceptual_weight * parts["lpips"]

    def _adversary(
        self,
        x: torch.Tensor,
        image: torch.Tensor,
        seen: torch.Tensor,
        gradient: torch.Tensor,
        parts: dict[str, Any],
    ) -> torch.Tensor:
        """The weighted gradient of the adversarial loss at the images. The critic learns, by a hinge loss.

        Its weight compares this gradient and that of the distance at the weights of the decoder's last layer.
        """
        with self.autocast():
            real, false = self.critic(torch.cat([x, seen])).float().chunk(2)
        parts["adversarial"] = -false.mean()
        against = torch.autograd.grad(parts["adversarial"], seen, retain_graph=True)[0]
        last = self.network.decoder.conv_out.weight
        at_last: list[torch.Tensor] = []
        for of_image in (gradient, against):
            at_last += torch.autograd.grad(image, last, of_image, retain_graph=True)
        reconstruction, adversarial = (
            self.processes.total(torch.stack(at_last)) / self.processes.count
        )
        ratio = (reconstruction.norm() / (adversarial.norm() + SMALLEST)).clamp(max=LARGEST)
        weight = self.config.adversarial_weight * ratio
        loss = (F.relu(1 - real).mean() + F.relu(1 + false).mean()) / 2
        loss.backward()
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad(set_to_none=True)
        parts["adversarial_weight"] = weight
        parts["discriminator"] = loss
        return weight * against

    def after_step(self, step: int) -> None:
        """Move unused codes, ``restarts`` times over the first half of the run."""
        latents = self._latents
        del self._latents
        if self.use is None or not self._restarts(step):
            return
        codes = self.network.quantize.embedding.weight
        if codes.requires_grad:
            averages = self.average.quantize.embedding.weight
            self.use.restart([codes, averages], latents, mixed(self.config.seed, step))

    def _restarts(self, step: int) -> bool:
        """Whether unused codes move after optimizer step ``step``."""
        restarts = self.config.restarts
        if not restarts or step >= self.total // 2:
            return False
        return step % max(1, self.total // (2 * restarts)) == 0

    def report(self) -> dict[str, float]:
        """The use of codes since the last report; see :meth:`CodebookUse.report`."""
        return {} if self.use is None else self.use.report()

    @torch.no_grad()
    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W) through the averaged autoencoder and back."""
        with self.autocast():
            return self.average.decode(self.average.encode(x)).float()

    @torch.no_grad()
    def validation_losses(self, batch: Example, seeds: torch.Tensor) -> dict[str, float]:
        """The distance of reconstructions by the averaged weights, L1 and LPIPS; the sum over pairs."""
        x = pictures(batch.source, batch.target)
        return {
            "validation_loss": self._distance(self.reconstruct(x), x, {}).item() * len(batch.source)
        }

    def columns(self, batch: Example) -> dict[str, torch.Tensor]:
        """Sources and targets, each before its reconstruction."""
        y = batch.source
        x0 = batch.target
        sources, targets = self.reconstruct(pictures(y, x0)).unflatten(0, (-1, 2)).unbind(1)
        return {"source": y, "its reconstruction": sources, "target": x0, "the target's": targets}

    @property
    def description(self) -> dict[str, Any]:
        """See :class:`~bbdm.training.task.Task`."""
        return {"vqgan": asdict(self.network.config)}

    def snapshot(self, training: dict[str, Any] | None = None) -> Snapshot:
        """The averaged weights; with training state, the weights beside them."""
        if training is None:
            return vqgan_snapshot(self.average)
        return vqgan_snapshot(self.network, self.average, training)

    def stored(self, checkpoint: NetworkState) -> tuple[NetworkState, dict[str, Any]]:
        """See :meth:`~bbdm.training.task.Task.stored`."""
        return checkpoint, {"vqgan": asdict(checkpoint.config)}
