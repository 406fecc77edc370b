"""The UNet against the public sde-bbdm 1.1: same keys and weights, then the same outputs and gradients.

Zero-initialised layers would hide the layers before them, so they get random values first.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from bbdm import UNet
from tests.conftest import relative_gap

networks = pytest.importorskip("sde_bbdm", exc_type=ImportError).networks

Case = tuple[tuple[int, ...], tuple[int, ...]]

# (attention_resolutions, channel_mult). (32, 16, 8) are factors that the paper's three levels never reach.
CASES: list[Case] = [((32, 16, 8), (1, 4, 8)), ((2, 4), (1, 2, 4)), ((1,), (1, 2))]


class Pair(NamedTuple):
    public: nn.Module
    ours: UNet


def randomise(network: nn.Module) -> None:
    """Fill every parameter from one seed, at the scale of torch's default initialisation; none stays zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_((parameter == 1) + 0.1 * noise)  # weights of normalisation stay near 1
            else:
                parameter.copy_(noise / (3 * parameter[0].numel()) ** 0.5)


def same_weights(public: nn.Module, ours: UNet) -> Pair:
    randomise(public)
    assert all(parameter.any() for parameter in public.parameters())
    ours.load_state_dict(public.state_dict(), strict=True)
    return Pair(public, ours)


def narrow_pair(case: Case, condition_channels: int = 0) -> Pair:
    """64 channels wide: two in a group of GroupNorm, so no bias has a gradient that vanishes identically."""
    attention, mult = case
    public = networks.OpenAIUNet(
        3 + condition_channels,
        64,
        3,
        num_res_blocks=2,
        attention_resolutions=attention,
        channel_mult=mult,
        num_heads=8,
        num_head_channels=64,
        use_scale_shift_norm=True,
        resblock_updown=True,
    )
    settings = {"model_channels": 64, "channel_mult": mult, "attention_resolutions": attention}
    return same_weights(public, UNet(3, 3, condition_channels=condition_channels, **settings))


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


def images(count: int, size: int) -> Iterator[torch.Tensor]:
    """``count`` batches of two images, in the default dtype."""
    generator = torch.Generator().manual_seed(1)
    return iter(torch.randn(count, 2, 3, size, size, generator=generator))


def assert_same_function(pair: Pair, size: int, tolerance: float, condition: bool = False) -> None:
    """Outputs and gradients of input, condition and parameters agree, each tensor relative to its norm."""
    t = torch.tensor([3, 877])
    x, weight, y = images(3, size)
    outputs: list[torch.Tensor] = []
    gradients: list[dict[str, torch.Tensor | None]] = []
    for network in pair:
        inputs = {"x": x.clone().requires_grad_(), "condition": y.clone().requires_grad_() if condition else None}
        seen: Any = inputs["condition"]
        output = network(inputs["x"], t, {"source": seen} if condition and isinstance(network, UNet) else seen)
        (output * weight).sum().backward()
        outputs.append(output.detach())
        named = dict(network.named_parameters())
        gradients.append({name: v.grad for name, v in {**inputs, **named}.items() if v is not None})
    reference, ours = gradients
    errors = {"output": relative_gap(outputs[1], outputs[0])}
    for name, gradient in reference.items():
        value = ours[name]
        assert gradient is not None, name
        assert value is not None, name
        errors[name] = relative_gap(value, gradient)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"{len(wrong)} of {len(errors)} tensors differ: {wrong}"


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64; the public network casts to float32 in its norms, softmax and time embedding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_paper_network_has_the_public_state_dict() -> None:
    with torch.device("meta"):
        public, ours = networks.build(3, 3), UNet(3, 3)
    assert list(shapes(public).items()) == list(shapes(ours).items())
    assert sum(p.numel() for p in ours.parameters()) == pytest.approx(237.1e6, abs=0.05e6)


# Gradients are judged in float64, each tensor by its own norm. In float32 rounding alone makes 1.1e-5 of the
# norm in the worst tensor at the paper's size; in float64 the worst measured is 1e-14.


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "case",
    [pytest.param(CASES[0], marks=pytest.mark.nightly), *CASES[1:]],
    ids=["paper-levels", "attention-2-4", "attention-1"],
)
def test_narrow_network_has_the_public_outputs_and_gradients(case: Case) -> None:
    pair = narrow_pair(case)
    assert list(shapes(pair.public).items()) == list(shapes(pair.ours).items())
    assert_same_function(pair, 16, 1e-10)


@pytest.mark.usefixtures("float64")
def test_condition_is_concatenated_as_in_the_public_network() -> None:
    assert_same_function(narrow_pair(((2,), (1, 2)), condition_channels=3), 16, 1e-10, condition=True)


@pytest.mark.nightly  # 9 GB and a minute
@pytest.mark.usefixtures("float64")
def test_paper_network_has_the_public_outputs_and_gradients() -> None:
    assert_same_function(same_weights(networks.build(3, 3), UNet(3, 3)), 32, 1e-10)
