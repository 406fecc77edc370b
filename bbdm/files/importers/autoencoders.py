"""Autoencoders of others: VQGANs of latent diffusion and of the A-Bridge scripts, and those of diffusers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch

from bbdm.codec import Codec, from_config
from bbdm.codec.kinds import CLASS, known_settings
from bbdm.files.importers.states import File, State, load, renamed, vqgan_config
from bbdm.files.weights import readable
from bbdm.networks.restore import restore
from bbdm.networks.vqgan import VQGAN

CODES = ("quantize.embedding.weight", "quantizer.embedding.weight")  # keys that every VQGAN has one of
IN_OTHERS = ("first_stage_model.", "vqgan.")  # of a diffusion model; it may hold a second one, for its condition
TRAINING = ("loss.", "discriminator.", "model_ema.")  # of what only its training needs
PARTS = r"((?:.*?\.)?)((?:encoder|decoder)\..*)"
SEQUENTIAL = (  # encoder and decoder of sde-bbdm's modules and managers, a Sequential each
    (r"^(encoder|decoder)\.module\.", r"\1."),
    (r"^encoder\.1\.", "quant_conv."),
    (r"^decoder\.0\.", "quantize."),
    (r"^decoder\.1\.", "post_quant_conv."),
    (r"^encoder\.0\.", "encoder."),
    (r"^decoder\.2\.", "decoder."),
)
ABRIDGE = (  # the parts of blocks, and layers
    (r"\.block\.0\.(\w+)$", r".norm1.\1"),
    (r"\.block\.2\.(\w+)$", r".conv1.\1"),
    (r"\.block\.3\.(\w+)$", r".norm2.\1"),
    (r"\.block\.5\.(\w+)$", r".conv2.\1"),
    (r"\.channel_up\.(\w+)$", r".nin_shortcut.\1"),
    (r"\.gn\.(\w+)$", r".norm.\1"),
    (r"^quantizer\.", "quantize."),
    (r"^encoder\.mid_blocks\.3\.", "encoder.norm_out."),
    (r"^encoder\.mid_blocks\.", "encoder.mid."),
    (r"^(encoder|decoder)\.mid\.0\.", r"\1.mid.block_1."),
    (r"^(encoder|decoder)\.mid\.1\.", r"\1.mid.attn_1."),
    (r"^(encoder|decoder)\.mid\.2\.", r"\1.mid.block_2."),
    (r"^encoder\.down_sampling\.0\.(\w+)$", r"encoder.conv_in.\1"),
)
SEQUENCE = r"^encoder\.down_sampling\.([1-9]\d{0,5})\."
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
OLD_ATTENTION = re.compile(r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.")  # before diffusers 0.15
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_vqgan(content: Any) -> VQGAN:
    """The one VQGAN of a foreign file; see :func:`bbdm.files.checkpoint.load_vqgan`."""
    file = File(content)
    known = [each for each in file.prefixes(*CODES) if each.endswith(IN_OTHERS)]
    expected = "a VQGAN of latent diffusion or of the A-Bridge scripts,"
    return build(file.below(known[0] if len(known) == 1 else file.prefix(expected, "codebooks", *CODES)))


def build(state: State, **known: Any) -> VQGAN:
    """A VQGAN with latent diffusion's keys or the A-Bridge scripts', in evaluation mode."""
    state = {key: value for key, value in state.items() if not key.startswith(TRAINING)}
    if any(key.startswith("encoder.down_sampling.") for key in state):
        # These scripts' blocks differ in two places from the network that the weights were trained in, and
        # bridges were trained on the latents of these blocks.
        known = {"eps": 1e-5, "projects_attention": False, "num_groups": 32}
        state = renamed(state, ABRIDGE)
        blocks = _sequence(state)
        state = renamed(state, [(SEQUENCE, lambda found: blocks[int(found[1])])])
    config = vqgan_config(state, **known)
    return restore(VQGAN.from_config, config, load(VQGAN.from_config, config, state))


def _sequence(state: State) -> dict[int, str]:
    """Our names of the A-Bridge scripts' encoder blocks, where those of all levels are one sequence."""
    parts: dict[int, set[str]] = {}
    for key in state:
        if found := re.match(SEQUENCE + r"(\w+)", key):
            parts.setdefault(int(found[1]), set()).add(found[2])
    names: dict[int, str] = {}
    level, block = 0, 0
    for index, inside in sorted(parts.items()):
        if "conv1" in inside:
            names[index], block = f"encoder.down.{level}.block.{block}.", block + 1
        elif "conv" in inside:
            names[index], level, block = f"encoder.down.{level}.downsample.", level + 1, 0
        else:
            names[index] = f"encoder.down.{level}.attn.{block - 1}."
    return names


def read_codec(path: Path) -> Codec:
    """A codec from a foreign folder or .safetensors; see :func:`bbdm.files.checkpoint.load_codec`."""
    folder, file = (path, path / WEIGHTS) if path.is_dir() else (path.parent, path)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"there is no {CONFIG} of an autoencoder in {folder}")
    if not file.is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS} in {folder}, which is all that is read")
    with readable(folder / CONFIG, "config of an autoencoder"):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config["_class_name"] != CLASS:
            raise ValueError(f"it is of a {config['_class_name']!r}, and an {CLASS} is wanted")
        settings = known_settings(config)
    with readable(file, "codec"):
        weights = safetensors.torch.load_file(file)
        weights = {OLD_ATTENTION.sub(lambda m: f"{m[1]}.{ATTENTION[m[2]]}.", key): v for key, v in weights.items()}
        return from_config({"kind": "kl", "config": settings, "statistics": None}, weights)
