"""The U-Net in one, two and three dimensions, and where space is periodic."""

import re

import pytest
import torch
from test_nets import awake, inputs
from torch import nn

from sdekit_diffusion.nets import UNet
from sdekit_diffusion.nets._unet_blocks import Convolutions

SHAPES = {1: (2, 16), 2: (2, 8, 12), 3: (2, 8, 8, 8)}


def build(dimensions, **arguments):
    torch.manual_seed(0)
    sizes = {"channels": 2, "width": 8, "multipliers": (1, 2, 1), "attention": (False, False, True)}
    return awake(UNet(**sizes, dimensions=dimensions, **arguments)).double()


@pytest.mark.parametrize("dimensions", SHAPES)
def test_space_that_is_periodic(dimensions):
    """The output shifts with x by multiples of 4, with three levels, and with the image."""
    x, t = inputs(SHAPES[dimensions], batch=2, dtype=torch.float64)
    net = build(dimensions, circular=True, image=1)
    image = x[:, :1].square()
    out = net(x, t, image=image)
    assert net.config["circular"] is True
    for dim in range(2, dimensions + 2):
        for shift in (4, -4):
            found = net(x.roll(shift, dims=dim), t, image=image.roll(shift, dims=dim))
            torch.testing.assert_close(found, out.roll(shift, dims=dim), rtol=0, atol=1e-12)
        other = net(x.roll(1, dims=dim), t, image=image.roll(1, dims=dim))
        assert (other - out.roll(1, dims=dim)).abs().max() > 1e-3
    plain = build(dimensions, image=1)
    assert "circular" not in plain.config
    plain.load_state_dict(net.state_dict())
    found = plain(x.roll(4, dims=-1), t, image=image.roll(4, dims=-1))
    assert (found - plain(x, t, image=image).roll(4, dims=-1)).abs().max() > 1e-3


@pytest.mark.parametrize("dimensions", SHAPES)
def test_convolutions_of_every_dimension(dimensions):
    """3 to the power of the dimensions neighbours, continued by zeros or from the other end."""
    x = torch.zeros(1, 1, *SHAPES[dimensions][1:])
    x[(0, 0, *[-1] * dimensions)] = 1
    for circular in (False, True):
        conv = Convolutions(dimensions, circular)(1, 1)
        nn.init.ones_(conv.weight)
        nn.init.zeros_(conv.bias)
        found = conv(x)
        assert found.shape == x.shape
        assert found.count_nonzero() == (3 if circular else 2) ** dimensions
        assert bool(found[(0, 0, *[0] * dimensions)]) == circular
    one = Convolutions(dimensions, True)(1, 1, 1)
    assert (one.padding_mode, one.weight.numel()) == ("zeros", 1)


@pytest.mark.parametrize("dimensions", SHAPES)
def test_the_unet_is_its_levels(dimensions):
    """Means of neighbours on the way down, each value repeated beside the skip on the way up."""
    torch.manual_seed(0)
    net = awake(UNet(1, 8, dimensions=dimensions)).double()
    x, t = inputs((1, *SHAPES[dimensions][1:]), dtype=torch.float64)
    embedding = net.embedding(t)
    skip = net.down[0](net.first(x), embedding)
    halved = skip
    for dim in range(2, dimensions + 2):
        even = torch.arange(0, x.shape[dim], 2)
        halved = (halved.index_select(dim, even) + halved.index_select(dim, even + 1)) / 2
    doubled = net.up[1](net.down[1](halved, embedding), embedding)
    for dim in range(2, dimensions + 2):
        doubled = doubled.repeat_interleave(2, dim=dim)
    top = net.norm(net.up[0](torch.cat([doubled, skip], dim=1), embedding))
    torch.testing.assert_close(net(x, t), net.last(top * torch.sigmoid(top)))
    assert net.config.get("dimensions", 2) == dimensions
    assert ("dimensions" in net.config) == (dimensions != 2)


@pytest.mark.parametrize("dimensions", SHAPES)
def test_training_and_evaluation_agree(dimensions):
    x, t = inputs(SHAPES[dimensions], batch=2, dtype=torch.float64)
    net = build(dimensions)
    torch.testing.assert_close(net.train()(x, t), net.eval()(x, t))


@pytest.mark.parametrize(
    ("dimensions", "shape", "message"),
    [
        (1, (3, 1, 8, 8), "built for (B, 1, L); reshape x or build UNet(channels=..., dimensions="),
        (2, (3, 1, 8), "built for (B, 1, H, W)"),
        (3, (3, 1, 8, 8), "built for (B, 1, D, H, W)"),
        (3, (3, 2, 8, 8, 8), "built for (B, 1, D, H, W)"),
        (1, (3, 1, 7), "images of 7 but this UNet halves them 1 times"),
        (3, (3, 1, 8, 7, 8), "8 x 7 x 8 but this UNet halves them 1 times, so all sizes must be"),
        (3, (3, 1, 8, 8, 7), "8 x 8 x 7"),
        (1, (3, 1, 0), "images of 0"),
    ],
)
def test_wrong_inputs_are_refused(dimensions, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        UNet(width=4, dimensions=dimensions)(torch.zeros(shape), torch.zeros(3))


@pytest.mark.parametrize("dimensions", [0, 4])
def test_other_dimensions_are_refused(dimensions):
    message = f"dimensions=1 for series, 2 for images or 3 for volumes; given {dimensions=}"
    with pytest.raises(ValueError, match=message):
        UNet(dimensions=dimensions)
