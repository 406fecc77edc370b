"""A model as a folder or as a repository on the Hugging Face Hub: its checkpoint, settings, export and card.

:mod:`bbdm.files.hub` has the names of the files, and reads what is written here. A model is a
:class:`~bbdm.BridgeSampler`, which this module must not import.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from bbdm import solvers
from bbdm.base import manifest, optional
from bbdm.base.atomic import check_folder, make_folder, write_atomically
from bbdm.codec import WrappedCodec
from bbdm.files import hub
from bbdm.files.bridge_json import SETTINGS, read_settings
from bbdm.files.checkpoint import save_checkpoint
from bbdm.files.content import FORMAT
from bbdm.networks.base import Wrapped
from bbdm.pictures import images

CARD = """\
---
{front}---

# {title}

An image-to-image diffusion bridge, for `bbdm`.

| | |
|---|---|
{facts}

## Use

```bash
pip install 'bbdm[hub]'
```

```python
import bbdm

sampler = bbdm.BridgeSampler.from_pretrained({arguments})
result = sampler("source.png", seed=0)[0]
result.save("result.png")
```
{onnx}
## Solvers

`solver` and `steps`, the number of network calls, may change at each call. The first is used above.

| solver | network calls |
|---|---|
{solvers}
"""
BAR = "\\|"  # in a cell of a table
USE_ONNX = """
Without PyTorch, on ONNX Runtime:

```python
from bbdm.runtime import OnnxBridgeSampler

result = OnnxBridgeSampler.from_pretrained("{name}")("source.png", seed=0)[0]
```
"""


def save_pretrained(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    onnx: str | os.PathLike[str] | None = None,
    license: str | None = None,
    data: str | None = None,
    name: str | None = None,
) -> None:
    """Write a model as a folder: ``model.safetensors``, ``config.json``, ``README.md`` and perhaps ``onnx/``.

    Args:
        model: a sampler. Its weights are written in the dtype that they have.
        folder: is made where it is missing. Its files are replaced, but a ``README.md`` stays.
        onnx: an export of this model by ``bbdm export``; it is copied to ``onnx/``.
        license: of the weights, such as ``cc-by-sa-4.0``, for the card; None leaves it open.
        data: what the network was trained on, for the card: a checkpoint does not know it.
        name: what the card calls the model; the folder's name if None.

    Raises:
        FileNotFoundError: ``onnx`` is no export, or lacks a file.
        OSError: a file cannot be written.
        ValueError: the folder cannot be made, or has another export; or ``onnx`` is damaged.
    """
    folder = Path(folder)
    check_folder(folder)
    export = None if onnx is None else Path(onnx)
    inside = folder / hub.ONNX
    if inside.exists() and (export is None or inside.resolve() != export.resolve()):
        raise ValueError(f"{inside} exists, and may be of other weights: delete it, or give it as onnx")
    settings = None if export is None else read_settings(export)
    if settings is not None and settings["bridge"] != manifest.as_json(model.bridge.config()):
        raise ValueError(f"{export} is of another bridge than the model's {model.bridge}")
    make_folder(folder)
    file = folder / hub.WEIGHTS
    about = {"codec": model.codec, "image_size": model.image_size, "calls": model.calls, "pictures": model.pictures}
    save_checkpoint(file, model.unet, model.bridge, **about)
    with safe_open(file, framework="numpy") as written:
        manifest.write(folder / hub.CONFIG, json.loads(written.metadata()[FORMAT]))
    if export is not None and settings is not None and not inside.exists():
        inside.mkdir()
        for each in (*settings["files"], SETTINGS):
            if (export / each).is_file():
                shutil.copyfile(export / each, inside / each)
    if not (folder / hub.CARD).exists():
        text = card(model, name or folder.resolve().name, license, data, onnx is not None)
        write_atomically(folder / hub.CARD, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def push_to_hub(
    model: Any,
    name: str,
    *,
    onnx: str | os.PathLike[str] | None = None,
    license: str | None = None,
    data: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = "A model of bbdm",
) -> str:
    """Push what :func:`save_pretrained` writes to the Hugging Face Hub, as one commit. Other files stay.

    Args:
        model: the sampler to push.
        name: OWNER/NAME; the repository is made where there is none.
        onnx: an export, which takes the place of the repository's; without one, that is deleted.
        license: of the weights, for a new card; a card that the repository has stays as it is.
        data: what the network was trained on, for a new card.
        private: whether a repository that is made can be seen by its owner alone.
        revision: the branch; None for the main one.
        token: with write access; None for the one of ``HF_TOKEN`` or of a login.
        message: the message of the commit.

    Returns:
        The hash of the commit: ``from_pretrained(name, revision=hash)`` is this model for ever.

    Raises:
        HubError: the Hub refuses it, or cannot be reached.
        ModuleNotFoundError: huggingface_hub is not installed.
        ValueError: see :func:`save_pretrained`; or a name of another form.
    """
    match = hub.NAME.fullmatch(name)
    if match is None or match["revision"] is not None:
        raise ValueError(f"name must be OWNER/NAME, got {name!r}")
    api = optional.package("huggingface_hub", "push_to_hub").HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, onnx=onnx, license=license, data=data, name=name)
        with hub.plain_errors(f"{name} cannot be pushed:", "it"):
            api.create_repo(name, private=private, exist_ok=True)
            kept = [hub.CARD] if api.file_exists(name, hub.CARD, revision=revision) else []
            made = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                revision=revision,
                commit_message=message,
                ignore_patterns=kept,
                delete_patterns=f"{hub.ONNX}/*",  # but not what takes its place
            )
            return made.oid


def card(model: Any, name: str, license: str | None, data: str | None, has_export: bool) -> str:
    """The model card: Markdown, with the front matter that the Hub reads."""
    front = {"library_name": "bbdm", "pipeline_tag": "image-to-image", "tags": ["diffusion-bridge"]}
    front |= {} if license is None else {"license": license}
    network, codec, bridge, size = model.unet, model.codec, model.bridge, model.image_size
    kind = type(network.module if isinstance(network, Wrapped) else network).__name__
    space = "pictures" if codec is None else f"latents of a {type(codec.module).__name__}, {_millions(codec.module)}"
    facts = {
        "data": data or "not stated",
        "licence of the weights": license or "not stated",
        "image size": "not stated" if size is None else "{} x {}".format(*images.sides(size)),
        "network": f"{kind}, {_millions(network)}",
        "space": space,
        "bridge": f"`{bridge}`",
        "objective": bridge.objective,
    }
    own = {model.solver: len(model.table)}  # before the others
    calls = {**own, **solvers.choices(bridge, model.calls), **own}
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=name.rpartition("/")[2],
        facts="\n".join(f"| {key} | {' '.join(value.split()).replace('|', BAR)} |" for key, value in facts.items()),
        arguments=", ".join([f'"{name}"', *_arguments(model)]),
        onnx=USE_ONNX.format(name=name) if has_export else "",
        solvers="\n".join(f"| `{solver}` | {count} |" for solver, count in calls.items()),
    )


def _arguments(model: Any) -> list[str]:
    """What ``from_pretrained`` needs for this model and its solver, besides the name."""
    default, _ = solvers.with_defaults(model.calls)
    _, steps = solvers.with_defaults(model.calls, model.solver)
    usual = len(solvers.build(model.bridge, model.solver, steps=steps))
    return [
        *(["network=bbdm.wrap(...)"] if isinstance(model.unet, Wrapped) else []),
        *(["codec=bbdm.wrap_codec(...)"] if isinstance(model.codec, WrappedCodec) else []),
        *([] if model.solver == default else [f'solver="{model.solver}"']),
        *([] if len(model.table) == usual else [f"steps={len(model.table)}"]),
    ]


def _millions(module: Any) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} M parameters"
