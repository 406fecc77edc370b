"""mIoU of generated street scenes: Cityscapes' labels, and a segmentation network in sliding windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchvision.datasets import Cityscapes

from bbdm.networks.windows import Windows, blend, on_device
from bbdm.pictures.images import open_image

# label ids of the 19 evaluated classes, in the order of their training ids
CITYSCAPES = {each.name: each.id for each in Cityscapes.classes if not each.ignore_in_eval}
IGNORED = 255
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def read_labels(path: Path) -> torch.Tensor:
    """Training ids of a Cityscapes ``*_gtFine_labelIds.png``: (H, W) int64, 0..18, and 255 for other classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture of label ids.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no label map {path}; mIoU needs the official *_gtFine_labelIds.png")
    ids = np.asarray(open_image(path))
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise ValueError(f"{path} must have one 8-bit channel of label ids, got {ids.shape} of {ids.dtype}")
    table = np.full(256, IGNORED, dtype=np.int64)
    table[list(CITYSCAPES.values())] = np.arange(len(CITYSCAPES))
    return torch.from_numpy(table[ids])


def sliding_logits(
    network: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, window: int = 768, stride: int = 512
) -> torch.Tensor:
    """A network's output (B, K, H, W) on windows of an image (B, C, H, W), averaged where they overlap.

    Windows begin at multiples of ``stride``, and the last one ends at the edge. A side shorter than
    ``window``, the side of a window, is one window.

    Raises:
        ValueError: windows would leave gaps.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be from 1 to the window's {window}, got {stride}")
    sides = [Windows.stepped(side, window, stride) for side in image.shape[-2:]]
    weights = on_device([side.means() for side in sides], image)
    return blend(lambda spans: network(image[(..., *spans[0])]), sides, weights)


class SegmentationScore:
    """mIoU between labels and a segmentation network's classes of generated pictures.

    A picture is scaled to [0, 1], resized to its label map (bilinear), normalised by ImageNet's mean and
    standard deviation, and segmented in windows. One confusion matrix counts the whole data set. IoU is the
    intersection over union of a class, and mIoU the mean over classes that occur in labels or results. Pixels
    of label 255 are ignored.

    The public A-Bridge code differs: it counts pixels without a class as class 0, passes pictures in [-1, 1]
    to the network, counts pixels twice where windows overlap, and pools all classes into one intersection and
    one union.

    Args:
        network: (B, 3, h, w) to (B, classes, h, w) logits.
        classes: their names, in order.
        window: side of a window.
        stride: from one window to the next.
        device: where to compute; the network must be there.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        classes: Sequence[str] = tuple(CITYSCAPES),
        window: int = 768,
        stride: int = 512,
        device: str | torch.device = "cpu",
    ) -> None:
        self.network = network
        self.classes = list(classes)
        self.window = window
        self.stride = stride
        self.device = torch.device(device)
        self.confusion = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Add (B, 3, h, w) uint8 pictures of any size, and their (B, H, W) labels, each a class or 255."""
        self.add(self.count(images, labels))

    def add(self, counts: torch.Tensor) -> None:
        """Add what :meth:`count` returned."""
        self.confusion += counts

    @torch.inference_mode()
    def count(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The confusion matrix of pictures, label by predicted class, (classes, classes) int64 on the CPU."""
        pixels = images.to(self.device).float() / 255
        pixels = F.interpolate(pixels, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        logits = sliding_logits(self.network, (pixels - mean) / std, self.window, self.stride)
        if logits.shape[1] != len(self.classes):
            raise ValueError(f"the network must have {len(self.classes)} classes, got {logits.shape[1]}")
        found, labels = logits.argmax(1), labels.to(self.device)
        return multiclass_confusion_matrix(found, labels, len(self.classes), ignore_index=IGNORED).cpu()

    def compute(self) -> dict[str, Any]:
        """``miou``, and ``iou`` by class, None for a class that never occurred.

        Raises:
            ValueError: no pixel had a class.
        """
        matrix = self.confusion.double()
        hits = matrix.diag()
        unions = matrix.sum(0) + matrix.sum(1) - hits
        if not unions.any():
            raise ValueError("mIoU needs at least one pixel with a class")
        iou = (hits / unions).tolist()
        found = {name: None if value != value else value for name, value in zip(self.classes, iou, strict=True)}
        return {"miou": (hits / unions).nanmean().item(), "iou": found}
