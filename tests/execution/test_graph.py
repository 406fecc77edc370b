"""A sampler's steps as a CUDA graph: results, what a replay waits for, shapes that are kept, threads."""

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bbdm import BridgeSampler
from bbdm.execution import compiled
from bbdm.execution.compiled import Graphs
from bbdm.sampling.loop import Batch
from tests.execution.test_compiled import ODD, SOURCE, build, new_sampler

TOLERANCE = 1e-3  # of a GPU's float32: other algorithms for convolutions, other orders of sums

gpu = partial(build, device="cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("whole_float32"),
]


@pytest.fixture
def whole_float32() -> Iterator[None]:
    """Convolutions are not rounded to TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def replay(sampler: BridgeSampler, source: Tensor, seed: int) -> Callable[[], Tensor]:
    """A function of a captured run's result, on the GPU, of inputs that are there."""
    seeds = list(range(seed, seed + len(source)))
    batch = Batch(sampler._plan(), seeds, source, seeds)
    with torch.inference_mode():
        inputs = sampler._inputs(batch)

    @torch.inference_mode()
    def run() -> Tensor:
        return sampler._last(batch, inputs, lambda _: None, None)

    return run


def test_gpu_graph_is_the_compiled_loop():
    """What it is on other networks and the CPU is in tests/cuda/test_gpu.py."""
    sampler = gpu()
    made = sampler(ODD, seed=3)
    *_, last = sampler.stream(ODD, seed=3)
    torch.testing.assert_close(last.x.clamp(-1, 1).cpu(), made, rtol=0, atol=1e-5)
    assert torch.equal(made, sampler(ODD, seed=3))


def test_gpu_results_are_in_memory_of_their_own():
    first = replay(gpu(), SOURCE[:2], 0)()
    kept = first.clone()
    second = replay(gpu(), SOURCE[2:4], 5)()
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("captured", [True, False])
def test_gpu_steps_do_not_make_the_host_wait_and_allocate_nothing(captured: bool, monkeypatch: pytest.MonkeyPatch):
    """Of a loop without a graph, the network apart, which is torch's."""
    sampler = new_sampler(clamp=(-1, 1), device="cuda", compile=captured)
    if captured:
        run = replay(sampler, SOURCE, 0)
    else:
        prediction = torch.randn(SOURCE.shape, device="cuda").contiguous(memory_format=torch.channels_last)
        monkeypatch.setattr(sampler, "_body", lambda *_: prediction)
        batch = Batch(sampler._plan(), [*range(5)], SOURCE, [*range(5)])
        inputs = sampler._inputs(batch)
        states = partial(sampler._states, batch, inputs, lambda _: None)

        @torch.inference_mode()
        def run() -> Tensor:
            *_, last = states()
            return last.x

    first = run()  # compiles
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)
    # The result of a graph; else the state, its estimate, what is shown, and the row
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before <= (1 if captured else 4)


def test_gpu_graphs_used_least_recently_are_dropped(monkeypatch: pytest.MonkeyPatch):
    """Kept graphs need nothing that is dropped: a replay is no use of the compiled network."""
    captures: list[weakref.ref[torch.cuda.CUDAGraph]] = []
    original = Graphs._capture

    def counting(self: Graphs, *arguments: Any) -> Any:
        captured = original(self, *arguments)
        captures.append(weakref.ref(captured[0]))
        return captured

    monkeypatch.setattr(Graphs, "_capture", counting)
    monkeypatch.setattr(compiled, "SHAPES_KEPT", 2)
    sampler, eager = new_sampler(compile=True, device="cuda"), gpu(compile=False)
    counts: list[int] = []
    for size in (8, 6, 8, 4, 8, 6, 4):  # 4 takes the place of 6, and so on
        made, expected = (s(SOURCE[..., :size], seed=0) for s in (sampler, eager))
        torch.testing.assert_close(made, expected, rtol=0, atol=TOLERANCE)
        counts.append(len(captures))
        gc.collect()
        assert sum(graph() is not None for graph in captures) <= 2
        for power in range(4, 20):  # overwrites memory that was freed
            _ = [torch.full((2**power,), torch.nan, device="cuda") for _ in range(16)]
    assert counts == [1, 2, 2, 3, 3, 4, 5]


def test_gpu_threads_on_streams_of_their_own_share_a_sampler():
    """From the first call on, with images that never leave the GPU."""
    sampler = new_sampler(compile=True, device="cuda")
    given = SOURCE.cuda()
    torch.cuda.synchronize()

    def call(i: int) -> Tensor:
        return sampler(given[i % 5 : i % 5 + 1, :, :, : 8 - 2 * (i % 2)], seed=i)

    def calls(first: int) -> list[Tensor]:
        with torch.cuda.stream(torch.cuda.Stream()):
            return [call(first + k) for k in range(20)]

    with ThreadPoolExecutor(8) as pool:
        made = [image for part in pool.map(calls, range(0, 160, 20)) for image in part]
    torch.cuda.synchronize()
    for i, image in enumerate(made):
        assert torch.equal(image, call(i))
