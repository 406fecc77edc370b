"""The model card: the ``README.md`` of a model's folder or repository."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from bbdm import solvers
from bbdm.base import manifest, optional, sizes
from bbdm.codec import WRAPPED
from bbdm.data.spec import check_eight_bit
from bbdm.files import hub
from bbdm.networks.base import Wrapped
from bbdm.pictures import images

TASK = "image-to-image"
TEXT = """\
---
{metadata}
---

# {title}

An image-to-image diffusion bridge, for `bbdm`.
{picture}
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
result = sampler("source.{suffix}", seed=0{conditions})[0]
result.save("result.{suffix}")
```
{export}
## Solvers

`solver` and `steps`, the number of network calls, may change at each call. The first is used above.

| solver | network calls |
|---|---|
{solvers}

## Limits

{limits}
"""
PICTURE = "\n![sources at the left, results at the right](examples.png)\n"
EXPORT = """
Without PyTorch, on ONNX Runtime:

```python
from bbdm.runtime import OnnxBridgeSampler

result = OnnxBridgeSampler.from_pretrained("{name}")("source.{suffix}", seed=0)[0]
```
"""


@dataclass(frozen=True)
class Card:
    """What a card says that a checkpoint does not know.

    Raises:
        FileNotFoundError: there are no such ``metrics``.
        ValueError: ``license_name`` is missing with the licence "other", or given without it; a base model is
            no name on the Hub; or ``metrics`` are no scores of ``bbdm eval``.
    """

    license: str | None = None  # of the weights, by the Hub's list, such as cc-by-sa-4.0; None leaves it open
    license_name: str | None = None  # of the licence, where license is "other"
    data: str | None = None  # what the network was trained on
    limits: str | None = None  # what it cannot do; Markdown
    base_model: str | None = None  # OWNER/NAME of the model that it was fine-tuned or distilled from
    metrics: str | os.PathLike[str] | None = None  # scores.json or sweep.json of bbdm eval, or its folder
    examples: Sequence[Any] = ()  # sources of 8 bits, as a sampler takes them: the card shows them and results

    def __post_init__(self) -> None:
        if self.license is not None:  # CC BY-SA 4.0 is cc-by-sa-4.0 on the Hub, which checks it when it is pushed
            object.__setattr__(self, "license", "-".join(self.license.lower().split()))
        if (self.license == "other") != (self.license_name is not None):
            got = f"{self.license!r} and {self.license_name!r}"
            raise ValueError(f"license 'other' and license_name need each other, got {got}")
        match = hub.NAME.fullmatch(self.base_model or "")
        if self.base_model is not None and (not match or match["revision"] is not None):
            raise ValueError(f"base_model must be OWNER/NAME on the Hub, got {self.base_model!r}")
        _ = self.scores

    @cached_property
    def scores(self) -> list[dict[str, Any]]:
        """The content of ``metrics``, as the Hub lists scores: the arguments of its ``EvalResult``."""
        if self.metrics is None:
            return []
        path = Path(self.metrics)
        path = path / "scores.json" if path.is_dir() else path
        with manifest.reading(path, "metrics must be scores.json or sweep.json of bbdm eval") as content:
            return [
                {
                    "task_type": TASK,
                    "dataset_type": report["settings"]["dataset"],
                    "dataset_name": self.data or report["settings"]["dataset"],
                    "dataset_split": report["settings"].get("split"),
                    "metric_type": metric,
                    "metric_value": score,
                    "metric_args": {"solver": report["solver"], "steps": report["nfe"]},
                }
                for report in (content if isinstance(content, list) else [content])
                for metric, score in report["scores"].items()
            ]

    def picture(self, model: Any) -> Image.Image | None:
        """The examples and their results by the model's own solver and seed 0; None without examples.

        Raises:
            ValueError: the model is not for 8-bit pictures, or cannot take one of them.
        """
        if not self.examples:
            return None
        check_eight_bit(model.pictures, "examples of a model card")
        sources = [each if isinstance(each, Image.Image) else images.open_image(Path(each)) for each in self.examples]
        return images.sheet([*zip(sources, model(sources, seed=0, batch_size=1), strict=True)], ("source", "result"))

    def text(self, model: Any, name: str, has_export: bool) -> str:
        """The card of a sampler that is called ``name``.

        Raises:
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        package = optional.package("huggingface_hub", "a model card")
        title, kind, suffix = name.rpartition("/")[2], model.pictures, "png" if model.pictures.eight_bit else "npy"
        size = None if model.image_size is None else sizes.shown(model.image_size)
        own = {model.solver: len(model.table)}
        choices = own | solvers.choices(model.bridge, model.calls) | own  # its own stands first
        codes = {"network=bbdm.wrap(...)": isinstance(model.unet, Wrapped)}  # what only its maker can give
        codes |= {"codec=bbdm.wrap_codec(...)": model.codec is not None and model.codec.kind == WRAPPED}
        metadata = package.ModelCardData(
            library_name="bbdm",
            pipeline_tag=TASK,
            tags=["diffusion-bridge"],
            license=self.license,
            license_name=self.license_name,
            base_model=self.base_model,
            model_name=title if self.scores else None,
            eval_results=[package.EvalResult(**each) for each in self.scores] or None,
        )
        facts = {
            "data": " ".join((self.data or "not stated").split()).replace("|", "\\|"),  # in a cell of a table
            "licence of the weights": self.license_name or self.license or "not stated",
            "trained from": self.base_model,
            "image size": size or "not stated",
            "values": f"{kind.source} to {kind.target}",
            "slices of volumes": kind.slices and f"{kind.slices}, each with {kind.neighbours} on each side",
            "network": _described(model.unet.module if isinstance(model.unet, Wrapped) else model.unet),
            "space": f"latents of a {_described(model.codec.module)}" if model.codec else "pictures",
            "bridge": f"`{model.bridge}`",
            "objective": model.bridge.objective,
        }
        limits = ["- It knows pictures such as it was trained on, and nothing else."]
        if size and not kind.crop:
            limits += [f"- Of much larger or smaller pictures than {size} it knows little: resize them."]
        if model.calls:
            limits += [f"- It was distilled for network calls={model.calls}: other solvers and more calls are worse."]
        return TEXT.format(
            metadata=metadata.to_yaml(),
            title=title,
            picture=PICTURE if self.examples else "",
            facts=_rows(facts),
            arguments=", ".join([f'"{name}"', *(code for code, needed in codes.items() if needed)]),
            suffix=suffix,
            conditions=", conditions={...}" if model.unet.further.each else "",
            export=EXPORT.format(name=name, suffix=suffix) if has_export else "",
            solvers=_rows({f"`{each}`": calls for each, calls in choices.items()}),
            limits="\n".join([*limits, "", self.limits or "No others are stated."]),
        )


def _described(module: Any) -> str:
    return f"{type(module).__name__}, {sum(each.numel() for each in module.parameters()) / 1e6:.1f} M parameters"


def _rows(values: dict[str, Any]) -> str:
    """Lines of a table of Markdown, of what is known."""
    return "\n".join(f"| {name} | {value} |" for name, value in values.items() if value)
