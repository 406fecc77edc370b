"""On a card: the CPU's pictures, losses and scores, and no more waiting than there must be."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bbdm import ABridge, BridgeSampler
from bbdm.codec import DiffusersCodec, VQGANCodec
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from bbdm.sampling.loop import Batch
from tests.codec.autoencoders import tiny_kl
from tests.conftest import MakeTrainer, metrics_of, tiny_unet
from tests.cuda.test_graph import CASES, captures_at_once
from tests.cuda.test_training import CASES as TASKS
from tests.cuda.test_training import CPU, STEPS, bridge_step
from tests.execution.test_compiled import SOURCE as PICTURES
from tests.execution.test_compiled import new_sampler, short_unet
from tests.networks.test_vqgan import tiny_vqgan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
TOLERANCE = 1e-3  # other algorithms for convolutions, other orders of sums


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions are not rounded to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("case", CASES)
def test_gpu_pictures_are_the_cpus(case: str, compile: bool):
    settings, source, calls = CASES[case]
    built: dict[str, Any] = {
        name: value() if callable(value) else value for name, value in settings.items()
    }
    network, solver = built.pop("network", None) or short_unet(), built.pop("solver", "sde-dpm2m")
    here = BridgeSampler(network, ABridge(), solver, STEPS, **built)
    there = BridgeSampler(
        network, ABridge(), solver, STEPS, device=CUDA, compile=compile, dtype="fp32", **built
    )
    for seed, options in enumerate(calls):
        on_card = {
            name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in options.items()
        }
        wanted = here(source, seed=seed, **options)
        torch.testing.assert_close(
            there(source, seed=seed, **options), wanted, rtol=0, atol=TOLERANCE
        )
        found = there(source.cuda(), seed=seed, **on_card)
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=TOLERANCE)


def waits(call: Any) -> list[str]:
    """The lines at which a call makes the host wait."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [each.filename for each in seen if "synchronizing" in str(each.message)]


@pytest.mark.parametrize("case", TASKS)
def test_gpu_losses_are_the_cpus_and_a_step_does_not_wait(
    case: str, monkeypatch: pytest.MonkeyPatch
):
    """But for its loss where the rate depends on it."""
    for module in ("callbacks", "optimization"):
        monkeypatch.setattr(f"bbdm.training.{module}.SHOWN_EVERY", 1)
    settings = TASKS[case]
    (mine, batch), (theirs, own) = (
        bridge_step(**settings, device=device) for device in (CUDA, CPU)
    )
    wanted = [float(theirs.step(own, index)) for index in range(STEPS)]
    losses: list[torch.Tensor] = []
    seen = [
        waits(lambda index=index: losses.append(mine.step(batch, index))) for index in range(STEPS)
    ]
    tolerance = 1e-2 if "precision" in settings else TOLERANCE
    assert [float(loss) for loss in losses] == pytest.approx(wanted, abs=tolerance)
    plateau = settings.get("lr_schedule") == "plateau"
    assert all((len(each) > 0) == plateau for each in seen[1:])


def test_gpu_a_run_is_the_cpus(make_trainer: MakeTrainer, pairs: Pairs):
    """Loader, steps, validation, previews and checkpoints."""

    def run(device: str) -> list[dict[str, Any]]:
        unet = tiny_unet(condition_channels=3).to(device)
        trainer = make_trainer(
            device, unet, validation=pairs, preview_every=1, save_every=1, workers=0
        )
        trainer.fit()
        return metrics_of(trainer)

    for mine, theirs in zip(run("cuda"), run("cpu"), strict=True):
        for name in ("loss", "validation_loss"):
            assert mine[name] == pytest.approx(theirs[name], abs=TOLERANCE)


def test_gpu_batches_come_without_waiting(pairs: Pairs):
    batches: list[Any] = []
    assert waits(lambda: batches.extend(Batches(pairs, 2, CUDA)())) == []
    for batch in batches:
        assert batch.source.is_cuda
        assert batch.source.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "make", [lambda: VQGANCodec(tiny_vqgan()), lambda: DiffusersCodec(tiny_kl())]
)
def test_gpu_codecs_are_the_cpus(make: Any):
    picture = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    here, there = make(), make().placed(CUDA, torch.float32)
    latents = here.latents(picture)
    torch.testing.assert_close(there.latents(picture).cpu(), latents, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        there.image(latents.cuda()).cpu(), here.image(latents), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("captured", [True, False])
@torch.inference_mode()
def test_gpu_steps_do_not_make_the_host_wait_and_allocate_nothing(
    captured: bool, monkeypatch: pytest.MonkeyPatch
):
    """Of a loop without a graph, the network apart, which is torch's."""
    sampler = new_sampler(device="cuda", compile=captured)
    if not captured:
        prediction = torch.randn(PICTURES.shape, device="cuda").contiguous(
            memory_format=torch.channels_last
        )
        monkeypatch.setattr(sampler.backend, "body", lambda *_: prediction)
    batch = Batch(sampler.plan(), [*range(5)], PICTURES, [*range(5)])
    inputs = sampler.loop.inputs(batch)

    def last() -> Tensor:
        with sampler.backend.turn():
            run = sampler.backend.begin(batch, inputs)
            for index in range(len(batch.plan.times)):
                sampler.backend.step(run, index)
            return run.state.x.clone()

    first = last()  # compiles
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = last()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)
    # The state, its estimate, what is shown, and the result
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before <= 4


def test_gpu_one_graph_serves_every_solver_and_number_of_steps(monkeypatch: pytest.MonkeyPatch):
    sampler = new_sampler(compile=True, device="cuda")
    sampler(PICTURES, seed=0)
    monkeypatch.setattr(torch.cuda, "graph", None)  # no capture any more
    for steps in range(1, 51):
        solver = ("ddim", "dpm2m", "sde-dpm2m", "posterior")[steps % 4]
        expected = [
            step.x for step in sampler.stream(PICTURES, seed=steps, solver=solver, steps=steps)
        ][-1]
        result = sampler(PICTURES, seed=steps, solver=solver, steps=steps)
        assert torch.equal(result, expected.clip(-1, 1).to(result.device))


def test_gpu_two_samplers_never_capture_at_once(monkeypatch: pytest.MonkeyPatch):
    samplers = [new_sampler(compile=True, device="cuda") for _ in range(2)]
    calls = [
        partial(each, PICTURES[:count], seed=0)
        for each, count in zip(samplers, (1, 2), strict=True)
    ]
    assert captures_at_once(monkeypatch, calls) == (2, 1)


def test_gpu_threads_on_streams_of_their_own_share_a_sampler():
    """From the first call on, with images that never leave the GPU."""
    sampler = new_sampler(compile=True, device="cuda")
    given = PICTURES.cuda()
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
