"""The adversary of an autoencoder: a discriminator that learns to tell its images from real ones.

Esser et al. 2021, Taming Transformers, section 3.1. With the loss L of reconstruction and G = -mean D(image),
the autoencoder is trained on L + w G, where w = |grad L| / (|grad G| + 1e-4), clamped to 1e4, compares the
gradients at the weights of the decoder's last layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from bbdm.execution.processes import Processes
from bbdm.networks.discriminator import PatchGAN
from bbdm.training.config import RunConfig
from bbdm.training.optimizers import make_optimizer

SMALLEST, LARGEST = 1e-4, 1e4


def hinge_loss(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss of its logits, (mean max(0, 1 - real) + mean max(0, 1 + made)) / 2."""
    return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2


def adaptive_weight(reconstruction: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
    """The weight of the adversarial loss, of the gradients of both losses at the last layer."""
    return (reconstruction.norm() / (adversarial.norm() + SMALLEST)).clamp(max=LARGEST)


class Adversary:
    """A discriminator with its optimizer, of the settings of a run, and its own step.

    ``discriminator`` is on the device. Processes share the work.
    """

    def __init__(
        self, discriminator: PatchGAN, config: RunConfig, betas: tuple[float, float], processes: Processes
    ) -> None:
        self.discriminator = discriminator
        self.network = processes.parallel(discriminator)
        self.optimizer = make_optimizer(discriminator, config, betas)

    def look(self, x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of real and of made images, float32; :meth:`learn` uses their graph."""
        real, made = self.network(torch.cat([x, image])).float().chunk(2)
        return real, made

    def learn(self, real: torch.Tensor, made: torch.Tensor, rate: float) -> torch.Tensor:
        """Do an optimizer step on the logits of :meth:`look`; returns the loss before it."""
        loss = hinge_loss(real, made)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """The state that :meth:`load` restores."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state` of the same settings."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
