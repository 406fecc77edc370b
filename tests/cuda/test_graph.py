"""The loop as a CUDA graph: what is captured, what waits for what, and what each replay reads and gives."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from bbdm.execution.loop import Loop, State
from torch import Tensor

from bbdm.execution.graph import GraphedLoop
from bbdm.networks.base import Conditions
from tests.conftest import tiny_unet
from tests.cuda.card import CaptureError, Card, CardTensor, MissingWaitError, aten, off_the_card
from tests.cuda.test_sampler import CALL, GRAPHED, PICTURES, ROUNDING, SOURCE, check, sampler, uncompiled, vqgan_codec

STEPS = 3
bridge_step: Any = torch.ops.bbdm.bridge_step.default


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bbdm.execution.compiled.Compiled._compile", uncompiled)


def eager(source: Tensor, seed: int) -> Tensor:
    with off_the_card():
        return sampler(compile=True, dtype="fp32")(source, seed=seed)


def check_calls(made: Any, card: Card) -> None:
    """Two sources through one graph give the CPU's pictures."""
    for seed, source in enumerate((SOURCE, -SOURCE)):
        found = made(source, seed=seed)
        torch.testing.assert_close(found, eager(source, seed), rtol=0, atol=ROUNDING)
    assert len(card.graphs) == 1


def places_of_loop(places: list[str]) -> list[str]:
    """Those of the loop's own functions, not of the network's."""
    return [place for place in places if place.startswith(("execution.loop", "execution.graph", "kernels.bridge_step"))]


def test_replays_are_the_eager_loop(card: Card):
    check_calls(sampler("cuda", **GRAPHED), card)


def test_with_a_codec(card: Card):
    """The first batch's statistics go to the card, and what is compiled is warmed up."""
    warm_up = ["codec.base.latents: to the card", "codec.base.image: to the card"]
    first = ["codec.base.row: to the card"] * 2
    waits = [*warm_up, CALL[0], *first, CALL[1], "execution.graph._capture: synchronize", *first, CALL[2]]
    check(card, lambda s: s(PICTURES, seed=1), waits, codec=vqgan_codec(), **GRAPHED)


def test_order(card: Card):
    """Warm-up on a side stream, which waits for the caller's and is waited for; then the capture there."""
    made = sampler("cuda", **GRAPHED)
    made(SOURCE, seed=0)
    made(SOURCE, seed=0)
    (side,) = {word for line in card.log if "captured" in line for word in line.split()[1:2]}
    assert card.log == [
        f"stream {side} waits for stream 0",
        f"stream 0 waits for stream {side}",
        f"stream {side} is captured, other threads thread_local",
        "stream 0 replays",
        "stream 0 waits for stream 0",
        "stream 0 replays",
    ]


def test_only_the_first_call_waits_for_the_whole_card(card: Card):
    made = sampler("cuda", **GRAPHED)
    card.waits.clear()
    made(SOURCE, seed=0)
    assert card.waits == [*CALL[:2], "execution.graph._capture: synchronize", CALL[2]]
    card.waits.clear()
    made(SOURCE, seed=1)
    assert card.waits == CALL


def test_a_capture_is_the_loop_and_allocates_for_the_network_alone(card: Card):
    sampler("cuda", **GRAPHED)(SOURCE, seed=0)
    kernels = [func for func, *_ in card.graphs[0].kernels]
    assert kernels.count(bridge_step) == STEPS + 1
    assert kernels[-1] == bridge_step
    assert not {aten._to_copy.default, aten.zeros.default} & {*kernels}
    assert places_of_loop(card.graphs[0].allocations) == []


def test_streams_of_the_caller(card: Card):
    """Calls on streams of their own share a graph's buffers, one after the other."""
    made = sampler("cuda", **GRAPHED)
    given = SOURCE.to("cuda")
    for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.testing.assert_close(made(given, seed=2).cpu(), eager(SOURCE, 2), rtol=0, atol=ROUNDING)


def test_each_shape_has_a_graph_and_kept_graphs_outlive_their_neighbours(card: Card, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bbdm.execution.graph.SHAPES_KEPT", 1)
    made = sampler("cuda", **GRAPHED)
    for count, captures in ((3, 1), (3, 1), (2, 2), (3, 3)):
        torch.testing.assert_close(made(SOURCE[:count], seed=0), eager(SOURCE[:count], 0), rtol=0, atol=ROUNDING)
        assert len(card.graphs) == captures


TOLD: dict[str, Any] = {"classes": {"style": 3}, "tokens": {"text": 4}, "drop": {"style": 0.1, "text": 0.1}}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, marks=pytest.mark.nightly),
        pytest.param({"guidance": 3.0}, marks=pytest.mark.nightly),
        {"guidance": {"style": 2.0, "text": 3.0}, "guidance_interval": (0.0, 0.7), "guidance_rescale": 0.5},
        pytest.param({"guidance_prior": "blur:1:2"}, marks=pytest.mark.nightly),
        {"guidance_prior": "noise:0.2:2", "guidance": 2.0},
    ],
)
def test_conditions_and_guidance(card: Card, how: dict[str, Any]):
    """A graph serves other classes and tokens; another number of tokens has its own."""
    text = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    with off_the_card():
        net = tiny_unet(**TOLD, condition_channels=3).eval()
        plain = sampler(unet=net, compile=True, dtype="fp32")
    made = sampler("cuda", unet=net, **GRAPHED)
    calls = [({"style": 1, "text": text}, 1), ({"style": 0, "text": -text}, 1), ({"style": 2, "text": text[:2]}, 2)]
    for told, graphs in calls:
        with off_the_card():
            wanted = plain(SOURCE, seed=3, conditions=told, **how)
        torch.testing.assert_close(made(SOURCE, seed=3, conditions=told, **how), wanted, rtol=0, atol=ROUNDING)
        assert len(card.graphs) == graphs


# Faults that are planted


@pytest.mark.parametrize("which", [0, 1])
def test_finds_a_warm_up_without_a_wait(card: Card, monkeypatch: pytest.MonkeyPatch, which: int):
    """The side stream that does not wait for the caller's, and the other way around."""
    wait_stream, calls = torch.cuda.Stream.wait_stream, iter(range(9))
    monkeypatch.setattr(torch.cuda.Stream, "wait_stream", lambda *s: next(calls) == which or wait_stream(*s))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    made = sampler("cuda", **GRAPHED)
    with pytest.raises(MissingWaitError, match="does not wait for it"):
        made(SOURCE, seed=0)


def test_finds_streams_that_share_buffers_without_a_wait(card: Card, monkeypatch: pytest.MonkeyPatch):
    made, given = sampler("cuda", **GRAPHED), SOURCE.to("cuda")
    made(given, seed=0)
    monkeypatch.setattr(torch.cuda.Stream, "wait_event", lambda *_: None)
    stream = torch.cuda.Stream()
    monkeypatch.setattr(stream, "wait_stream", lambda other: other.record_event().wait(stream))
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        made(given, seed=0)
    with pytest.raises(MissingWaitError, match=r"execution\.graph\.__call__"):
        made(given, seed=0)


def test_finds_an_item_in_the_loop(card: Card, monkeypatch: pytest.MonkeyPatch):
    advance = Loop.advance

    def waiting(self: Loop, state: State, index: int) -> None:
        advance(self, state, index)
        assert state.x.isfinite().all()

    monkeypatch.setattr(Loop, "advance", waiting)
    eager = sampler("cuda")
    card.waits.clear()
    eager(SOURCE, seed=0)
    assert card.waits == [*CALL[:2], *["sampling.sampler._states: item"] * STEPS, CALL[2]]
    graphed = sampler("cuda", **GRAPHED)
    with pytest.raises(CaptureError, match="waits during a capture: item"):
        graphed(SOURCE, seed=0)


def test_finds_an_allocation_in_the_loop(card: Card, monkeypatch: pytest.MonkeyPatch):
    step = Loop._step

    def allocating(self: Loop, state: State, pred: Tensor, *rest: Any) -> None:
        step(self, state, pred.clone(), *rest)

    monkeypatch.setattr(Loop, "_step", allocating)
    sampler("cuda", **GRAPHED)(SOURCE, seed=0)
    assert len(places_of_loop(card.graphs[0].allocations)) >= STEPS


def test_finds_a_capture_without_a_warm_up(card: Card, monkeypatch: pytest.MonkeyPatch):
    advance = Loop.advance

    def captured_only(self: Loop, *given: Any) -> None:
        if card.capture is not None:
            advance(self, *given)

    monkeypatch.setattr(Loop, "advance", captured_only)
    monkeypatch.setattr("bbdm.sampling.sampler.BridgeSampler._prepare", lambda *_: None)
    made = sampler("cuda", **GRAPHED)
    card.launches.clear()
    with pytest.raises(CaptureError, match="for the first time in a capture"):
        made(SOURCE, seed=0)


class StaleSource(GraphedLoop):
    """Replays without copying the source."""

    def __call__(self, y: Tensor, seeds: Tensor, conditions: Sequence[Conditions], *how: Any) -> Tensor:
        graph, state, _ = self._captured.get(y.shape, y, seeds, self._loop.told(conditions), *how)
        state.seeds.copy_(seeds)
        graph.replay()
        return state.x.clone()


class SharedResult(GraphedLoop):
    """Returns the buffer itself."""

    def __call__(self, y: Tensor, seeds: Tensor, conditions: Sequence[Conditions], *how: Any) -> Tensor:
        super().__call__(y, seeds, conditions, *how)
        ((_, state, _),) = self._captured._values.values()
        return state.x


def test_finds_a_replay_with_a_stale_source(card: Card, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bbdm.sampling.sampler.GraphedLoop", StaleSource)
    made = sampler("cuda", **GRAPHED)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check_calls(made, card)


@pytest.mark.parametrize("loop", [GraphedLoop, SharedResult])
def test_the_next_replay_leaves_a_result(loop: type[GraphedLoop], card: Card, monkeypatch: pytest.MonkeyPatch):
    """And where it overwrites one, this finds it."""
    monkeypatch.setattr("bbdm.sampling.sampler.GraphedLoop", loop)
    made, given = sampler("cuda", **GRAPHED)._own.graphed, torch.zeros(1, 3, 8, 6).to("cuda")
    with torch.inference_mode():
        first = made(given, torch.tensor([1], device="cuda"), [{"source": given}])
        kept = first.clone()
        made(given, torch.tensor([2], device="cuda"), [{"source": given}])
    assert torch.equal(first, kept) == (loop is GraphedLoop)


def test_finds_a_replay_on_memory_that_was_freed(card: Card):
    x, stream, graph = torch.ones(3).to("cuda"), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    assert isinstance(x, CardTensor)
    (x + 1).sum()
    with torch.cuda.graph(graph, stream=stream):
        y = x + 1
    assert y.cpu().isnan().all()  # nothing ran
    graph.replay()
    assert torch.equal(y.cpu(), torch.full((3,), 2.0))
    del x
    with pytest.raises(CaptureError, match="memory that was freed"):
        graph.replay()
