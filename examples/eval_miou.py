"""mIoU of street scenes, of the pictures that a network makes of Cityscapes' label maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from bbdm.base import manifest, optional, progress, scripts
from bbdm.base.atomic import file_sha256
from bbdm.base.settings import position, setting
from bbdm.cli import GPUsCommand
from bbdm.data.rows import Row
from bbdm.data.spec import check_eight_bit
from bbdm.pictures import images
from bbdm.translation.config import TranslateConfig
from bbdm.translation.translator import Translator

# label ids of the 19 evaluated classes, in the order of their training ids
CITYSCAPES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
IGNORED = 255
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Network = Callable[[torch.Tensor], torch.Tensor]


def label_path(row: Row) -> Path:
    """The label ids that belong to a colour map."""
    colours = Path(row["source"])
    return colours.with_name(f"{colours.name.removesuffix('_color.png')}_labelIds.png")


def read_labels(path: Path) -> torch.Tensor:
    """Training ids of a Cityscapes ``*_gtFine_labelIds.png``: (H, W) int64, 0..18; 255 for other classes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no label map {path}; mIoU needs the official *_gtFine_labelIds.png"
        )
    ids = np.asarray(images.open_image(path))
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise ValueError(
            f"{path} must have one 8-bit channel of label ids, got {ids.shape} of {ids.dtype}"
        )
    table = np.full(256, IGNORED, dtype=np.int64)
    table[list(CITYSCAPES.values())] = np.arange(len(CITYSCAPES))
    return torch.from_numpy(table[ids])


def sliding_logits(
    network: Network, image: torch.Tensor, window: int = 768, stride: int = 512
) -> torch.Tensor:
    """A network's output (B, K, H, W) on windows of an image (B, C, H, W), averaged where they overlap.

    Windows begin at multiples of ``stride``, and the last one ends at the edge. A shorter side is one window.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be from 1 to the window's {window}, got {stride}")
    last = [max(side - window, 0) for side in image.shape[-2:]]
    total, count = torch.zeros(()), torch.zeros_like(image[:, :1])
    for top, left in product(*([*range(0, end, stride), end] for end in last)):
        part = (..., slice(top, top + window), slice(left, left + window))
        logits = network(image[part])
        total = logits.new_zeros(*logits.shape[:2], *image.shape[-2:]) if total.ndim == 0 else total
        total[part] += logits
        count[part] += 1
    return total / count


@torch.inference_mode()
def confusion(
    network: Network, picture: torch.Tensor, labels: torch.Tensor, classes: int
) -> torch.Tensor:
    """The confusion matrix of (B, 3, h, w) uint8 and (B, H, W) labels: label by predicted class, int64."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    pixels = F.interpolate(
        picture.float() / 255, size=labels.shape[-2:], mode="bilinear", align_corners=False
    )
    mean, std = (pixels.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    logits = sliding_logits(network, (pixels - mean) / std)
    if logits.shape[1] != classes:
        raise ValueError(f"the network must have {classes} classes, got {logits.shape[1]}")
    return multiclass_confusion_matrix(
        logits.argmax(1), labels, classes, ignore_index=IGNORED
    ).cpu()


def scores(counts: torch.Tensor, classes: Sequence[str] = tuple(CITYSCAPES)) -> dict[str, Any]:
    """``miou``, and ``iou`` by class of a confusion matrix, None for a class that never occurred."""
    from torchmetrics.classification import MulticlassJaccardIndex

    if not counts.any():
        raise ValueError("mIoU needs at least one pixel with a class")

    def index(average: Literal["macro", "none"]) -> torch.Tensor:
        # the counts are of all processes
        about = {"ignore_index": IGNORED, "sync_on_compute": False}
        metric = MulticlassJaccardIndex(len(classes), average=average, **about)
        metric.confmat = counts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the counts came without an update
            return metric.compute()

    occurs = (counts.sum(0) + counts.sum(1) > 0).tolist()
    found = zip(classes, index("none").tolist(), occurs, strict=True)
    return {
        "miou": index("macro").item(),
        "iou": {name: iou if known else None for name, iou, known in found},
    }


def counted(
    network: Network, about: dict[str, Any], result: Path, labels: Path, device: torch.device
) -> torch.Tensor:
    """A result's confusion matrix, stored beside it and used again for the same files and network."""
    path = result.with_suffix(".confusion.json")
    of = {"picture": file_sha256(result), "labels": file_sha256(labels), "network": about}
    if path.exists():
        with manifest.reading(path, "delete it") as stored:
            if stored["of"] == of:
                return torch.tensor(stored["confusion"])
    picture = torch.from_numpy(images.pixels(images.open_image(result), 3).copy())
    counts = confusion(
        network, picture[None].to(device), read_labels(labels)[None].to(device), len(CITYSCAPES)
    )
    manifest.write(path, {"of": of, "confusion": counts.tolist()})
    return counts


def table(report: dict[str, Any]) -> str:
    """Markdown, the IoU of each class and the mIoU."""
    rows = ["| class | IoU |", "|---|---|"]
    for name, iou in report["scores"]["iou"].items():
        rows.append(f"| {name} | {'absent' if iou is None else f'{iou:.4f}'} |")
    return "\n".join([*rows, f"| **mIoU** | **{report['scores']['miou']:.4f}** |"])


@dataclass(frozen=True, kw_only=True)
class Miou(GPUsCommand, TranslateConfig):
    """mIoU of street scenes: python examples/eval_miou.py DEEPLAB CITYSCAPES MODEL OUTPUT_DIR [flags].

    DEEPLAB is a checkpoint of VainF's DeepLabV3Plus-Pytorch, or one that convert_deeplabv3.py wrote.
    OUTPUT_DIR gets the pictures, a confusion matrix for each, settings.json and scores.json. After an
    interruption, the same command resumes.

    A picture is scaled to [0, 1], resized to its label map (bilinear), normalised by ImageNet's mean and
    standard deviation, and segmented in windows, whose logits are averaged where they overlap. One confusion
    matrix counts the whole data set. IoU is the intersection over union of a class, and mIoU the mean over
    classes that occur in labels or results. Pixels without a class do not count. The public A-Bridge code
    differs: it counts them as class 0, passes pictures in [-1, 1] to the network, counts pixels twice where
    windows overlap, and pools all classes into one intersection and one union.

    For several processes, one for each GPU, which share the work, add --use_multi_gpus, or start it by
    torchrun --nproc_per_node N examples/eval_miou.py ...
    """

    HEADING: ClassVar[str] = "segmentation"
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"maps", "intervals"})
    ENDING: ClassVar[str] = "-miou"
    PROGRAM: ClassVar[str] = "eval_miou.py"
    FIRST: ClassVar[str] = "deeplab data_dir model output_dir output_stride"

    dataset: str = "cityscapes"
    deeplab: Path = position("the segmentation network")
    output_stride: Literal[8, 16] | None = setting(None, "of DEEPLAB; the file's if unset, or 16")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction != "AtoB":
            raise ValueError("mIoU is of photographs: leave out direction")
        if self.image_size in ("fit", "keep"):
            raise ValueError(
                f"labels need pictures of their shape, got image_size {self.image_size}"
            )

    def run(self) -> None:
        """Make, segment and score the results."""
        if report := self.evaluate():
            print(table(report))
            seconds = report["seconds_per_picture"]
            shown = "unknown" if seconds is None else f"{seconds:.3f}"
            print(f"{report['solver']}, {report['nfe']} NFE, {shown} s / picture")
            print(f"results and scores.json: {self.folder}")

    def evaluate(self) -> dict[str, Any]:
        """Make and segment the results; the report is empty in all processes but the first."""
        optional.package("torchmetrics", self.PROGRAM)  # before a network is loaded
        from deeplab import load_deeplab

        translator = Translator(self)
        processes, rows = translator.processes, translator.dataset.rows
        check_eight_bit(translator.checkpoint.pictures, "eval_miou.py")
        deeplab = load_deeplab(self.deeplab, self.output_stride).to(processes.device)
        if deeplab.config.num_classes != len(CITYSCAPES):
            raise ValueError(
                f"{self.deeplab} must have {len(CITYSCAPES)} classes, got {deeplab.config.num_classes}"
            )
        read_labels(label_path(rows[0]))  # before the translation, since it may fail
        jobs, _, report = translator.run(self.solver, self.steps, self.folder)
        about = {"weights": file_sha256(self.deeplab), **vars(deeplab.config)}
        counts = torch.zeros(len(CITYSCAPES), len(CITYSCAPES), dtype=torch.int64)
        share = jobs[processes.rank :: processes.count]
        for job in progress.counted(share, "segmenting", len(share), "results", translator.verbose):
            counts += counted(
                deeplab, about, job.path, label_path(rows[job.index]), processes.device
            )
        counts = sum(processes.gather(counts), torch.zeros_like(counts))
        if processes.first:
            report = {"scores": scores(counts), "deeplab": vars(deeplab.config), **report}
            manifest.write(self.folder / "scores.json", report)
        processes.leave()
        return report


if __name__ == "__main__":
    scripts.run(Miou.main)
