"""Scales: there and back in the data's own range and dtype, the volume between them; and images
mirrored at random.
"""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

import sdekit_diffusion as sd
from sdekit_diffusion._app.held_out import measured
from sdekit_diffusion._app.options import Estimate
from sdekit_diffusion.data import Scale, load


@pytest.mark.parametrize("levels", [2, 17, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_come_back(levels, dtype):
    images = torch.arange(levels).view(levels, 1, 1, 1)
    scale = Scale.quantised(levels, dtype="int64")
    for u in (1e-3, 0.3, 1 - 1e-3):
        x = scale.encode(images, torch.full(images.shape, u, dtype=dtype))
        assert x.dtype == dtype
        assert torch.equal(scale.decode(x), images)
    assert scale.decode(torch.tensor([-7.0, -1.0, 1.0, 7.0])).tolist() == [
        0,
        0,
        levels - 1,
        levels - 1,
    ]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "uint16", "uint32"])
def test_levels_come_back_in_their_own_type(dtype):
    found = Scale.quantised(17, dtype=dtype).decode(torch.tensor([-1.0, 0.0, 0.99]))
    assert (found.dtype, found.tolist()) == (getattr(torch, dtype), [0, 8, 16])
    assert found.numpy().dtype == dtype


def test_values_of_levels():
    scale = Scale.quantised(17)
    x = torch.tensor([0, 8, 16], dtype=torch.uint8)
    assert torch.allclose(
        scale.encode(x, torch.tensor([0.0, 0.5, 0.75])),
        torch.tensor([-1.0, 0.0, 2 * 16.75 / 17 - 1]),
    )
    assert torch.equal(scale.encode(x), scale.encode(x, torch.full((3,), 0.5)))
    assert (scale.low, scale.high, scale.levels) == (-1, 1, 17)
    unit = Scale.quantised(17, low=0.0, high=1.0)
    assert torch.allclose(unit.encode(x, torch.zeros(3)), torch.tensor([0.0, 8 / 17, 16 / 17]))
    assert (unit.low, unit.high) == (0, 1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        scale.decode(torch.tensor([0.0, torch.nan]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(400,), (400, 3), (400, 2, 3)])
def test_continuous_data_are_standardised_and_come_back(dtype, shape):
    data = (
        100
        + 20 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).to(dtype)
    scale = Scale.standard(data)
    x = scale.encode(data)
    assert x.dtype == torch.promote_types(dtype, torch.float32)
    assert x.mean() == pytest.approx(0, abs=1e-4)
    assert x.std(correction=0) == pytest.approx(1, abs=1e-4)
    back = scale.decode(x)
    assert back.dtype == dtype
    assert torch.allclose(back, data, rtol=2 * torch.finfo(dtype).eps)


def test_vectors_are_standardised_in_each_coordinate():
    """Also where one is constant, and where the mean is a billion deviations."""
    noise = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = noise * torch.tensor([1e-3, 0.0, 20.0]) + torch.tensor([1e6, 0.1, -3.0])
    scale = Scale.standard(data)
    x = scale.encode(data)
    assert torch.allclose(x.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]).double(), atol=1e-4)
    assert torch.allclose(x.mean(0), torch.zeros(3).double(), atol=1e-4)
    assert scale.unit[1] == 1
    assert torch.allclose(scale.decode(x.float()), data, atol=1e-5, rtol=0)
    assert Scale.standard(torch.full((50, 2), 0.1)).unit == (1, 1)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_the_volume(shape):
    """log p(x) - log p(data) of a Gaussian in both scales."""
    data = 5 + 3 * torch.randn(
        200, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    scale = Scale.standard(data)
    x = scale.encode(data)
    own = torch.distributions.Normal(
        torch.tensor(scale.shift).double(), torch.tensor(scale.unit).double()
    )
    difference = torch.distributions.Normal(0.0, 1.0).log_prob(x) - own.log_prob(data)
    assert torch.allclose(
        difference.reshape(200, -1).sum(1), torch.tensor(scale.log_volume(shape)).double()
    )


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_bounds_of_levels_come_back(low):
    """Levels without noise, and with the most: of every number of levels up to bytes."""
    for levels in range(2, 257):
        scale = Scale.quantised(levels, low=low)
        data = torch.arange(levels, dtype=torch.uint8)
        most = torch.full((levels,), 1 - 2.0**-40, dtype=torch.float64)
        for u in (0.0, 0.5, 1 - 2.0**-14, 0 * most, most):
            assert torch.equal(scale.decode(scale.encode(data, u)), data), (levels, u)


def test_scales_of_coordinates_are_for_vectors():
    """They were taken for the width of images."""
    scale = Scale((1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.0, 4.0))
    with pytest.raises(ValueError, match=r"is for vectors, and the data have shape \(2, 1, 8, 4\)"):
        scale.encode(torch.ones(2, 1, 8, 4))
    for wrong in (torch.ones(2, 1), torch.ones(2, 1, 4, 8)):
        with pytest.raises(ValueError, match="vectors of 4 coordinates"):
            scale.decode(wrong)
    with pytest.raises(ValueError, match=r"of 4 coordinates, and the sample has shape \(1, 8, 4\)"):
        scale.log_volume((1, 8, 4))
    assert scale.encode(torch.ones(4)).tolist() == pytest.approx([0.0, -0.5, -2 / 3, -0.75])
    assert scale.decode(torch.zeros(5, 2, 4))[4, 1].tolist() == [1.0, 2.0, 3.0, 4.0]  # of a path


@pytest.mark.parametrize(
    "scale", [Scale(), Scale.quantised(256), Scale((1.0, 2.0), (0.5, 3.0), dtype="float64")]
)
def test_scales_are_json(scale):
    assert Scale(**json.loads(json.dumps(asdict(scale)))) == scale


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"unit": 0.0}, "positive units"),
        ({"unit": (1.0, -1.0)}, "positive units"),
        ({"unit": math.nan}, "positive units"),
        ({"levels": 1}, "two levels"),
        ({"dtype": "object"}, "'object' is not one of float16"),
        ({"shift": "far"}, "far"),
        ({"levels": 1024, "dtype": "uint8"}, r"0, \.\.\., 1023 do not fit in uint8, .* up to 255"),
        ({"levels": 129, "dtype": "int8"}, "do not fit in int8"),
        ({"levels": 2050, "dtype": "float16"}, "numbers up to 2048: give another dtype"),
    ],
)
def test_scales_that_are_none(arguments, said):
    with pytest.raises(ValueError, match=said):
        Scale(**arguments)


@pytest.mark.parametrize(
    ("levels", "dtype"), [(256, "uint8"), (128, "int8"), (2049, "float16"), (1024, "int16")]
)
def test_types_hold_their_levels(levels, dtype):
    scale = Scale.quantised(levels, dtype=dtype)
    found = scale.decode(scale.encode(torch.arange(levels)))
    assert str(found.dtype) == f"torch.{dtype}"
    assert torch.equal(found.long(), torch.arange(levels))


def seen(monkeypatch, n=64, batch=1000, **recipe):
    """What a training's loss sees of images that rise to the right, and how much they do."""
    rows = torch.arange(8, dtype=torch.uint8).expand(n, 1, 2, 8)
    batches = []
    model = sd.ScoreModel(
        sd.nets.UNet(1, width=4, multipliers=(1,), attention=(False,)), "vp", shape=(1, 2, 8)
    )

    def loss(model, x, **_):
        batches.append(x)
        return x.new_zeros(len(x)) * next(model.parameters()).sum()

    monkeypatch.setattr("sdekit_diffusion._training.recipe_loss.dsm_loss", loss)
    list(
        sd.Training(
            model, rows, sd.Recipe(batch_size=batch, **recipe), transform=Scale.quantised(8).encode
        )
    )
    return torch.cat(batches)


def test_half_of_the_images_are_flipped(monkeypatch):
    """After their dequantisation, which is as without flips; others in the next epoch."""
    plain = seen(monkeypatch, steps=4)
    x = seen(monkeypatch, steps=4, flip=True)
    flipped = x[:, 0, 0, 0] > x[:, 0, 0, -1]
    assert torch.equal(x, torch.where(flipped[:, None, None, None], plain.flip(-1), plain))
    # Binomial(4000, 1/2) is farther than 160 from its mean with a probability of 4e-7.
    assert abs(int(flipped.sum()) - 2000) <= 160
    assert not torch.equal(flipped[:64], flipped[64:128])


def test_flips_depend_on_the_seed_and_on_the_number_of_the_sample_alone(monkeypatch):
    x = seen(monkeypatch, steps=2, batch=30, flip=True)
    assert torch.equal(seen(monkeypatch, steps=6, batch=10, flip=True), x)
    assert torch.equal(seen(monkeypatch, steps=1, batch=60, flip=True, accumulate=3), x)
    other = seen(monkeypatch, steps=2, batch=30, flip=True, seed=1)
    assert not torch.equal(other[:, 0, 0, 0] > 0, x[:, 0, 0, 0] > 0)


def test_only_images_are_flipped():
    model = sd.ScoreModel(sd.nets.MLP((2,), width=8, depth=1), "vp", shape=(2,))
    with pytest.raises(ValueError, match=r"only images .* not samples of shape \(2,\)"):
        sd.Training(model, torch.zeros(5, 2), sd.Recipe(flip=True))


class Conditioned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x, t, image):
        return self.layer(x)


@pytest.mark.parametrize("image", [(1, 2, 8), (3, 4, 16), (2, 8)])
def test_images_are_not_flipped_without_those_they_are_conditioned_on(image):
    """Of the size of x or of another one; other conditions are not images."""
    model = sd.ScoreModel(Conditioned(), "vp", shape=(1, 2, 8))
    x = torch.randn(16, 1, 2, 8)
    recipe = sd.Recipe(steps=1, batch_size=8, flip=True)
    with pytest.raises(ValueError, match=r"mirrors the samples and not image, .*leave out flip"):
        sd.Training(model, {"x": x, "image": torch.randn(16, *image)}, recipe)
    sd.Training(model, {"x": x, "image": torch.randn(16, *image)}, sd.Recipe(steps=1, batch_size=8))
    sd.Training(model, {"x": x, "image": torch.randn(16, 5, 8)}, recipe)  # tokens


def test_a_model_keeps_its_scale(tmp_path):
    scale = Scale((100.0, 0.1), (20.0, 1.0), dtype="float64")
    model = sd.ScoreModel(sd.nets.MLP((2,), width=8, depth=1), "vp", shape=(2,), scale=scale)
    sd.save(model, tmp_path)
    assert sd.load(tmp_path).scale == scale
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"unit": -1.0}, {"dtype": "complex64"}, {"colour": 1}, [1.0], None):
        (tmp_path / "config.json").write_text(json.dumps(config | {"scale": wrong}))
        with pytest.raises(sd.CheckpointError, match=r"config\.json"):
            sd.load(tmp_path)


def test_continuous_data_far_from_the_origin(tmp_path):
    """A network learns them, its samples are in their range, and its likelihood is in their
    units.
    """
    law = torch.distributions.Normal(
        torch.tensor([100.0, -5.0]).double(), torch.tensor([20.0, 0.01]).double()
    )
    torch.manual_seed(0)
    np.save(tmp_path / "own.npy", law.sample((4000,)).numpy())
    source = load(tmp_path / "own.npy")
    net = sd.nets.MLP((2,), width=32, depth=1)
    model = sd.ScoreModel(
        net, "vp", "velocity", shape=(2,), conditioning="log_snr", scale=source.scale
    )
    recipe = sd.Recipe(steps=300, batch_size=128, lr=4e-3)
    sd.fit(model, source.train, recipe, transform=source.scale.encode, progress=False)
    x = source.scale.decode(sd.sample(model, 2000, seed=0))
    assert x.dtype == torch.float64
    assert torch.allclose(x.mean(0), law.mean, atol=0, rtol=0.1)
    assert torch.allclose(x.std(0), law.stddev, atol=0, rtol=0.1)
    nats = measured(model, model.scale, source.test[:100], Estimate(tolerance=1e-4)).value
    assert nats.mean() == pytest.approx(
        float(law.log_prob(source.test[:100]).sum(1).mean()), abs=0.15
    )


def test_arrays_and_integers_without_levels_are_refused():
    x = np.zeros((4, 2))
    for call in (Scale.standard, Scale().encode, Scale().decode):
        with pytest.raises(TypeError, match=r"must be a tensor .*, not ndarray; use torch\.as_t"):
            call(x)
    with pytest.raises(TypeError, match=r"torch\.int64 are not continuous: use values\.float\(\)"):
        Scale.standard(torch.arange(4))


def test_a_transform_takes_two_arguments():
    net = sd.nets.MLP(shape=(2,), width=8)
    x = torch.zeros(8, 2)
    for call in (
        lambda: sd.Training(sd.ScoreModel(net, "vp"), x, transform=lambda rows: rows),
        lambda: sd.validation_loss(x, transform=lambda rows: rows),
    ):
        message = r"called as transform\(rows, u\), where u .* has the signature \(rows\)"
        with pytest.raises(TypeError, match=message):
            call()
    sd.Training(sd.ScoreModel(net, "vp"), x, transform=torch.add)  # whose signature is not known
