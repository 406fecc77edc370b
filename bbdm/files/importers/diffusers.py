"""Autoencoders that diffusers has written: a config.json, and the weights as safetensors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import safetensors.torch

from bbdm.codec import Codec, from_config
from bbdm.codec.kinds import CLASSES, EITHER, known_settings
from bbdm.files.weights import readable

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
OLD_ATTENTION = re.compile(r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.")  # before diffusers 0.15
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_codec(path: Path) -> Codec:
    """A codec from a foreign folder or .safetensors; see :func:`bbdm.files.checkpoint.load_codec`."""
    folder, file = (path, path / WEIGHTS) if path.is_dir() else (path.parent, path)
    if not (folder / CONFIG).is_file():
        pipeline = (
            "; it holds a pipeline, whose autoencoder is the folder vae" * (folder / "model_index.json").is_file()
        )
        raise FileNotFoundError(f"there is no {CONFIG} of an autoencoder in {folder}{pipeline}")
    if not file.is_file():
        others = ", ".join(sorted(each.name for each in folder.iterdir() if each.name != CONFIG)) or "nothing"
        raise FileNotFoundError(f"there is no {WEIGHTS} in {folder}, which is all that is read; it has {others}")
    with readable(folder / CONFIG, "config of an autoencoder"):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        name = config["_class_name"]
        kind = next((kind for kind, known in CLASSES.items() if known == name), None)
        if kind is None:
            raise ValueError(f"it is of a {name!r}, and an {EITHER} is wanted")
        settings = known_settings(kind, config)
    with readable(file, "codec"):
        weights = safetensors.torch.load_file(file)
        weights = {OLD_ATTENTION.sub(lambda m: f"{m[1]}.{ATTENTION[m[2]]}.", key): v for key, v in weights.items()}
        return from_config({"kind": kind, "config": settings, "statistics": None}, weights)
