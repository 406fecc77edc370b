"""A model as a folder or as a repository on the Hugging Face Hub: its checkpoint, settings, export and card.

:mod:`bbdm.files.hub` has the names of the files, and reads what is written here.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

import yaml
from safetensors import safe_open

from bbdm import solvers
from bbdm.base import manifest, optional
from bbdm.base.atomic import check_folder, make_folder, write_atomically
from bbdm.bridges import Bridge
from bbdm.codec import Codec, WrappedCodec
from bbdm.files import hub
from bbdm.files.bridge_json import SETTINGS, read_settings
from bbdm.files.checkpoint import save_checkpoint
from bbdm.files.content import FORMAT
from bbdm.networks.base import Network, Wrapped
from bbdm.pictures import images

USE = """\
```bash
pip install 'bbdm[hub]'
```

```python
import bbdm

sampler = bbdm.BridgeSampler.from_pretrained({arguments})
result = sampler("source.png", seed=0)[0]
result.save("result.png")
```
"""
USE_ONNX = """
Without PyTorch, on ONNX Runtime:

```python
from bbdm.runtime import OnnxBridgeSampler

result = OnnxBridgeSampler.from_pretrained("{name}")("source.png", seed=0)[0]
```
"""


class Model(Protocol):
    """What is saved of a :class:`~bbdm.BridgeSampler`."""

    unet: Network
    codec: Codec | None
    bridge: Bridge
    calls: int | None
    image_size: images.Size | None

    @property
    def table(self) -> solvers.StepTable:
        """The steps of its calls."""
        ...

    @property
    def solver(self) -> str:
        """The solver of its calls."""
        ...


def save_pretrained(
    model: Model,
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
    if export is not None and read_settings(export)["bridge"] != manifest.as_json(model.bridge.config()):
        raise ValueError(f"{export} is of another bridge than the model's {model.bridge}")
    make_folder(folder)
    file = folder / hub.WEIGHTS
    about = {"codec": model.codec, "image_size": model.image_size, "calls": model.calls}
    save_checkpoint(file, model.unet, model.bridge, **about)
    with safe_open(file, framework="numpy") as written:
        manifest.write(folder / hub.CONFIG, json.loads(written.metadata()[FORMAT]))
    if export is not None and not inside.exists():
        inside.mkdir()
        for each in (*read_settings(export)["files"], SETTINGS):
            if (export / each).is_file():
                shutil.copyfile(export / each, inside / each)
    if not (folder / hub.CARD).exists():
        text = card(model, name or folder.resolve().name, license, data, onnx is not None)
        write_atomically(folder / hub.CARD, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def push_to_hub(
    model: Model,
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
    """Push what :func:`save_pretrained` writes to the Hugging Face Hub, as one commit.

    Args:
        model: as for :func:`save_pretrained`, as are ``onnx``, ``license`` and ``data``.
        name: OWNER/NAME; the repository is made where there is none.
        onnx: an export, which takes the place of the repository's; without one, that is deleted.
        license: for the card. A card that the repository has already stays as it is, as does
        data: with it.
        private: whether a repository that is made can be seen by its owner alone.
        revision: the branch; None for the main one.
        token: with write access; None for the one of ``HF_TOKEN`` or of a login.
        message: of the commit.

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
    package = optional.package("huggingface_hub", "push_to_hub")
    api = package.HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, onnx=onnx, license=license, data=data, name=name)
        files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
        with hub.plain_errors(f"{name} cannot be pushed:", "it"):
            api.create_repo(name, private=private, exist_ok=True)
            held = api.list_repo_files(name, revision=revision)
            gone = [each for each in held if each.startswith(f"{hub.ONNX}/") and each not in files]
            operations = [
                *(package.CommitOperationDelete(each) for each in gone),
                *(
                    package.CommitOperationAdd(each, path)
                    for each, path in files.items()
                    if each != hub.CARD or each not in held
                ),
            ]
            return api.create_commit(name, operations, commit_message=message, revision=revision).oid


def card(model: Model, name: str, license: str | None, data: str | None, has_export: bool) -> str:
    """The model card: Markdown, with the front matter that the Hub reads."""
    front = {"library_name": "bbdm", "pipeline_tag": "image-to-image", "tags": ["diffusion-bridge"]}
    front |= {} if license is None else {"license": license}
    network, codec, bridge = model.unet, model.codec, model.bridge
    kind = type(network.module if isinstance(network, Wrapped) else network).__name__
    rows = {
        "data": data or "not stated",
        "licence of the weights": license or "not stated",
        "image size": "not stated" if model.image_size is None else "{} x {}".format(*images.sides(model.image_size)),
        "network": f"{kind}, {_millions(network)} M parameters",
        "space": "pictures"
        if codec is None
        else f"latents of a {type(codec.module).__name__}, {_millions(codec.module)} M parameters",
        "bridge": f"`{bridge}`",
        "objective": bridge.objective,
    }
    arguments = ", ".join([f'"{name}"', *_arguments(model)])
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
            f"# {name.rpartition('/')[2]}\n",
            "An image-to-image diffusion bridge, for `bbdm`.\n",
            "| | |\n|---|---|",
            *(f"| {key} | {_cell(value)} |" for key, value in rows.items()),
            "\n## Use\n",
            USE.format(arguments=arguments) + (USE_ONNX.format(name=name) if has_export else ""),
            "## Solvers\n",
            "`solver` and `steps`, the number of network calls, may change at each call. The first is used above.\n",
            "| solver | network calls |\n|---|---|",
            *(f"| `{solver}` | {calls} |" for solver, calls in _solvers(model).items()),
            "",
        ]
    )


def _arguments(model: Model) -> list[str]:
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


def _solvers(model: Model) -> dict[str, int]:
    """Solvers with their calls, the model's own first."""
    own = {model.solver: len(model.table)}
    return {**own, **solvers.choices(model.bridge, model.calls), **own}


def _millions(module: Any) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f}"


def _cell(value: str) -> str:
    """Text for a cell of a table."""
    return " ".join(value.split()).replace("|", "\\|")
