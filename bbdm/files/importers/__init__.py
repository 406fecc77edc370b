"""Files of sde-bbdm, the original BBDM and latent diffusion, read without running their code."""

from bbdm.files.importers.readers import read_checkpoint as read_checkpoint
from bbdm.files.importers.readers import read_vqgan as read_vqgan
