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
TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

An image-to-image diffusion bridge, for `bbdm`.
{% if card.examples %}
![sources at the left, results at the right]({{ picture }})
{% endif %}
| | |
|---|---|
| data | {{ data or "not stated" }} |
| licence of the weights | {{ card.license_name or card.license or "not stated" }} |
{% if card.base_model -%}
| trained from | {{ card.base_model }} |
{% endif -%}
| image size | {{ size or "not stated" }} |
| values | {{ kind.source }} to {{ kind.target }} |
{% if kind.slices -%}
| slices of volumes | {{ kind.slices }}, each with {{ kind.neighbours }} on each side |
{% endif -%}
| network | {{ network }} |
| space | {% if model.codec %}latents of a {{ codec }}{% else %}pictures{% endif %} |
| bridge | `{{ model.bridge }}` |
| objective | {{ model.bridge.objective }} |

## Use

```bash
pip install 'bbdm[hub]'
```

```python
import bbdm

sampler = bbdm.BridgeSampler.from_pretrained({{ arguments }})
result = sampler("source.{{ suffix }}", seed=0{% if model.unet.further.kinds %}, conditions={...}{% endif %})[0]
result.save("result.{{ suffix }}")
```
{% if has_export %}
Without PyTorch, on ONNX Runtime:

```python
from bbdm.runtime import OnnxBridgeSampler

result = OnnxBridgeSampler.from_pretrained("{{ name }}")("source.{{ suffix }}", seed=0)[0]
```
{% endif %}
## Solvers

`solver` and `steps`, the number of network calls, may change at each call. The first is used above.

| solver | network calls |
|---|---|
{% for solver, calls in solvers.items() -%}
| `{{ solver }}` | {{ calls }} |
{% endfor %}
{%- if card.scores %}
## Scores

| metric | score | solver | network calls | data |
|---|---|---|---|---|
{% for score in card.scores -%}
| {{ score.metric_type }} | {{ "%.4g" % score.metric_value }} | `{{ score.metric_args.solver }}` | \
{{ score.metric_args.steps }} | {{ data or score.dataset_type }}, {{ score.dataset_split or "val" }} |
{% endfor %}
{%- endif %}
## Limits

- It knows pictures such as it was trained on, and nothing else.
{% if size and not kind.crop -%}
- Of much larger or smaller pictures than {{ size }} it knows little: resize them.
{% endif -%}
{% if model.calls -%}
- It was distilled for network calls={{ model.calls }}: other solvers and more calls are worse.
{% endif %}
{{ card.limits or "No others are stated." }}
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
        title, kind, size = name.rpartition("/")[2], model.pictures, model.image_size
        data = package.ModelCardData(
            library_name="bbdm",
            pipeline_tag=TASK,
            tags=["diffusion-bridge"],
            license=self.license,
            license_name=self.license_name,
            base_model=self.base_model,
            model_name=title if self.scores else None,
            eval_results=[package.EvalResult(**each) for each in self.scores] or None,
        )
        codes = {"network=bbdm.wrap(...)": isinstance(model.unet, Wrapped)}  # what only its maker can give
        codes |= {"codec=bbdm.wrap_codec(...)": model.codec is not None and model.codec.kind == WRAPPED}
        first = {model.solver: len(model.table)}
        card = package.ModelCard.from_template(
            data,
            template_str=TEMPLATE,
            card=self,
            model=model,
            name=name,
            title=title,
            data=" ".join((self.data or "").split()).replace("|", "\\|"),  # in a cell of a table
            picture=hub.PICTURE,
            size=None if size is None else sizes.shown(size),
            kind=kind,
            network=_described(model.unet.module if isinstance(model.unet, Wrapped) else model.unet),
            codec=model.codec and _described(model.codec.module),
            arguments=", ".join([f'"{name}"', *(code for code, needed in codes.items() if needed)]),
            suffix="png" if kind.eight_bit else "npy",
            has_export=has_export,
            solvers=first | solvers.choices(model.bridge, model.calls) | first,
        )
        return card.content


def _described(module: Any) -> str:
    return f"{type(module).__name__}, {sum(each.numel() for each in module.parameters()) / 1e6:.1f} M parameters"
