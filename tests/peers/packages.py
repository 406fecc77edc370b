"""sde-bbdm and the packages below it: their tests are skipped on Pythons that cannot import them."""

import sys

import pytest

if sys.version_info[:2] == (3, 10):
    reason = "Python 3.10 has no classes of NamedTuple and Generic, and the package diffusion defines one"
    pytest.skip(reason, allow_module_level=True)
sde_bbdm = pytest.importorskip("sde_bbdm", exc_type=ImportError)  # Python 3.13 cannot import it
diffusion = pytest.importorskip("diffusion")
torchmanager = pytest.importorskip("torchmanager")
# torchmanager 1.5 reads them before sde-bbdm's manager sets them
for name in ("encoder", "decoder"):
    setattr(sde_bbdm.managers.LatentDiffusionManager, name, None)
