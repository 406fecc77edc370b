"""Refusals of wrong values name the flags that were typed."""

from pathlib import Path

import pytest

from bbdm import cli
from bbdm.base.scripts import StoppedError
from bbdm.cli.eval import Calibrate
from bbdm.cli.train import Train

TRAIN = ["train", "edge2shoes", "data", "o.pt", "--preset", "demo"]
EVAL = ["eval", "edge2shoes", "data", "c.pt", "results", "--metrics", "psnr"]
TRANSLATE = ["translate", "folder", "data/val", "c.pt", "results"]
REFUSALS = {
    "a crop that the network does not take": (
        [*TRAIN, "-b", "2", "--crop", "12"],
        "--crop 12 is not a multiple of (8, 8)",
    ),
    "more pairs in a batch than there are": (
        [*TRAIN, "-b", "1000"],
        "--batch_size must be at most the",
    ),
    "a preset of latents": (
        [*TRAIN[:-1], "lbbdm-f4"],
        "--preset lbbdm-f4 is of latents: it needs --vqgan_path",
    ),
    "cached latents without an autoencoder": (
        [*TRAIN, "--cache_latents", "cache"],
        "--cache_latents and --normalize_latents need --vqgan_path",
    ),
    "LoRA beside nothing": ([*TRAIN, "--lora", "4"], "--lora needs --init_from, a folder"),
    "no steps": (
        [*TRANSLATE, "--solver", "dpm2m", "--steps", "0"],
        "--steps must be an integer in [1, 100]",
    ),
    "the mean by several calls": (
        [*TRANSLATE, "--solver", "mean", "--steps", "5"],
        "--steps must be 1: solver 'mean' is one network call",
    ),
    "8 bits without pictures": (
        ["export", "c.pt", "--quantize", "int8"],
        "--quantize and --calibrate need each other",
    ),
    "8 bits beside halves": (
        ["export", "c.pt", "--quantize", "int8", "--calibrate", "data", "--dtype", "fp16"],
        "--quantize leaves the rest in fp32, got --dtype fp16",
    ),
    "a compiled network of a pipeline": (
        ["export", "c.pt", "--compiled", "16", "--pipeline"],
        "--compiled writes the network alone, and takes no --pipeline",
    ),
    "graphs in bfloat16": (["export", "c.pt", "--dtype", "bf16"], "--dtype bf16 is of --compiled"),
    "graphs of a device": (["export", "c.pt", "--device", "cpu"], "--device is of --compiled"),
    "a start without a network": (
        [*TRAIN, "--config", "sde-bbdm"],
        "--config is of the network that --init_from names",
    ),
    "no results": ([*TRANSLATE, "--num_samples", "0"], "--num_samples must be at least 1, got 0"),
    "a sweep of no steps": (
        [*EVAL, "--sweep", "dpm2m:0"],
        "--sweep cannot be dpm2m:0: steps must be an integer",
    ),
    "a sweep of no solver": (
        [*EVAL, "--sweep", "dpm3"],
        "--sweep cannot be dpm3: solver must be one of 'dpm2m'",
    ),
    "a sweep beside a solver": (
        [*EVAL, "--sweep", "mean", "--solver", "mean"],
        "--sweep names solvers and steps: leave out --solver, --steps and --fast_sampling",
    ),
    "pictures without targets": (
        ["eval", "folder", *EVAL[2:]],
        "no targets: --degrade makes sources of the pictures",
    ),
    "a folder that is there": (
        ["export", "c.pt", "data"],
        "data exists: --overwrite replaces an export",
    ),
    "windows that overlap by all": (
        [*TRANSLATE, "--window", "16", "--overlap", "80"],
        "--overlap must be above 0 and at most 0.9, got 80.0",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_the_flag(case: str, world: Path) -> None:
    words, message = REFUSALS[case]
    with pytest.raises(SystemExit) as refused:
        cli.run(words[0], words[1:])
    assert message in f"{refused.value}"


def test_paths_values_and_words_are_no_flags() -> None:
    """Only what names a setting is called by its flag; a position by its word in the usage."""
    unchanged = [
        "there is no /data/image_size/1.png",
        "got image_size=3",
        "validation is at the end of each epoch",
        "the preset has no latents",
        "give --image_size",
        "a (bridge of two) crops",
        "there is no checkpoint: epochs of it are gone",
    ]
    for message in unchanged:
        assert Train.as_typed(message) == message
    assert Train.as_typed("use another folder (experiment)") == "use another folder (--experiment)"
    kept = "c.json exists already: --overwrite calibrates again, --output gives another file"
    assert Calibrate.as_typed(kept.replace("--", "")) == kept
    assert (
        Train.as_typed("output_model must not be a folder") == "OUTPUT_MODEL must not be a folder"
    )


def test_a_stopped_run_names_flags_too() -> None:
    with pytest.raises(StoppedError, match="lower --learning_rate") as stopped:  # noqa: SIM117
        with Train.naming_flags():
            raise StoppedError("the loss is not finite: lower learning_rate", 3)
    assert stopped.value.status == 3
