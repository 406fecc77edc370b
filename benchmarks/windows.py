"""What windows of large pictures cost: python -m benchmarks.windows [flags].

One step of a square picture is timed in turns: by windows, the network's calls alone on as many windows that
are there already, and MONAI's SlidingWindowInferer around the same network in the same loop, where MONAI is
installed. Then each row runs once in a process of its own, for its peak of resident memory. With --within,
one step by windows runs once, and the network's calls are timed within it.
"""

from __future__ import annotations

import copy
import math
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from bbdm import BridgeSampler
from bbdm.base import machine, scripts
from bbdm.cli import setup
from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.networks.base import SOURCE, Body, Conditions
from bbdm.networks.checks import along
from bbdm.sampling.options import WindowOptions
from benchmarks.timing import interleaved, seconds_of

OVERLAP, AT_ONCE = 0.25, 16
NETWORKS = {"demo": 64, "paper": 64}  # presets, and the side of windows


def sampler_of(network: str, dtype: str) -> BridgeSampler:
    """A preset's network, with its first weights: what it costs does not depend on them."""
    torch.manual_seed(0)
    unet = setup.build_network(network, 3).eval()
    bridge = setup.build_bridge("abridge", None, 2.0, "pinned", "uniform")
    return BridgeSampler(unet, bridge, "ddim", steps=1, dtype=dtype)


def of_monai(
    sampler: BridgeSampler,
    window: int | tuple[int, ...],
    at_once: int = AT_ONCE,
    report: Callable[[int], Any] = lambda _: None,
) -> Callable[..., Tensor]:
    """The network's body inside MONAI's inferer; ``report`` is called after each call of it with 1."""
    from monai.inferers import SlidingWindowInferer  # pyright: ignore[reportPrivateImportUsage]

    infer = SlidingWindowInferer(along(window, sampler.axes), at_once, OVERLAP, mode="gaussian")
    body = sampler._body

    def network(x: Tensor, embedding: Tensor, conditions: Conditions) -> Tensor:
        names = list(conditions)
        together = torch.cat([x, *conditions.values()], 1)

        def predict(part: Tensor) -> Tensor:
            each = part.split([x.shape[1], *(conditions[name].shape[1] for name in names)], 1)
            given, *seen = (part.contiguous(memory_format=CHANNELS_LAST[part.ndim]) for part in each)
            made = body(given, embedding, dict(zip(names, seen, strict=True))).float()
            report(1)
            return made

        return infer(together, predict).contiguous(memory_format=CHANNELS_LAST[x.ndim])  # pyright: ignore

    return network


def rows_of(
    network: str, dtype: str, side: int, around: Callable[[Body], Body] = lambda body: body
) -> dict[str, Callable[[], object]]:
    """What is timed; ``around`` wraps the network's body."""
    window = NETWORKS[network]
    sampler = sampler_of(network, dtype)
    sampler._body = around(sampler._body)
    source = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grid = sampler.window_grid(WindowOptions(window=window, overlap=OVERLAP), (side, side), AT_ONCE)
    assert grid is not None
    inferred = copy.copy(sampler)
    inferred._body = of_monai(sampler, window)

    @torch.inference_mode()
    def alone() -> None:
        """The calls of the network on batches that are there."""
        conditions = sampler.unet.prepared({SOURCE: source}, (side, side))
        spans = [tuple(s.span(0) for s in grid.sides((side, side)))] * AT_ONCE
        _, parts = next(grid.batches([source, *conditions.values()], spans))
        left = math.prod(len(each.starts) for each in grid.sides((side, side)))
        while left > 0:
            if left < AT_ONCE:
                parts = [part[:left].clone() for part in parts]
            x, *others = map(sampler._put, parts)
            sampler._network(sampler._plan(), x, 0, dict(zip(conditions, others, strict=True)))
            left -= AT_ONCE

    return {
        "calls alone": alone,
        "windows": lambda: sampler(source, seed=0, window=window, overlap=OVERLAP, batch_size=AT_ONCE),
        "MONAI": lambda: inferred(source, seed=0, window=None),
    }


def peak(network: str, dtype: str, side: int, row: str, threads: int) -> float:
    """MB of resident memory at most, in a process of its own."""
    torch.set_num_threads(threads)
    made = rows_of(network, dtype, side)[row]
    made()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_case(args: Any) -> None:
    """Prints what the numbers below it are of."""
    on = machine.processor(torch.device("cpu"))
    print(f"{args.network}, {args.dtype}, {args.side} x {args.side}, one step, on {on}")


def cost(args: Any) -> None:
    """Prints the table."""
    rows = rows_of(args.network, args.dtype, args.side)
    try:
        import monai  # noqa: F401
    except ModuleNotFoundError:
        del rows["MONAI"]
    seconds = interleaved(rows, args.rounds, settle=False)
    print_case(args)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, each in seconds.items():
            memory = pool.apply(peak, (args.network, args.dtype, args.side, name, torch.get_num_threads()))
            ratios = [one / other for one, other in zip(seconds["windows"], each, strict=True)]
            median, spread = statistics.median(each), f"{min(each):.2f} to {max(each):.2f}"
            ratio = statistics.median(ratios)
            print(f"{name:12} {median:8.2f} s ({spread}), windows take {ratio:.3f} of it, peak {memory:.0f} MB")


def within(args: Any) -> None:
    """Prints what a step by windows takes beside the network's calls in it."""
    calls: list[float] = []

    def timed(body: Body) -> Body:
        def call(*given: Any) -> Tensor:
            started = time.perf_counter()
            prediction = body(*given)
            calls.append(time.perf_counter() - started)
            return prediction

        return call

    whole = seconds_of(rows_of(args.network, args.dtype, args.side, timed)["windows"])
    share = whole / sum(calls) - 1
    print_case(args)
    print(f"{whole:.2f} s, {sum(calls):.2f} of them in {len(calls)} calls: {share:.2%} more than the calls")


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="demo")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--side", type=int, default=2048, help="of the picture")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--within", action="store_true", help="one row, once: what it takes beside its calls")
    args = parser.parse_args(argv)
    report = within if args.within else cost
    report(args)


if __name__ == "__main__":
    main()
