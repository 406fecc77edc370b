"""Files of sde-bbdm, the original BBDM, DDBM, DBIM, ECSI, I2SB and latent diffusion, read without their code.

A file is recognised by its entries, and its network by names and shapes. What the file leaves out comes from
arguments.
"""

from __future__ import annotations

from typing import Any

from bbdm.codec import Codec
from bbdm.files.content import Checkpoint
from bbdm.files.importers import vqgans
from bbdm.files.importers.diffusers import read_codec as read_codec
from bbdm.files.importers.programs import PROGRAMS
from bbdm.files.importers.states import File
from bbdm.networks.vqgan import VQGAN


def read_checkpoint(
    content: Any, num_steps: int | None, c_lambda: float | None, codec: Codec | None, config: str | None
) -> Checkpoint:
    """A network and its bridge from a foreign file; see :func:`bbdm.files.checkpoint.load_checkpoint`."""
    file = File(content)
    program = next(each for each in PROGRAMS.values() if each.wrote(file, config))
    return program.read(file, num_steps, c_lambda, codec, config)


def program(content: Any, config: str | None) -> str:
    """The program that wrote a foreign file of a network; ``config`` is given for guided diffusion's."""
    file = File(content)
    return next(name for name, each in PROGRAMS.items() if each.wrote(file, config))


def read_vqgan(content: Any) -> VQGAN:
    """A VQGAN from a foreign file; see :func:`bbdm.files.checkpoint.load_vqgan`."""
    return vqgans.build(vqgans.find(File(content)))
