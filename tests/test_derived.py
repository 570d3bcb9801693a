"""Models made from models: rows, evaluation mode, every method, the likelihood."""

import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from test_docs import ROOT, blocks
from torch import Tensor, nn

from sdekit.elementary import scaled
from sdekit_diffusion import (
    METHODS,
    VESDE,
    VPSDE,
    AbstractDerivedModel,
    AdaptiveFlow,
    AdaptiveSDE,
    AnnealedLangevin,
    ClassifierGuided,
    GaussianMixture,
    Guided,
    Inpainted,
    InTime,
    LinearObservation,
    MomentMatched,
    OnClock,
    ScoreModel,
    decode,
    encode,
    log_likelihood,
    per_sample,
    sample,
    signal_scale,
)
from sdekit_diffusion._sampling.adaptive import AbstractAdaptive
from sdekit_diffusion._sampling.on_clock import _PLANS

N = 600
END = 0.05
Z = 5.6  # standard errors, with 4 x 27 comparisons a false alarm once in 400,000
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.5, 0.3, 0.7]], dtype=torch.float64)
PRIOR = GaussianMixture([1.0], MEAN[None], (FACTOR @ FACTOR.T)[None])
A = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, -1.0]], dtype=torch.float64)
STD = 0.3
OBSERVATION = LinearObservation(A, torch.tensor([1.0, 2.0], dtype=torch.float64), STD)


@cache
def observed():
    """The class of the contributor guide."""
    names = {}
    code = [code for _, code in blocks(ROOT / "CONTRIBUTING.md")]
    first = "from dataclasses import dataclass\n\nimport torch\nfrom torch import Tensor\n"
    here = next(block for block in code if "class Observed" in block).split("\n\n\nprior =")[0]
    exec(compile(first + here, "CONTRIBUTING.md", "exec"), names)  # noqa: S102 - our own page
    return names["Observed"]


STANDARD = ScoreModel(lambda x, t: -x, "vp", "data", shape=(3,), data_std=1.0)
POINTS = torch.zeros(4, 3, dtype=torch.float64)
USES = {
    **{
        name: lambda model, name=name: sample(model, 4, sde="vp", method=name, steps=300)
        for name in ("default", "ddim", "unipc", "euler_maruyama", "heun", "edm")
    },
    "sde": lambda model: sample(model, 4, sde="vp", method="sde"),
    "ode": lambda model: sample(model, 4, sde="vp", method="ode"),
    "likelihood": lambda model: log_likelihood(model, POINTS, sde="vp"),
    "encode": lambda model: encode(model, POINTS, sde="vp"),
    "denoise": lambda model: model.denoise(0.5, POINTS, "vp"),
    "score": lambda model: model.score(0.5, POINTS, "vp"),
    "a further model": lambda model: sample(MomentMatched(model, OBSERVATION), 4, sde="vp"),
}
BROKEN = {
    "narrow": (lambda d: d[:, :1], ValueError, r"\((4|1), 1\) for states of \((4|1), 3\)"),
    "one for all": (lambda d: d[:1, :2], ValueError, r"\(1, 2\) for states of \((4|1), 3\)"),
    "flat": (lambda d: d[:, 0], ValueError, r"\((4|1),\) for states of \((4|1), 3\)"),
    "None": (lambda d: None, TypeError, r"None; it must return a floating-point tensor"),
    "a number": (lambda d: 3.0, TypeError, r"3\.0; it must return a floating-point tensor"),
    "whole numbers": (lambda d: d.long(), TypeError, r"torch\.int64; it must return"),
}


@dataclass(frozen=True, eq=False)
class Broken(AbstractDerivedModel):
    kind: str = "narrow"

    def predict_data(self, l, u):
        return BROKEN[self.kind][0](self.model.predict_data(l, u))


@pytest.mark.parametrize(
    ("inner", "kind"), [(PRIOR, "narrow"), *((STANDARD, kind) for kind in BROKEN)]
)
@pytest.mark.parametrize("use", USES)
def test_predictions_that_are_not_like_the_states_are_refused(use, inner, kind):
    """They would be broadcast, under some methods in silence; also for data of mean 0 and standard
    deviation 1, of which a solve uses the predictions as they are.
    """
    _, error, text = BROKEN[kind]
    with pytest.raises(error, match=f"Broken predicts {text}"):
        USES[use](Broken(inner, kind))


def test_the_noise_must_be_shaped_like_the_states_too():
    class OneNoise(AbstractDerivedModel):
        def predict_data(self, l, u):
            return self.model.predict_data(l, u)

        def predict_noise(self, l, u):
            return self.model.predict_noise(l, u)[:1]

    with pytest.raises(ValueError, match=r"OneNoise predicts \(1, 3\) for states of \(4, 3\)"):
        sample(OneNoise(STANDARD), 4, sde="vp", method="euler_maruyama")


def ys(n):
    """Observations of n samples, each its own."""
    generator = torch.Generator().manual_seed(1)
    x = MEAN + torch.randn(n, 3, generator=generator, dtype=torch.float64) @ FACTOR.T
    return x @ A.T + STD * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def exact(y):
    """Mean `(n, 3)` and covariance of the data given y."""
    prior = FACTOR @ FACTOR.T
    gain = (
        prior @ A.T @ torch.linalg.inv(A @ prior @ A.T + STD**2 * torch.eye(2, dtype=torch.float64))
    )
    return MEAN + (y - MEAN @ A.T) @ gain.T, prior - gain @ A @ prior


def posterior(n):
    return observed()(PRIOR, A=A, std=STD, y=ys(n))


def test_the_guide_keeps_its_promise():
    code = next(code for _, code in blocks(ROOT / "CONTRIBUTING.md") if "class Observed" in code)
    lines = code.split("@dataclass")[1].split("\n\n\n")[0].splitlines()
    assert len([line for line in lines if line.strip()]) <= 25


@pytest.mark.parametrize("method", ["default", "sde"])
def test_samples_have_the_law_of_the_posterior(method):
    """Of each sample its own: x less the exact mean has mean 0 and the exact covariance, with the
    noise at the end. A bias of a quarter of the standard deviation is seen.
    """
    settings = {"sde": "vp", "method": method, "end": END, "seed": 3, "dtype": torch.float64}
    solution = sample(posterior(N), N, return_solution=True, **settings)
    mean, covariance = exact(ys(N))
    alpha = float(VPSDE().alpha(float(solution.ts[-1])))
    rest = solution.x / alpha - mean
    law = covariance + (END * PRIOR.data_std) ** 2 * torch.eye(3, dtype=torch.float64)
    std = law.diagonal().sqrt()
    assert (rest.mean(0).abs() < (Z / math.sqrt(N) + 0.05) * std).all()
    assert ((rest.std(0) / std - 1).abs() < Z / math.sqrt(2 * N) + 0.05).all()


def closed_form(n):
    """A network that has the formula of the same posterior, whose condition is y."""
    mean, covariance = exact(ys(n))
    precision = torch.linalg.inv(covariance)

    def net(x, l, mean):
        a = torch.sigmoid(2 * l).sqrt()[:, None]
        b = torch.sigmoid(-2 * l).sqrt()[:, None]
        known = precision + ((a / b) ** 2)[..., None] * torch.eye(3, dtype=torch.float64)
        return torch.linalg.solve(known, mean @ precision + a / b**2 * x)

    network = ScoreModel(
        net,
        "vp",
        "data",
        conditioning="log_snr",
        shape=(3,),
        data_mean=PRIOR.data_mean,
        data_std=PRIOR.data_std,
    )
    return network.given(mean=mean)


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("method", METHODS)
def test_every_method_samples_a_posterior(method):
    """As from the closed form of the same posterior, to rounding."""
    settings = {"sde": "vp", "method": method, "end": END, "seed": 3, "dtype": torch.float64}
    chosen = METHODS[method]
    if isinstance(chosen, AbstractAdaptive):
        settings["method"] = replace(chosen, rtol=0.3, atol=0.3)
    else:
        settings["steps"] = {AnnealedLangevin: 2, InTime: 24}.get(type(chosen), 10)
    found, expected = (sample(model, 5, **settings) for model in (posterior(5), closed_form(5)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["default", "ode", "adaptive_sde"])
def test_batches_and_parts_are_the_same(method):
    """The observation of a sample goes with it, also where samples leave an adaptive solve."""
    settings = {"sde": "vp", "method": method, "seed": 3, "dtype": torch.float64}
    if method == "adaptive_sde":
        settings["method"] = AdaptiveSDE(0.3, 0.3)  # fewer steps
    if method == "ode":
        settings["method"] = AdaptiveFlow(1e-2, 1e-2)
    if method == "default":
        settings["steps"] = 24
    model = posterior(7)
    whole = sample(model, 7, **settings)
    assert torch.equal(sample(model, 7, batch_size=4, **settings), whole)
    part = model.rows(torch.arange(4, 6))
    assert torch.equal(sample(part, 2, first=4, **settings), whole[4:6])


def test_the_likelihood_is_exact():
    """log N(x; mean, covariance + end^2 I) for each sample's own y, in batches; and the flow comes
    back.
    """
    model = posterior(6)
    x = sample(model, 6, sde="vp", seed=0, dtype=torch.float64)
    mean, covariance = exact(ys(6))
    noisy = covariance + (END * PRIOR.data_std) ** 2 * torch.eye(3, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(mean, noisy).log_prob(x)
    noisier = VPSDE(0.1, 40.0)  # whose prior is that of every posterior to 1e-4
    settings = {"sde": noisier, "end": END, "method": AdaptiveFlow(1e-6, 1e-6)}
    found = log_likelihood(model, x, batch_size=4, **settings)
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-3)
    back = decode(model, encode(model, x, **settings), **settings)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.drop = nn.Dropout(0.5)

    def forward(self, x, t, label=None):
        shift = 0 if label is None else label[:, None]
        return self.drop(torch.tanh(self.scale * x)) + shift


@dataclass(frozen=True, eq=False)
class Mixed(AbstractDerivedModel):
    """Two models, weighted by sample."""

    other: ScoreModel
    weight: Tensor = per_sample()  # noqa: RUF009 - a field

    def predict_data(self, l, u):
        w = self.weight[:, None].to(u)
        return w * self.model.predict_data(l, u) + (1 - w) * self.other.predict_data(l, u)


def mixed(n):
    one, two = (ScoreModel(Net(), "vp", shape=(2,), data_std=1.0) for _ in range(2))
    two.net.scale.data.mul_(0.5)
    return Mixed(one, two.given(label=torch.linspace(-1, 1, n)), weight=torch.linspace(0, 1, n))


def test_all_networks_are_in_evaluation_mode_and_afterwards_as_before():
    model = mixed(4)
    a, b = (sample(model, 4, steps=5, seed=0) for _ in range(2))
    assert torch.equal(a, b)
    assert model.model.net.drop.training
    assert model.other.net.drop.training
    assert torch.equal(sample(model, 4, steps=5, seed=0, batch_size=3), a)


def test_entries_of_all_parts_must_be_as_many_as_samples():
    model = mixed(4)
    with pytest.raises(ValueError, match="has 4 entries for 5 samples"):
        sample(model, 5, steps=5, seed=0)
    with pytest.raises(ValueError, match="label has 3 entries for 4 samples"):
        sample(replace(model, other=model.other.given(label=torch.zeros(3))), 4, steps=5, seed=0)


def test_what_it_does_not_define_is_the_models():
    model = mixed(2)
    assert model.shape == (2,)
    assert model.sde == model.model.sde
    assert model.place() == model.model.place()
    assert model.data_std == 1.0
    assert model.data_mean == 0.0


def test_a_subclass_says_where_it_can_be_evaluated():
    """A model is solved over the range of its own diffusion, one that extends it over another."""
    own = VESDE(0.01, 5.0)
    wider = VESDE(0.01, 50.0)

    @dataclass(frozen=True, eq=False)
    class Extended(AbstractDerivedModel):
        sde = wider

        def predict_data(self, l, u):
            return self.model.predict_data(max(l, own.log_snr(1.0)), u)

    model = ScoreModel(Net(), own, shape=(2,), data_std=1.0)
    for one, largest in ((model, 5.0), (Extended(model), 50.0)):
        solution = sample(one, 2, sde=wider, steps=3, return_solution=True)
        assert float(wider.sigma(solution.ts[0])) == pytest.approx(largest, rel=1e-4)


def test_fields_of_one_name_are_all_counted():
    """A shift of a shifted model: the inner field is not hidden by the outer one."""

    @dataclass(frozen=True, eq=False)
    class Shifted(AbstractDerivedModel):
        y: torch.Tensor = per_sample()  # noqa: RUF009

        def predict_data(self, l, u):
            a = signal_scale(l)
            return self.model.predict_data(l, u - scaled(a, self.y)) + self.y

    law = GaussianMixture([1.0], [[0.0]], [1.0])
    inner = Shifted(law, torch.zeros(8, 1))
    with pytest.raises(ValueError, match=r"model\.y has 8 entries for 4 samples"):
        sample(Shifted(inner, torch.zeros(4, 1)), 4, sde="vp", steps=2)
    assert sample(Shifted(inner, torch.zeros(8, 1)), 8, sde="vp", steps=2).shape == (8, 1)


@pytest.mark.parametrize("integrand", ["data", "velocity"])
def test_a_shape_given_to_sample_serves_models_without_one(integrand):
    """Rules are polynomials in a variable that depends on the number of coordinates."""
    d = 100
    means = torch.randn(2, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    law = GaussianMixture([0.5, 0.5], means, [0.1] * 2)
    noise = lambda x, t: -VPSDE().sigma(t)[:, None] * law.score(t, x, "vp")  # noqa: E731

    @dataclass(frozen=True, eq=False)
    class Same(AbstractDerivedModel):
        def predict_data(self, l, u):
            return self.model.predict_data(l, u)

    settings = {"method": OnClock(integrand=integrand), "steps": 8, "seed": 0, "shape": (d,)}
    settings["dtype"] = torch.float64
    known, unknown = (ScoreModel(noise, "vp", shape=shape, data_std=1.0) for shape in ((d,), None))
    expected = sample(known, 2, **settings)
    _PLANS.clear()  # so that each makes its own
    first = sample(Same(unknown), 2, **settings)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(sample(Same(unknown), 2, **settings), first, rtol=0, atol=0)


def test_a_model_made_from_something_else_is_refused():
    @dataclass(frozen=True, eq=False)
    class Shifted(AbstractDerivedModel):
        y: torch.Tensor = per_sample()  # noqa: RUF009

        def predict_data(self, l, u):
            return self.model.predict_data(l, u) + self.y

    y = torch.zeros(2, 3)
    observation = LinearObservation(A, torch.zeros(2), STD)
    mask = torch.ones(3, dtype=torch.bool)
    made = (
        lambda model: Shifted(model, y),
        lambda model: Guided(model, 2.0, by=PRIOR),
        lambda model: ClassifierGuided(model, lambda x, t, y: y, y, classifier_sde="vp"),
        lambda model: Inpainted(model, torch.zeros(3), mask),
        lambda model: MomentMatched(model, observation),
    )
    for make in made:
        with pytest.raises(TypeError, match=r"from a model, not function; of a score \(x, t\) Sco"):
            make(lambda x, t: -x)
        with pytest.raises(TypeError, match=r"is made from a model, not NoneType$"):
            make(None)
    compiled = torch.compile(ScoreModel(nn.Linear(2, 2), "vp", shape=(2,)))
    assert isinstance(Shifted(compiled, y).model, ScoreModel)
    with pytest.raises(TypeError, match=r"y must be a tensor of shape \(n, ...\), not NoneType"):
        Shifted(PRIOR, None)
