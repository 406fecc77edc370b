"""The kernels' launches for random shapes, in the interpreter, with each access to memory checked.

Grids, strides and masks: the results are the formulas', nothing outside of the arguments is touched, and no
result depends on the order of programs.
"""

import random

import pytest
import torch

from bbdm.kernels import noise_step
from tests.kernels import test_bridge_step as bridge_steps
from tests.kernels import test_noise_step as noise_steps
from tests.kernels.memory import watched
from tests.nightly import sweep

CASES = 200
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
every_case = pytest.mark.parametrize("case", sweep(range(CASES), daily=(0, 1)))


def shape_of(draw: random.Random) -> tuple[int, int, int, int]:
    """Sides of 1 and odd ones are likely; some images are more than a block."""
    return draw.randint(1, 3), draw.choice((1, 3, 4, 5, 16)), draw.randint(1, 17), draw.choice((1, 7, 8, 15, 33))


@every_case
def interpreted_bridge_step(case: int):
    draw = random.Random(case)
    shape, last, dtype = shape_of(draw), draw.random() < 0.5, draw.choice(DTYPES)
    clamp, masked = draw.choice((None, (-0.8, 0.9))), draw.random() < 0.5
    with watched() as launches:
        noise = draw.choice(("seeds", "noise"))
        bridge_steps.check_steps(bridge_steps.launch, shape, last, dtype, noise=noise, clamp=clamp, masked=masked)
    assert len(launches) == len(bridge_steps.ROWS)
    assert all(len(launch.stored) == 3 * torch.Size(shape).numel() for launch in launches)


@every_case
def interpreted_noise_step(case: int):
    draw = random.Random(case)
    shape, last, dtype = shape_of(draw), draw.random() < 0.5, draw.choice(DTYPES)
    with watched() as launches:
        noise_steps.check(noise_step._launch, shape, last, dtype, drawn=draw.random() < 0.5)
    assert [len(launch.stored) for launch in launches] == [2 * torch.Size(shape).numel()]
