"""Mean and standard deviation of the data: recorded by training, estimated from a denoiser, and
what depends on them.
"""

import dataclasses
import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

import sdekit_diffusion as sd
from sdekit.elementary import scaled
from sdekit_diffusion import (
    DENSITIES,
    EDMSDE,
    VESDE,
    VPSDE,
    AbstractModel,
    GaussianMixture,
    Recipe,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    Training,
    decode,
    encode,
    fit,
    load,
    log_likelihood,
    nets,
    sample,
    save,
    stepper,
)
from sdekit_diffusion._models import data_scale as scale_module
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.data_scale import data_scale
from sdekit_diffusion._models.model import noise_scale, signal_scale
from sdekit_diffusion._training.densities import draw_times
from sdekit_diffusion._training.moments import data_moments
from sdekit_diffusion.data import Scale
from sdekit_diffusion.data._given import source_of

SCALES = [(0.0, 1.0), (5.0, 20.0), (-0.02, 0.01)]
WIDE = {
    "ve": lambda std: VESDE(0.01 * std, 50 * std),
    "vp": lambda std: VPSDE(0.1, 40.0),
    "subvp": lambda std: SubVPSDE(0.1, 40.0),
    "edm": lambda std: EDMSDE(80 * std),
    "flow": lambda std: RectifiedFlow(),
}


def moved(mean, std, d=2):
    """Three narrow modes whose law has a mean and a standard deviation."""
    means = torch.randn(3, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    base = GaussianMixture([0.3, 0.5, 0.2], means, [0.03] * 3)
    means = (means - base.data_mean) / base.data_std
    return GaussianMixture(
        [0.3, 0.5, 0.2], means * std + mean, [0.03 * (std / base.data_std) ** 2] * 3
    )


def plain(law, sde):
    return lambda x, t: law.score(t, x, sde)


@pytest.mark.parametrize("d", [2, 16])
@pytest.mark.parametrize(("mean", "std"), SCALES)
@pytest.mark.parametrize("sde", WIDE)
def test_estimates_are_good_to_a_few_per_cent(sde, mean, std, d):
    """At worst 2.6 % of the standard deviation in two dimensions and 4.5 % in 16, and 0.03 of it
    for the mean.
    """
    law = moved(mean, std, d)
    kernel = WIDE[sde](std)
    model, _ = as_model(plain(law, kernel), kernel, (d,))
    found = data_scale(model, (d,))
    assert found.std == pytest.approx(law.data_std, rel=0.04 if d == 2 else 0.06)
    assert (found.mean - law.data_mean).abs().max() < 0.06 * std


def test_samples_scale_with_the_data_and_the_noise():
    """x of the moved and scaled mixture under VE is that of the mixture itself, moved and scaled;
    so is the log-density.
    """
    base = moved(0.0, 1.0)
    x = sample(base, 50, sde=VESDE(0.01, 50.0), seed=1, steps=15)
    density = log_likelihood(base, x, sde=VESDE(0.01, 50.0)).value
    for mean, std in SCALES[1:]:
        law = moved(mean, std)
        sde = VESDE(0.01 * std, 50 * std)
        found = sample(law, 50, sde=sde, seed=1, steps=15)
        torch.testing.assert_close(found, x * std + mean, rtol=1e-7, atol=1e-7 * std)
        expected = density - 2 * math.log(std)
        torch.testing.assert_close(
            log_likelihood(law, found, sde=sde).value, expected, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize(("mean", "std"), SCALES[1:])
@pytest.mark.parametrize("sde", ["ve", "vp", "edm"])
def test_a_plain_score_samples_as_well_as_the_mixture(sde, mean, std):
    """Mean error at 20 evaluations over that of the model that knows its scale; ratios were 0.99 to
    1.01.
    """
    law = moved(mean, std)
    kernel = WIDE[sde](std)
    settings = {"sde": kernel, "seed": 2, "dtype": torch.float64}

    def error(model):
        exact = sample(model, 400, steps=100, shape=(2,), **settings)
        return float(
            (sample(model, 400, steps=20, shape=(2,), **settings) - exact).norm(dim=1).mean()
        )

    assert error(plain(law, kernel)) == pytest.approx(error(law), rel=0.05)


@pytest.mark.parametrize("n", [3, 600])
def test_rows_that_are_read_from_storage_count_once(n):
    """Of a data set of torch that is smaller than the number that is read of larger ones."""
    data = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) ** 3
    mean, std = data_moments(source_of(Subset(data, range(n)), ()), lambda rows: rows)
    torch.testing.assert_close(mean, data.mean(0), rtol=1e-5, atol=1e-6)
    assert std == pytest.approx(float((data - data.mean(0)).square().mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize(("mean", "std"), SCALES)
def test_training_records_them_and_checkpoints_keep_them(mean, std, tmp_path):
    data = moved(mean, std).sample(3000, seed=0).float()
    model = ScoreModel(
        nets.MLP((2,), width=8, depth=1), "vp", "velocity", shape=(2,), conditioning="log_snr"
    )
    fit(model, data, Recipe(steps=2, batch_size=64), progress=False)
    torch.testing.assert_close(model.data_mean, data.mean(0), rtol=1e-5, atol=1e-5 * std)
    assert model.data_std == pytest.approx(
        float((data - data.mean(0)).square().mean().sqrt()), rel=1e-5
    )
    save(model, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.data_mean, model.data_mean)
    assert again.data_std == model.data_std
    assert torch.equal(again.given(label=1).data_mean, model.data_mean)


def fresh():
    torch.manual_seed(0)
    return ScoreModel(
        nets.MLP((2,), width=8, depth=1), "vp", "velocity", shape=(2,), conditioning="log_snr"
    )


def test_a_run_goes_on_with_the_scale_of_its_checkpoint(tmp_path):
    data = moved(1.0, 2.0).sample(300, seed=0).float()
    begun = fresh()
    settings = {"folder": tmp_path, "progress": False}
    mean = data.mean(0) + 1e-5  # rounded otherwise, as on another device
    std = 1.00001 * float((data - data.mean(0)).square().mean().sqrt())
    other = lambda record: begun.record_scale(mean, std)  # noqa: E731
    fit(begun, data, Recipe(steps=4, batch_size=16), callback=other, **settings)
    again = fresh()
    fit(again, data, Recipe(steps=4, batch_size=16), resume=True, **settings)
    assert torch.equal(again.data_mean, mean)
    assert again.data_std == std


def test_a_run_is_refused_data_with_other_moments(tmp_path):
    """Bytes that another transform scales, and other samples where the rows that are hashed are
    the same; a transform that draws from torch's generators is the same one.
    """
    recipe = Recipe(steps=2, batch_size=16)
    settings = {"folder": tmp_path, "progress": False}
    data = torch.randint(0, 256, (5000, 2), generator=torch.Generator().manual_seed(0))
    scaled = lambda rows, u: (rows + torch.rand_like(u)) / 127.5 - 1  # noqa: E731
    fit(fresh(), data, recipe, transform=scaled, **settings)
    torch.rand(1)
    fit(fresh(), data, recipe, transform=scaled, resume=True, **settings)
    hashed = np.linspace(0, 4999, 1000).astype(np.int64)
    replaced = torch.randint(0, 256, (5000, 2), generator=torch.Generator().manual_seed(1))
    replaced[hashed] = data[hashed]
    for given, transform in (
        (data, lambda rows, u: (rows + u) / 1.0),
        (data, lambda rows, u: (rows + u) / 127.5 - 1.01),
        (replaced, scaled),
    ):
        with pytest.raises(ValueError, match="the samples or the transform are others"):
            fit(fresh(), given, recipe, transform=transform, resume=True, **settings)


def test_arrays_have_the_moments_of_tensors(tmp_path):
    """In memory; of a file 1,024 samples are read."""
    data = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "data.npy", data.numpy())
    stored = np.load(tmp_path / "data.npy", mmap_mode="r")
    of_tensor, of_array, of_file = (
        data_moments(source_of(rows, ()), lambda x: x)[1] for rows in (data, data.numpy(), stored)
    )
    assert of_array == of_tensor
    assert 1e-3 < abs(of_file / of_tensor - 1) < 0.1


def test_a_run_with_the_moments_of_few_samples_goes_on(tmp_path):
    """As those of arrays were in earlier versions; the run keeps them."""
    data = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0)).numpy()
    settings = {"folder": tmp_path, "progress": False}
    begun = fresh()
    mean, std = data_moments(source_of(data, ()), lambda x: x, few=True)
    earlier = lambda record: begun.record_scale(mean, std)  # noqa: E731
    fit(begun, data, Recipe(steps=4, batch_size=16), callback=earlier, **settings)
    again = fresh()
    fit(again, data, Recipe(steps=4, batch_size=16), resume=True, **settings)
    assert again.data_std == std
    assert std != data_moments(source_of(data, ()), lambda x: x)[1]


def test_a_checkpoint_without_moments_is_resumed(tmp_path):
    """One of an earlier version."""
    begun = fresh()
    settings = {"folder": tmp_path, "progress": False}
    data = moved(1.0, 2.0).sample(50, seed=0).float()
    recipe = Recipe(steps=4, batch_size=16)
    earlier = lambda record: begun.record_scale(0.0, None)  # noqa: E731
    fit(begun, data, recipe, callback=earlier, **settings)
    again = fresh()
    fit(again, data, recipe, resume=True, **settings)
    assert again.data_std is None


def test_the_least_noise_of_training_is_in_units_of_the_data():
    """sigma / alpha = end std at the least, with every density of levels."""
    for density in DENSITIES.values():
        u = torch.tensor([0.0, 1.0], dtype=torch.float64)
        for std in (0.01, 1.0, 3.0):
            t = draw_times(VPSDE(), u, density, 1e-2, std)
            largest = float(VPSDE().log_snr(t).max())
            assert largest == pytest.approx(-math.log(1e-2 * std), rel=1e-6)


def test_data_that_vary_most_in_a_direction_with_too_little_noise_are_warned_of():
    together = torch.randn(200, 1).expand(200, 100)
    together = together / together.square().mean().sqrt()
    net = nets.MLP(shape=(100,), width=8)

    def training(sde):
        return Training(ScoreModel(net, sde, shape=(100,), conditioning="log_snr"), together)

    with pytest.warns(
        UserWarning, match=r"15, is 1\.\d+ times .* is largest, \d.*larger sigma_max"
    ):
        training(VESDE(sigma_max=15.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training(VESDE(sigma_max=25.0))
        training("cosine")


def test_bytes_are_warned_of():
    data = torch.randint(0, 256, (20, 1, 4, 4)).float()
    model = ScoreModel(
        nets.UNet(channels=1, width=8), "vp", shape=(1, 4, 4), conditioning="log_snr"
    )
    with pytest.warns(
        UserWarning,
        match=r"whole numbers from \d+ to \d+, as bytes are: .* use x / "
        r"127.5 - 1",
    ):
        Training(model, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Training(model, data / 127.5 - 1)


@pytest.mark.parametrize(
    ("mean", "std", "warned"),
    [
        (0.0, 1e-4, True),
        (0.0, 1e3, True),
        (1e3, 1.0, True),
        (-40.0, 1.0, True),
        (0.0, 0.01, False),
        (0.0, 100.0, False),
        (5.0, 20.0, False),
        (-20.0, 1.0, False),
    ],
)
def test_data_in_another_scale_than_that_of_networks_are_warned_of(mean, std, warned):
    """Networks trained on the first and the third gave samples 15 and 24 times too wide."""
    data = moved(mean, std).sample(2000, seed=0).float()
    data = mean + std * (data - data.mean(0)) / (data - data.mean(0)).square().mean().sqrt()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(fresh(), data, Recipe(steps=1, batch_size=16), progress=False)
    assert len(seen) == warned
    for warning in seen:
        assert warning.filename == __file__
        assert re.search(
            rf"a mean of .* standard deviation of {re.escape(f'{std:.3g}')}; networks expect .* "
            r"mean 0 and standard deviation 1.*scale them.*transform=.*data\.Scale\(",
            str(warning.message),
        )


def normals(mean, std):
    draws = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    return draws * torch.tensor(std) + torch.tensor(mean)


PIXELS = torch.randint(0, 17, (300, 2), generator=torch.Generator().manual_seed(0))
RAW = {
    "per coordinate": (normals([100.0, 0.5], [20.0, 0.1]), None),
    "a mean not far from 0": (normals([1.5, -1.0], [0.8, 0.8]), None),
    "small": (normals([0.0, 0.0], [0.05, 0.05]), None),
    "a range": (normals([50.0, 50.0], [10.0, 10.0]), Scale(50.0, 50.0)),
    "levels": (PIXELS.float(), Scale.quantised(17)),
    "dark": (torch.where(PIXELS > 15, PIXELS, 0).float(), Scale.quantised(17)),
}


def warnings_of(data, scale, **options):
    model = ScoreModel(nets.MLP(shape=(2,), width=8), "vp", shape=(2,), scale=scale)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(model, data, Recipe(steps=1, batch_size=16), progress=False, **options)
    return [warning for warning in seen if "scale of the model" in str(warning.message)]


@pytest.mark.parametrize("name", RAW)
def test_raw_data_of_a_model_with_a_scale_are_warned_of(name):
    """Samples were decoded to numbers far from the data. Once, and not where they are scaled."""
    data, scale = RAW[name]
    scale = scale or Scale.standard(data)
    (warning,) = warnings_of(data, scale)
    assert warning.filename == __file__
    assert "pass transform=model.scale.encode, or a sdekit" in str(warning.message)
    assert not warnings_of(data, Scale())
    assert not warnings_of(data, scale, transform=scale.encode)
    assert not warnings_of(data, scale, transform=lambda x, u: scale.encode(x, u))
    assert not warnings_of(scale.encode(data), scale)


@pytest.mark.parametrize(
    ("data", "scale"),
    [
        (normals([0.0, 0.0], [0.5, 0.5]), Scale(0.0, 0.5)),  # of 0.25, as EDM has them
        (normals([-0.8, -0.8], [0.3, 0.3]), Scale(127.5, 127.5)),
        (normals([0.0, 0.0], [1.0, 1.0]), Scale(0.0, 20.0)),
        (normals([0.0, 0.0], [100.0, 100.0]), Scale(0.0, 0.01)),  # as the model is to have them
        (normals([0.0, 0.0], [1.0, 1.0]), Scale((1.0, 2.0, 3.0), 1.0)),  # for other vectors
    ],
)
def test_other_data_of_a_model_with_a_scale_are_not(data, scale):
    assert not warnings_of(data, scale)


class Scaled(nn.Module):
    """The noise of N(0, s^2 I) under VP, with s a weight."""

    def __init__(self, std):
        super().__init__()
        self.std = nn.Parameter(torch.tensor(std))

    def forward(self, x, t, y=None):
        alpha, sigma = (f(t)[:, None] for f in (VPSDE().alpha, VPSDE().sigma))
        return x * sigma / ((alpha * self.std) ** 2 + sigma**2)


def test_estimates_follow_the_weights():
    model = ScoreModel(Scaled(3.0), "vp", shape=(4,))
    assert data_scale(model, None).std == pytest.approx(3.0, rel=0.02)  # no draws, but few steps
    with torch.no_grad():
        model.net.std.mul_(0.1)
    assert data_scale(model, None).std == pytest.approx(0.3, rel=0.02)
    assert model.data_std is None
    model.predicts = "data"
    assert data_scale(model, None).std != pytest.approx(0.3, rel=0.1)


def test_where_nothing_can_be_estimated_the_range_decides():
    """Labels per sample, no shape, a network that fails, or one that is that of no data."""
    usual = ScoreModel(Scaled(3.0), "vp", shape=(4,), data_range=(0.0, 1.0)).given(
        y=torch.arange(3)
    )
    assert (data_scale(usual, None).mean, data_scale(usual, None).std) == (0.5, 0.25)
    assert data_scale(ScoreModel(Scaled(3.0), "vp"), None).std == 1.0
    assert data_scale(ScoreModel(lambda x, t: x[:, :3], "vp", shape=(4,)), None).std == 1.0
    assert data_scale(ScoreModel(lambda x, t: x * math.nan, "vp", shape=(4,)), None).std == 1.0
    assert data_scale(ScoreModel(Scaled(1e5), "vp", shape=(4,)), None).std == 1.0
    assert data_scale(ScoreModel(lambda x, t: 0 * x, "vp", shape=(4,)), None).std == 1.0


def test_models_without_a_diffusion_are_estimated_under_that_of_the_solve():
    class Normal(AbstractModel):
        shape, sde, data_std = (2,), None, None

        def predict_data(self, l, u):
            a, b = signal_scale(l), noise_scale(l)
            return scaled(400 * a / (400 * a * a + b * b), u)

        def place(self):
            return torch.float32, torch.device("cpu")

    x = sample(Normal(), 4000, sde=VESDE(0.01, 500.0), steps=10, seed=0)
    assert float(x.std()) == pytest.approx(20.0, rel=0.05)
    assert data_scale(Normal(), None, VESDE(0.01, 500.0)).std == pytest.approx(20.0, rel=0.05)
    assert data_scale(Normal(), None).std == 1.0


def test_too_little_noise_for_the_data_is_warned_of_by_name():
    law = moved(0.0, 100.0)
    for model in (law, plain(law, VESDE(0.01, 50.0))):
        with pytest.warns(
            UserWarning,
            match=r"times the standard deviation of the data, "
            r"\d.*larger sigma_max",
        ):
            sample(model, 4, sde=VESDE(0.01, 50.0), shape=(2,), steps=3, seed=0)


def test_estimates_follow_all_that_they_depend_on():
    """Weights written through `.data`, buffers, a network in place of another, a condition, and the
    range of the data.
    """

    class Net(Scaled):
        def __init__(self, std):
            super().__init__(std)
            self.register_buffer("factor", torch.tensor(1.0))

        def forward(self, x, t, wide=1.0):
            sigma = VPSDE().sigma(t)[:, None]
            s = self.std * self.factor * wide
            return x * sigma / ((VPSDE().alpha(t)[:, None] * s) ** 2 + sigma**2)

    wide = torch.tensor(1.0)
    model = ScoreModel(Net(1.0), "vp", shape=(4,)).given(wide=wide)

    def estimated(std):
        return data_scale(model, None).std == pytest.approx(std, rel=0.03)

    assert estimated(1.0)
    model.net.std.data.copy_(torch.tensor(3.0))
    assert estimated(3.0)
    model.net.factor.fill_(0.5)
    assert estimated(1.5)
    wide.fill_(2.0)
    assert estimated(3.0)
    model.net = Net(0.5)
    assert estimated(1.0)


def test_a_mean_that_is_known_is_kept():
    """With a standard deviation that is estimated, and where none can be."""
    model = ScoreModel(Scaled(3.0), "vp", shape=(4,), data_mean=torch.full((4,), 0.5))
    found = data_scale(model, None)
    assert torch.equal(found.mean, torch.full((4,), 0.5))
    assert found.std == pytest.approx(3.0, rel=0.05)
    labelled = ScoreModel(Scaled(3.0), "vp", shape=(4,), data_mean=7.0).given(y=torch.arange(3))
    with pytest.warns(UserWarning, match=r"of mean 0 and standard deviation 1\. Give"):
        found = data_scale(labelled, None)
    assert (found.mean, found.std) == (7.0, 1.0)


def test_a_mean_is_found_where_the_noise_hides_little():
    """The largest noise is four standard deviations of the data, and the mean is ten away."""
    law = GaussianMixture([1.0], torch.full((1, 4), 200.0, dtype=torch.float64), [20.0**2])
    model, _ = as_model(plain(law, EDMSDE(80.0)), EDMSDE(80.0), (4,))
    found = data_scale(model, (4,))
    assert (found.mean - 200.0).abs().max() < 0.06 * 20.0
    assert found.std == pytest.approx(20.0, rel=0.05)


def test_copies_of_a_model_share_what_training_records():
    model = ScoreModel(Scaled(3.0), "vp", shape=(4,))
    copy = model.given(y=1)
    copy.record_scale(torch.ones(4), 2.0)
    assert (model.data_std, copy.data_std) == (2.0, 2.0)
    assert torch.equal(model.data_mean, torch.ones(4))
    assert model.half().data_mean.dtype == torch.float32  # half precision may not hold it
    model.data_std = 3.0
    assert (copy.data_std, float(copy.data_mean[0])) == (3.0, 1.0)


def test_training_a_copy_of_a_model_records_the_scale_of_both():
    """The weights are those of both, too."""
    data = sd.data.load("digits")
    net = nets.MLP(shape=(1, 8, 8), width=8, depth=1, classes=10)
    model = ScoreModel(net, "vp", shape=(1, 8, 8))
    copy = model.given(label=3)
    unlabelled = dataclasses.replace(data, labels=None, test_labels=None)
    fit(copy, unlabelled, Recipe(steps=1, batch_size=8), progress=False)
    assert model.scale == copy.scale == data.scale
    for name, value in (("never_dropped", ("label",)), ("trained_levels", (1.0, 0.0))):
        setattr(copy, name, value)
        assert getattr(model, name) == value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"data_std": 0.0}, "data_std = 0.0 is not a positive number"),
        ({"data_std": math.inf}, "data_std = inf is not"),
        ({"data_mean": math.nan}, "data_mean must be finite"),
        ({"data_mean": torch.ones(3)}, r"data_mean has shape \(3,\), and a sample \(4,\)"),
    ],
)
def test_scales_that_are_none_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        ScoreModel(Scaled(3.0), "vp", shape=(4,), **arguments)


def test_scales_may_be_numbers_of_other_libraries(tmp_path):
    scale = {"data_std": torch.tensor(2.0), "data_mean": np.ones(2)}
    net = nets.MLP((2,), width=8, depth=1)
    model = ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr", **scale)
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.data_std == 2.0
    assert again.data_mean.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("sde", ["vp", "flow", "cosine"])
def test_samples_are_the_data_whatever_alpha_is_at_the_end(sde):
    """Samples of N(m, s^2) and of what is decoded, where alpha at the end is down to 0.1."""
    n = 4000
    for mean, std in ((0.0, 1.0), (3000.0, 1000.0), (0.0, 1e4)):
        law = GaussianMixture([1.0], torch.tensor([[mean]], dtype=torch.float64), [std**2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the noise at T is not large beside such data
            x_T = mean_start(law, sde, n)
            x = sample(law, sde=sde, method="ode", x_T=x_T)
            back = decode(law, x_T, sde=sde)
        torch.testing.assert_close(x, back, rtol=0, atol=2e-3 * std)
        assert float(x.mean()) == pytest.approx(mean, abs=0.1 * std)
        assert float(x.std()) == pytest.approx(std, rel=0.07)


def mean_start(law, sde, n):
    """Latents of exact samples."""
    return encode(law, law.sample(n, seed=5), sde=sde)


class Labelled(nn.Module):
    """The denoiser of a law moved by ten times the label."""

    def __init__(self, law):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.law = law

    def forward(self, x, l, label=None):
        label = x.new_zeros(len(x)) if label is None else label
        move = torch.stack([10.0 * label, 0.0 * label], dim=1)
        u = x - signal_scale(l)[:, None] * move
        return self.weight * (self.law.predict_data(l, u) + move)


def test_samples_do_not_depend_on_the_labels_of_others():
    """Although the scale of the data, which is not known here, differs from label to label."""
    law = GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    settings = {"shape": (2,), "conditioning": "log_snr"}
    model = ScoreModel(Labelled(law), "vp", "data", **settings, null={"label": 0.0})
    labels = torch.arange(4.0)
    together = sample(model.given(label=labels), 4, seed=0, steps=5)
    parts = [
        sample(model.given(label=part), 2, seed=0, steps=5, first=first)
        for first, part in ((0, labels[:2]), (2, labels[2:]))
    ]
    torch.testing.assert_close(together, torch.cat(parts))


def test_with_labels_per_sample_the_estimate_is_that_without(monkeypatch):
    """Made once for all labels, from the weights as they are; refused where training never dropped
    the labels, or there is no value for an unknown one.
    """
    law = GaussianMixture([1.0], [[40.0, 0.0]], [9.0])
    settings = {"shape": (2,), "conditioning": "log_snr"}
    model = ScoreModel(Labelled(law), "vp", "data", **settings, null={"label": 0.0})
    calls = []
    estimate = scale_module._estimate
    monkeypatch.setattr(
        scale_module, "_estimate", lambda *given: calls.append(1) or estimate(*given)
    )
    for label in (torch.arange(3.0), torch.arange(4.0)):
        found = data_scale(model.given(label=label), None)
        assert found.std == pytest.approx(3.0, rel=0.05)
        assert (found.mean - torch.tensor([40.0, 0.0])).abs().max() < 0.1
    assert len(calls) == 1
    with torch.no_grad():
        model.net.weight.mul_(1.01)
    data_scale(model.given(label=torch.arange(3.0)), None)
    assert len(calls) == 2
    settings["data_range"] = (30.0, 50.0)
    for never, null in ((("label",), {"label": 0.0}), ((), None)):
        other = ScoreModel(Labelled(law), "vp", "data", **settings, null=null)
        other.never_dropped = never
        found = data_scale(other.given(label=torch.arange(3.0)), None)
        assert (found.mean, found.std) == (40.0, 5.0)
        other.data_range = None
        with pytest.warns(UserWarning, match="a model that needs conditions of each sample"):
            data_scale(other.given(label=torch.arange(3.0)), None)
    assert len(calls) == 2


class Wide(nn.Module):
    """The denoiser of N(0, (1 + y)^2), y the mean of a vector, and that of another number z."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, l, y=None, z=0.0):
        std = 1 + y.mean(dim=1, keepdim=True) + torch.as_tensor(z).reshape(-1, 1)
        a = signal_scale(l)[:, None]
        share = (a * std) ** 2 / ((a * std) ** 2 + 1 - a**2)
        return self.weight * share * x / a


def test_the_estimate_depends_neither_on_the_number_of_samples_nor_on_other_conditions():
    """A vector per sample is unknown for as many points as there are; a number for all is kept,
    and read by its value, with another null too.
    """
    settings = {"shape": (4,), "conditioning": "log_snr"}
    net = Wide()
    model = ScoreModel(net, "vp", "data", **settings, null={"y": 3.0, "z": 0.0})
    model.never_dropped = ("z",)
    for n in (3, 256, 257):
        given = model.given(y=torch.ones(n, 2), z=0.0)
        assert data_scale(given, None).std == pytest.approx(4.0, rel=0.05)
    for z in (2.0, 0.0, 2.0, 5.0):
        found = data_scale(model.given(y=torch.ones(3, 2), z=z), None)
        assert found.std == pytest.approx(4.0 + z, rel=0.05)
    other = ScoreModel(net, "vp", "data", **settings, null={"y": 1.0})
    assert data_scale(other.given(y=torch.ones(3, 2)), None).std == pytest.approx(2.0, rel=0.05)


def test_data_larger_than_the_noise_are_warned_of():
    law = GaussianMixture([0.5, 0.5], [[-150.0, 0.0], [350.0, 0.0]], [400.0, 400.0])
    model = ScoreModel(Labelled(law), "flow", "data", shape=(2,), conditioning="log_snr")
    with pytest.warns(
        UserWarning, match=r"data of mean 0 and standard deviation 1\. Give.*data_std="
    ):
        sample(model, 4, seed=0, steps=3)


@pytest.mark.parametrize("std", [200.0, 500.0, 2000.0])
def test_a_score_of_data_larger_than_the_noise_is_warned_of(std):
    """Where the noise reaches from one mode to the next at most, D amplifies differences."""
    means = std * torch.tensor([[-1.0, 0.3], [0.2, -1.1], [1.1, 0.8]])
    law = GaussianMixture([0.3, 0.4, 0.3], means, [std / 4] * 3)
    sde = VESDE(sigma_max=50.0)
    with pytest.warns(
        UserWarning, match=r"alpha of VESDE.* 50, this model .*, larger sigma_max\. The"
    ):
        sample(lambda x, t: law.score(t, x, sde), 4, sde=sde, shape=(2,), seed=0, steps=3)


def test_a_score_that_is_zero_is_not_warned_of():
    assert sample(lambda x, t: 0 * x, 4, sde="vp", shape=(2,), seed=0, steps=3).shape == (4, 2)


def test_a_model_needs_its_prediction_only():
    class Normal(AbstractModel):
        def predict_data(self, l, u):
            return 0.5 * scaled(sd.signal_scale(l), u)

    assert sample(Normal(), 3, sde="vp", shape=(2,), seed=0, steps=3).shape == (3, 2)
    with pytest.raises(ValueError, match="the shape of one sample is not known: pass shape="):
        sample(Normal(), 3, sde="vp")


def test_random_weights_are_not_warned_of():
    """They remove some share of the variance, about the same at all levels."""
    for kept in (0.7, 0.85, 0.95):
        model = ScoreModel(Share(1 - kept), "vp", shape=(2,))
        assert data_scale(model, None).std == 1.0
    model = ScoreModel(Chance(), "vp", shape=(2,), conditioning="log_snr")
    assert data_scale(model, None).std == 1.0


class Chance(nn.Module):
    """Removes a tenth of the variance at the noisy end and next to nothing below, as some networks
    with random weights.
    """

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.1))

    def forward(self, x, l):
        return torch.where(l < -4, self.factor, 0.01 * self.factor)[:, None] * x


class Share(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x, t):
        return self.factor * x


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
@pytest.mark.parametrize("factor", [1.0, -1.0, -0.01])
def test_a_score_of_another_sign_or_of_far_larger_data_is_warned_of(sde, factor):
    """The warning names both causes, and the line of the caller, from functions of all depths."""
    law = moved(0.0, 0.5)

    def score(x, t):
        return factor * law.score(t, x, sde)

    settings = {"sde": sde, "shape": law.shape}
    calls = (
        lambda: sample(score, 2, steps=2, seed=0, **settings),
        lambda: stepper(score, 2, steps=2, seed=0, **settings),
        lambda: log_likelihood(ScoreModel(score, sde, "score", shape=law.shape), torch.zeros(2, 2)),
    )
    for call in calls:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
        named = [w for w in seen if "takes noise for data" in str(w.message)]
        assert len(named) == (factor < 0)
        for warning in named:
            assert warning.filename == __file__
            assert f"larger {sde.largest}. The solve is" in str(warning.message)
            assert "another sign or factor (see check_model)" in str(warning.message)
