"""Solutions of a flow as data for students: what they are, and students that reproduce them."""

import dataclasses
import decimal
import math
import sys

import pytest
import torch

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion._training.recipe_loss import RecipeLoss
from sdekit_diffusion.data._batches import Shuffled

LAW = sd.GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]], dtype=torch.float64), [0.09, 0.05]
)
close = torch.testing.assert_close


@pytest.fixture(scope="module")
def found():
    return sd.trajectories(LAW, 5, 3, sde="vp", seed=2, first=4, accuracy=1e-4)


def test_states_are_those_of_the_exact_flow(found):
    assert found.y.shape == (4, 5, 2)
    settings = {"sde": "vp", "seed": 2, "first": 4, "method": sd.AdaptiveFlow(1e-9, 1e-9)}
    for sigma, y in zip(found.sigmas[1:].tolist(), found.y[1:], strict=True):
        exact = sd.sample(LAW, 5, end=sigma / LAW.data_std, **settings)
        close(y.double(), exact.double(), rtol=0, atol=1e-3 * LAW.data_std * (1 + sigma))
    x_T = sd.stepper(LAW, 5, sde="vp", seed=2, first=4).x
    close(found.y[0], x_T / sd.VPSDE().alpha(1.0), rtol=1e-6, atol=1e-6)


def test_levels_are_those_of_the_grid_from_end_to_end(found):
    vp = sd.VPSDE()
    assert float(found.sigmas[0]) == pytest.approx(float(vp.sigma(1.0) / vp.alpha(1.0)))
    assert float(found.sigmas[-1]) == pytest.approx(1e-3 * LAW.data_std)
    even = sd.trajectories(LAW, 2, 2, sde="vp", grid="log_snr", end=0.1)
    assert float(even.sigmas[1]) ** 2 == pytest.approx(float(even.sigmas[0] * even.sigmas[2]))


def test_batches_do_not_matter(found):
    again = sd.trajectories(LAW, 5, 3, sde="vp", seed=2, first=4, accuracy=1e-4, batch_size=2)
    assert torch.equal(again.y, found.y)


def test_states_of_a_teacher_in_half_precision_are_not_rounded():
    """Steps are differences of states; at large noise these differ by less than their rounding."""
    means, variances = torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.03125, 0.0625])
    settings = {"sde": "vp", "grid": [100.0, 30.0, 1.0, 0.01], "seed": 0}
    whole, half = (
        sd.trajectories(
            sd.GaussianMixture([0.25, 0.75], means.to(dtype), variances.to(dtype)), 8, **settings
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    close(half.steps()["x"], whole.steps()["x"], rtol=0, atol=1e-3)


def failing(monkeypatch, rows, status=sdekit.Status.UNDERFLOW):
    """Lets the solves to an accuracy fail for these rows of every batch of four."""
    module = sys.modules[sd.AdaptiveFlow.__module__]
    usual = module.solve_to_accuracy

    def partly(*arguments, **settings):
        solution = usual(*arguments, **settings)
        x = solution.x.clone()
        x[rows] = math.nan
        statuses = solution.status.clone()
        statuses[rows] = status
        unfinished = dataclasses.replace(solution, x=x, status=statuses)
        raise sdekit.UnfinishedError(unfinished, torch.zeros(len(x)), 0, "the advice")

    monkeypatch.setattr(module, "solve_to_accuracy", partly)


@pytest.mark.parametrize(("accuracy", "tolerance"), [(1e-2, 1e-5), (1e-4, 4 * 2.0**-23)])
def test_solutions_that_do_not_reach_the_accuracy_have_a_tolerance(
    monkeypatch, accuracy, tolerance
):
    """Solves of some samples may differ at every tolerance of a dtype: these do not end the
    others.
    """
    law = sd.GaussianMixture([0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]]), [0.09, 0.05])
    settings = {"steps": 2, "sde": "vp", "seed": 2, "accuracy": accuracy, "batch_size": 4}
    accurate = sd.trajectories(law, 8, **settings)
    failing(monkeypatch, [1])
    message = rf"4 steps of the 8 .* {accuracy:g} in torch\.float32: .* {tolerance:g}; ask for less"
    with pytest.warns(UserWarning, match=message) as warned:
        found = sd.trajectories(law, 8, **settings)
    assert warned[0].filename == __file__
    others = [0, 2, 3, 4, 6, 7]
    assert torch.equal(found.y[:, others], accurate.y[:, others])
    method = sd.AdaptiveFlow(tolerance, tolerance)
    end = float(accurate.sigmas[1]) / law.data_std
    first = sd.sample(law, 8, sde="vp", method=method, end=end, seed=2)
    torch.testing.assert_close(found.y[1, [1, 5]], first[[1, 5]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [[0, 1, 2], [1]])
def test_other_failures_of_solutions_are_errors(monkeypatch, rows):
    """More than 1 %, and those that are not finite."""
    underflow = len(rows) > 1
    failing(monkeypatch, rows, sdekit.Status.UNDERFLOW if underflow else sdekit.Status.NOT_FINITE)
    with pytest.raises(sdekit.UnfinishedError, match=f"{len(rows)} of 4 samples .*the advice"):
        sd.trajectories(LAW, 4, 2, sde="vp", seed=2)


def test_rows_of_solutions_without_the_accuracy_have_their_own_conditions(monkeypatch):
    """And all of them are counted."""
    torch.manual_seed(0)
    net = sd.nets.MLP(shape=(2,), width=8, classes=3)
    teacher = sd.ScoreModel(net, "vp", "noise", shape=(2,), data_std=0.5)
    given = teacher.given(label=torch.arange(101) % 3)
    accurate = sd.trajectories(given, 101, 1, seed=1)
    failing(monkeypatch, [1, 5])
    with pytest.warns(UserWarning, match="2 steps of the 101 solutions"):
        found = sd.trajectories(given, 101, 1, seed=1)
    torch.testing.assert_close(found.y, accurate.y, rtol=0, atol=1e-2)


class Answers(torch.nn.Module):
    """A network that returns given data, a sample and a level each."""

    def __init__(self, levels, data):
        super().__init__()
        self.levels = levels
        self.data = data
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=data.dtype))

    def forward(self, x, t):
        i = int((self.levels - t[0]).abs().argmin())
        return self.data[i] + self.weight


def test_a_network_that_predicts_the_data_of_steps_takes_the_steps(found):
    data = found.steps()
    levels = data["log_snr"].reshape(3, 5)
    assert torch.equal(levels, -found.sigmas[:-1].log()[:, None].expand(3, 5))
    close(
        data["x"] + data["noise"] * torch.exp(-data["log_snr"])[:, None],
        found.y[:-1].flatten(0, 1).to(data["noise"].dtype),
        check_dtype=False,
    )
    net = Answers(levels[:, 0], data["x"].reshape(3, 5, 2))
    student = sd.ScoreModel(net, "vp", "data", shape=(2,), conditioning="log_snr", data_std=1.0)
    settings = {"method": "ddim", "grid": found.sigmas, "return_solution": True, "save": "all"}
    x_T = (found.y[0] * sd.VPSDE().alpha(1.0)).to(data["x"].dtype)
    solution = sd.sample(student, x_T=x_T, **settings)
    close(solution.x, found.y[-1], rtol=1e-4, atol=1e-5, check_dtype=False)
    assert solution.evaluations.tolist() == [3] * 5


def test_pairs_are_the_end_and_the_noise_of_the_beginning(found):
    pairs = found.pairs()
    assert torch.equal(pairs["x"], found.y[-1])
    close(pairs["x"] + float(found.sigmas[0]) * pairs["noise"], found.y[0])
    assert float(pairs["noise"].std()) == pytest.approx(1.0, abs=0.6)


def test_conditions_go_with_their_samples():
    torch.manual_seed(0)
    net = sd.nets.MLP(shape=(2,), width=8, classes=3)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=1.0)
    label = torch.tensor([0, 2, 1, 2])
    found = sd.trajectories(model.given(label=label), 4, 2)
    assert torch.equal(found.steps()["label"], label.repeat(2))
    assert torch.equal(found.pairs()["label"], label)
    student = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=1.0)
    sd.fit(student, found.steps(), sd.Recipe(steps=2, batch_size=4), progress=False)


class Named(torch.nn.Module):
    """A network with conditions of the names that data have for noise and levels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x, t, noise=None, log_snr=None):
        self.seen.append((noise, log_snr))
        return self.weight * x


def test_conditions_of_the_network_are_not_taken_for_noise_or_levels():
    model = sd.ScoreModel(Named(), "vp", shape=(2,))
    noise = torch.arange(8.0)
    levels = torch.full((8, 3), 1e9)
    data = {"x": torch.randn(8, 2), "noise": noise, "log_snr": levels}
    sd.fit(model, data, sd.Recipe(steps=1, batch_size=8), progress=False)
    found, given = model.net.seen[-1]
    assert torch.equal(found.sort().values, noise)
    assert torch.equal(given, levels)
    with pytest.raises(ValueError, match=r"has a condition '(noise|log_snr)', which is what data"):
        sd.trajectories(model.given(noise=torch.zeros(4), log_snr=levels[:4]), 4)


def test_noise_levels_are_a_grid_of_solutions():
    found = sd.trajectories(LAW, 3, sde="vp", grid=[9.0, 2.0, 0.5])
    assert found.y.shape == (3, 3, 2)
    close(found.sigmas, torch.tensor([9.0, 2.0, 0.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="end above 0: leave out the last"):
        sd.trajectories(LAW, 3, sde="vp", grid=[9.0, 2.0, 0.0])
    with pytest.raises(ValueError, match=r"n must be a positive integer; not 0"):
        sd.trajectories(LAW, 0, sde="vp")
    with pytest.raises(TypeError, match=r"steps must be a positive integer; not 1\.5"):
        sd.trajectories(LAW, 3, 1.5, sde="vp")


def test_levels_below_the_noisy_end_begin_at_the_first_of_them():
    """The states there are those at which `sample` begins with the same levels."""
    found = sd.trajectories(LAW, 64, sde="vp", grid=[2.0, 0.5, 0.1], seed=3, accuracy=1e-4)
    begin = sd.stepper(LAW, 64, sde="vp", method="ddim", grid=found.sigmas, seed=3)
    close(found.y[0], begin.x / sd.VPSDE().alpha(begin.t), rtol=1e-6, atol=1e-6)
    start = sd.Noised(found.y[0], level=2.0 / LAW.data_std, add_noise=False)
    settings = {"sde": "vp", "end": 0.1 / LAW.data_std, "method": sd.AdaptiveFlow(1e-9, 1e-9)}
    close(found.y[-1], sd.sample(LAW, start=start, **settings), rtol=0, atol=1e-3)


def test_of_models_made_from_models_the_conditions_of_the_network_count():
    torch.manual_seed(0)
    net = sd.nets.MLP(shape=(2,), width=8, classes=3)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=1.0)
    label = torch.tensor([0, 2, 1, 2])
    observed = sd.LinearObservation(torch.eye(2), torch.zeros(4, 2), 1.0)  # an entry per sample
    for made in (
        sd.Guided(model.given(label=label), 1.5),
        sd.MomentMatched(model.given(label=label), observed),
    ):
        found = sd.trajectories(made, 4)
        assert list(found.conditions) == ["label"]
        assert torch.equal(found.conditions["label"], label)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"discrete": True}}, "the data have their own noise levels, log_snr"),
        ({"recipe": {"stratified": True}}, "leave out discrete, stratified and density"),
        ({"recipe": {"density": "uniform"}}, "leave out discrete, stratified and density"),
        ({"level": -9.0}, r"log_snr runs from -9 to -9, and log\(alpha / sigma\) under VPSDE"),
        ({"level": math.nan}, "the data have NaN or infinite values in rows 0"),
        ({"std": None}, "does not know the standard deviation of its data"),
    ],
    ids=str,
)
def test_levels_that_cannot_be_trained_are_refused(change, message):
    settings = {"recipe": {}, "level": 0.5, "std": 1.0} | change
    sde = sd.DDPM() if "discrete" in settings["recipe"] else "vp"
    net = sd.nets.MLP(shape=(2,), width=8)
    model = sd.ScoreModel(net, sde, shape=(2,), data_std=settings["std"])
    x = torch.randn(8, 2)
    levels = torch.full((8,), settings["level"])
    recipe = sd.Recipe(steps=1, batch_size=4, **settings["recipe"])
    with pytest.raises(ValueError, match=message):
        sd.Training(model, {"x": x, "log_snr": levels}, recipe)


class Levelled(torch.utils.data.Dataset):
    """Samples with noise levels of their own, read one by one."""

    def __init__(self, levels):
        self.levels = levels

    def __len__(self):
        return len(self.levels)

    def __getitem__(self, i):
        return {"x": torch.ones(2), "log_snr": self.levels[i]}


@pytest.mark.parametrize(
    ("std", "level", "message"),
    [
        (None, 0.5, "does not know the standard deviation of its data"),
        (1.0, -9.0, r"log_snr runs from -9 to -9, and log\(alpha / sigma\) under VPSDE"),
    ],
)
def test_levels_of_data_sets_are_refused_as_those_of_tensors(std, level, message):
    model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", shape=(2,), data_std=std)
    recipe = sd.Recipe(steps=4, batch_size=4)
    with pytest.raises(ValueError, match=message):
        sd.Training(model, Levelled(torch.full((8,), level)), recipe)


@pytest.mark.parametrize("own", [False, True])
def test_levels_are_checked_when_they_are_read(own, monkeypatch):
    """Before they go to another device, where that would wait for it. The order is that of the
    seed; only the row that is read first is known to be good.
    """
    if own:  # that of the loss, which has the levels on the model's device
        monkeypatch.setattr("sdekit_diffusion._training.loss.require_levels", lambda *_: None)
    levels = torch.full((8,), -50.0)
    first = int(next(Shuffled(torch.arange(8)).batches(1)))
    levels[first] = 0.5
    training = sd.Training(small(), Levelled(levels), sd.Recipe(steps=1, batch_size=8))
    assert training.model.trained_levels == ()  # not known before they are read
    with pytest.raises(ValueError, match=r"log_snr runs from -50 to 0\.5, and"):
        next(training)


@pytest.mark.parametrize("sde", ["vp", "ncsn"])
def test_the_loss_refuses_levels_that_the_diffusion_does_not_have(sde):
    """Those of NCSN have a largest one, those of most diffusions not."""
    model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), sde, shape=(2,))
    low, high = (float(model.sde.log_snr(t)) for t in (model.sde.T, 0.0))
    x = torch.zeros(3, 2)
    for bad in (low - 0.01, math.nan, *([high + 0.01] if high < math.inf else [])):
        with pytest.raises(ValueError, match=r"log_snr runs from .*log\(alpha / sigma\) under"):
            sd.dsm_loss(model, x, log_snr=torch.tensor([0.0, 1.0, bad]))
    sd.dsm_loss(model, x, log_snr=torch.full((3,), low - 1e-4))  # rounded


def small(predicts="velocity"):
    torch.manual_seed(0)
    net = sd.nets.MLP(shape=(2,), width=8)
    return sd.ScoreModel(net, "vp", predicts, shape=(2,), conditioning="log_snr", data_std=0.7)


def test_the_loss_takes_noise_and_levels_in_the_place_of_draws():
    model = small()
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 6, 2, generator=generator)
    l = torch.linspace(-3, 3, 6, dtype=torch.float64)
    loss = sd.dsm_loss(model, x, weighting="data", noise=eps, log_snr=l)
    a, b = sd.signal_scale(l)[:, None], sd.noise_scale(l)[:, None]
    error = model.predict_noise(l, (a * x + b * eps).float()) - eps
    wanted = torch.exp(-2 * (l + math.log(0.7))) * error.square().mean(dim=1)
    close(loss, wanted.to(loss.dtype), rtol=1e-5, atol=1e-6)
    one = sd.dsm_loss(model, x, noise=eps, seed=3)
    other = sd.dsm_loss(model, x, noise=eps, seed=4)
    assert not torch.equal(one, other)  # levels are drawn
    one = sd.dsm_loss(model, x, log_snr=l, seed=3)
    other = sd.dsm_loss(model, x, log_snr=l, seed=4)
    assert not torch.equal(one, other)  # noise is drawn


@pytest.mark.parametrize("c", [1e-8, 1e-3, 0.5, 1e8])
def test_the_pseudo_huber_loss_of_pairs(c):
    """sqrt(L + c^2) - c of the loss of each sample, with its weight, without cancellation; also
    where the network is exact.
    """
    model = small()
    x, eps = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    settings = {"weighting": "data", "noise": eps, "log_snr": torch.linspace(-3, 3, 6).double()}
    square = sd.dsm_loss(model, x, **settings)
    wanted = [
        float((decimal.Decimal(l) + decimal.Decimal(c) ** 2).sqrt() - decimal.Decimal(c))
        for l in square.tolist()
    ]
    found = sd.dsm_loss(model, x, huber=c, **settings)
    close(found, torch.tensor(wanted), rtol=1e-6, atol=0)
    close(sd.dsm_loss(model, x, huber=0.0, **settings), square, rtol=0, atol=0)
    loss = RecipeLoss(model, sd.Recipe(weighting="data", huber=c), None)
    given = {name: settings[name] for name in ("noise", "log_snr")}
    close(loss(x, given, 0), found)
    exact = sd.ScoreModel(lambda x, t: weight * x, "vp", shape=(2,))
    weight = torch.zeros((), requires_grad=True)
    zero = torch.zeros(6, 2)
    sd.dsm_loss(exact, x, noise=zero, log_snr=torch.zeros(6), huber=c).sum().backward()
    assert float(weight.grad) == 0.0


@pytest.mark.parametrize("given", [[], ["noise"], ["log_snr"]])
def test_the_pseudo_huber_loss_is_refused_where_the_network_cannot_be_exact(given):
    model = small()
    x = torch.zeros(8, 2)
    drawn = {name: {"noise": x, "log_snr": torch.zeros(8)}[name] for name in given}
    message = r"huber = 0\.001 needs the noise and the log_snr of each sample, as in the data of"
    with pytest.raises(ValueError, match=message):
        sd.dsm_loss(model, x, huber=1e-3, **drawn)
    with pytest.raises(ValueError, match=message):
        sd.Training(model, {"x": x, **drawn}, sd.Recipe(steps=1, batch_size=4, huber=1e-3))
    for data in ({"x": x, **drawn}, x, (x, torch.zeros(8))):
        with pytest.raises(ValueError, match=message):
            sd.validation_loss(data, sd.Recipe(huber=1e-3))


def test_the_validation_loss_of_students_is_the_pseudo_huber_loss():
    model = small()
    x, eps = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    data = {"x": x, "noise": eps, "log_snr": torch.zeros(6)}
    recipe = sd.Recipe(weighting="data", huber=0.5)
    found = sd.validation_loss(data, recipe)(model, 0)["validation_loss"]
    given = {"noise": eps, "log_snr": torch.zeros(6)}
    wanted = sd.dsm_loss(model, x, weighting="data", huber=0.5, **given).mean()
    assert found == pytest.approx(float(wanted.detach()), rel=1e-6)


@pytest.mark.parametrize("huber", [-1e-3, 0.9e-8, 1.1e8, math.nan, math.inf])
def test_invalid_widths_of_the_pseudo_huber_loss(huber):
    x = torch.zeros(8, 2)
    message = "huber = .* must be 0, or from 1e-8 to 1e8, such as 1e-3"
    with pytest.raises(ValueError, match=message):
        sd.Recipe(huber=huber)
    with pytest.raises(ValueError, match=message):
        sd.dsm_loss(small(), x, noise=x, log_snr=torch.zeros(8), huber=huber)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise": torch.zeros(5, 2)}, r"noise of shape \(5, 2\) must have the shape \(6, 2\)"),
        ({"log_snr": torch.zeros(6, 1)}, r"log_snr of shape \(6, 1\) must have the shape \(6,\)"),
        ({"log_snr": torch.zeros(6), "stratified": True}, "leave out discrete and stratified"),
    ],
)
def test_noise_and_levels_of_other_samples_are_refused(given, message):
    with pytest.raises(TypeError, match="log_snr"):
        sd.dsm_loss(small(), torch.zeros(6, 2), log_snr=0.5)
    with pytest.raises(ValueError, match=message):
        sd.dsm_loss(small(), torch.zeros(6, 2), **given)


def test_training_pairs_them_with_their_rows():
    """The loss of a batch is that of its own rows, whatever the order."""
    model = small()
    generator = torch.Generator().manual_seed(1)
    x, eps = torch.randn(2, 40, 2, generator=generator)
    l = torch.linspace(-3, 3, 40, dtype=torch.float64)
    recipe = sd.Recipe(steps=1, batch_size=40, weighting="data")
    data = {"x": x, "noise": eps, "log_snr": l}
    expected = RecipeLoss(model, recipe, None)(x, {"noise": eps, "log_snr": l}, 0).mean()
    (record,) = sd.Training(model, data, recipe)
    assert float(record.loss) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_with_levels_the_model_keeps_its_scale():
    """The data of noisy levels have another law; with noise alone they are samples as any."""
    x = 5 + torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    recipe = sd.Recipe(steps=1, batch_size=8)
    levelled = small()
    sd.Training(levelled, {"x": x, "noise": x, "log_snr": torch.zeros(64)}, recipe)
    assert levelled.data_std == 0.7
    paired = small()
    sd.Training(paired, {"x": x, "noise": x}, recipe)
    assert paired.data_std == pytest.approx(float((x - x.mean(dim=0)).square().mean().sqrt()))


def test_images_with_noise_of_their_own_are_not_flipped():
    net = sd.nets.UNet(channels=1, width=8)
    model = sd.ScoreModel(net, "vp", shape=(1, 8, 8))
    x = torch.randn(8, 1, 8, 8)
    with pytest.raises(ValueError, match="images with noise of their own are not flipped"):
        sd.Training(model, {"x": x, "noise": x}, sd.Recipe(steps=1, batch_size=4, flip=True))


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, t):
        return self.layer(x)


def test_a_student_learns_the_flow_in_one_step():
    """The flow of normal data is linear, so that a linear network can."""
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]])
    teacher = sd.GaussianMixture([1.0], [[0.2, -0.3]], covariance[None])
    found = sd.trajectories(teacher, 500, 1, sde="vp", accuracy=1e-3)
    torch.manual_seed(0)
    student = sd.ScoreModel(
        Linear(), "vp", "data", shape=(2,), conditioning="log_snr", data_std=teacher.data_std
    )
    recipe = sd.Recipe(steps=200, batch_size=100, lr=5e-2, ema=0.9, weighting="data")
    sd.fit(student, found.steps(), recipe, progress=False)
    fresh = sd.trajectories(teacher, 200, 1, sde="vp", accuracy=1e-3, seed=1)
    x = sd.sample(student, method="ddim", grid=fresh.sigmas, x_T=fresh.y[0] * sd.VPSDE().alpha(1.0))
    assert float((x - fresh.y[-1]).square().mean().sqrt()) < 0.01


def test_a_student_warns_where_it_is_sampled_otherwise(tmp_path, recwarn):
    """Also after it was saved, and inside another model; not once it is trained at all levels."""
    torch.manual_seed(0)
    net = sd.nets.MLP(shape=(2,), width=8)
    student = sd.ScoreModel(net, "vp", shape=(2,), conditioning="log_snr", data_std=LAW.data_std)
    found = sd.trajectories(LAW, 8, 2, sde="vp")
    recipe = sd.Recipe(steps=2, batch_size=8, weighting="data")
    sd.fit(student, found.steps(), recipe, progress=False, folder=tmp_path / "run")
    loaded = sd.load(tmp_path / "run")
    assert loaded.trained_levels == student.trained_levels
    assert len(student.trained_levels) == 2
    inside = sd.Inpainted(student, torch.zeros(2), torch.tensor([True, False]))
    for model in (student, loaded, inside):
        recwarn.clear()
        for method in ("ddim", sd.OnClock(sdekit.AdamsBashforth(1))):
            sd.sample(model, 3, method=method, grid=found.sigmas, seed=0)
        assert not recwarn.list
        every = (
            {"method": "ddim"},
            {"grid": found.sigmas},
            {"method": "ddim", "grid": found.sigmas[[0, -1]]},
            {"method": "ddpm", "grid": found.sigmas},
            {"method": "ode"},
            {},
        )
        for settings in every if model is student else every[:2]:
            with pytest.warns(UserWarning, match=r"trained at 2 noise levels only, .* = 152\.17, "):
                sd.sample(model, 3, seed=0, **settings)
    sd.fit(student, LAW.sample(8, seed=0).float(), sd.Recipe(steps=1), progress=False)
    recwarn.clear()
    sd.sample(student, 3, steps=5, seed=0)
    assert not recwarn.list


POINTS = torch.zeros(2, 2)
LOOSE = {"method": sd.AdaptiveFlow(1e-1, 1e-1)}
OBSERVED = sd.LinearObservation(torch.eye(2), torch.zeros(2), 1.0)
PARTICLES = {"n": 16, "particles": 16, "steps": 16, "seed": 0}


@pytest.mark.filterwarnings("ignore:.* not reliable")
@pytest.mark.parametrize(
    "call",
    [
        lambda model: sd.log_likelihood(model, POINTS, **LOOSE),
        lambda model: sd.encode(model, POINTS, **LOOSE),
        lambda model: sd.decode(model, POINTS, **LOOSE),
        lambda model: sd.sample_posterior(model, OBSERVED, **PARTICLES),
        lambda model: sd.classify([model, small()], POINTS, draws=1, levels=2),
    ],
    ids=["log_likelihood", "encode", "decode", "sample_posterior", "classify"],
)
def test_a_student_warns_where_all_levels_are_needed(call, recwarn):
    """It is evaluated between its levels, where it means nothing."""
    student = small()
    call(student)
    assert not recwarn.list
    student.trained_levels = (-3.0, 1.0)
    with pytest.warns(UserWarning, match="trained at 2 noise levels only, .* take its teacher"):
        call(student)
