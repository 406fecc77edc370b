"""BridgeSampler: seeds, batches, padding, pictures, threads, and what it refuses."""

import copy
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import ABridge, BridgeSampler, BrownianBridge, UNet, save_checkpoint, solvers, wrap
from bbdm.defaults import Defaults
from bbdm.sampling.loop import Step
from tests.conftest import tiny_unet
from tests.sampling.test_windows import same


def small_unet(channels: int = 3) -> UNet:
    """A network whose output depends on all its inputs, in evaluation mode."""
    sizes = {"in_channels": channels, "out_channels": channels, "condition_channels": channels}
    return tiny_unet(**sizes, attention_resolutions=()).eval()


def picture(size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.fromarray(
        np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    )


UNET = small_unet()
SOURCE = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def sampler_of(solver: Any = None, steps: int | None = 3, **settings: Any) -> BridgeSampler:
    return BridgeSampler(UNET, ABridge(), solver, steps, **settings)


@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "posterior"])
def test_image_of_a_batch_equals_the_image_alone(solver: str):
    sampler = sampler_of(solver, 6)
    together = sampler(SOURCE, seed=7)
    # rows of dpm2m near T weigh x by 33 and 4, and float32 rounding of x by as much
    for i in range(5):
        same(together[i : i + 1], sampler(SOURCE[i : i + 1], seed=7 + i), 2e-5)


# settings, options and the warning
WARNED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "values": ({}, {}, "pass source_values="),
    "size": ({"image_size": 32}, {}, "trained on pictures of 32 x 32"),
    "calls": ({"calls": 2}, {"solver": "dpm2m", "steps": 3}, "distilled for calls=2"),
    "more calls": ({"calls": 2}, {"steps": 3}, "is asked for 3 of 'consistency'"),
}


@pytest.mark.parametrize("how", ["list", "stream", "distribution"])
@pytest.mark.parametrize("what", WARNED)
def test_a_warning_names_the_line_that_called(what: str, how: str):
    settings, options, message = WARNED[what]
    steps, calls = settings.get("calls", 1), settings.get("calls")
    sampler = BridgeSampler(UNET, BrownianBridge(objective="pinned"), steps=steps, calls=calls)
    sampler.image_size = settings.get("image_size")
    source = torch.full((1, 3, 8, 8), 0.5 if what == "values" else -0.5)
    ways: dict[str, Any] = {
        "list": lambda: sampler([source[0]], seed=0, **options),
        "stream": lambda: list(sampler.stream(source, seed=0, **options)),
        "distribution": lambda: sampler.distribution(source, 2, 0, **options),
    }
    with pytest.warns(UserWarning, match=message) as record:
        ways[how]()
    assert [each.filename for each in record] == [__file__]


@pytest.mark.filterwarnings("error:the network was trained")
def test_seeds_matter_and_none_draws_one():
    """Pictures of about the scale of training are not warned of."""
    sampler = sampler_of()
    for size in (None, 8, 15, (5, 8)):
        sampler.image_size = size
        sampler(SOURCE, seed=0)
    assert not torch.equal(sampler(SOURCE, seed=0), sampler(SOURCE, seed=100))
    assert not torch.equal(sampler(SOURCE), sampler(SOURCE))
    same(sampler(SOURCE[[2, 0]], seed=[12, 10]), sampler(SOURCE[:3], seed=10)[[2, 0]], 2e-5)


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({"batch_size": 1}, [[0], [2], [1]]),
        ({"source_values": (0, 255), "target_values": (0, 1)}, [[0, 2], [1]]),
        ({"window": 4, "batch_size": 2}, [[0, 2], [1]]),
    ],
)
def test_a_stream_takes_what_a_call_takes(options: dict[str, Any], images: list[list[int]]):
    """Batches come one after the other, of several sizes too; the last step of each is the result."""
    sampler, called = sampler_of("sde-dpm2m", 2), list[Step]()
    pictures = [np.asarray(picture(size)) for size in ((8, 6), (4, 4), (8, 6))]
    steps = list(sampler.stream(pictures, seed=3, callback=called.append, **options))
    times = [*enumerate(sampler.table.timesteps.tolist())]
    assert [(step.images, step.index, step.t) for step in steps] == [
        (each, *t) for each in images for t in times
    ]
    assert called == steps
    assert not torch.equal(steps[0].x, steps[1].x), "steps share their memory"
    results = sampler(pictures, seed=3, callback=called.append, **options)
    for step, expected in zip(called[len(steps) :], steps, strict=True):
        assert (step.index, step.images) == (expected.index, expected.images)
        assert torch.equal(
            torch.stack([step.x, step.x0hat]), torch.stack([expected.x, expected.x0hat])
        )
    top = 1 if "target_values" in options else 255
    for step in steps[1::2]:
        for image, x in zip(step.images, step.x.clamp(-1, 1), strict=True):
            wanted = (x.permute(1, 2, 0).numpy() + 1) / 2 * top
            np.testing.assert_allclose(
                results[image], wanted, rtol=0, atol=0.5 + 1e-3 if top == 255 else 1e-6
            )


def test_previews_are_pictures_of_the_source_s_size():
    odd = picture((7, 5))
    first, *_, last = sampler_of().stream([odd, odd], seed=0)
    assert first.x.shape == first.x0hat.shape == (2, 3, 5, 7), "with padding"
    assert [each.size for each in first.preview()] == [(7, 5)] * 2
    for shown, result in zip(last.preview(), sampler_of()([odd, odd], seed=0), strict=True):
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(result))


@pytest.mark.filterwarnings("error:the network was distilled")
def test_a_solver_that_is_the_own_one_has_the_own_steps():
    """Also of a distilled network, of its own calls."""
    cases: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
        ({}, [{"solver": "dpm2m"}, {"steps": 10}, {"solver": "dpm2m", "steps": 10}]),
        (
            {"solver": "ddim", "steps": 3},
            [{"solver": "ddim"}, {"steps": 3}, {"solver": "ddim", "steps": 3}],
        ),
        ({"calls": 2}, [{"solver": "consistency"}, {"steps": 2}]),
    ]
    for settings, alike in cases:
        sampler = BridgeSampler(UNET, BrownianBridge(objective="pinned"), **settings)
        assert len(sampler.table) == settings.get("steps", settings.get("calls", 10))
        for options in alike:
            assert len(list(sampler.stream(GOOD, seed=0, **options))) == len(sampler.table)


def test_a_table_and_a_function_are_solvers():
    def mine(bridge: Any, steps: int | None) -> solvers.StepTable:
        return solvers.build(bridge, "ddim", steps=steps or 4)

    usual = sampler_of("ddim", 4)
    expected = usual(SOURCE, seed=0)
    for solver, name in ((mine, "mine"), (usual.table, "table of 4")):
        sampler = sampler_of(solver, None)
        assert (sampler.solver, len(sampler.table)) == (name, 4)
        assert sampler(SOURCE, seed=0).equal(expected)
        assert sampler_of(steps=4)(SOURCE, seed=0, solver=solver).equal(expected)
    assert len(list(usual.stream(SOURCE, 0, solver=mine, steps=2))) == 2
    assert [step.t for step in usual.stream(SOURCE, 0, timesteps=[1000, 300, 4])] == [1000, 300, 4]
    assert usual(SOURCE, seed=0).equal(expected), "a call changed the sampler"
    assert sampler_of(mine, None).defaults == Defaults()  # a file cannot hold it


def test_dtype_of_network_and_output():
    half = sampler_of(dtype=torch.bfloat16)
    out = half(SOURCE, seed=0)
    assert out.dtype == torch.float32
    assert next(half.unet.parameters()).dtype == torch.bfloat16
    assert next(UNET.parameters()).dtype == torch.float32, "the network given was changed"
    same(out, sampler_of()(SOURCE, seed=0), 0.1)
    assert half(SOURCE.double(), seed=0).dtype == torch.float64
    training = small_unet().train()
    out = BridgeSampler(training, ABridge(), steps=2)(SOURCE, seed=0)
    assert training.training, "its mode was changed"
    weight = torch.ones(1, requires_grad=True)
    (weight * out).sum().backward()  # results can be used in training
    assert weight.grad is not None


def test_from_checkpoint(tmp_path: Path):
    """Arguments fill in what a file leaves out."""
    first, second, bridge = small_unet(), small_unet(), ABridge(num_steps=50)
    torch.nn.init.normal_(second.out[2].weight, std=0.3)  # pyright: ignore[reportArgumentType]
    save_checkpoint(tmp_path / "c.pt", first, bridge, ema=second)
    for ema, unet in ((True, second), (False, first)):
        sampler = BridgeSampler.from_checkpoint(tmp_path / "c.pt", ema=ema, solver="ddim", steps=3)
        assert sampler.bridge == bridge
        assert torch.equal(
            sampler(SOURCE, seed=0), BridgeSampler(unet, bridge, "ddim", 3)(SOURCE, seed=0)
        )
    for name, value in {"num_steps": 60, "c_lambda": 3.0, "config": "bbdm"}.items():
        with pytest.raises(ValueError, match=f"{name}={value} was given, but the"):
            BridgeSampler.from_checkpoint(tmp_path / "c.pt", **{name: value})
    with pytest.raises(TypeError, match="stepz"):
        BridgeSampler.from_checkpoint(tmp_path / "c.pt", stepz=3)


GOOD = torch.full((2, 3, 8, 8), -0.5)
SIZES = [picture(), picture((9, 8))]
# a source of two, if there is none, and the message
BAD_CALLS: list[tuple[dict[str, Any], str]] = [
    (
        {"source": torch.zeros(2, 4, 8, 8)},
        r"source must be a non-empty \(B, 3, H, W\) batch, got shape \(2, 4, 8, 8\)",
    ),
    ({"source": np.zeros((1, 8, 8, 3))}, r"batch, got shape \(1, 8, 8, 3\)"),
    ({"source": torch.full((1, 3, 8, 8), float("nan"))}, "source must be finite"),
    ({"source": GOOD + 200.0}, r"source must be in \[-1, 1\], got values up to 199.5"),
    ({"source": []}, "source must hold at least one picture"),
    (
        {"source": {}},
        "source must be a tensor, a picture, a path, a NumPy array or a list of them, got dict",
    ),
    (
        {"source": [Image.new("RGB", (8, 8)), 5]},
        r"source\[1\]: must be a tensor, a picture, .* got int",
    ),
    (
        {"source": [GOOD[0], GOOD]},
        r"source\[1\]: a tensor in a list must be \(3, H, W\), got shape \(2, 3, 8, 8\)",
    ),
    (
        {"source": [GOOD[0].to(torch.uint8)], "batch_size": 1},
        r"source\[0\]: must be floats in \[-1, 1\], got uint8",
    ),
    ({"source": Image.new("F", (8, 8))}, "pictures of float32 have no agreed range"),
    (
        {"source": np.zeros((8, 8, 2), np.uint8)},
        r"uint8 must be \(H, W\), .* got shape \(8, 8, 2\)",
    ),
    (
        {"source": np.zeros((8, 8, 4))},
        r"floats must be \(H, W\) or \(H, W, 3\), got shape \(8, 8, 4\)",
    ),
    (
        {"source": np.full((8, 8, 3), 300, np.uint16)},
        "uint16 have no agreed range .* 300 to 300.*'0:1023'",
    ),
    (
        {"source": np.full((8, 8, 3), 255.0)},
        r"values up to 255 in size: .* pass source_values=\(0, 255\)",
    ),
    ({"seed": [1, 2, 3]}, "one for each of 2 images, got 3"),
    ({"seed": -1}, r"seed must be in \[0, 2\^63\), got -1"),
    ({"seed": [0.7, 1]}, "seed must be an integer or a list of integers"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    (
        {"noise": torch.zeros(2, 2, 3, 8, 8)},
        r"noise must be a tensor of shape \(3, 2, 3, 8, 8\), got \(2, 2",
    ),
    ({"noise": torch.full((3, 2, 3, 8, 8), float("nan"))}, "noise must be finite"),
    ({"source_values": (1, 0)}, "values must have low below high, got 1:0"),
    ({"solver": "euler"}, "solver must be one of"),
    (
        {"solver": "ancestral", "steps": 3},
        "solver 'ancestral' takes every time, steps=1000; got steps=3",
    ),
    (
        {"mask": torch.zeros(2, 1, 8, 7)},
        r"mask must have shape \(2, 1, 8, 8\) or \(1, 1, 8, 8\), got",
    ),
    ({"mask": torch.full((2, 1, 8, 8), 2.0)}, r"mask must be in \[0, 1\], got values from 2 to 2"),
    ({"mask": torch.full((2, 1, 8, 8), float("nan"))}, r"mask must be in .*, got values from nan"),
    ({"mask": [1]}, "mask must be a tensor, a picture, a path or an .* array, got list"),
    ({"source": SIZES, "mask": torch.ones(1, 1, 8, 8)}, "mask needs pictures of one size"),
    ({"source": SIZES, "noise": torch.zeros(3, 2, 3, 8, 8)}, "noise needs pictures of one size"),
]


@pytest.mark.parametrize(
    ("call", "message"), BAD_CALLS, ids=[message[:40] for _, message in BAD_CALLS]
)
def test_bad_calls(call: dict[str, Any], message: str):
    for run in (sampler_of(), sampler_of().stream):  # a stream checks at the call
        with pytest.raises(ValueError, match=message):
            run(**{"source": GOOD, **call})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": torch.int8}, "dtype must be a floating-point dtype"),
        (
            {"dtype": "bf61"},
            "dtype must be a floating-point dtype such as bf16, fp16, fp32, fp64, got 'bf61'",
        ),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used here"),
        ({"steps": 0}, "steps must be an integer in"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        sampler_of(**settings)


def test_a_mask_keeps_the_source_elsewhere():
    sampler, mask = sampler_of("sde-dpm2m", 4), torch.zeros(5, 1, 8, 8)
    mask[:, :, 2:5, 3:7] = 1
    result = sampler(SOURCE, seed=0, mask=mask)
    assert torch.equal(torch.where(mask == 0, result, SOURCE), SOURCE)
    assert not torch.equal(result, SOURCE)
    for step in sampler.stream(SOURCE, seed=0, mask=mask):
        assert torch.equal(step.x0hat[:, :, 0], SOURCE[:, :, 0]), (
            "the estimate leaves the source outside the mask"
        )
    same(sampler(SOURCE, seed=0, mask=torch.ones(1, 1, 8, 8)), sampler(SOURCE, seed=0), 1e-6)


def test_masks_of_every_type(tmp_path: Path):
    source, pixels = picture((7, 5)), np.zeros((5, 7), np.uint8)
    pixels[1:3, 2:5] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    masks = [Image.fromarray(pixels), tmp_path / "mask.png", pixels, pixels / 255, pixels > 0]
    first, *others = (
        np.asarray(sampler_of()([source] * 2, seed=0, mask=mask, batch_size=1)[1]) for mask in masks
    )
    for other in others:
        np.testing.assert_array_equal(first, other)
    np.testing.assert_array_equal(first[pixels == 0], np.asarray(source)[pixels == 0])


@dataclass(eq=False)
class Unequal:
    """A solver of one's own that has settings."""

    times: list[float]

    def __call__(self, bridge: Any, steps: int | None) -> solvers.StepTable:
        return solvers.build(bridge, "ddim", self.times[: steps or 3])


@dataclass
class Unhashable(Unequal):
    pass


def test_a_call_with_another_solver_takes_its_default_steps(monkeypatch: pytest.MonkeyPatch):
    """Of a name, a function and an object alike, whatever the sampler's own steps or times are."""
    monkeypatch.setattr(solvers, "SOLVERS", deepcopy(solvers.SOLVERS))

    @solvers.register("halves")
    def halves(bridge: Any, steps: int | None) -> solvers.StepTable:
        return solvers.build(bridge, "ddim", [1000 >> i for i in range(steps or 5)])

    bridge = ABridge()
    for sampler in (
        BridgeSampler(UNET, bridge, steps=3),
        BridgeSampler(UNET, bridge, timesteps=[1000, 300, 4]),
    ):
        for solver, steps in (
            ("ancestral", 1000),
            ("halves", 5),
            (halves, 5),
            (Unhashable([1000, 300, 20, 4]), 3),
        ):
            assert len(sampler.read(GOOD, 0, {"solver": solver}).groups[0].plan.table) == steps
        assert len(list(sampler.stream(GOOD, 0, solver="dpm2m"))) == 3, (
            "its own solver has its own steps"
        )
    again = Unhashable([1000, 300, 20, 4])
    assert len(list(BridgeSampler(UNET, bridge, again).stream(GOOD, 0, solver=again, steps=2))) == 2


@pytest.mark.parametrize("output", [lambda x: x[:, :1], lambda x: x[..., :2], lambda x: x.int()])
@pytest.mark.parametrize("options", [{}, {"window": 4}])
def test_what_a_network_returns_is_checked(output: Any, options: dict[str, Any]):
    network = wrap(torch.nn.Conv2d(3, 3, 1), call=lambda conv, x, t, conditions: output(conv(x)))
    message = r"must return floats of the state's shape \(\d+, 3, \d, \d\), got torch\.(float|int)32 of \(\d+, \d, \d"
    with pytest.raises(ValueError, match=message):
        BridgeSampler(network, ABridge(), steps=2)(GOOD, seed=0, **options)


def test_steps_are_tensors_of_their_own():
    """Autograd takes them, as it takes results, and they can be changed."""
    steps = list[Step]()
    sampler = sampler_of()
    for step in [*sampler.stream(GOOD, 0, callback=steps.append), *steps]:
        for array in (step.x, step.x0hat):
            assert not array.is_inference()
            array.mul_(2)


def test_a_sampler_is_copied():
    sampler = BridgeSampler(UNET, ABridge(), steps=3)
    expected = sampler(GOOD, seed=0, steps=2)
    for copied in (copy.copy(sampler), copy.deepcopy(sampler)):
        assert torch.equal(copied(GOOD, seed=0, steps=2), expected)


def test_a_sampler_says_what_it_is_and_moves():
    sampler = BridgeSampler(UNET, ABridge(), steps=3)
    assert repr(sampler) == f"BridgeSampler(UNet, {ABridge()!r}, solver='dpm2m', steps=3)"
    assert sampler.to("cpu") is sampler
    moved = BridgeSampler(UNET, ABridge(), steps=3)
    assert moved.to("meta") is moved
    loaded = [each for each in vars(moved.plan().loaded).values() if isinstance(each, torch.Tensor)]
    places = {each.device.type for each in [*moved.unet.parameters(), moved.backend.like, *loaded]}
    assert (places, moved.device.type) == ({"meta"}, "meta")
    assert next(UNET.parameters()).device.type == "cpu", "the network given was moved"
    with pytest.raises(ValueError, match="device 'nowhere' cannot be used here"):
        sampler.to("nowhere")


def test_a_package_has_its_network_on_the_device(monkeypatch: pytest.MonkeyPatch):
    """What conditions alone decide is computed by the network itself. By a device that computes nothing."""

    class Package:
        dtype, shape = torch.float32, torch.Size((1, 3, 8, 8))

        def __init__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr("bbdm.sampling.sampler.PackagedNetwork", Package)
    sampler = BridgeSampler(UNET, ABridge(), steps=3, device="meta", compiled="unet.pt2")
    assert {each.device.type for each in sampler.unet.parameters()} == {"meta"}
    with pytest.raises(
        ValueError, match="a package is of one device, meta, and cannot move to cpu"
    ):
        sampler.to("cpu")
