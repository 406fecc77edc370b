"""What is exported, and how. Nothing here needs torch or onnx."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from bbdm import solvers
from bbdm.base.settings import check, position, setting
from bbdm.pictures.images import Size, read_size
from bbdm.sampling.network_config import FileConfig

GRAPHS = ("solver", "steps", "pipeline", "quantize", "calibrate")  # not compiled


@dataclass(frozen=True, kw_only=True)
class ExportConfig(FileConfig):
    """Which checkpoint is exported, as graphs or as a compiled network.

    Raises:
        ValueError: a setting is out of range, or settings contradict each other.
    """

    HEADING: ClassVar[str] = "export"

    checkpoint: Path = position("a file that bbdm.load_checkpoint reads")
    folder: Path | None = position("where to write; out/CHECKPOINT-onnx or -compiled if left out", None)
    solver: str | None = setting(None, "the checkpoint's own if unset", choices=solvers.SOLVERS)
    steps: int | None = setting(None, "network calls; the checkpoint's or the solver's if unset", least=1)
    dtype: Literal["fp16", "bf16", "fp32"] | None = setting(
        None, "of weights and products; of graphs fp16 or fp32, the default; compiled, the fastest if unset"
    )
    pipeline: bool = setting(False, "write pipeline.onnx too: a translation in one graph")
    quantize: Literal["int8"] | None = setting(None, "the UNet, calibrated on --calibrate")
    calibrate: Path | None = setting(None, "folder of sources, for --quantize", metavar="PICTURES")
    compiled: Size | None = setting(
        None, "compile for one picture of a side, HxW or DxHxW, in place of graphs", parse=read_size, metavar="SIZE"
    )
    device: str | None = setting(None, "of --compiled: cpu, cuda, cuda:1, ...; cuda if unset and there is one")
    check: bool = setting(True, "compare graphs with PyTorch")
    overwrite: bool = setting(False, "replace FOLDER")

    def __post_init__(self) -> None:
        check(self)
        if self.compiled is not None:
            if taken := [name for name in GRAPHS if getattr(self, name) != getattr(ExportConfig, name)]:
                raise ValueError(f"compiled writes the network alone, and takes no {', '.join(taken)}")
            return
        if self.device is not None:
            raise ValueError("device is of compiled; graphs run anywhere")
        if self.dtype == "bf16":
            raise ValueError("dtype bf16 is of compiled; graphs are in fp16 or fp32")
        if (self.quantize is None) != (self.calibrate is None):
            raise ValueError("quantize and calibrate need each other")
        if self.quantize and self.dtype == "fp16":
            raise ValueError("quantize leaves the rest in fp32, got dtype fp16")

    @property
    def output(self) -> Path:
        """The folder that is written."""
        kind = "onnx" if self.compiled is None else "compiled"
        return self.folder or Path("out") / f"{self.checkpoint.stem}-{kind}"
