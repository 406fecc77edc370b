"""The importer for a foreign file: recognised by the entries in it, its network by key names and shapes.

What the file states is used, what it leaves out comes from arguments, and an argument that contradicts it is
an error.
"""

from __future__ import annotations

import os
from typing import Any

from bbdm.codec import Codec
from bbdm.files.content import Checkpoint, check_arguments, check_codec
from bbdm.files.importers import original_bbdm, sde_bbdm, states
from bbdm.networks.vqgan import VQGAN


def read_checkpoint(
    content: Any,
    num_steps: int | None,
    c_lambda: float | None,
    codec: Codec | None,
    config: str | os.PathLike[str] | None,
) -> Checkpoint:
    """A network and its bridge from a foreign file; see :func:`bbdm.files.checkpoint.load_checkpoint`."""
    state = states.find(content)
    if original_bbdm.SCHEDULE in state:
        found = original_bbdm.read(content, state, config)
    elif config is not None:
        raise ValueError(f"config={config} was given, but only files of the original BBDM need one")
    else:
        found = sde_bbdm.read(content, num_steps, c_lambda, codec)
    check_arguments(found.bridge, num_steps, c_lambda)
    check_codec(found.codec, codec)
    return found


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
