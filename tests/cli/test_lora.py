"""``bbdm train --lora``: what is trained, what is written, where it resumes, and who needs the base."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from bbdm import BridgeSampler, cli, load_checkpoint
from bbdm.bridges import BrownianBridge
from bbdm.cli.train import Train
from bbdm.files.pretrained import pretrained
from bbdm.networks.lora import PROMPTS
from bbdm.runtime.sampler import OnnxBridgeSampler
from tests.cli.test_pretrained import FLAGS, refused, train
from tests.cli.test_pretrained import world as world
from tests.conftest import same_weights
from tests.cuda.test_training import Edges
from tests.files.test_pretrained import save
from tests.onnx.exports import needs_exporter


def states(path: Path | str) -> Any:
    return load_checkpoint(path).unet


@pytest.mark.parametrize(
    ("folder", "precision"), [("pixels", "fp32"), ("latents", "bf16"), ("dit", "fp32")]
)
def test_a_run_with_lora_resumes_to_the_bit(folder: str, precision: str, world: Path) -> None:
    """A DiT too, which draws classes in training mode; with activation checkpointing."""
    save(world / "dit", DDPMScheduler(), "DiT")
    flags = ["--lora", "2", "--precision", precision, "--gradient_checkpointing", "--max_steps"]
    if folder == "dit":
        shutil.copytree("latents/vae", "dit/vae")
    train(folder, "straight.pt", *flags, "4")
    train(folder, "again.pt", *flags, "2")
    train(folder, "again.pt", *flags, "4")
    straight, again = states("straight.run/step_00000004.pt"), states("again.run/step_00000004.pt")
    begun = states("again.run/step_00000002.pt")
    for name in straight.weights:
        assert torch.equal(straight.weights[name], again.weights[name])
        assert torch.equal(straight.ema[name], again.ema[name])
    assert any(not torch.equal(again.weights[name], value) for name, value in begun.weights.items())
    assert same_weights(states("straight.pt").build(), states("again.pt").build())


def test_only_few_weights_move_and_are_kept(world: Path, capsys: Any) -> None:
    """What LoRA is not beside is that of the base to the bit, in files that are a fraction of the whole."""
    train("pixels", "out.pt", "--lora", "2", "--max_steps", "4")
    output = capsys.readouterr().out
    base: Any = pretrained("pixels", BrownianBridge())[0].state_dict()
    result = states("out.pt")
    moved = {key for key, value in result.weights.items() if not torch.equal(value, base[key])}
    assert "module.conv_in.bias" in moved
    kept = states("out.run/step_00000004.pt").weights.keys() - {*PROMPTS}
    layers = {key.rpartition(".")[0] for key in kept}
    allowed = {layer.partition(".lora_")[0] for layer in layers}
    assert {key.rpartition(".")[0] for key in moved} == allowed
    assert {key for key in moved if key.endswith("bias")} == {"module.conv_in.bias"}
    train("pixels", "whole.pt", "--max_steps", "4")
    small, large = (
        Path(f"{name}.run/step_00000004.pt").stat().st_size for name in ("out", "whole")
    )
    assert small < large / 2
    number = (
        sum(value.numel() for value in states("out.run/step_00000004.pt").weights.values()) / 1e6
    )
    assert f"trains {number:.3g} M of " in output
    cli.run("info", ["out.run/step_00000004.pt"])
    output = capsys.readouterr().out
    assert f"pretrained, {number:.3g} M trained parameters in float32" in output
    assert (
        f"rank 2, beside the weights in {Path('pixels').absolute()}, which are not in the file"
        in output
    )
    assert states("out.run/best.pt").lora is None


def test_results_need_neither_base_nor_peft_and_a_runs_steps_the_base(
    world: Path, monkeypatch: Any
) -> None:
    """A step's file makes the same pictures as the final one while the base is at hand."""
    train("pixels", "out.pt", "--lora", "2", "--max_steps", "2")
    source = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    step = "out.run/step_00000002.pt"
    expected = BridgeSampler.from_checkpoint("out.pt", steps=2)(source, seed=0)
    assert np.array_equal(BridgeSampler.from_checkpoint(step, steps=2)(source, seed=0), expected)
    shutil.rmtree("pixels")
    with pytest.raises(ValueError, match="pixels, the network that it began with, is not here"):
        BridgeSampler.from_checkpoint(step)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert np.array_equal(
        BridgeSampler.from_checkpoint("out.pt", steps=2)(source, seed=0), expected
    )


def test_a_step_and_the_final_file_are_one_network(world: Path) -> None:
    """To the bit, where it was trained beside weights that are rounded to bfloat16."""
    train("pixels", "out.pt", "--lora", "2", "--precision", "bf16", "--max_steps", "2")
    step = load_checkpoint("out.run/step_00000002.pt")
    assert same_weights(step.build_unet(), load_checkpoint("out.pt").build_unet())


def test_a_run_finds_its_base_from_elsewhere_and_where_it_has_moved(
    world: Path, monkeypatch: Any
) -> None:
    """From another working directory by the step alone, and in another place by init_from."""
    train("pixels", "straight.pt", "--lora", "2", "--max_steps", "3")
    train("pixels", "out.pt", "--lora", "2", "--max_steps", "1")
    flags = [*FLAGS, "--lora", "2", "--max_steps"]
    (world / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    step = "../out.run/step_00000001.pt"
    cli.run("train", ["edge2shoes", "../data", "../out.pt", "--ckpt_path", step, *flags, "2"])
    (world / "pixels").rename("moved")
    cli.run("train", ["edge2shoes", "../data", "../out.pt", "--init_from", "moved", *flags, "3"])
    assert same_weights(states("../straight.pt").build(), states("../out.pt").build())


def test_what_does_not_go_with_a_base_is_refused_by_name(world: Path) -> None:
    """Another base, none at hand, another rank, all weights, and LoRA beside no network of diffusers."""
    run = ["pixels", "out.pt", "--max_steps", "4"]
    train("pixels", "out.pt", "--max_steps", "2", "--lora", "2")
    assert "lora must be 2, with which it was trained, got 4" in refused(*run, "--lora", "4")
    assert "lora must be 2, with which it was trained, got None" in refused(*run)
    network: Any = UNet2DModel.from_pretrained("pixels/unet")
    network.conv_out.bias.data += 1
    network.save_pretrained("pixels/unet")
    pixels = f"{world}/pixels"
    reason = f"the weights in {pixels} are not those that LoRA was trained beside: --init_from must be {pixels}"
    assert reason in refused(*run, "--lora", "2")
    shutil.rmtree("pixels")
    reason = f"{world}/pixels, the network that it began with, is not here: name it as --init_from"
    assert reason in refused(*run, "--lora", "2")
    reason = "lora needs init_from, a folder with a network that diffusers saved"
    with pytest.raises(ValueError, match=f"{reason}; got None"):
        Train.of(dataset="edge2shoes", data_dir="data", output_model="new.pt", lora=2)


@pytest.mark.nightly
@needs_exporter
def test_exports_compute_what_the_merged_network_does(world: Path) -> None:
    train("pixels", "out.pt", "--lora", "2", "--max_steps", "2")
    cli.run("export", ["out.pt", "graphs", "--solver", "sde-dpm2m", "--steps", "2"])
    source = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    sampler = BridgeSampler.from_checkpoint("out.pt", solver="sde-dpm2m", steps=2)
    result = OnnxBridgeSampler("graphs")(source, seed=0)
    assert np.abs(result.astype(int) - sampler(source, seed=0).astype(int)).max() <= 1


def test_a_loss_on_decoded_crops(world: Path, monkeypatch: Any) -> None:
    """In latents of a pretrained network; its mean is a metric."""
    monkeypatch.setattr("bbdm.evaluation.perceptual.lpips_network", lambda *_: Edges())
    train(
        "latents",
        "out.pt",
        "--lora",
        "2",
        "--precision",
        "bf16",
        "--decoded_loss",
        "lpips:5",
        "--max_steps",
        "2",
    )
    (metrics,) = [
        json.loads(line) for line in Path("out.run/metrics.jsonl").read_text().splitlines()
    ]
    assert 0 < 5 * metrics["lpips"] < metrics["loss"]
