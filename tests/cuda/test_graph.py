"""Steps on a card: what is captured, what waits for what, what a replay gives, and where tensors are."""

import gc
import time
import weakref
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
from bbdm.execution.compiled import Compiled
from bbdm.kernels.elementwise import layout
from bbdm.networks.base import Network
from bbdm.sampling import recording
from tests.conftest import sweep, tiny_dit, tiny_unet
from tests.cuda.card import Card, Waits, card
from tests.execution.test_compiled import Short, short_unet
from tests.networks.test_vqgan import tiny_vqgan
from tests.sampling.test_volumes import unet as volume_unet

__all__ = ["card"]  # a fixture
# off the stride
SOURCE = torch.rand(3, 3, 7, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
LARGE = torch.rand(2, 3, 14, 11, generator=torch.Generator().manual_seed(1)) * 2 - 1
STEPS, ROUNDING = 3, 1e-5
bridge_step: Any = torch.ops.bbdm.bridge_step.default


@pytest.fixture(autouse=True)
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncompiled(self: Compiled, *_: Any) -> Callable[..., Tensor]:
        return lambda *arguments: self.function(*arguments)

    monkeypatch.setattr(Compiled, "_compile", uncompiled)
    # as on a card
    monkeypatch.setattr("bbdm.sampling.torch_backend.bridge_step", torch.ops.bbdm.bridge_step)


def sampler(
    network: Network | None = None,
    solver: str = "sde-dpm2m",
    captures: bool = True,
    **settings: Any,
) -> BridgeSampler:
    """A sampler of 3 steps that captures its step, or does not."""
    network = network or short_unet(Short)
    made = BridgeSampler(network, ABridge(), solver, STEPS, compile=True, dtype="fp32", **settings)
    if captures:
        made.backend.record()
    return made


def codec() -> Codec:
    made = VQGANCodec(tiny_vqgan())
    count = made.channels
    return made.with_statistics(
        LatentStatistics((0.1,) * count, (2.0,) * count, (0.2,) * count, (1.5,) * count)
    )


def seen() -> Network:
    described: dict[str, Any] = {
        "images": {"sar": 1},
        "classes": {"style": 3},
        "tokens": {"text": 4},
    }
    return tiny_unet(**described, drop={"style": 0.1, "text": 0.1}, condition_channels=3).eval()


TEXT = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
SAR = torch.rand(1, 1, 7, 5, generator=torch.Generator().manual_seed(2))
ONE, OTHER = ({"style": i, "text": TEXT * sign, "sar": SAR * sign} for i, sign in ((1, 1), (0, -1)))
NOISE = torch.randn(STEPS, 3, 3, 8, 6, generator=torch.Generator().manual_seed(3))
MASK = torch.ones(3, 1, 7, 5)
MASK[..., 2:] = 0
GUIDED = {"guidance": {"style": 2.0, "text": 3.0}}
WINDOWS = {"window": 8, "batch_size": 3}
# a sampler, a source, options of two calls
CASES: dict[str, tuple[dict[str, Any], Tensor, list[dict[str, Any]]]] = {
    "stochastic": ({}, SOURCE, [{}, {}]),
    "multistep": ({"solver": "dpm2m"}, SOURCE, [{}, {}]),
    "posterior": ({"solver": "posterior"}, SOURCE, [{}, {}]),
    "unet": ({"network": lambda: tiny_unet(condition_channels=3).eval()}, SOURCE, [{}, {}]),
    "transformer": ({"network": lambda: tiny_dit(condition_channels=3)}, SOURCE, [{}, {}]),
    "no source": (
        {"network": lambda: tiny_unet(attention_resolutions=()).eval()},
        SOURCE,
        [{}, {}],
    ),
    "codec": ({"codec": codec}, LARGE, [{}, {}]),
    "windows": ({}, LARGE, [WINDOWS, WINDOWS]),
    "conditions": ({"network": seen}, SOURCE, [ONE, OTHER]),
    "guided": ({"network": seen}, SOURCE, [{**each, **GUIDED} for each in (ONE, OTHER)]),
    "guided windows": (
        {"network": seen},
        LARGE,
        [{**each, **GUIDED, **WINDOWS} for each in (ONE, OTHER)],
    ),
    "noise": ({}, SOURCE, [{"noise": NOISE}, {"noise": NOISE.flip(0)}]),
    "mask": ({}, SOURCE, [{"mask": MASK}, {"mask": 1 - MASK}]),
}


@pytest.mark.parametrize("case", CASES)
def test_replays_are_the_eager_loop(case: str, card: Card):
    """Two sources, with other seeds and conditions, through one graph."""
    settings, source, calls = CASES[case]
    built: dict[str, Any] = {
        name: value() if callable(value) else value for name, value in settings.items()
    }
    made, eager = sampler(**built), sampler(captures=False, **built)
    for number, (x, options) in enumerate(zip((source, -source), calls, strict=True)):
        seed = None if "noise" in options else number
        expected = eager(x, seed=seed, **options)
        torch.testing.assert_close(made(x, seed=seed, **options), expected, rtol=0, atol=ROUNDING)
    assert len(card.graphs) == 1


def test_each_shape_has_a_graph(card: Card, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bbdm.execution.compiled.SHAPES_KEPT", 2)
    network = seen()
    made, eager = sampler(network), sampler(network, captures=False)
    calls: list[tuple[Tensor, dict[str, Any], int]] = [
        (SOURCE, ONE, 1),
        (SOURCE[:2], ONE, 2),
        (SOURCE, {**ONE, "steps": 2}, 2),
        (SOURCE, {**ONE, "text": TEXT[:2]}, 3),
        (SOURCE, OTHER, 3),
        (SOURCE[:2], ONE, 4),  # which was dropped
        (SOURCE, {**ONE, **GUIDED}, 5),
    ]
    for source, call, captures in calls:
        torch.testing.assert_close(
            made(source, seed=0, **call), eager(source, seed=0, **call), rtol=0, atol=ROUNDING
        )
        assert len(card.graphs) == captures


def test_one_graph_serves_every_solver_number_of_steps_stream_and_callback(card: Card):
    made, eager = sampler(), sampler(captures=False)
    for steps in range(1, 51):
        solver = ("ddim", "dpm2m", "sde-dpm2m", "posterior")[steps % 4]
        shown: list[Any] = []
        callback = shown.append if steps % 5 == 0 else None
        call = {"solver": solver, "steps": steps, "seed": steps, "callback": callback}
        expected = eager(SOURCE, **{**call, "callback": None})
        torch.testing.assert_close(made(SOURCE, **call), expected, rtol=0, atol=ROUNDING)
        assert len(shown) == (steps if callback else 0)
    expected = [step.x for step in eager.stream(SOURCE, 1)]
    torch.testing.assert_close(
        [step.x for step in made.stream(SOURCE, 1)], expected, rtol=0, atol=ROUNDING
    )
    target = SOURCE.flip(0)
    torch.testing.assert_close(
        made.encode(target, SOURCE, 4), eager.encode(target, SOURCE, 4), rtol=1e-4, atol=1e-3
    )
    assert len(card.graphs) == 2  # the other takes noise


def test_runs_that_take_turns_have_states_of_their_own(card: Card):
    """Two streams, and calls in a callback and between steps: all through the buffers of one graph."""
    made, eager = sampler(), sampler(captures=False)
    within: list[Tensor] = []
    result = made(
        SOURCE, seed=0, callback=lambda step: within.append(made(-SOURCE, seed=step.index))
    )
    torch.testing.assert_close(result, eager(SOURCE, seed=0), rtol=0, atol=ROUNDING)
    for seed, found in enumerate(within):
        torch.testing.assert_close(found, eager(-SOURCE, seed=seed), rtol=0, atol=ROUNDING)
    streams = [made.stream(SOURCE, seed) for seed in (1, 2)]
    expected = [[*eager.stream(SOURCE, seed)] for seed in (1, 2)]
    for index in range(STEPS):
        for stream, steps in zip(streams, expected, strict=True):
            step = next(stream)
            torch.testing.assert_close(step.x, steps[index].x, rtol=0, atol=ROUNDING)
            torch.testing.assert_close(step.x0hat, steps[index].x0hat, rtol=0, atol=ROUNDING)
    assert len(card.graphs) == 1


def test_a_table_that_is_longer_than_the_buffers(card: Card, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recording, "LEAST_ROWS", 4)
    made, eager = sampler(), sampler(captures=False)
    for steps, captures in ((4, 1), (5, 2), (8, 2), (2, 2), (9, 3)):
        expected = eager(SOURCE, seed=0, steps=steps)
        torch.testing.assert_close(
            made(SOURCE, seed=0, steps=steps), expected, rtol=0, atol=ROUNDING
        )
        assert len(card.graphs) == captures


def test_order(card: Card):
    """Warm-up on a side stream, which waits for the caller's and is waited for; then the capture there.

    A call on another stream waits for the steps before it, whose buffers it writes.
    """
    made = sampler()
    made(SOURCE, seed=0)
    (side,) = {word for line in card.log if "captured" in line for word in line.split()[1:2]}
    assert card.log == [
        f"stream {side} waits for stream 0",
        f"stream 0 waits for stream {side}",
        f"stream {side} is captured, other threads thread_local",
        *["stream 0 replays"] * STEPS,
    ]
    card.log.clear()
    other: Any = torch.cuda.Stream()
    with torch.cuda.stream(other):
        made(SOURCE, seed=0)
    made(SOURCE, seed=0)
    replays = [
        f"stream {other.number} waits for stream 0",
        *[f"stream {other.number} replays"] * STEPS,
    ]
    assert card.log == [
        *replays,
        f"stream 0 waits for stream {other.number}",
        *["stream 0 replays"] * STEPS,
    ]


def test_a_capture_is_one_step_of_the_kernel(card: Card):
    """After the row and the embedding of its number, before the number is counted up; nothing is copied."""
    sampler()(SOURCE, seed=0)
    kernels = [func for func, *_ in card.graphs[0].kernels]
    aten = torch.ops.aten
    assert kernels[:2] == [aten.index_select.default] * 2
    assert kernels[-2:] == [bridge_step, aten.add_.Tensor]
    assert kernels.count(bridge_step) == 1
    assert not {aten._to_copy.default, aten.clone.default, aten.copy_.default} & {*kernels}


@pytest.mark.usefixtures("card")
def test_a_recording_keeps_the_compiled_code_that_it_reads(monkeypatch: pytest.MonkeyPatch):
    """Its constants are freed with it, and a replay would read whatever is in their place."""
    monkeypatch.setattr("bbdm.execution.compiled.SHAPES_KEPT", 1)
    made = sampler()
    stream = made.stream(SOURCE, seed=0)
    next(stream)
    body: Any = made.backend.body
    (code,) = body.functions()
    kept = weakref.ref(code)
    list(made.stream(SOURCE[:1], seed=0))  # whose code takes its place
    assert code not in body.functions()
    del code
    gc.collect()
    assert kept() is not None
    *_, last = stream
    assert last.x.isfinite().all()
    del stream, last
    gc.collect()
    assert kept() is None


def test_the_host_does_not_wait_for_a_run(card: Card):
    """Between the first state and the result, also where runs take turns."""
    made = sampler()
    batches = made.read(SOURCE, 0, {}).batches()
    loop = made.loop
    with made.backend.turn():
        inputs = [loop.inputs(batch) for batch in batches * 2]
    with Waits("kernels.bridge_step._reference") as waits, made.backend.turn():
        runs = [
            made.backend.begin(batch, each) for batch, each in zip(batches * 2, inputs, strict=True)
        ]
        for index in range(STEPS):
            for run in runs:
                made.backend.step(run, index)
    assert waits.seen == []
    assert len(card.graphs) == 1


def captures_at_once(
    patch: pytest.MonkeyPatch, calls: list[Callable[[], Tensor]]
) -> tuple[int, int]:
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


GREY: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "condition_channels": 3,
    "attention_resolutions": (),
}
MORE: dict[str, tuple[dict[str, Any], Tensor, list[dict[str, Any]]]] = {
    "mean": ({"network": lambda: tiny_unet(**GREY)}, SOURCE, [{}]),
    "volume": (
        {"network": volume_unet},
        SOURCE[:, None, :1].expand(3, 1, 2, 7, 5),
        [{}, {"window": (2, 4, 4)}],
    ),
}


@pytest.mark.parametrize(
    "case", sweep([*CASES, *MORE], ["multistep", "codec", "guided windows", *MORE])
)
@torch.inference_mode()
def test_a_loop_stays_on_its_device(case: str):
    """Of a call, twice; the second time all that it needs is there."""
    settings, source, calls = {**CASES, **MORE}[case]
    built: dict[str, Any] = {
        name: value() if callable(value) else value for name, value in settings.items()
    }
    built.setdefault("network", tiny_unet(condition_channels=3, attention_resolutions=()).eval())
    network, solver = built.pop("network"), built.pop("solver", "sde-dpm2m")
    sampler = BridgeSampler(network, ABridge(), solver, 3, dtype="bf16", device="meta", **built)
    backend, loop = sampler.backend, sampler.loop
    seed = None if "noise" in calls[-1] else 0
    body, seen = backend.body, list[Tensor]()

    def noting(x: Tensor, embedding: Tensor, conditions: Any) -> Tensor:
        seen.extend([x, *(each for each in conditions.values() if each.ndim == x.ndim)])
        assert embedding.dtype == torch.float32
        return body(x, embedding, conditions)

    backend.body = noting
    for batch in sampler.read(source, seed, calls[-1]).batches():
        inputs = loop.inputs(batch)
        for mode in (nullcontext(), OneDevice(sampler.device)):
            with mode:
                run = backend.begin(batch, inputs)
                for index in range(len(batch.plan.times)):
                    backend.step(run, index)
            assert (run.state.x.device, run.state.x0hat.device) == (sampler.device, sampler.device)
    assert all(each.is_contiguous(memory_format=layout(each.ndim)) for each in seen)
    assert {each.dtype for each in seen} == {sampler.dtype}
