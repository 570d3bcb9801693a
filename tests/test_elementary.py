import math

import pytest
import torch

from sdekit import elementary
from sdekit.elementary import broadcast, norm, sigmoid, softplus

NAMES = [
    "asinh",
    "atan",
    "exp",
    "expm1",
    "log",
    "log1p",
    "reciprocal",
    "sigmoid",
    "sin",
    "softplus",
    "sqrt",
    "tan",
]


@pytest.mark.parametrize("name", NAMES)
def test_floats_and_tensors_agree(name):
    function = getattr(elementary, name)
    scalar = function(0.3)
    tensor = function(torch.tensor([0.3, 0.7], dtype=torch.float64))
    assert isinstance(scalar, float)
    assert tensor[0].item() == pytest.approx(scalar, rel=1e-15)


def test_log_of_zero_is_minus_infinity_as_in_torch():
    assert elementary.log(0.0) == -math.inf
    assert math.isnan(elementary.log(-1.0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", [0.0, -0.0, -1.0, -2.0, -1000.0, 1000.0, -40.0, math.inf, -math.inf, math.nan]
)
def test_floats_go_to_the_limits_as_tensors_do(name, value):
    function = getattr(elementary, name)
    expected = function(torch.tensor(value, dtype=torch.float64)).item()
    assert function(value) == pytest.approx(expected, rel=1e-12, abs=1e-300, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_scaled_is_the_product(dtype):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    for a in (0.0, 1e-3, -0.3, 7.0):
        y = elementary.scaled(a, x)
        assert y.dtype == dtype
        assert torch.equal(y, a * x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, torch.full_like(x, a))
    rows = torch.tensor([0.5, 2.0, -1.0])
    assert torch.equal(elementary.scaled(rows, x), rows[:, None].to(dtype) * x)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_the_norm_of_nothing(shape):
    assert torch.equal(norm(torch.zeros(shape)), torch.zeros(shape[0]))


def test_clip():
    assert [elementary.clip(value, 0.0, 1.0) for value in (-1.0, 0.5, math.inf)] == [0.0, 0.5, 1.0]
    assert elementary.clip(torch.tensor([-1.0, 0.5, math.inf]), 0.0, 1.0).tolist() == [
        0.0,
        0.5,
        1.0,
    ]


def test_broadcast():
    x = torch.zeros(2, 3, 4, dtype=torch.float16)
    assert broadcast(0.5, x) == 0.5
    assert broadcast(torch.tensor([1.0, 2.0], dtype=torch.float64), x).shape == (2, 1, 1)
    assert broadcast(torch.tensor([1.0, 2.0], dtype=torch.float64), x).dtype == torch.float16
    assert broadcast(torch.tensor(2.0), x).shape == ()
    assert broadcast(torch.tensor([1.0, 2.0]), torch.zeros(2)).shape == (2,)


def test_norm_is_per_sample_for_every_rank():
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x), x.flatten(1).norm(dim=1))
    torch.testing.assert_close(norm(x[:, 0, 0]), x[:, 0, 0].abs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus(dtype):
    """log(1 + e^v) wherever that is finite, the same for a float; and the bits of a number do not
    depend on its neighbours.
    """
    v = torch.linspace(-60, 60, 1001, dtype=dtype)
    torch.testing.assert_close(softplus(v), v.double().exp().log1p().to(dtype))
    assert softplus(torch.tensor([-1e4, 1e4, math.inf, -math.inf])).tolist() == [
        0.0,
        1e4,
        math.inf,
        0.0,
    ]
    assert [softplus(float(x)) for x in v.double()] == pytest.approx(
        softplus(v.double()).tolist(), rel=1e-14
    )
    assert all(
        torch.equal(softplus(v)[i:j], softplus(v[i:j]))
        for i, j in [(0, 1), (3, 10), (5, 500), (994, 1001)]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigmoid(dtype):
    """As torch's, with its derivative at the ends and at 0; the bits of a number do not depend on
    its neighbours.
    """
    v = torch.linspace(-60, 60, 1001, dtype=dtype)
    torch.testing.assert_close(
        sigmoid(v), torch.sigmoid(v), rtol=4 * torch.finfo(dtype).eps, atol=0
    )
    ends = torch.tensor([-math.inf, -1e4, 0.0, 1e4, math.inf], dtype=dtype, requires_grad=True)
    values = sigmoid(ends)
    assert values.dtype == dtype
    assert values.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    (slopes,) = torch.autograd.grad(values.sum(), ends)
    assert slopes.tolist() == [0.0, 0.0, 0.25, 0.0, 0.0]
    for i, j in [(0, 1), (3, 10), (5, 500), (994, 1001)]:
        assert torch.equal(sigmoid(v)[i:j], sigmoid(v[i:j]))


WEIGHTS = (0.5, 0.0, -0.3, 0.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_combined_is_the_sum(dtype):
    """Of the first values, with the roundings of sums one by one, and without changing any."""
    generator = torch.Generator().manual_seed(0)
    x, *values = torch.randn(6, 3, 5, generator=generator).to(dtype)
    values[1] = torch.full_like(x, math.inf)
    before = [value.clone() for value in (x, *values)]
    expected = x
    for weight, value in zip(WEIGHTS, values, strict=False):
        expected = elementary.axpy(weight, value, expected) if weight else expected
    assert torch.equal(elementary.combined(x, WEIGHTS, values), expected)
    assert all(torch.equal(a, b) for a, b in zip((x, *values), before, strict=True))
    fewer = elementary.combined(x, WEIGHTS, values[:1])
    assert torch.equal(fewer, elementary.axpy(0.5, values[0], x))
    assert elementary.combined(x, (0.0,), values) is x


def test_combined_has_gradients_and_is_mapped_where_a_later_value_differs():
    x = torch.ones(2, requires_grad=True)
    first = torch.tensor([1.0, 2.0], requires_grad=True)
    later = torch.tensor([3.0, -1.0], requires_grad=True)
    total = elementary.combined(x, (0.5, 2.0), [first, later]).square().sum()
    gradients = torch.autograd.grad(total, (x, first, later))
    slope = 2 * (x + 0.5 * first + 2 * later).detach()
    for gradient, factor in zip(gradients, (1, 0.5, 2), strict=True):
        torch.testing.assert_close(gradient, factor * slope)
    many = torch.randn(3, 2)
    mapped = torch.func.vmap(lambda value: elementary.combined(x, (0.5, 2.0), [first, value]))(many)
    torch.testing.assert_close(mapped, x + 0.5 * first + 2 * many)
