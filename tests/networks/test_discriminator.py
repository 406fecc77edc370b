"""The PatchGAN: its patches, and that it looks at each image alone."""

import pytest
import torch

from bbdm.networks.vqgan import PatchGAN


def test_a_logit_sees_70_by_70_pixels():
    """Isola et al. 2017, appendix 6.1.2: the pixels that reach a logit through the convolutions."""
    convolutions = torch.nn.Sequential(*(m for m in PatchGAN(3, 8).layers if isinstance(m, torch.nn.Conv2d)))
    x = torch.zeros(1, 3, 160, 160, requires_grad=True)
    logits = convolutions(x)
    assert logits.shape == (1, 1, 18, 18)
    logits[0, 0, 9, 9].backward()
    assert x.grad is not None
    rows, columns = (x.grad[0].abs().sum(0).sum(side).nonzero().flatten() for side in (1, 0))
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == (70, 70)


def test_an_image_has_the_same_logits_in_any_batch():
    x = torch.randn(3, 1, 32, 40)
    network = PatchGAN(1, 4)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))


def test_widths_and_sizes():
    convolutions = [m for m in PatchGAN(3).layers if isinstance(m, torch.nn.Conv2d)]
    widths = [(3, 64, 2), (64, 128, 2), (128, 256, 2), (256, 512, 1), (512, 1, 1)]  # of the paper
    assert [(m.in_channels, m.out_channels, m.stride[0]) for m in convolutions] == widths
    network = PatchGAN(3, 4)
    assert network(torch.randn(1, 3, PatchGAN.least, PatchGAN.least)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network(torch.randn(1, 3, PatchGAN.least - 1, PatchGAN.least))
    for width in (0, 6):
        with pytest.raises(ValueError, match=f"width must be a multiple of 4, got {width}"):
            PatchGAN(3, width)
