"""The VQGAN of the A-Bridge scripts, with its own keys."""

from pathlib import Path

import pytest
import torch

from bbdm.files.checkpoint import load_vqgan
from bbdm.networks.vqgan import VQGAN
from tests.conftest import relative_gap
from tests.files.importers.common import SeedVQGAN, assert_same_autoencoder, images, refused, save


class TestSeedVQGAN:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_computes_the_same(self, zipped: bool, tmp_path: Path):
        seed = SeedVQGAN()
        loaded = load_vqgan(save(seed, tmp_path / "vqgan.model", zipped))
        assert (loaded.config.eps, loaded.config.projects_attention, loaded.training) == (1e-5, False, False)
        assert (loaded.config.channel_mult, loaded.config.num_codes, loaded.config.stride) == ((1, 2, 3), 40, 4)
        assert_same_autoencoder(loaded, seed)
        ours = VQGAN.from_config(loaded.config)
        projecting = VQGAN(**{**vars(ours.config), "projects_attention": True}).eval()
        projecting.load_state_dict(loaded.state_dict())
        with torch.no_grad():  # the projection matters
            assert relative_gap(projecting.encode(images(1, 3, 32, 40)), seed.encode(images(1, 3, 32, 40))) > 0.01

    def test_state_dict_of_it(self, tmp_path: Path):
        seed = SeedVQGAN()
        assert_same_autoencoder(load_vqgan(save(seed.state_dict(), tmp_path / "a.pt")), seed)

    def test_keys_that_do_not_fit(self, tmp_path: Path):
        state = SeedVQGAN().state_dict()
        del state["encoder.mid_blocks.1.q.bias"]
        state["decoder.up.0.block.0.block.9.weight"] = torch.ones(1)
        message = r"missing: encoder\.mid\.attn_1\.q\.bias; extra: decoder\.up\.0\.block\.0\.block\.9\.weight$"
        refused(save(state, tmp_path / "a.pt"), message, load_vqgan)
