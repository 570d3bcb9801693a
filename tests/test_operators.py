"""Linear maps: adjoints, Gram matrices, and what is refused."""

import math

import pytest
import torch

from sdekit_diffusion import (
    AbstractOperator,
    Blur,
    Downsampling,
    FourierSampling,
    LinearMap,
    Mask,
    Matrix,
    Radon,
)
from sdekit_diffusion._models.operators import gram, operator_of, require_linear

EVENT = (2, 6, 6)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, *EVENT, generator=GENERATOR, dtype=torch.float64)
KNOWN = torch.rand(6, 6, generator=GENERATOR) < 0.4
OPERATORS = {
    "matrix": Matrix(torch.randn(5, 72, generator=GENERATOR, dtype=torch.float64)),
    "map": LinearMap(lambda x: x[:, :, 1:] - x[:, :, :-1]),
    "mask": Mask(KNOWN),
    "downsampling": Downsampling(3),
    "blur": Blur(0.8),
    "fourier": FourierSampling(KNOWN),
    "radon": Radon([0.0, 0.7, 2.0]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoints(name):
    """<A x, v> = <x, A^T v>, and each sample is mapped alone."""
    operator = OPERATORS[name]
    measured = operator(X)
    v = torch.randn(measured.shape, generator=GENERATOR, dtype=torch.float64)
    back = operator.adjoint(v, EVENT)
    assert back.shape == X.shape
    for i in range(3):
        left = (measured[i] * v[i]).sum()
        torch.testing.assert_close(left, (X[i] * back[i]).sum(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(operator(X[1:2]), measured[1:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_gram_matrices(name):
    """A A^T by its products, and the multiple of the identity where an operator knows one."""
    operator = OPERATORS[name]
    measured = require_linear(operator, EVENT, X)
    assert measured == tuple(operator(X).shape[1:])
    matrix = gram(operator, EVENT, measured, X)
    unit = torch.eye(72, dtype=torch.float64).reshape(72, *EVENT)
    a = operator(unit).reshape(72, -1).T
    torch.testing.assert_close(matrix, a @ a.T, rtol=1e-10, atol=1e-12)
    number = operator.gram_diagonal(EVENT)
    assert (number is None) == (name not in ("mask", "downsampling"))
    if number is not None:
        torch.testing.assert_close(matrix, number * torch.eye(len(matrix)).double())


def test_what_operators_measure():
    assert torch.equal(OPERATORS["mask"](X)[0], X[0][:, KNOWN].reshape(-1))
    torch.testing.assert_close(
        OPERATORS["downsampling"](X)[1, 0, 1, 0], X[1, 0, 3:6, :3].mean(), rtol=1e-12, atol=0
    )
    dot = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    dot[0, 0, 4, 4] = 1
    blurred = Blur(0.7)(dot)[0, 0]
    assert float(blurred.sum()) == pytest.approx(1)
    assert float(blurred[4, 5] / blurred[4, 4]) == pytest.approx(math.exp(-0.5 / 0.7**2))
    assert torch.equal(blurred, blurred.T)
    spectrum = torch.fft.fft2(X, norm="ortho")[..., KNOWN]
    torch.testing.assert_close(
        OPERATORS["fourier"](X), torch.stack([spectrum.real, spectrum.imag], 1).flatten(2)
    )
    angles = Radon([0.0, math.pi / 2])(X)
    torch.testing.assert_close(angles[:, :, 0], X.sum(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(angles[:, :, 1], X.sum(3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_are_called_in_the_dtype_of_the_samples(dtype):
    """Closures over tensors and modules of one dtype are operators of samples of that dtype."""
    a = torch.ones(2, 3, dtype=dtype)
    x = torch.zeros(1, 3, dtype=dtype)
    assert require_linear(LinearMap(lambda x: x @ a.T), (3,), x) == (2,)
    module = operator_of(torch.nn.Linear(3, 2, bias=False).to(dtype))
    assert gram(module, (3,), require_linear(module, (3,), x), x).dtype == torch.float64


def test_numbers_without_a_shape():
    assert Mask(torch.tensor(True))(torch.ones(3)).shape == (3, 1)


def test_what_is_taken_for_an_operator():
    assert isinstance(operator_of(torch.eye(2)), Matrix)
    assert isinstance(operator_of(torch.eye(2).numpy()), Matrix)
    assert operator_of(OPERATORS["mask"]) is OPERATORS["mask"]
    double = operator_of((lambda x: 2 * x, lambda v: 2 * v))
    assert torch.equal(double.adjoint(torch.ones(1, 2), (2,)), torch.full((1, 2), 2.0))
    assert isinstance(operator_of(torch.nn.Linear(3, 2, bias=False)), LinearMap)
    for wrong in (3.0, [[1.0]], "mask", Mask, (1, 2)):
        with pytest.raises(TypeError, match="the operator is a matrix"):
            operator_of(wrong)


class Wrong(AbstractOperator):
    """The adjoint of another map."""

    def __call__(self, x):
        return x

    def adjoint(self, v, event):
        return 2 * v


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (LinearMap(lambda x: x.square()), r"A\(x \+ 2 z\) is not A\(x\) \+ 2 A\(z\)"),
        (LinearMap(lambda x: x + 1), "An affine map has its offset in y"),
        (LinearMap(lambda x: x - x.mean(0)), "not linear"),
        (LinearMap(lambda x: x.sum()), r"of 4 samples it returned \(\)"),
        (LinearMap(lambda x: x, lambda v: -v), "the adjoint is not that of the operator"),
        (LinearMap(lambda x: x.detach()), "autograd does not see the operator"),
        (LinearMap(lambda x: torch.as_tensor(x.numpy())), "autograd does not see the operator"),
        (Wrong(), "Leave it out"),
        (Matrix(torch.eye(4)), "has 4 columns and a sample of shape"),
        (Mask(torch.ones(5, dtype=torch.bool)), r"the mask has shape \(5,\)"),
        (Downsampling(4), "blocks of side 4 do not fill images of 6 x 6"),
        (Mask(torch.zeros(6, dtype=torch.bool)), "the operator measures nothing"),
        (LinearMap(lambda x: x * math.nan), "not linear"),
        (LinearMap(lambda x: 1e3 * x + 0.01), r"A\(0\) is 0\.01, not 0\. Subtract A\(0\)"),
        (LinearMap(lambda x: 1e3 * (x.abs() / x.abs() * x)), r"A\(0\) is nan, not 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_does_not_fit_is_refused(operator, message):
    with pytest.raises(ValueError, match=message):
        require_linear(operator, EVENT, X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_at_0_is_no_offset(dtype):
    """A difference of numbers that are rounded."""
    c = torch.ones((), dtype=dtype)
    operator = LinearMap(lambda x: (x + c) - c.nextafter(2 * c))
    assert (operator(torch.zeros(1, *EVENT, dtype=dtype)) != 0).all()
    require_linear(operator, EVENT, c)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"mask\.bool"):
        Mask(torch.ones(3))
    with pytest.raises(TypeError, match=r"torch\.as_tensor"):
        Matrix([[1.0]])
    with pytest.raises(ValueError, match="not finite"):
        Matrix(torch.full((1, 2), math.nan))
    with pytest.raises(ValueError, match=r"\(m, d\)"):
        Matrix(torch.ones(3))
    for std in (0.0, math.inf, torch.ones(3, 3), [[1.0]], "wide"):
        with pytest.raises(ValueError, match="positive number"):
            Blur(std)
    with pytest.raises(ValueError, match="is for images"):
        Blur(1.0)(torch.ones(3, 4))
    for factor in (0, 2.0):
        with pytest.raises(ValueError, match=f"a whole number from 1 on such as 2; not {factor}"):
            Downsampling(factor)
    square = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"shape \(3, 3\) and images have \(4, 4\); give a mask"):
        FourierSampling(square)(torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"shape \(1, 3, 3\); give \(height, width\)"):
        FourierSampling(square[None])
    with pytest.raises(TypeError, match=r"mask must be a tensor of shape \(height, width\), not"):
        FourierSampling([[True]])
    with pytest.raises(TypeError, match=r"mask must be a tensor of shape \(\*shape\), not list"):
        Mask([True])
    for angles in ([], [math.inf], 0.5, "right", torch.ones(2, 2)):
        with pytest.raises(ValueError, match="angles are one or more finite numbers"):
            Radon(angles)
    with pytest.raises(ValueError, match="Radon is for square images, not 4 x 8"):
        Radon([0.0])(torch.ones(1, 1, 4, 8))
    with pytest.raises(ValueError, match="the most are 4096"):
        gram(LinearMap(lambda x: x), (5000,), (5000,), X)
