"""mIoU of generated street scenes: python examples/eval_miou.py DEEPLAB CITYSCAPES MODEL [OUTPUT_DIR]
[flags].

DEEPLAB is a checkpoint of VainF's DeepLabV3Plus-Pytorch, or what convert_deeplabv3.py made of it. OUTPUT_DIR
gets the pictures, a confusion matrix beside each, settings.json and scores.json. Interrupted, the same
command goes on.

In several processes, one a GPU: torchrun --nproc_per_node N in place of python. They share pictures and
scoring.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from bbdm.base import scripts
from bbdm.base.atomic import file_sha256
from bbdm.data.pairs import Pair, open_image
from bbdm.evaluation import translate
from bbdm.evaluation.deeplab import load_deeplab
from bbdm.evaluation.results import Job, save_json, to_tensor
from bbdm.evaluation.segmentation import CITYSCAPES, SegmentationScore, read_labels
from bbdm.evaluation.translate import Translator
from bbdm.execution.processes import start_on_each_gpu


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, with those that are left out filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deeplab", type=Path, help="the segmentation network")
    parser.add_argument("data_dir", help="the folder with gtFine and leftImg8bit")
    parser.add_argument("model", type=Path)
    parser.add_argument("output_dir", type=Path, nargs="?", help="out/MODEL-miou if left out")
    parser.add_argument("--output_stride", type=int, choices=[8, 16], help="of DEEPLAB (default: the file's, or 16)")
    translate.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.direction != "AtoB":
        parser.error("mIoU is of photographs: leave out --direction")
    translate.finish(parser, args)
    args.dataset = "cityscapes"
    args.output_dir = args.output_dir or Path("out") / f"{args.model.stem}-miou"
    return args


def labels_of(pair: Pair) -> Path:
    """The label ids that belong to a colour map."""
    name = pair.source.name.removesuffix("_color.png")
    return pair.source.with_name(f"{name}_labelIds.png")


def confusion(score: SegmentationScore, network: dict[str, Any], job: Job, labels: Path) -> torch.Tensor:
    """A result's confusion matrix: the one beside it, where that is of the same files and network, or a new one."""
    path = job.path.with_suffix(".confusion.json")
    of = {"picture": file_sha256(job.path), "labels": file_sha256(labels), "network": network}
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("of") == of:
        return torch.tensor(known["confusion"])
    picture = to_tensor(open_image(job.path))
    counts = score.count(picture[None], read_labels(labels)[None])
    save_json({"of": of, "confusion": counts.tolist()}, path)
    return counts


def evaluate(translator: Translator) -> dict[str, Any]:
    """Make the results and count their classes, with the other processes.

    Returns:
        In the first process the report, which is in ``scores.json`` too; the others get an empty one.
    """
    args, processes = translator.args, translator.processes
    deeplab = load_deeplab(args.deeplab, args.output_stride).to(processes.device)
    if deeplab.config.num_classes != len(CITYSCAPES):
        raise ValueError(
            f"{args.deeplab} has {deeplab.config.num_classes} classes, not the {len(CITYSCAPES)} that count"
        )
    pairs = translator.dataset.pairs
    read_labels(labels_of(pairs[0]))  # first, since it may fail
    jobs, report = translator.run(args.solver, args.steps, args.output_dir)
    score = SegmentationScore(deeplab, device=processes.device)
    network = {"weights": file_sha256(args.deeplab), **vars(deeplab.config)}
    share = jobs[processes.rank :: processes.count]
    for job in tqdm(share, unit="image", disable=not args.show_verbose):
        score.add(confusion(score, network, job, labels_of(pairs[job.index])))
    _, *others = processes.gather(score.confusion)
    if not processes.first:
        return {}
    for counts in others:
        score.add(counts)
    report = {"scores": score.compute(), "deeplab": vars(deeplab.config), **report}
    save_json(report, args.output_dir / "scores.json")
    return report


def tell(report: dict[str, Any]) -> None:
    """Print a report."""
    print("| class | IoU |\n|---|---|")
    for name, iou in report["scores"]["iou"].items():
        print(f"| {name} | {'absent' if iou is None else f'{iou:.4f}'} |")
    print(f"| **mIoU** | **{report['scores']['miou']:.4f}** |")
    seconds = report["seconds_per_picture"]
    told = "unknown" if seconds is None else f"{seconds:.3f}"
    print(f"{report['solver']}, {report['nfe']} NFE, {told} s / picture")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.use_multi_gpus:
        start_on_each_gpu(__file__, argv)
    translator = Translator(args)
    report = evaluate(translator)
    if translator.processes.first:
        tell(report)
        print(f"results and scores.json: {args.output_dir}")
    translator.processes.leave()


if __name__ == "__main__":
    scripts.run(main, "results that are there are kept, and the same command goes on")
