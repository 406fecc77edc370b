"""Files of sde-bbdm, the original BBDM, DDBM, DBIM, ECSI, I2SB and latent diffusion, read without their code.

A file is recognised by its entries, and its network by key names and shapes. What the file leaves out comes
from arguments.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bbdm.codec import Codec
from bbdm.files.content import Checkpoint
from bbdm.files.importers import adm, diffusers_autoencoder, original_bbdm, sde_bbdm, states
from bbdm.networks.vqgan import VQGAN

BBDM, ADM, SDE_BBDM = "BBDM", "guided diffusion (DDBM, DBIM, ECSI or I2SB)", "sde-bbdm"


def read_checkpoint(
    content: Any,
    num_steps: int | None,
    c_lambda: float | None,
    codec: Codec | None,
    config: str | os.PathLike[str] | None,
) -> Checkpoint:
    """A network and its bridge from a foreign file; see :func:`bbdm.files.checkpoint.load_checkpoint`."""
    written_by = program(content, config)
    if written_by == BBDM:
        return original_bbdm.read(content, states.find(content), config)
    if written_by == ADM:
        return adm.read(content, config)
    return sde_bbdm.read(content, num_steps, c_lambda, codec)


def program(content: Any, config: str | os.PathLike[str] | None) -> str:
    """The program that wrote a foreign file of a network; ``config`` is given for guided diffusion's."""
    if original_bbdm.SCHEDULE in states.find(content):
        return BBDM
    return ADM if config is not None or adm.recognised(content) else SDE_BBDM


def read_vqgan(content: Any) -> VQGAN:
    """A VQGAN from a foreign file; see :func:`bbdm.files.checkpoint.load_vqgan`."""
    state = states.find(content)
    prefixes = states.prefixes(state, *states.CODES)
    # A diffusion model may hold a second VQGAN, for its condition.
    prefixes = [prefix for prefix in prefixes if prefix in ("first_stage_model.", "vqgan.")] or prefixes
    if len(prefixes) != 1:
        raise ValueError(
            f"it is {states.summary(content)} with {len(prefixes) or 'no'} codebooks in it; wanted: a VQGAN of "
            f"latent diffusion or of the A-Bridge scripts, with one key that ends in {' or '.join(states.CODES)}"
        )
    return states.build_vqgan(states.below(state, prefixes[0]))


def read_codec(path: Path) -> Codec:
    """A codec from a foreign folder or .safetensors; see :func:`bbdm.files.checkpoint.load_codec`."""
    return diffusers_autoencoder.read(path)
