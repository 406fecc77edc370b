"""Networks of diffusion models, of diffusers or ADM, as networks of the objective ``denoiser``.

They know pictures already, so that a bridge of few pairs need not learn what pictures are. What is shown has
unit variance, x = a x0 + s eps with a^2 + s^2 = 1, and the network is told ln(s / a). Both become what the
network was trained on, and its prediction becomes v = a eps - s x0 (Salimans and Ho 2022). The source is
further channels of the first layer, whose weights begin as zeros: the first estimate of a bridge is that of
the diffusion model, whatever the source.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bbdm.base.optional import package
from bbdm.networks.base import Conditions, ConfiguredNetwork, Network
from bbdm.networks.conditions import SOURCE
from bbdm.networks.config import UNetConfig
from bbdm.networks.pretrained_config import ADM, DIT, KIND, PretrainedConfig, pooled_width
from bbdm.networks.unet import UNet

LAST_TIME = 999.0  # that a network of flows was trained on, of 1,000
TOKENS = 77  # of a prompt
PICTURE = 1024  # side that a network which sees the size of pictures is told


class Pretrained(Network, ConfiguredNetwork):
    """A network of diffusers or ADM; :func:`bbdm.files.pretrained.pretrained` reads one.

    Args:
        config: the settings of the network, a :class:`PretrainedConfig`.

    Attributes:
        module: the network of diffusers, or the UNet.
        prompt: (1, L, D) the tokens that a network with text is shown; empty of others.
        pooled: (1, D) the pooled prompt of SDXL; empty of others.
        new: the names of layers in ``module`` that begin with random weights.
    """

    kind = KIND
    new: tuple[str, ...] = ()

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.config = config
        arguments = config.arguments
        try:
            self.module: Any = self._build()
            if config.architecture == "UNet2DConditionModel":
                width = arguments.get("cross_attention_dim")
            else:
                width = None
            self.prompt = nn.Buffer(torch.zeros(1, TOKENS if width else 0, width or 0))
            self.pooled = nn.Buffer(torch.zeros(1, pooled_width(arguments)))
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            NotImplementedError,
            TypeError,
        ) as error:  # of wrong arguments
            raise ValueError(
                f"no {config.architecture} can be built of its arguments: {error}"
            ) from error

    def _build(self) -> nn.Module:
        """The network of the settings, with freshly initialised weights."""
        if self.config.architecture == ADM:
            return UNet.from_config(UNetConfig(**self.config.arguments))
        diffusers = package("diffusers", "a pretrained network")
        return getattr(diffusers, self.config.architecture).from_config(self.config.arguments)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training trades compute for memory; off unless set."""
        if isinstance(self.module, UNet):
            return self.module.gradient_checkpointing
        return self.module.is_gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        if isinstance(self.module, UNet):
            self.module.gradient_checkpointing = on
        elif on:
            self.module.enable_gradient_checkpointing()
        else:
            self.module.disable_gradient_checkpointing()

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> Pretrained:
        """A network of these settings, with freshly initialised weights."""
        return cls(config)

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        """(N, 3) of ln nu (N,): the network's own time, and the weights a and s; computed in float64."""
        level = t.double()
        nu = level.exp()
        a = 1 / (1 + nu * nu).sqrt()
        s = nu * a
        return torch.stack([self._time(level, nu), a, s], dim=1).to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """Of what is computed around the network: float32 of a network in half precision, too."""
        return torch.promote_types(self.prompt.dtype, torch.float32)

    def _time(self, level: torch.Tensor, nu: torch.Tensor) -> torch.Tensor:
        """What the network was told of noise levels: an index between integers, of flows or EDM a number."""
        if self.config.prediction == "flow":
            return (1000 * nu / (1 + nu)).clamp(max=LAST_TIME)
        if self.config.prediction in ("edm", "edm_v"):
            return level / 4
        known = torch.tensor(self.config.log_levels, dtype=torch.float64, device=level.device)
        below = (level[:, None] >= known).sum(dim=1) - 1  # searchsorted is no operator of ONNX
        below = below.clamp(0, len(known) - 2)
        share = (level - known[below]) / (known[below + 1] - known[below])
        return (below + share).clamp(0, len(known) - 1)

    def body(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """The prediction of v, computed in float32 or better; see :meth:`Network.body`."""
        embedding = embedding.to(self._dtype).expand(len(x), -1)
        time = embedding[:, 0]
        a, s = (weight.view(-1, 1, 1, 1) for weight in embedding[:, 1:].unbind(1))
        state = x.to(self._dtype)
        shown = (state * self._scale(a, s)).to(x.dtype)
        output = self._output(shown, time, conditions)
        return self._v(state, output.to(self._dtype), a, s).to(x.dtype)

    def _output(
        self, shown: torch.Tensor, time: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """What the network predicts of the state as it knows it, at its own times (N,)."""
        if isinstance(self.module, UNet):
            return self.module(shown, time, conditions)
        if conditions:
            shown = torch.cat([shown, conditions[SOURCE]], dim=1)
        if self.config.architecture == DIT:
            return dit_output(self.module, shown, time)[:, : self.channels]
        output = self.module(shown, time, return_dict=False, **self._further(len(shown)))[0]
        # of a network that predicts its variance too, without that
        return output[:, : self.channels]

    def _scale(self, a: torch.Tensor, s: torch.Tensor) -> torch.Tensor | float:
        """What the state is multiplied by before it is shown."""
        if self.config.prediction == "flow":
            return 1 / (a + s)
        if self.config.prediction in ("edm", "edm_v"):
            return 1 / (s * s + (a * self.config.sigma_data) ** 2).sqrt()
        return 1.0

    def _v(
        self, x: torch.Tensor, output: torch.Tensor, a: torch.Tensor, s: torch.Tensor
    ) -> torch.Tensor:
        """The v, a eps - s x0, of x = a x0 + s eps and what the network predicts."""
        prediction = self.config.prediction
        if prediction == "v_prediction":
            return output
        if prediction == "epsilon":
            return (output - s * x) / a
        if prediction == "sample":
            return (a * x - output) / s
        if prediction == "flow":  # eps - x0
            return ((a - s) * x + output) / (a + s)
        data = self.config.sigma_data
        total = s * s + (a * data) ** 2  # of nu^2 + sigma_data^2, times a^2
        c_skip = (a * data) ** 2 / total
        c_out = s * data / total.sqrt()
        if prediction == "edm_v":
            c_out = -c_out
        return (a * x - c_skip * x / a - c_out * output) / s

    def _further(self, count: int) -> dict[str, Any]:
        """What a UNet sees besides, the same for all pictures: an empty prompt."""
        if not self.prompt.shape[1]:
            return {}
        further: dict[str, Any] = {"encoder_hidden_states": self.prompt.expand(count, -1, -1)}
        if self.pooled.shape[1]:
            sizes = self.pooled.new_tensor([[PICTURE, PICTURE, 0, 0, PICTURE, PICTURE]])
            further["added_cond_kwargs"] = {
                "text_embeds": self.pooled.expand(count, -1),
                "time_ids": sizes.expand(count, -1),
            }
        return further


def dit_output(module: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """What diffusers' DiTTransformer2DModel predicts without a class, of pictures of any two sides.

    Its own forward takes squares alone, and no exporter follows it.

    Args:
        module: the network, as diffusers built it.
        x: (B, in_channels, H, W) pictures, both sides multiples of its patch.
        time: (B,) times as it knows them.

    Returns:
        (B, out_channels, H, W) what it predicts.
    """
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    patch = module.config.patch_size
    height, width = (side // patch for side in x.shape[2:])  # in patches
    # the class after the last one
    none = torch.full_like(time, module.config.num_embeds_ada_norm, dtype=torch.long)
    embed = module.pos_embed
    h = embed.proj(x).flatten(2).transpose(1, 2)  # (B, N, W)
    places: Any = get_2d_sincos_pos_embed(
        h.shape[-1],
        (height, width),
        interpolation_scale=embed.interpolation_scale,
        base_size=embed.base_size,
        device=x.device,
    )
    h = (h + places.float()).to(h.dtype)
    for block in module.transformer_blocks:
        if module.gradient_checkpointing and torch.is_grad_enabled():
            h = checkpoint(block, h, timestep=time, class_labels=none, use_reentrant=False)
        else:
            h = block(h, timestep=time, class_labels=none)
    embedding = module.transformer_blocks[0].norm1.emb(time, none, hidden_dtype=h.dtype)
    shift, scale = module.proj_out_1(F.silu(embedding))[:, None].chunk(2, dim=-1)
    h = module.proj_out_2(module.norm_out(h) * (1 + scale) + shift)
    h = h.unflatten(1, (height, width)).unflatten(-1, (patch, patch, module.out_channels))
    h = h.permute(0, 5, 1, 3, 2, 4)  # (B, C, H / p, p, W / p, p)
    return h.reshape(x.shape[0], module.out_channels, height * patch, width * patch)
