"""The loop on a card: what is captured, what waits for what, what a replay gives, and where tensors are."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bbdm import ABridge, BridgeSampler
from bbdm.codec import Codec, LatentStatistics, VQGANCodec
from bbdm.execution.compiled import Compiled, Graphs
from bbdm.kernels.elementwise import layout
from bbdm.networks.base import Network
from tests.conftest import sweep, tiny_dit, tiny_unet
from tests.cuda.card import Card, card
from tests.execution.test_compiled import Short, short_unet
from tests.networks.test_vqgan import tiny_vqgan
from tests.sampling.test_volumes import unet as volume_unet

__all__ = ["card"]  # a fixture
SOURCE = torch.rand(3, 3, 7, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1  # off the stride
LARGE = torch.rand(2, 3, 14, 11, generator=torch.Generator().manual_seed(1)) * 2 - 1
STEPS, ROUNDING = 3, 1e-5
bridge_step: Any = torch.ops.bbdm.bridge_step.default


@pytest.fixture(autouse=True)
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncompiled(self: Compiled, *_: Any) -> Callable[..., Tensor]:
        return lambda *arguments: self.function(*arguments)

    monkeypatch.setattr(Compiled, "_compile", uncompiled)
    monkeypatch.setattr("bbdm.sampling.sampler.bridge_step", torch.ops.bbdm.bridge_step)  # as on a card


def sampler(
    network: Network | None = None, solver: str = "sde-dpm2m", graphs: type[Graphs] | None = Graphs, **settings: Any
) -> BridgeSampler:
    """A sampler of 3 steps that captures its loop, or does not."""
    network = network or short_unet(Short)
    made = BridgeSampler(network, ABridge(), solver, STEPS, compile=True, dtype="fp32", **settings)
    made._graphs = None if graphs is None else graphs(made.device)
    return made


def codec() -> Codec:
    made = VQGANCodec(tiny_vqgan())
    count = made.channels
    return made.with_statistics(LatentStatistics((0.1,) * count, (2.0,) * count, (0.2,) * count, (1.5,) * count))


def seen() -> Network:
    described: dict[str, Any] = {"images": {"sar": 1}, "classes": {"style": 3}, "tokens": {"text": 4}}
    return tiny_unet(**described, drop={"style": 0.1, "text": 0.1}, condition_channels=3).eval()


TEXT = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
SAR = torch.rand(1, 1, 7, 5, generator=torch.Generator().manual_seed(2))
ONE, OTHER = ({"style": i, "text": TEXT * sign, "sar": SAR * sign} for i, sign in ((1, 1), (0, -1)))
GUIDED = {"guidance": {"style": 2.0, "text": 3.0}}
WINDOWS = {"window": 8, "batch_size": 3}
CASES: dict[str, tuple[dict[str, Any], Tensor, list[dict[str, Any]]]] = {  # a sampler, a source, options of two calls
    "stochastic": ({}, SOURCE, [{}, {}]),
    "multistep": ({"solver": "dpm2m"}, SOURCE, [{}, {}]),
    "posterior": ({"solver": "posterior"}, SOURCE, [{}, {}]),
    "unet": ({"network": lambda: tiny_unet(condition_channels=3).eval()}, SOURCE, [{}, {}]),
    "transformer": ({"network": lambda: tiny_dit(condition_channels=3)}, SOURCE, [{}, {}]),
    "no source": ({"network": lambda: tiny_unet(attention_resolutions=()).eval()}, SOURCE, [{}, {}]),
    "codec": ({"codec": codec}, LARGE, [{}, {}]),
    "windows": ({}, LARGE, [WINDOWS, WINDOWS]),
    "conditions": ({"network": seen}, SOURCE, [ONE, OTHER]),
    "guided": ({"network": seen}, SOURCE, [{**each, **GUIDED} for each in (ONE, OTHER)]),
    "guided windows": ({"network": seen}, LARGE, [{**each, **GUIDED, **WINDOWS} for each in (ONE, OTHER)]),
}


@pytest.mark.parametrize("case", CASES)
def test_replays_are_the_eager_loop(case: str, card: Card):
    """Two sources, with other seeds and conditions, through one graph."""
    settings, source, calls = CASES[case]
    built: dict[str, Any] = {name: value() if callable(value) else value for name, value in settings.items()}
    made, eager = sampler(**built), sampler(graphs=None, **built)
    both = [*enumerate(zip((source, -source), calls, strict=True))]
    wanted, found = ([each(x, seed=seed, **options) for seed, (x, options) in both] for each in (eager, made))
    torch.testing.assert_close(found, wanted, rtol=0, atol=ROUNDING)
    assert len(card.graphs) == 1


def test_each_shape_and_each_way_has_a_graph(card: Card, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bbdm.execution.compiled.SHAPES_KEPT", 2)
    network = seen()
    made, eager = sampler(network), sampler(network, graphs=None)
    calls: list[tuple[Tensor, dict[str, Any], int]] = [
        (SOURCE, ONE, 1),
        (SOURCE, {**ONE, "solver": "sde-dpm2m", "steps": STEPS}, 1),  # its own
        (SOURCE[:2], ONE, 2),
        (SOURCE, {**ONE, "steps": 2}, 3),
        (SOURCE, {**ONE, "steps": 2, "text": TEXT[:2]}, 4),
        (SOURCE, {**ONE, "steps": 2}, 4),
        (SOURCE, ONE, 5),  # which was dropped
    ]
    for source, call, captures in calls:
        torch.testing.assert_close(made(source, seed=0, **call), eager(source, seed=0, **call), rtol=0, atol=ROUNDING)
        assert len(card.graphs) == captures


def test_what_no_graph_takes(card: Card):
    made, eager = sampler(), sampler(graphs=None)
    noise, mask = torch.randn(STEPS, 3, 3, 8, 6), torch.zeros(3, 1, 7, 5)
    mask[..., 2:] = 1
    for options in ({"mask": mask}, {"noise": noise}, {"callback": lambda step: None}):
        found, wanted = (each(SOURCE, seed=None if "noise" in options else 1, **options) for each in (made, eager))
        torch.testing.assert_close(found, wanted, rtol=0, atol=ROUNDING)
    torch.testing.assert_close([*made.stream(SOURCE, 1)][-1].x, [*eager.stream(SOURCE, 1)][-1].x, rtol=0, atol=0)
    assert card.graphs == []


def test_order(card: Card):
    """Warm-up on a side stream, which waits for the caller's and is waited for; then the capture there.

    A call on another stream waits for the replay before it, whose buffers it writes.
    """
    made = sampler()
    made(SOURCE, seed=0)
    (side,) = {word for line in card.log if "captured" in line for word in line.split()[1:2]}
    assert card.log == [
        f"stream {side} waits for stream 0",
        f"stream 0 waits for stream {side}",
        f"stream {side} is captured, other threads thread_local",
        "stream 0 replays",
    ]
    card.log.clear()
    other: Any = torch.cuda.Stream()
    with torch.cuda.stream(other):
        made(SOURCE, seed=0)
    made(SOURCE, seed=0)
    replays = [f"stream {other.number} waits for stream 0", f"stream {other.number} replays"]
    assert card.log == [*replays, f"stream 0 waits for stream {other.number}", "stream 0 replays"]


def test_a_capture_is_one_step_of_the_kernel_for_each_row(card: Card):
    """And one that makes the first state; nothing is converted or copied in between."""
    sampler()(SOURCE, seed=0)
    kernels = [func for func, *_ in card.graphs[0].kernels]
    assert kernels.count(bridge_step) == STEPS + 1
    assert kernels[-1] == bridge_step
    assert not {torch.ops.aten._to_copy.default, torch.ops.aten.clone.default} & {*kernels}


def test_a_replay_reads_its_source_and_leaves_results(card: Card):
    made = Graphs(torch.device("cpu"))
    first, second = (torch.full((2,), value) for value in (1.0, 2.0))
    results = [made("key", lambda tensors: tensors[0] * 3, [each], lambda: None) for each in (first, second)]
    assert [each.tolist() for each in results] == [[3.0, 3.0], [6.0, 6.0]]


def captures_at_once(patch: pytest.MonkeyPatch, calls: list[Callable[[], Tensor]]) -> tuple[int, int]:
    """How many captures there are while calls run in threads of their own, and how many at once at most."""
    capture: Any = torch.cuda.graph
    running: list[int] = []
    most: list[int] = []

    @contextmanager
    def watched(*arguments: Any, **settings: Any) -> Iterator[None]:
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)  # in which another thread would begin
        with capture(*arguments, **settings):
            yield
        running.pop()

    patch.setattr(torch.cuda, "graph", watched)
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()
    return len(most), max(most)


@pytest.mark.usefixtures("card")
def test_two_samplers_never_capture_at_once(monkeypatch: pytest.MonkeyPatch):
    """PyTorch takes one capture at a time in a process."""
    calls = [partial(sampler(), SOURCE[:count], seed=0) for count in (1, 2)]
    assert captures_at_once(monkeypatch, calls) == (2, 1)


class OneDevice(TorchDispatchMode):
    """Operators get tensors of one device alone, and no single numbers of another, which would be copied."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in tree_leaves((args, kwargs)):
            assert not isinstance(each, Tensor) or each.device == self.device, func
        return func(*args, **(kwargs or {}))


GREY: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "condition_channels": 3, "attention_resolutions": ()}
MORE: dict[str, tuple[dict[str, Any], Tensor, list[dict[str, Any]]]] = {
    "noise": ({}, SOURCE, [{"noise": torch.randn(3, 3, 3, 8, 6)}]),
    "mask": ({}, SOURCE, [{"mask": torch.ones(3, 1, 7, 5)}]),
    "mean": ({"network": lambda: tiny_unet(**GREY)}, SOURCE, [{}]),
    "volume": ({"network": volume_unet}, SOURCE[:, None, :1].expand(3, 1, 2, 7, 5), [{}, {"window": (2, 4, 4)}]),
}


@pytest.mark.parametrize("case", sweep([*CASES, *MORE], ["multistep", "codec", "guided windows", *MORE]))
@torch.inference_mode()
def test_a_loop_stays_on_its_device(case: str):
    """Of a call, twice; the second time all that it needs is there."""
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
    for batch in sampler._call(source, 0, calls[-1])[-1]:
        inputs = sampler._inputs(batch)
        for mode in (nullcontext(), OneDevice(sampler.device)):
            with mode:
                *_, last = sampler._states(batch, inputs)
            assert (last.x.device, last.x0hat.device) == (sampler.device, sampler.device)
    assert all(each.is_contiguous(memory_format=layout(each.ndim)) for each in seen)
    assert {each.dtype for each in seen} == {sampler.dtype}
