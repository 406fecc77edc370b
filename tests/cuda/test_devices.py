"""What a loop reads is on its device, in channels_last: on the meta device, where nothing can be awaited."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bbdm import ABridge, BridgeSampler
from bbdm.kernels.elementwise import layout
from tests.conftest import tiny_unet
from tests.cuda.test_graph import CASES, SOURCE
from tests.sampling.test_volumes import unet as volume_unet


class OneDevice(TorchDispatchMode):
    """Operators get tensors of one device alone, and no single numbers of another, which would be copied."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in tree_leaves((args, kwargs)):
            assert not isinstance(each, Tensor) or each.device == self.device, func
        return func(*args, **(kwargs or {}))


def run(sampler: BridgeSampler, source: Tensor, options: dict[str, Any]) -> None:
    """The loop of a call, twice; the second time all that it needs is on the device."""
    batches = sampler._call(source, 0, options)[-1]
    with torch.inference_mode():
        inputs = [sampler._inputs(batch) for batch in batches]
        for mode in (torch.inference_mode(), OneDevice(sampler.device)):
            with mode:
                for batch, each in zip(batches, inputs, strict=True):
                    *_, last = sampler._states(batch, each)
                    assert (last.x.device, last.x0hat.device) == (sampler.device, sampler.device)


MASK = torch.ones(3, 1, 7, 5)
MORE: dict[str, tuple[dict[str, Any], Tensor, list[dict[str, Any]]]] = {
    "noise": ({}, SOURCE, [{"noise": torch.randn(3, 3, 3, 8, 6)}]),
    "mask": ({}, SOURCE, [{"mask": MASK}]),
    "mean": (
        {"network": lambda: tiny_unet(in_channels=1, out_channels=1, condition_channels=3, attention_resolutions=())},
        SOURCE,
        [{}],
    ),
    "volume": ({"network": volume_unet}, SOURCE[:, None, :1].expand(3, 1, 2, 7, 5), [{}, {"window": (2, 4, 4)}]),
}


@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_a_loop_stays_on_its_device(case: str):
    settings, source, calls = {**CASES, **MORE}[case]
    built: dict[str, Any] = {name: value() if callable(value) else value for name, value in settings.items()}
    built.setdefault("network", tiny_unet(condition_channels=3, attention_resolutions=()).eval())
    network, solver = built.pop("network"), built.pop("solver", "sde-dpm2m")
    sampler = BridgeSampler(network, ABridge(), solver, 3, dtype="bf16", device="meta", **built)
    body, seen = sampler._body, list[Tensor]()

    def noting(x: Tensor, embedding: Tensor, conditions: Any) -> Tensor:
        seen.extend([x, *(each for each in conditions.values() if each.ndim == x.ndim)])
        assert embedding.dtype == torch.float32
        return body(x, embedding, conditions)

    sampler._body = noting  # pyright: ignore[reportAttributeAccessIssue]
    run(sampler, source, calls[-1])
    assert all(each.is_contiguous(memory_format=layout(each.ndim)) for each in seen)
    assert {each.dtype for each in seen} == {sampler.dtype}
