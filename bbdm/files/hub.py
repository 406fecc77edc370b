"""Models as folders and on the Hugging Face Hub: what is written and pushed.

A repository, and a folder of the same layout, holds ``model.safetensors``, the checkpoint; ``config.json``, a
readable copy of its settings; and where there is an export, ``onnx/``. A model is a
:class:`~bbdm.BridgeSampler`, which this module must not import.
"""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bbdm.base import manifest, optional
from bbdm.base.atomic import check_folder, write_atomically
from bbdm.codec import WRAPPED
from bbdm.files import weights
from bbdm.files.content import Checkpoint, CodecState, NetworkState
from bbdm.files.repository import CARD, CONFIG, NAME, WEIGHTS, hub_errors
from bbdm.networks.base import Wrapped, find_dtype
from bbdm.networks.conditions import DIRECTIONS

ONNX = "onnx"
CARD_TEXT = """\
---
{metadata}
---

# {title}

An image-to-image diffusion bridge, for `bbdm`. `config.json` has its settings, and `bbdm info {name}` shows them.

## Use

```bash
pip install 'bbdm[hub]'
```

```python
import bbdm

sampler = bbdm.BridgeSampler.from_pretrained({arguments})
result = sampler("source.{suffix}", seed=0{conditions})[0]
result.save("result.{suffix}")
```

It knows pictures such as it was trained on, and nothing else. `solver` and `steps`, the number of network
calls, may change at each call.
"""


def save_pretrained(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    name: str | None = None,
    **metadata: Any,
) -> None:
    """Write a model as a folder: ``model.safetensors``, ``config.json`` and ``README.md``.

    Args:
        model: a sampler. The folder keeps its solver and steps, where it was built with any.
        folder: is made where it is missing. Its files are replaced, but a ``README.md`` stays. An export of
            the model by ``bbdm export`` may be copied to its ``onnx/`` then.
        dtype: in which the network's weights are stored, such as ``"fp16"``; None for the one that they have.
            A codec's weights keep theirs.
        name: what the card calls the model; the folder's name if None.
        metadata: what the Hub reads of the card, such as ``license``, ``base_model`` and ``datasets``: the
            arguments of ``huggingface_hub.ModelCardData``, in place of those of the network that it began as,
            where the file says these. Without any, and without huggingface_hub, there is no card.

    Raises:
        ModuleNotFoundError: there are metadata for the card, and huggingface_hub is not installed.
        OSError: a file cannot be written.
        ValueError: the folder cannot be made, or has an export, which may be of other weights; or weights
            are beyond the range of ``dtype``.
    """
    folder = Path(folder)
    model = model.towards(DIRECTIONS[0]) if model.direction else model
    check_folder(folder)
    if (folder / ONNX).exists():
        raise ValueError(
            f"{folder / ONNX} exists, and may be of other weights: delete it, and export again"
        )
    text = None
    if not (folder / CARD).exists() and (metadata or find_spec("huggingface_hub")):
        text = card(model, name or folder.resolve().name, **metadata)
    network = NetworkState.of(model.unet, dtype=None if dtype is None else find_dtype(dtype))
    codec = None if model.codec is None else CodecState.of(model.codec)
    content = Checkpoint(
        network, model.bridge, codec, model.image_size, None, model.defaults, model.pictures
    ).snapshot()
    weights.write(folder / WEIGHTS, content)
    manifest.write(folder / CONFIG, content.header)
    if text is not None:
        write_atomically(
            folder / CARD, lambda temporary: temporary.write_text(text, encoding="utf-8")
        )


def card(model: Any, name: str, **metadata: Any) -> str:
    """The model card of a sampler that is called ``name``; for ``metadata`` see :func:`save_pretrained`."""
    if model.unet.base is not None:
        metadata = {**model.unet.base.metadata, **metadata}
    data = optional.package("huggingface_hub", "a model card").ModelCardData(
        library_name="bbdm", pipeline_tag="image-to-image", tags=["diffusion-bridge"], **metadata
    )
    # what only its maker can give
    given = ["network=bbdm.wrap(...)"] if isinstance(model.unet, Wrapped) else []
    given += ["codec=bbdm.wrap_codec(...)"] if model.codec and model.codec.kind == WRAPPED else []
    return CARD_TEXT.format(
        metadata=data.to_yaml(),
        title=name.rpartition("/")[2],
        name=name,
        arguments=", ".join([f'"{name}"', *given]),
        suffix="png" if model.pictures.eight_bit else "npy",
        conditions=", conditions={...}" if model.unet.network_config.each else "",
    )


def push_to_hub(
    model: Any,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = "A model of bbdm",
    **settings: Any,
) -> str:
    """Push what :func:`save_pretrained` writes to the Hugging Face Hub, as one commit. Other files stay.

    Args:
        model: the sampler to push.
        name: OWNER/NAME; the repository is made where there is none.
        private: whether a repository that is made can be seen by its owner alone.
        revision: the branch; None for the main one.
        token: with write access; None for the one of ``HF_TOKEN`` or of a login.
        message: the message of the commit.
        settings: further arguments of :func:`save_pretrained`. A card that the repository has stays as it is;
            an export in its ``onnx/`` is deleted, as it may be of other weights.

    Returns:
        The hash of the commit: ``from_pretrained(name, revision=hash)`` is this model for ever.

    Raises:
        HubError: the Hub refuses it, or cannot be reached.
        ModuleNotFoundError: huggingface_hub is not installed.
        ValueError: see :func:`save_pretrained`; or a name of another form.
    """
    match = NAME.fullmatch(name)
    if match is None or match["revision"] is not None:
        raise ValueError(f"name must be OWNER/NAME, got {name!r}")
    api = optional.package("huggingface_hub", "push_to_hub").HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, **settings, name=name)
        with hub_errors(f"{name} cannot be pushed"):
            api.create_repo(name, private=private, exist_ok=True)
            kept = [CARD] if api.file_exists(name, CARD, revision=revision) else []
            commit = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                revision=revision,
                commit_message=message,
                ignore_patterns=kept,
                delete_patterns=f"{ONNX}/*",
            )
            return commit.oid
