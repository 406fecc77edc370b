"""The noise contract: published integers, what is made of them, and the same numbers in NumPy and PyTorch."""

import numpy as np
import pytest
import torch

from bbdm.kernels import philox, philox_numpy

# Random123's known answers for philox4x32-10: counter, key, result.
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN, ids=["zeros", "ones", "pi"])
def test_numpy_and_torch_give_the_published_words(counter: str, key: str, expected: str):
    assert philox_numpy.philox4x32(words(counter), words(key)).tolist() == words(expected)
    element, step, stream, lane = words(counter)
    low, high = words(key)
    seed = low | high << 32
    seeds = torch.tensor([seed - 2**64 if seed >= 2**63 else seed])
    made = philox.random_words(seeds, step, 4, stream, lane, first=4 * element)
    assert made.tolist() == [words(expected)]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize(("step", "stream"), [(0, 0), (2**32 - 1, 1)])
def test_numpy_and_torch_agree(seed: int, step: int, stream: int):
    seeds, shape = [seed, seed // 3], (3, 5, 7)
    integers = philox.random_words(torch.tensor(seeds), step, 105, stream, 2)
    assert integers.tolist() == philox_numpy.random_words(seeds, step, 105, stream, 2).tolist()
    ours = philox.normal(torch.tensor(seeds), step, shape, stream).numpy()
    assert ours.dtype == np.float32
    assert ours.shape == (2, *shape)
    np.testing.assert_allclose(
        ours, philox_numpy.normal(seeds, step, shape, stream), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("width", [12, 13, 14, 15])
def test_normals_of_a_box_are_those_of_the_whole(width: int):
    """To the bit, wherever rows of the box begin among the four elements of a counter."""
    seeds = torch.tensor([3, 2**63 - 1])
    whole = philox.normal(seeds, 7, (3, 9, width))
    for rows, columns in (
        (slice(0, 9), slice(0, width)),
        (slice(2, 7), slice(3, 4)),
        (slice(8, 9), slice(5, 12)),
    ):
        box = philox.normal_box(seeds, 7, (3, 9, width), rows, columns)
        assert torch.equal(box, whole[:, :, rows, columns])


def test_normals_are_box_muller_of_the_words():
    """Even lane radius, odd lane angle, cosine first; computed here in float64."""
    u = ((philox_numpy.random_words([5], 3, 4)[0] >> 9) + 0.5) * 2.0**-23
    radius, angle = np.sqrt(-2 * np.log(u[[0, 2]])), 2 * np.pi * u[[1, 3]]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    assert philox_numpy.normal([5], 3, (1, 2, 2)).reshape(-1) == pytest.approx(expected, abs=1e-5)


def test_normals_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch):
    whole, seeds = philox_numpy.normal([5, 6], 3, (3, 5, 7)), torch.tensor([5, 6])
    tensor = philox.normal(seeds, 3, (3, 5, 7))
    for module in (philox, philox_numpy):
        monkeypatch.setattr(module, "AT_ONCE", 16)
    assert (philox_numpy.normal([5, 6], 3, (3, 5, 7)) == whole).all()
    assert torch.equal(philox.normal(seeds, 3, (3, 5, 7)), tensor)
    assert torch.equal(philox.normal(seeds, 3, (84,), first=21), tensor.flatten(1)[:, 21:])


def test_timesteps_are_shares_of_words():
    t = philox.timesteps(torch.arange(20_000), 3, 1, 10)
    assert (int(t.min()), int(t.max())) == (1, 10)
    words = philox_numpy.random_words([0, 1, 2], 3, 1, stream=1, lane=1)[:, 0].tolist()
    assert t[:3].tolist() == [1 + word * 10 // 2**32 for word in words]
