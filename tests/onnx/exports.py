"""Small checkpoints to export, and the script that exports them, each graph once a session."""

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from filelock import FileLock
from torch import nn

from bbdm import VQGAN, ABridge, VQGANCodec, save_checkpoint
from bbdm.cli.files import Export
from bbdm.codec import Codec, LatentStatistics
from bbdm.networks.base import Network, state_hash
from bbdm.networks.unet import UNet
from bbdm.onnx import graphs
from bbdm.onnx.exporter import OLDEST_TORCH
from tests.conftest import tiny_unet

BRIDGE = ABridge(num_steps=100)
TOO_OLD = torch.__version__ < OLDEST_TORCH
REASON = f"PyTorch {OLDEST_TORCH} is the first whose exporter can write the graphs"
needs_exporter = pytest.mark.skipif(TOO_OLD, reason=REASON)
SIZE = 16


def tiny_codec() -> Codec:
    """A codec of 16 codes that are far apart, so that rounding chooses no other code."""
    torch.manual_seed(3)
    vqgan = VQGAN(
        num_codes=16, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_groups=4
    )
    nn.init.normal_(vqgan.quantize.embedding.weight)
    statistics = LatentStatistics(
        (0.1, -0.2, 0.3), (0.5, 0.6, 0.7), (-0.1, 0.2, 0.0), (0.9, 0.8, 0.7)
    )
    codec = VQGANCodec(vqgan).with_statistics(statistics)
    return codec


def checkpoint(path: Path, condition_channels: int = 3, codec: Codec | None = None) -> Path:
    """A file of a tiny network whose prediction is about as large as its input."""
    unet = tiny_unet(0, condition_channels=condition_channels)
    save_checkpoint(path, unet, BRIDGE, codec=codec, image_size=SIZE)
    return path


def once(function: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
    """A function of ``graphs`` whose results the processes of a session share, by weights and settings.

    An export takes ten seconds, and many tests export one small network. A user's network is always exported.
    """

    def made(source: Any, **options: Any) -> onnx.ModelProto:
        own = isinstance(source, UNet) or (isinstance(source, Codec) and source.kind == "vqgan")
        if not own or "BBDM_TESTS" not in os.environ:
            return function(source, **options)
        settings = source.description() if isinstance(source, UNet) else source.config()
        weights = (source if isinstance(source, UNet) else source.module).state_dict()
        named = repr([function.__name__, settings, state_hash(weights), options])
        path = Path(os.environ["BBDM_TESTS"]) / f"{hashlib.sha256(named.encode()).hexdigest()}.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                onnx.save(function(source, **options), path)
            return onnx.load(path)

    return made


step_graph = cache(graphs.step_graph)  # of each process


def export(file: Path, folder: Path, *flags: str, network: Network | None = None) -> Path:
    """Run `bbdm export`, without its check unless ``flags`` have it. It skips where PyTorch is too old."""
    if TOO_OLD:
        pytest.skip(REASON)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("network_graph", "codec_graph"):
            if (function := getattr(graphs, name)).__module__ == graphs.__name__:  # no test's own
                patch.setattr(graphs, name, once(function))
        patch.setattr(graphs, "step_graph", step_graph)
        words = [str(file), str(folder), *([] if "--check" in flags else ["--no-check"]), *flags]
        Export.parse(words).run(network)
    return folder
