"""The kernels' launches for random shapes, in the interpreter, with each access to memory checked.

Grids, strides and masks: the results are the formulas', nothing outside of the arguments is touched, and no
result depends on the order of programs. A GPU does not tell of a mask that lets too much through, of a grid
that writes twice, or of a program that reads what another one writes. Here each is an error.
"""

import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbdm.kernels import bridge_step, noise_step
from bbdm.kernels.elementwise import AVAILABLE
from tests.conftest import ROOT, sweep
from tests.kernels import test_bridge_step as bridge_steps
from tests.kernels import test_noise_step as noise_steps

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
every_case = pytest.mark.parametrize("case", sweep(range(200), daily=range(12)))


class Launch:
    """The memory that a launch was given, and which programs stored and loaded each address of it."""

    def __init__(self, arguments: list[torch.Tensor]) -> None:
        sizes = [
            sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
            for t in arguments
        ]
        self.ranges = [
            (t.data_ptr(), t.data_ptr() + n * t.itemsize)
            for t, n in zip(arguments, sizes, strict=True)
        ]
        self.stored: dict[int, Any] = {}
        self.loaded: dict[int, set[Any]] = defaultdict(set)

    def check(self, addresses: Any, mask: Any, program: Any, store: bool) -> None:
        for address in np.unique(
            addresses[np.broadcast_to(np.asarray(mask, bool), addresses.shape)]
        ).tolist():
            assert any(low <= address < high for low, high in self.ranges), (
                "outside of all arguments"
            )
            assert not (store and address in self.stored), (
                f"stored before, by program {self.stored[address]}"
            )
            if store:
                self.stored[address] = program
            else:
                self.loaded[address].add(program)
            assert address not in self.stored or self.loaded[address] <= {self.stored[address]}


@contextmanager
def watched() -> Iterator[list[Launch]]:
    """Check each launch in the block; gives the launches."""
    from triton.runtime import interpreter

    launches: list[Launch] = []
    builder: Any = interpreter.InterpreterBuilder
    begin = interpreter.GridExecutor._init_args_hst

    def begins(executor: Any, arguments: Any, named: Any) -> Any:
        made = begin(executor, arguments, named)
        launches.append(
            Launch([a for a in (*made[0], *made[1].values()) if isinstance(a, torch.Tensor)])
        )
        return made

    def checked(name: str, store: bool) -> Any:
        original = getattr(builder, name)

        def access(self: Any, pointers: Any, *rest: Any) -> Any:
            launches[-1].check(
                np.asarray(pointers.data), rest[1 if store else 0].data, self.grid_idx, store
            )
            return original(self, pointers, *rest)

        return access

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "_init_args_hst", begins)
        for name, store in (("create_masked_load", False), ("create_masked_store", True)):
            patch.setattr(builder, name, checked(name, store))
        yield launches


@every_case
def interpreted_steps_touch_their_arguments_alone(case: int):
    """Sides of 1 and odd ones are likely; some images are more than a block."""
    draw = random.Random(case)
    shape = (
        draw.randint(1, 3),
        draw.choice((1, 3, 4, 5, 16)),
        draw.randint(1, 17),
        draw.choice((1, 7, 8, 15, 33)),
    )
    last, dtype, noise = draw.random() < 0.5, draw.choice(DTYPES), draw.choice(("seeds", "noise"))
    masked = draw.random() < 0.5
    with watched() as launches:
        bridge_steps.check_steps(
            bridge_step._launch, shape, last, dtype, noise=noise, masked=masked
        )
        noise_steps.check(noise_step._launch, shape, last, dtype, drawn=noise == "seeds")
    stores = [3] * len(bridge_steps.ROWS) + [2]  # x, x0hat and inputs; x_t and target
    assert [len(launch.stored) for launch in launches] == [
        n * torch.Size(shape).numel() for n in stores
    ]


@pytest.mark.skipif(not AVAILABLE, reason="needs Triton")
@pytest.mark.parametrize(
    "marks", ["not nightly", pytest.param("nightly", marks=pytest.mark.nightly)]
)
def test_kernels_in_the_interpreter(marks: str):
    folder = str(Path(__file__).parent)
    options = [
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-m",
        marks,
        "-o",
        "python_functions=interpreted_*",
    ]
    command = [sys.executable, "-m", "pytest", *options, folder]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)
