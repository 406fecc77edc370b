"""Export a checkpoint to ONNX: bbdm export CHECKPOINT FOLDER [flags].

FOLDER, out/CHECKPOINT-onnx if left out, gets unet.onnx, step.onnx, for a latent bridge encoder.onnx and
decoder.onnx, and bridge.json, the settings of the sampling loop. `python -m bbdm.runtime FOLDER PICTURE...
-o OUT` runs them.

With --compiled SIZE, FOLDER gets unet.pt2 instead, the network compiled for this machine, which
BridgeSampler.from_checkpoint(CHECKPOINT, compiled="FOLDER/unet.pt2") loads in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bbdm.base.scripts import Command
from bbdm.onnx.config import ExportConfig
from bbdm.pictures.images import sides

if TYPE_CHECKING:
    from bbdm.networks.base import Network


@dataclass(frozen=True, kw_only=True)
class Export(Command, ExportConfig):
    """An export."""

    FIRST: ClassVar[tuple[str, ...]] = ("checkpoint", "folder", "dtype", "solver", "steps", "compiled", "overwrite")

    def run(self, network: Network | None = None) -> None:
        """Write the folder.

        Args:
            network: the network that a file of a wrapped network is of.

        Raises:
            ValueError: the folder exists and ``overwrite`` is not set, the graphs differ from PyTorch, or a
                setting is refused by :meth:`bbdm.BridgeSampler.from_checkpoint`.
        """
        if self.compiled is None:
            from bbdm.onnx.exporter import export

            return export(self, network)
        import torch

        path = self.output / "unet.pt2"
        if path.exists() and not self.overwrite:
            raise ValueError(f"{path} exists: overwrite replaces it")
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        settings = {"network": network, "device": device, "dtype": self.dtype, "compile": True}
        sampler = self.build_sampler(self.checkpoint, **settings)
        sampler.save_compiled(path, size=sides(self.compiled, sampler.unet.axes))
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, for {sampler.device} in {sampler.dtype}")


main = Export.main
