"""The transformer against its formulas, and sizes that it refuses."""

import copy
import math
import re

import pytest
import torch
from test_nets import awake, inputs
from torch import nn

from sdekit_diffusion.nets import DiT
from sdekit_diffusion.nets._dit import _positions


def standardised(h):
    centred = h - h.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def test_the_transformer_is_its_blocks():
    """Patches and positions; blocks; scale, shift and the last layer; pixels of each patch."""
    net = awake(DiT(2, (4, 6), 2, width=8, depth=2, heads=2)).double()
    x, t = inputs((2, 4, 6), batch=3, dtype=torch.float64)
    embedding = net.embedding(t)
    embedding = embedding * torch.sigmoid(embedding)
    tokens = []
    for row in range(2):
        for column in range(3):
            patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            tokens.append(patch.flatten(1) @ net.first.weight.flatten(1).T + net.first.bias)
    h = torch.stack(tokens, dim=1) + _positions(2, 3, 8)
    for block in net.blocks:
        h = block(h, embedding)
    modulation = net.modulation(embedding)[:, None]
    h = net.last(standardised(h) * (1 + modulation[..., :8]) + modulation[..., 8:])
    wanted = torch.zeros_like(x)
    for row in range(2):
        for column in range(3):
            patch = h[:, 3 * row + column].reshape(3, 2, 2, 2)
            wanted[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch
    torch.testing.assert_close(net(x, t), wanted)


def test_a_block_of_the_transformer():
    """Two residuals, each behind a gate and after a norm with scale and shift."""
    block = awake(DiT(1, (4, 4), 2, width=8, depth=1, heads=2)).double().blocks[0]
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(3, 4, 8, generator=generator, dtype=torch.float64)
    embedding = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    parts = block.modulation(embedding).reshape(3, 6, 1, 8).unbind(dim=1)
    scale1, shift1, gate1, scale2, shift2, gate2 = parts
    middle = h + gate1 * block._attention(standardised(h) * (1 + scale1) + shift1)
    inner = block.inner(standardised(middle) * (1 + scale2) + shift2)
    wanted = middle + gate2 * block.outer(nn.functional.gelu(inner, approximate="tanh"))
    torch.testing.assert_close(block(h, embedding), wanted)


def test_attention_of_the_transformer():
    """In each head, W sum_j softmax_j(q_i . k_j / sqrt(d)) v_j, token by token."""
    block = awake(DiT(1, (4, 4), 2, width=8, depth=1, heads=2)).double().blocks[0]
    h = 3 * torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = block.qkv(h)[0].chunk(3, dim=1)
    mixed = torch.zeros(5, 8, dtype=torch.float64)
    for head in (slice(0, 4), slice(4, 8)):
        for i in range(5):
            weights = torch.exp((q[i, head] * k[:, head]).sum(dim=1) / 2)
            mixed[i, head] = (weights[:, None] * v[:, head]).sum(dim=0) / weights.sum()
    torch.testing.assert_close(block._attention(h)[0], block.out(mixed))


def test_blocks_begin_as_the_identity():
    """Gates are 0 at first: adaLN-Zero."""
    net = DiT(1, (4, 4), 2, width=8, depth=1, heads=2)
    h = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.blocks[0](h, torch.ones(2, 8)), h)
    assert not any(parameter.any() for parameter in net.modulation.parameters())


def test_positions_are_sines_and_cosines_of_columns_and_rows():
    found = _positions(2, 3, 8)
    for row in range(2):
        for column in range(3):
            for j, frequency in enumerate((1.0, 0.01)):
                wanted = [
                    math.sin(frequency * column),
                    math.cos(frequency * column),
                    math.sin(frequency * row),
                    math.cos(frequency * row),
                ]
                given = found[3 * row + column, j::2].tolist()
                assert given == pytest.approx(wanted, abs=1e-6)
    assert "positions" not in DiT().state_dict()


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_positions_do_not_depend_on_earlier_dtypes(default):
    exact = _positions(3, 4, 16)
    assert exact.dtype == torch.float64
    try:
        torch.set_default_dtype(default)
        net = DiT(size=(6, 8), width=16, depth=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(net.positions, exact.to(default))
    before = net.positions
    assert net.to(default).positions is before
    for dtype in (torch.bfloat16, torch.float32, torch.float16, torch.float64):
        assert torch.equal(copy.deepcopy(net.to(dtype)).positions, exact.to(dtype))
    with torch.device("meta"):
        net = DiT(size=(6, 8), width=16, depth=1)
    assert torch.equal(net.to_empty(device="cpu").positions, exact.float())


def test_sizes_of_the_published_transformer():
    """DiT-S/2 with 1000 classes, on 4 channels of 32 x 32, has 33 million: 12 blocks, two layers of
    time, 1001 rows of labels, the first and the last layer. It predicts a variance too, and its
    embedding of time has 256 features in the place of 19.
    """
    with torch.device("meta"):
        net = DiT(4, (32, 32), 2, 384, 12, 6, classes=1000)
    block = 385 * 3 * 384 + 385 * 384 + 385 * 4 * 384 + (4 * 384 + 1) * 384 + 385 * 6 * 384
    published = 12 * block + (257 + 385) * 384 + 1001 * 384 + 17 * 384 + 385 * 32 + 385 * 2 * 384
    assert published == 32_865_056
    variance = (384 + 1) * 4 * 2**2
    frequencies = (256 - 19) * 384
    found = sum(parameter.numel() for parameter in net.parameters())
    assert found + variance + frequencies == published


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 0}, "positive sizes"),
        ({"depth": 0}, "positive sizes"),
        ({"channels": 0}, "positive sizes"),
        ({"heads": 0}, "positive sizes"),
        ({"patch": 0}, "positive sizes"),
        ({"size": (8,)}, "size=(height, width); given channels=1, size=(8,), patch=2, width=64"),
        ({"size": (8, 0)}, "positive sizes"),
        ({"size": (7, 8)}, "patches that divide height and width"),
        ({"size": (8, 7)}, "patches that divide height and width"),
        ({"heads": 3}, "heads that divide the width"),
        ({"width": 6, "heads": 1}, "a multiple of 4; given"),
    ],
)
def test_wrong_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DiT(**sizes)


@pytest.mark.parametrize(
    ("shape", "times", "message"),
    [
        (
            (2, 1, 8, 6),
            2,
            "(2, 1, 8, 6) but this DiT was built for a batch of images of shape (1, ",
        ),
        ((2, 2, 8, 8), 2, "build DiT(channels=..., size=...) for your images"),
        ((), 2, "x has shape ()"),
        ((2, 1, 8, 8), 3, "one time per sample"),
    ],
)
def test_wrong_inputs_are_refused(shape, times, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DiT()(torch.zeros(shape), torch.zeros(times))
