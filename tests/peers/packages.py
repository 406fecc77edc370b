"""sde-bbdm and the packages below it, which Python 3.13 cannot import: their tests are skipped there."""

import pytest

sde_bbdm = pytest.importorskip("sde_bbdm", exc_type=ImportError)
diffusion = pytest.importorskip("diffusion")
torchmanager = pytest.importorskip("torchmanager")
for name in ("encoder", "decoder"):  # torchmanager 1.5 reads them before sde-bbdm's manager sets them
    setattr(sde_bbdm.managers.LatentDiffusionManager, name, None)
