"""The use of codes in an epoch, against counts and perplexities worked out by hand."""

import math

import pytest
import torch

from bbdm.execution.processes import Processes
from bbdm.training.codebook import CodebookUse

ALONE = Processes(torch.device("cpu"))


def test_report():
    """Of 6 codes, one is taken 4 times of 8, two twice: p = 1/2, 1/4, 1/4, and the perplexity is 2^1.5."""
    use = CodebookUse(6, ALONE)
    use.add(torch.tensor([[[0, 3], [3, 5]]]))
    use.add(torch.tensor([[[0, 0], [0, 5]]]))
    assert use.report() == {"codes_used": 0.5, "perplexity": pytest.approx(2**1.5), "codes_restarted": 0}
    use.add(torch.arange(6).repeat(3))  # the next epoch counts anew
    assert use.report() == {"codes_used": 1.0, "perplexity": pytest.approx(6), "codes_restarted": 0}
    assert math.isfinite(use.report()["perplexity"])  # of an epoch without steps


def test_unused_codes_move_to_latents_of_the_batch():
    codes, average = torch.zeros(5, 2), torch.zeros(5, 2)
    z = torch.arange(16.0).view(2, 2, 2, 2) + 1  # no vector is zero
    use = CodebookUse(5, ALONE)
    use.add(torch.tensor([1, 3]))
    use.restart([codes, average], z, seed=0)
    assert (codes[[1, 3]] == 0).all()
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 2).tolist()
    assert all(code in vectors for code in codes[[0, 2, 4]].tolist())
    assert torch.equal(codes, average)
    assert use.report()["codes_restarted"] == 3
    use.restart([codes], -z, seed=0)  # none was used since
    assert all(code in (-z.permute(0, 2, 3, 1).reshape(-1, 2)).tolist() for code in codes.tolist())


def test_a_codebook_that_is_used_stays():
    codes = torch.zeros(3, 2)
    use = CodebookUse(3, ALONE)
    use.add(torch.arange(3))
    use.restart([codes], torch.ones(1, 2, 2, 2), seed=0)
    assert (codes == 0).all()
