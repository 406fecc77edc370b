"""diffusers' VQModel with the weights of our VQ-f4, in float32, eager."""

from __future__ import annotations

import re

from diffusers.models.autoencoders.vq_model import VQModel
from torch import nn

from bbdm import VQGAN

NAMES = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}


def network(vqgan: VQGAN) -> nn.Module:
    """Its network, which has ``encode``, ``quantize`` and ``decode``."""
    config, levels = vqgan.config, len(vqgan.config.channel_mult)
    attended = [2**level in config.attention_resolutions for level in range(levels)]
    peer = VQModel(
        down_block_types=tuple(f"{'Attn' if a else ''}DownEncoderBlock2D" for a in attended),
        up_block_types=tuple(f"{'Attn' if a else ''}UpDecoderBlock2D" for a in reversed(attended)),
        block_out_channels=tuple(config.model_channels * mult for mult in config.channel_mult),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.latent_channels,
        num_vq_embeddings=config.num_codes,
        norm_num_groups=config.num_groups,
    )
    shapes = {key: value.shape for key, value in peer.state_dict().items()}
    mapped = {key_of(key, levels): value for key, value in vqgan.state_dict().items()}
    peer.load_state_dict({key: value.reshape(shapes[key]) for key, value in mapped.items()})
    return nn.Module.to(peer, vqgan.quant_conv.weight.device).eval()


def key_of(key: str, levels: int) -> str:
    """A key of ours, which are LDM's, by diffusers' name. Its decoder counts levels from the smallest."""
    key = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", key)
    key = re.sub(
        r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.", key
    )
    key = re.sub(r"blocks\.(\d+)\.block\.", r"blocks.\1.resnets.", key)
    key = re.sub(r"blocks\.(\d+)\.attn\.", r"blocks.\1.attentions.", key)
    key = re.sub(r"blocks\.(\d+)\.(down|up)sample\.", r"blocks.\1.\2samplers.0.", key)
    key = re.sub(r"mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", key)
    key = key.replace("mid.attn_1", "mid_block.attentions.0")
    key = key.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
    if ".attentions." in key:
        name, kind = key.split(".")[-2:]
        key = key.removesuffix(f"{name}.{kind}") + f"{NAMES[name]}.{kind}"
    return key
