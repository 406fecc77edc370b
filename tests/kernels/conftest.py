"""The interpreter with a GPU's rounding."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def rounding_to_nearest() -> Iterator[None]:
    """Triton's interpreter cuts float32 off to bfloat16; a GPU rounds it to nearest, and ties to even.

    A number that is cut off is wrong by up to one unit in the last place, twice what rounding allows. Eager
    PyTorch rounds, so the rule "twice eager's error" would compare two kinds of arithmetic.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton import language as tl
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    truncating = builder.create_fp_trunc

    def rounding(self: Any, src: Any, to: Any) -> Any:
        if (src.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return truncating(self, src, to)
        data = torch.from_numpy(src.data.copy()).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(data, to.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_fp_trunc", rounding)
        yield
