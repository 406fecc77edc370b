"""All cases by name, and networks small enough for two cores in place of the presets'."""

from __future__ import annotations

from bbdm import UNetConfig, VQGANConfig
from bbdm.networks.config import UNETS, VQGANS
from tests.recording import (
    calls_of_data,
    calls_of_pictures,
    calls_of_samplers,
    commands,
    commands_of_training,
)
from tests.recording.running import Case
from tests.recording.world import TINY, TINY_VQGAN

CASES: dict[str, Case] = {
    **calls_of_pictures.CASES,
    **calls_of_data.CASES,
    **calls_of_samplers.CASES,
    **commands_of_training.CASES,
    **commands.CASES,
}


def make_presets_tiny() -> None:
    """Give the presets demo and volume networks of a few thousand weights."""
    UNETS["demo"] = UNetConfig(condition_channels=3, **TINY)
    UNETS["volume"] = UNetConfig(1, 1, condition_channels=1, axes=3, **TINY)
    VQGANS["demo"] = VQGANConfig(**TINY_VQGAN)
