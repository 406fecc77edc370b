"""mIoU of street scenes: bbdm eval-miou DEEPLAB CITYSCAPES MODEL [OUTPUT_DIR] [flags].

DEEPLAB is a checkpoint of VainF's DeepLabV3Plus-Pytorch, or one that `bbdm convert-deeplab` wrote. OUTPUT_DIR
gets the pictures, a confusion matrix for each, settings.json and scores.json. After an interruption, the same
command resumes.

For several processes, one for each GPU, which share the work, add --use_multi_gpus, or start it by
torchrun --nproc_per_node N -m bbdm eval-miou ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bbdm.base import manifest, optional
from bbdm.base.atomic import file_sha256
from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, from_values
from bbdm.data.spec import check_eight_bit
from bbdm.evaluation.config import TranslateConfig
from bbdm.pictures import images

if TYPE_CHECKING:
    import torch

    from bbdm.data.rows import Row
    from bbdm.evaluation.results import Job
    from bbdm.evaluation.segmentation import SegmentationScore
    from bbdm.evaluation.translate import Translator

Report = dict[str, Any]


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, TranslateConfig]:
    """The flags with their defaults, and the settings of the translation."""
    parser = Parser(__doc__, prog="bbdm eval-miou")
    parser.add_argument("deeplab", type=Path, help="the segmentation network")
    parser.add_argument("data_dir", help="the folder with gtFine and leftImg8bit")
    parser.add_argument("model", type=Path, help="a file, or a name on the Hub")
    parser.add_argument("output_dir", type=Path, nargs="?", help="out/MODEL-miou if left out")
    parser.add_argument("--output_stride", type=int, choices=[8, 16], help="of DEEPLAB (default: the file's, or 16)")
    add_flags(parser, TranslateConfig)
    parser.set_defaults(dataset="cityscapes")
    args = parser.parse_args(argv)
    if args.direction != "AtoB":
        parser.error("mIoU is of photographs: leave out --direction")
    if args.image_size in ("fit", "keep"):
        parser.error(f"labels need pictures of their shape: --size {args.image_size} is for bbdm translate")
    args.output_dir = args.output_dir or Path("out") / f"{args.model.stem}-miou"
    return args, from_values(TranslateConfig, vars(args))


def labels_of(row: Row) -> Path:
    """The label ids that belong to a colour map."""
    name = row["source"].name.removesuffix("_color.png")
    return row["source"].with_name(f"{name}_labelIds.png")


def confusion(score: SegmentationScore, network: dict[str, Any], job: Job, labels: Path) -> torch.Tensor:
    """A result's confusion matrix, stored beside it and used again for the same files and network."""
    import torch

    from bbdm.evaluation.segmentation import read_labels

    path = job.path.with_suffix(".confusion.json")
    of = {"picture": file_sha256(job.path), "labels": file_sha256(labels), "network": network}
    if path.exists():
        with manifest.reading(path, "delete it") as stored:
            if stored["of"] == of:
                return torch.tensor(stored["confusion"])
    picture = torch.from_numpy(images.pixels(images.open_image(job.path), 3).copy())
    counts = score.count(picture[None], read_labels(labels)[None])
    manifest.write(path, {"of": of, "confusion": counts.tolist()})
    return counts


def evaluate(translator: Translator, deeplab_path: Path, output_stride: Literal[8, 16] | None) -> Report:
    """Make and segment the results; the report is empty in all processes but the first."""
    from tqdm.auto import tqdm

    check_eight_bit(translator.checkpoint.pictures, "eval-miou")
    from bbdm.evaluation.deeplab import load_deeplab
    from bbdm.evaluation.segmentation import CITYSCAPES, SegmentationScore, read_labels

    config, processes = translator.config, translator.processes
    deeplab = load_deeplab(deeplab_path, output_stride).to(processes.device)
    if deeplab.config.num_classes != len(CITYSCAPES):
        raise ValueError(f"{deeplab_path} must have {len(CITYSCAPES)} classes, got {deeplab.config.num_classes}")
    pairs = translator.dataset.rows
    read_labels(labels_of(pairs[0]))  # before the translation, since it may fail
    jobs, report = translator.run(config.chosen_solver, config.steps, config.output_dir)
    score = SegmentationScore(deeplab, device=processes.device)
    network = {"weights": file_sha256(deeplab_path), **vars(deeplab.config)}
    for job in tqdm(jobs[processes.rank :: processes.count], unit="image", disable=not translator.verbose):
        score.add(confusion(score, network, job, labels_of(pairs[job.index])))
    _, *others = processes.gather(score.confusion)
    if processes.first:
        for counts in others:
            score.add(counts)
        report = {"scores": score.compute(), "deeplab": vars(deeplab.config), **report}
        manifest.write(config.output_dir / "scores.json", report)
    return report


def table(report: Report) -> str:
    """Markdown, the IoU of each class and the mIoU."""
    rows = ["| class | IoU |", "|---|---|"]
    for name, iou in report["scores"]["iou"].items():
        rows.append(f"| {name} | {'absent' if iou is None else f'{iou:.4f}'} |")
    return "\n".join([*rows, f"| **mIoU** | **{report['scores']['miou']:.4f}** |"])


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    args, config = parse(argv)
    from bbdm.evaluation.translate import Translator
    from bbdm.execution.processes import start_on_each_gpu

    optional.package("torchmetrics", "bbdm eval-miou")  # before a network is loaded
    if config.use_multi_gpus:
        start_on_each_gpu(["eval-miou", *argv])
    translator = Translator(config)
    report = evaluate(translator, args.deeplab, args.output_stride)
    if translator.processes.first:
        print(table(report))
        print(
            f"{report['solver']}, {report['nfe']} NFE, {report['seconds_per_picture'] or float('nan'):.3f} s / picture"
        )
        print(f"results and scores.json: {config.output_dir}")
    translator.processes.leave()
