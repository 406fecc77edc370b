"""The adversary of an autoencoder: a discriminator that learns to tell its images from real ones.

Esser et al. 2021, Taming Transformers, section 3.1. With the loss L of reconstruction and G = -mean D(image),
the autoencoder is trained on L + w G, where w = |grad L| / (|grad G| + 1e-4), clamped to 1e4, compares the
gradients at the weights of the decoder's last layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from bbdm.networks.vqgan import PatchGAN
from bbdm.training.task import Task

SMALLEST, LARGEST = 1e-4, 1e4


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
