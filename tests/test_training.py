"""Training: what is learned, what it depends on, and what is refused."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from sdekit import ShARK
from sdekit_diffusion import (
    DDPM,
    VESDE,
    VPSDE,
    AbstractSource,
    GaussianMixture,
    OnClock,
    Recipe,
    ScoreModel,
    SubVPSDE,
    Training,
    dsm_loss,
    fit,
    linear_betas,
    nets,
    sample,
)
from sdekit_diffusion._training.recipe_loss import RecipeLoss
from sdekit_diffusion.data import Dataset, Scale
from sdekit_diffusion.data._batches import Shuffled

TINY = Recipe(steps=20, batch_size=8, warmup=3)


def model(sde="vp", **settings):
    torch.manual_seed(0)
    return ScoreModel(nets.MLP(shape=(2,), width=16, depth=1), sde, shape=(2,), **settings)


@pytest.mark.parametrize("sde", ["ddpm", "ncsn"])
def test_training_on_discrete_levels(sde):
    """What the network saw: levels and nothing between them; and a loss that differs from that of
    continuous time.
    """
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    trained = model(sde)
    times = []
    trained.net.register_forward_pre_hook(lambda module, given: times.append(given[1]))
    losses = [
        float(r.loss)
        for r in Training(trained, data, Recipe(steps=20, batch_size=8, warmup=3, discrete=True))
    ]
    levels = trained.sde.levels.float()
    assert torch.isin(torch.cat(times), levels).all()
    assert losses != [float(r.loss) for r in Training(model(sde), data, TINY)]


def test_a_network_trained_on_ddpms_steps_samples_by_every_kind_of_method():
    """Weights, and samples near the modes, from a network that has seen a hundred times and nothing
    between them.

    Two of the methods ask in between. A weight's standard error is 0.0145; 0.05 is left to the
    training.
    """
    mixture = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.0]], torch.tensor([0.01, 0.01]))
    torch.manual_seed(0)
    chain = DDPM(linear_betas(100, 1e-3, 0.2))
    net = ScoreModel(nets.MLP(shape=(2,), width=64, depth=2), chain, shape=(2,))
    fit(
        net, mixture.sample(2000, seed=1), Recipe(steps=300, lr=8e-3, discrete=True), progress=False
    )
    for method in ("ddpm", "dpmpp_2m", OnClock(ShARK(), eta=1.0), "ode"):
        x = sample(
            net, 1000, method=method, steps=None if method == "ode" else 50, end=0.04, seed=1
        )
        assert (mixture.log_prob(x) > -4).float().mean() > 0.95
        assert abs(float((x[:, 0] < 0).float().mean()) - 0.3) < 0.05 + 5.5 * 0.0145


def test_training_learns_a_mixture():
    """From a loss near 1 to that of the exact denoiser within 10 %, and samples near the modes."""
    mixture = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], torch.tensor([0.01, 0.01]))
    torch.manual_seed(0)
    net = ScoreModel(
        nets.MLP(shape=(2,), width=64, depth=2),
        "vp",
        "velocity",
        shape=(2,),
        conditioning="log_snr",
    )
    recipe = Recipe(steps=200, lr=8e-3, warmup=20, ema=0.98)
    records = fit(net, mixture.sample(2000, seed=1), recipe, progress=False)
    assert len(records) == 200
    test = mixture.sample(4000, seed=2)
    vp = VPSDE()
    exact = ScoreModel(lambda x, t: mixture.score(t, x, vp), vp, "score")
    with torch.no_grad():
        ours, best = (float(dsm_loss(m, test, seed=3).mean()) for m in (net, exact))
    assert ours < 1.1 * best
    x = sample(net, 500, seed=1, steps=50)
    assert (mixture.log_prob(x) > -4).float().mean() > 0.95
    assert abs(float((x[:, 0] > 0).float().mean()) - 0.5) < 0.15


def test_training_is_deterministic_and_stops_where_it_should():
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    first = model()
    second = model()
    a = [float(r.loss) for r in Training(first, data, TINY)]
    assert a == [float(r.loss) for r in Training(second, data, TINY)]
    assert all(
        torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)
    )
    other = [
        float(r.loss)
        for r in Training(model(), data, Recipe(steps=20, batch_size=8, warmup=3, seed=1))
    ]
    assert a != other
    assert not first.training


def test_the_order_of_the_data_follows_the_seed():
    """The loss of each batch, over more than one epoch, from the rows that this seed's order has
    there.
    """
    data = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    trained = model(predicts="data")
    training = Training(trained, data, Recipe(batch_size=8, seed=3))
    batches = Shuffled(data).batches(8, seed=3)
    for i in range(4):
        with torch.no_grad():
            expected = dsm_loss(
                trained, next(batches), weighting="balanced", seed=3, first=8 * i
            ).mean()
        torch.testing.assert_close(next(training).loss, expected)


def test_the_average_is_what_remains():
    """The recursion replayed: the first update copies the weights, the n-th moves the average by 1
    - min(ema, n / (9 + n)).
    """
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))

    def flat(net):
        return torch.cat([v.detach().flatten() for v in net.parameters()])

    trained = model()
    averaged = model()
    path = []
    for record in Training(trained, data, Recipe(steps=5, ema=0.0)):
        assert record.step == len(path) + 1
        path.append(flat(trained).clone())
    list(Training(averaged, data, Recipe(steps=5, ema=0.15)))
    mean = path[0]
    for n, weights in enumerate(path[1:], 1):
        mean = torch.lerp(mean, weights, 1 - min(0.15, (1 + n) / (10 + n)))
    torch.testing.assert_close(flat(averaged), mean)


@pytest.mark.parametrize("weighting", ["plain", "likelihood"])
def test_training_under_every_diffusion(weighting):
    data = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    for sde in (VESDE(), VESDE(exact=False), VPSDE(), SubVPSDE()):
        recipe = Recipe(steps=3, batch_size=16, weighting=weighting)
        assert all(math.isfinite(r.loss) for r in Training(model(sde), data, recipe))
    message = r"begins at end = 1e\+06 .* is at most 152 under VPSDE.* larger beta_max"
    with pytest.raises(ValueError, match=f"nothing to train on: noise {message}"):
        dsm_loss(model(), data, end=1e6)


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "warmup", "seed"])
def test_what_counts_is_a_whole_number(name):
    """10.5 updates would never be complete."""
    for wrong in (10.5, 10.0, True, "10", None):
        with pytest.raises(ValueError, match=f"{name} = .* must be a whole number"):
            Recipe(**{name: wrong})
    Recipe(**{name: np.int64(10)})


@pytest.mark.parametrize("name", ["stratified", "discrete", "flip", "compile"])
def test_a_switch_is_true_or_false(name):
    for wrong in ("no", "False", 1, None):
        with pytest.raises(TypeError, match=f"{name} = {wrong!r} must be True or False"):
            Recipe(**{name: wrong})
    assert getattr(Recipe(**{name: np.bool_(True)}), name) is True


@pytest.mark.parametrize("name", ["lr", "clip", "end", "huber", "drop", "ema", "widths"])
def test_settings_are_numbers(name):
    """Booleans and texts are none; those of numpy and torch are converted."""
    for wrong in ("a", "0.1", True, None):
        with pytest.raises(ValueError, match=f"{name} = {wrong!r} must be"):
            Recipe(**{name: wrong})
    for given in (np.float32(0.125), np.array(0.125), torch.tensor(0.125)):
        found = getattr(Recipe(**{name: given}), name)
        assert found == ((0.125,) if name == "widths" else 0.125)
        assert "0.125" in json.dumps(found)
    if name in ("ema", "widths"):
        with pytest.raises(ValueError, match=f"{name} = .* must be numbers"):
            Recipe(**{name: (0.1, "a")})
        found = Recipe(**{name: np.array([0.125, 0.25])})
        assert getattr(found, name) == (0.125, 0.25)
    if name == "drop":
        with pytest.raises(ValueError, match="must be a probability"):
            Recipe(drop={"label": True})
        assert json.dumps(Recipe(drop={"label": np.float32(0.125)}).drop) == '{"label": 0.125}'


def test_learning_rate():
    recipe = Recipe(steps=100, warmup=10, lr=1.0)
    rates = [recipe.rate(i) for i in range(101)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == 1.0
    assert rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100, 101])
def test_a_short_run_reaches_its_learning_rate(steps):
    recipe = Recipe(steps=steps, lr=1.0)
    rates = [recipe.rate(i) for i in range(steps)]
    assert max(rates) == 1.0
    top = 99 if steps == 101 else max(0, steps // 2 - 1)
    assert rates.index(1.0) == top
    assert rates[:top] == pytest.approx([(i + 1) / (top + 1) for i in range(top)])


def test_dequantisation_is_drawn_anew_each_time():
    seen = []

    def transform(rows, u):
        seen.append(u)
        return (rows + u).float()

    list(Training(model(), torch.arange(8).reshape(4, 2) % 3, TINY, transform=transform))
    assert (seen[0] == 0.5).all()  # to find mean and standard deviation
    noise = torch.cat(seen[1:])
    assert noise.unique().numel() == noise.numel()
    assert 0 <= noise.min() < noise.max() < 1


def flat(values):
    return torch.cat([value.detach().flatten() for value in values])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_updates_are_those_of_adamw_at_the_rate_of_the_schedule(schedule):
    """Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, written out, on the gradients that
    the updates had.
    """
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    trained = model().double()
    weights = flat(trained.parameters())
    m = 0.0
    v = 0.0
    for record in Training(
        trained, data, Recipe(steps=30, batch_size=8, warmup=5, lr=0.01, schedule=schedule)
    ):
        n = record.step
        done = (record.step - 6) / 25
        after = {
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "linear": 1 - done,
            "constant": 1.0,
        }[schedule]
        rate = 0.01 * (n / 5 if n <= 5 else after)
        gradient = flat(weight.grad for weight in trained.parameters())
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient.square()
        step = m / (1 - 0.9**n) / ((v / (1 - 0.999**n)).sqrt() + 1e-8)
        weights = weights - rate * (step + 0.01 * weights)
        torch.testing.assert_close(flat(trained.parameters()), weights, rtol=1e-9, atol=1e-12)
        assert record.lr == pytest.approx(rate)


def test_gradients_are_clipped_to_a_norm():
    """The gradient of the loss itself, scaled down where its norm is above the bound and as it is
    below.
    """
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))

    def gradient(clip):
        trained = model().double()
        next(Training(trained, data, Recipe(batch_size=8, clip=clip)))
        return flat(weight.grad for weight in trained.parameters())

    whole = gradient(1e9)
    norm = float(whole.norm())
    assert norm > 0.1
    torch.testing.assert_close(gradient(0.01), whole * (0.01 / norm), rtol=1e-4, atol=0)
    assert torch.equal(gradient(2 * norm), whole)


def test_flips_are_from_left_to_right():
    """Each image as it is or mirrored, told by its loss; half of 400 within 49, which fails once in
    a million.
    """
    identity = ScoreModel(lambda x, t: x, "vp", shape=(2, 3, 4))
    images = torch.randn(400, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    found = RecipeLoss(identity, Recipe(flip=True, seed=3), None)(images, {}, 0)
    plain, mirrored = (dsm_loss(identity, some, seed=3) for some in (images, images.flip(3)))
    as_it_is, flipped = (
        torch.isclose(found, loss, rtol=1e-5, atol=0) for loss in (plain, mirrored)
    )
    assert (as_it_is ^ flipped).all()
    assert abs(int(flipped.sum()) - 200) < 49


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_is_refused(context, tmp_path):
    data = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    training = Training(model(), data, TINY)
    with context(), pytest.raises(RuntimeError, match="gradients are not recorded here"):
        next(training)
    with context(), pytest.raises(RuntimeError, match="gradients are not recorded here"):
        fit(model(), data, TINY, folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    assert training.whole
    next(training)


def test_frozen_layers_keep_their_weights():
    own = model()
    first = next(own.parameters())
    first.requires_grad_(False)
    before = [weight.detach().clone() for weight in own.parameters()]
    list(Training(own, torch.randn(8, 2), TINY))
    changed = [not torch.equal(a, b) for a, b in zip(own.parameters(), before, strict=True)]
    assert not changed[0]
    assert any(changed)


def test_training_refuses():
    data = torch.zeros(4, 2)
    with pytest.raises(TypeError, match="need transform="):
        list(Training(model(), data.long(), TINY))
    with pytest.raises(ValueError, match="no data"):
        list(Training(model(), data[:0], TINY))
    with pytest.raises(ArithmeticError, match=r"the loss is nan at update"):
        list(Training(model(), data, TINY, transform=lambda rows, u: rows * math.nan))
    with pytest.raises(ValueError, match="do not fit"):
        list(Training(model(), torch.zeros(4, 3), TINY))
    with pytest.raises(TypeError, match="no weights to train"):
        list(Training(ScoreModel(lambda x, t: x, "vp"), data, TINY))
    with pytest.raises(ValueError, match="all weights of this model are frozen"):
        list(Training(model().requires_grad_(False), data, TINY))
    for bad in ({"end": 0.0}, {"weighting": "snr"}):
        with pytest.raises(ValueError, match=r"must be one of|end = .* must be positive"):
            Recipe(**bad)
    unlimited = Recipe(clip=math.inf)
    assert unlimited.clip == math.inf
    numbers = ({"lr": -1.0}, {"lr": math.inf}, {"end": math.inf}, {"clip": 0.0})
    for bad in ({"steps": 0}, {"ema": 1.0}, *numbers):
        with pytest.raises(ValueError, match=r"must be positive|must be"):
            Recipe(**bad)


class Other(AbstractSource):
    """A source whose batches have `times` times as many samples as they should."""

    def __init__(self, times):
        self.times = times

    def batches(self, size, *, seed=0, first=0, part=slice(None)):
        while True:
            yield torch.randn(max(1, int(size * self.times)), 2)


@pytest.mark.parametrize(("times", "count"), [(0.5, 4), (4, 32)])
def test_sources_yield_as_many_samples_as_they_are_asked_for(times, count):
    """Losses and gradients were as much smaller or larger."""
    model = ScoreModel(nets.MLP((2,), width=8, depth=1), "vp", shape=(2,))
    recipe = Recipe(steps=1, batch_size=8)
    with pytest.raises(ValueError, match=r"source gave \d+ samples where 256 were asked for"):
        Training(model, Other(times), recipe)
    training = Training(model, Other(1), recipe)
    training.source = Other(times)
    with pytest.raises(ValueError, match=f"source gave {count} samples where 8 were asked for"):
        next(training)
    next(Training(model, Other(1), recipe))


def test_a_transform_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"transform returned shape \(\d+, 1\) for rows of shape"):
        fit(model(), torch.randn(50, 2), Recipe(steps=1), transform=lambda rows, u: rows[:, :1])


def test_a_model_has_the_scale_of_a_data_set_unless_another_transform_is_given():
    images = torch.arange(16, dtype=torch.uint8).reshape(8, 2)
    data = Dataset(images, images, Scale.quantised(16), "points")
    recipe = Recipe(steps=1, batch_size=4)
    own = model()
    Training(own, data, recipe)
    assert own.scale == data.scale
    other = model()
    Training(other, data, recipe, transform=lambda rows, u: rows / 16)
    assert other.scale == model().scale != data.scale
