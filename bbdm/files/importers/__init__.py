"""Files of sde-bbdm, the original BBDM, DDBM, DBIM, ECSI, I2SB and latent diffusion, read without their code.

A file is recognised by its entries, and its network by key names and shapes. What the file leaves out comes
from arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bbdm.codec import Codec
from bbdm.files.content import Checkpoint
from bbdm.files.importers import adm, diffusers_autoencoder, original_bbdm, sde_bbdm, states
from bbdm.networks.vqgan import VQGAN

BBDM, ADM, SDE_BBDM = "BBDM", "guided diffusion (DDBM, DBIM, ECSI or I2SB)", "sde-bbdm"


def read_checkpoint(
    content: Any, num_steps: int | None, c_lambda: float | None, codec: Codec | None, config: str | None
) -> Checkpoint:
    """A network and its bridge from a foreign file; see :func:`bbdm.files.checkpoint.load_checkpoint`."""
    written_by = program(content, config)
    if written_by == BBDM:
        return original_bbdm.read(content, states.find(content), codec, config)
    if written_by == ADM:
        return adm.read(content, config)
    return sde_bbdm.read(content, num_steps, c_lambda, codec)


def program(content: Any, config: str | None) -> str:
    """The program that wrote a foreign file of a network; ``config`` is given for guided diffusion's."""
    if original_bbdm.SCHEDULE in states.find(content):
        return BBDM
    return ADM if config is not None or adm.recognised(content) else SDE_BBDM


def read_vqgan(content: Any) -> VQGAN:
    """A VQGAN from a foreign file; see :func:`bbdm.files.checkpoint.load_vqgan`."""
    state = states.find(content)
    # A diffusion model may hold a second VQGAN, for its condition.
    known = [name for name in states.prefixes(state, *states.CODES) if name in ("first_stage_model.", "vqgan.")]
    state = states.below(state, known[0]) if len(known) == 1 else state
    prefix = states.only_prefix(
        content, state, "a VQGAN of latent diffusion or of the A-Bridge scripts,", "codebooks", *states.CODES
    )
    return states.build_vqgan(states.below(state, prefix))


def read_codec(path: Path) -> Codec:
    """A codec from a foreign folder or .safetensors; see :func:`bbdm.files.checkpoint.load_codec`."""
    return diffusers_autoencoder.read(path)
