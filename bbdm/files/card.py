"""The model card: the ``README.md`` of a model's folder or repository, as the Hugging Face Hub reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from bbdm import solvers
from bbdm.base import manifest, optional, sizes
from bbdm.codec import WrappedCodec
from bbdm.data.spec import Spec, check_eight_bit
from bbdm.files import hub
from bbdm.networks.base import Wrapped
from bbdm.pictures import images

# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
"""
TASK = "image-to-image"
TEXT = """\
---
{front}---

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
{onnx}
## Solvers

`solver` and `steps`, the number of network calls, may change at each call. The first is used above.

| solver | network calls |
|---|---|
{solvers}
{scores}
## Limits

{limits}

{further}
"""
PICTURE = f"""
![sources at the left, results at the right]({hub.PICTURE})
"""
ONNX = """
Without PyTorch, on ONNX Runtime:

```python
from bbdm.runtime import OnnxBridgeSampler

result = OnnxBridgeSampler.from_pretrained("{name}")("source.{suffix}", seed=0)[0]
```
"""
SCORES = """
## Scores

| metric | score | solver | network calls | data |
|---|---|---|---|---|
{rows}
"""
BAR = "\\|"  # in a cell of a table


def hub_license(license: str | None, license_name: str | None = None) -> str | None:
    """A licence as the Hub writes it: ``CC BY-SA 4.0`` is ``cc-by-sa-4.0``.

    Raises:
        ValueError: it is not in the Hub's list; or ``license_name`` is missing with ``other``, or given
            without it.
    """
    written = None if license is None else "-".join(license.lower().split())
    known = LICENSES.split()
    if written is not None and written not in known:
        near = ", ".join(get_close_matches(written, known, cutoff=0.4))
        nearest = f"the nearest of the Hub's list are {near}" if near else "the Hub's list has none like it"
        raise ValueError(f"license {license!r} is unknown: {nearest}; for any other, 'other' with license_name")
    if (written == "other") != (license_name is not None):
        raise ValueError(f"license 'other' and license_name need each other, got {license!r} and {license_name!r}")
    return written


@dataclass(frozen=True)
class Card:
    """What a card says that a checkpoint does not know.

    Raises:
        FileNotFoundError: there are no such ``metrics``.
        ModuleNotFoundError: there are metrics, and huggingface_hub is not installed.
        ValueError: the licence is not of the Hub's list, a base model is no name on the Hub, or ``metrics``
            are no scores of ``bbdm eval``.
    """

    license: str | None = None  # of the weights, by the Hub's list, such as cc-by-sa-4.0; None leaves it open
    license_name: str | None = None  # of the licence, where license is "other"
    data: str | None = None  # what the network was trained on
    limits: str | None = None  # what it cannot do; Markdown
    base_model: str | None = None  # OWNER/NAME of the model that it was fine-tuned or distilled from
    metrics: str | os.PathLike[str] | None = None  # scores.json or sweep.json of bbdm eval, or its folder
    examples: Sequence[Any] = ()  # sources of 8 bits, as a sampler takes them: the card shows them and results

    def __post_init__(self) -> None:
        object.__setattr__(self, "license", hub_license(self.license, self.license_name))
        named = self.base_model and hub.NAME.fullmatch(self.base_model)
        if self.base_model is not None and (not named or named["revision"] is not None):
            raise ValueError(f"base_model must be OWNER/NAME on the Hub, got {self.base_model!r}")
        if self.metrics is not None:
            self._index("of this card")

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """The content of ``metrics``: a report for each solver."""
        if self.metrics is None:
            return []
        path = Path(self.metrics)
        path = path / "scores.json" if path.is_dir() else path
        with manifest.reading(path, "metrics must be scores.json or sweep.json of bbdm eval") as content:
            reports = content if isinstance(content, list) else [content]
            for each in reports:
                _ = {**each["scores"]}, each["solver"], each["nfe"], each["settings"]["dataset"]
        return reports

    def picture(self, model: Any) -> Image.Image | None:
        """The examples and their results by the model's own solver and seed 0; None without examples.

        Raises:
            ValueError: the model is not for 8-bit pictures, or cannot take one of them.
        """
        if not self.examples:
            return None
        check_eight_bit(model.pictures, "examples of a model card")
        sources = [each if isinstance(each, Image.Image) else images.open_image(Path(each)) for each in self.examples]
        return images.sheet([*zip(sources, model(sources, seed=0, batch_size=1), strict=True)])

    def text(self, model: Any, name: str, has_export: bool) -> str:
        """The card of a sampler that is called ``name``."""
        title, kind = name.rpartition("/")[2], model.pictures
        front = {"library_name": "bbdm", "pipeline_tag": TASK, "tags": ["diffusion-bridge"]}
        given = {each: getattr(self, each) for each in ("license", "license_name", "base_model")}
        front |= {each: value for each, value in given.items() if value is not None} | self._index(title)
        own = {model.solver: len(model.table)}
        calls = own | solvers.choices(model.bridge, model.calls) | own
        suffix = "png" if kind.source == kind.target == Spec().source else "npy"
        return TEXT.format(
            front=yaml.safe_dump(front, sort_keys=False),
            title=title,
            picture=PICTURE if self.examples else "",
            facts=_rows(self._facts(model).items()),
            arguments=", ".join([f'"{name}"', *_code(model)]),
            suffix=suffix,
            conditions=", conditions={...}" if model.unet.further.kinds else "",
            onnx=ONNX.format(name=name, suffix=suffix) if has_export else "",
            solvers=_rows((f"`{solver}`", count) for solver, count in calls.items()),
            scores=SCORES.format(rows=_rows(self._scores())) if self.reports else "",
            limits="\n".join(f"- {limit}" for limit in _limits(model)),
            further=self.limits or "No others are stated.",
        )

    def _facts(self, model: Any) -> dict[str, str]:
        network, codec, kind, size = model.unet, model.codec, model.pictures, model.image_size
        network_name = type(network.module if isinstance(network, Wrapped) else network).__name__
        of = "pictures" if codec is None else f"latents of a {type(codec.module).__name__}, {_millions(codec.module)}"
        valued = {} if kind == Spec() else {"values": f"{kind.source} to {kind.target}"}
        if kind.slices is not None:
            beside = f", each with {kind.neighbours} on each side as channels of the source" if kind.neighbours else ""
            valued["slices of volumes"] = f"{kind.slices}{beside}"
        return {
            "data": self.data or "not stated",
            "licence of the weights": self.license_name or self.license or "not stated",
            **({} if self.base_model is None else {"trained from": self.base_model}),
            "image size": "not stated" if size is None else sizes.shown(size),
            **valued,
            "network": f"{network_name}, {_millions(network)}",
            "space": of,
            "bridge": f"`{model.bridge}`",
            "objective": model.bridge.objective,
        }

    def _scores(self) -> list[tuple[Any, ...]]:
        return [
            (metric, f"{score:.4g}", f"`{each['solver']}`", each["nfe"], self._data_of(each))
            for each in self.reports
            for metric, score in each["scores"].items()
        ]

    def _data_of(self, report: dict[str, Any]) -> str:
        """What scores are of."""
        settings, pictures = report["settings"], report.get("pictures")
        size = "" if pictures is None else f", {pictures} pictures"
        return f"{self.data or settings['dataset']}, {settings.get('split', 'val')}{size}"

    def _index(self, title: str) -> dict[str, Any]:
        """The scores as the Hub lists them, ``model-index``."""
        if not self.reports:
            return {}
        package = optional.package("huggingface_hub", "metrics of a model card")
        results = [
            package.EvalResult(
                task_type=TASK,
                dataset_type=each["settings"]["dataset"],
                dataset_name=self.data or each["settings"]["dataset"],
                dataset_split=each["settings"].get("split"),
                metric_type=metric,
                metric_value=score,
                metric_args={"solver": each["solver"], "steps": each["nfe"]},
            )
            for each in self.reports
            for metric, score in each["scores"].items()
        ]
        made = package.ModelCardData(model_name=title, eval_results=results).to_dict()
        return {"model-index": made["model-index"]}


def _limits(model: Any) -> list[str]:
    """What a network cannot do, as far as its file says it."""
    found = ["It knows pictures such as it was trained on, and nothing else."]
    if model.pictures.crop is None and model.image_size is not None:
        size = sizes.shown(model.image_size)
        found.append(f"Of much larger or smaller pictures than {size} it knows little: resize them.")
    if model.calls is not None:
        found.append(f"It was distilled for network calls={model.calls}: other solvers and more calls are worse.")
    return found


def _code(model: Any) -> list[str]:
    """What only the maker of a network or codec of his own can give."""
    wrapped = {"network=bbdm.wrap(...)": Wrapped, "codec=bbdm.wrap_codec(...)": WrappedCodec}
    parts = zip(wrapped.items(), (model.unet, model.codec), strict=True)
    return [code for (code, kind), part in parts if isinstance(part, kind)]


def _rows(rows: Any) -> str:
    """Rows of a table."""
    cells = ([" ".join(str(cell).split()).replace("|", BAR) for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _millions(module: Any) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} M parameters"
