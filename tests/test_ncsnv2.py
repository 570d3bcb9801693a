"""Checkpoints of ermongroup/ncsnv2: against the paper's network, written down here with the
authors' names of its weights.
"""

import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sdekit_diffusion import (
    CheckpointError,
    NCSNSettings,
    from_ncsnv2,
    langevin_step_size,
    load,
    sample,
    save,
)
from sdekit_diffusion._models import check

SIGMAS = torch.exp(torch.linspace(0.0, math.log(0.05), 8)).float()  # float32, the largest first
# Published, by the size of the images: names, features in units of the width, dilations of stages;
# cascades.
NETWORKS = {
    32: ([("1", 1, 1), ("2", 2, 1), ("3", 2, 2), ("4", 2, 4)], "1 2 3 4"),
    96: ([("1", 1, 1), ("2", 2, 1), ("3", 2, 1), ("4", 4, 2), ("5", 4, 4)], "1 2 3 4 5"),
    256: (
        [("1", 1, 1), ("2", 2, 1), ("3", 2, 1), ("31", 2, 1), ("4", 4, 2), ("5", 4, 4)],
        "1 2 31 3 4 5",
    ),
}
PATTERN = torch.tensor([0.8] * 4 + [0.2] * 4).expand(8, 8)
needs_safe_torch = pytest.mark.skipif(
    torch.__version__ < "2.10", reason="older versions of torch are refused pickles"
)


class Weights(dict[str, Tensor]):
    """Weights by the authors' names, drawn when the network first asks for them."""

    def __init__(self, channels: int, width: int, size: int, seed: int = 0):
        super().__init__()
        self.stages, self.cascades = NETWORKS[size]
        self.width = width
        self.draw = torch.Generator().manual_seed(seed)
        score(self, torch.zeros(1, channels, 32, 32), torch.zeros(1, dtype=torch.int64))
        self.draw = None

    def get_or_draw(self, name, shape, mean=0.0, std=0.1):
        if self.draw is not None and name not in self:
            self[name] = mean + std * torch.randn(shape, generator=self.draw)
        return self[name]


def norm(p, name, x):
    """Instance norm ++: torch's instance norm plus alpha times the means of channels, standardised
    over the channels.
    """
    channels = x.shape[1]
    alpha, gamma, beta = (
        p.get_or_draw(f"{name}.{part}", (channels,), mean)[:, None, None]
        for part, mean in (("alpha", 1.0), ("gamma", 1.0), ("beta", 0.0))
    )
    means = x.mean(dim=(2, 3), keepdim=True)
    apart = (means - means.mean(dim=1, keepdim=True)) / (
        means.var(dim=1, keepdim=True) + 1e-5
    ).sqrt()
    return gamma * (functional.instance_norm(x) + alpha * apart) + beta


def conv(p, name, x, outputs, size=3, dilation=1, bias=True):
    inputs = x.shape[1]
    weight = p.get_or_draw(
        f"{name}.weight", (outputs, inputs, size, size), std=0.7 / math.sqrt(inputs * size**2)
    )
    shift = p.get_or_draw(f"{name}.bias", (outputs,)) if bias else None
    return functional.conv2d(x, weight, shift, padding=dilation * (size // 2), dilation=dilation)


def residual(p, name, x, outputs, dilation, first):
    """Norm, ELU, convolution, twice. The first block of a stage has a shortcut, and halves the
    image unless it dilates.
    """
    halves = first and dilation == 1
    inner = ".conv" if halves else ""
    h = conv(
        p,
        f"{name}.conv1",
        functional.elu(norm(p, f"{name}.normalize1", x)),
        x.shape[1] if first else outputs,
        3,
        dilation,
    )
    h = conv(
        p,
        f"{name}.conv2{inner}",
        functional.elu(norm(p, f"{name}.normalize2", h)),
        outputs,
        3,
        dilation,
    )
    if first:
        x = conv(p, f"{name}.shortcut{inner}", x, outputs, 1 if halves else 3, dilation)
    return functional.avg_pool2d(x + h, 2) if halves else x + h


def units(p, name, x, count):
    for i in range(1, count + 1):
        h = x
        for j in (1, 2):
            h = conv(p, f"{name}.{i}_{j}_conv", functional.elu(h), x.shape[1], bias=False)
        x = x + h
    return x


def cascade(p, name, inputs, outputs, last):
    hs = [units(p, f"{name}.adapt_convs.{i}", h, 2) for i, h in enumerate(inputs)]
    if len(hs) > 1:
        hs = [conv(p, f"{name}.msf.convs.{i}", h, outputs) for i, h in enumerate(hs)]
        size = inputs[0].shape[2:]
        hs = [
            sum(
                functional.interpolate(h, size=size, mode="bilinear", align_corners=True)
                for h in hs
            )
        ]
    h = path = functional.elu(hs[0])
    for i in range(2):
        path = conv(
            p, f"{name}.crp.convs.{i}", functional.max_pool2d(path, 5, 1, 2), outputs, bias=False
        )
        h = h + path
    return units(p, f"{name}.output_convs", h, last)


def score(p, x, level, rescaled=False):
    """s(x, sigma_i), i the number of the level, 0 the noisiest."""
    h = conv(p, "begin_conv", x if rescaled else 2 * x - 1, p.width)
    layers = []
    for number, (stage, factor, dilation) in enumerate(p.stages):
        for block in (0, 1):
            h = residual(
                p,
                f"res{stage}.{block}",
                h,
                factor * p.width,
                dilation,
                first=number > 0 and block == 0,
            )
        layers.append(h)
    names = p.cascades.split()
    out = [p.width, *(factor * p.width for _, factor, _ in p.stages)]
    h = cascade(p, f"refine{names[0]}", layers[-1:], layers[-1].shape[1], 1)
    for i, name in enumerate(names[1:], 2):
        h = cascade(p, f"refine{name}", [layers[-i], h], out[-i - 1], 3 if i == len(names) else 1)
    h = functional.elu(norm(p, "normalizer", h))
    sigma = SIGMAS.to(x.dtype)[level][:, None, None, None]
    return conv(p, "end_conv", h, x.shape[1]) / sigma


def images(n, seed):
    """8 x 8 pixels, bright on the left, with noise, in [0, 1]."""
    draw = torch.Generator().manual_seed(seed)
    return (PATTERN + 0.03 * torch.randn(n, 1, 8, 8, generator=draw)).clamp(0, 1)


def trained(steps, width=4, decay=0.9):
    """Weights after the paper's training: equally likely levels, sigma^2 as the weight, Adam, an
    average of the weights.
    """
    p = Weights(1, width, 32)
    draw = torch.Generator().manual_seed(0)
    for value in p.values():
        value.requires_grad_()
    optimizer = torch.optim.Adam(p.values(), lr=1e-2, fused=True)
    average = {name: value.detach().clone() for name, value in p.items()}
    data = images(256, seed=1)
    for _ in range(steps):
        x = data[torch.randint(len(data), (32,), generator=draw)]
        level = torch.randint(len(SIGMAS), (32,), generator=draw)
        sigma = SIGMAS[level][:, None, None, None]
        z = torch.randn(x.shape, generator=draw)
        loss = (sigma * score(p, x + sigma * z, level) + z).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in p.items():
            average[name].lerp_(value.detach(), 1 - decay)
    p.update({name: value.detach() for name, value in p.items()})
    return [wrapped(p), optimizer.state_dict(), 3, steps, average]


def wrapped(p):
    """The state dict of the network in DataParallel."""
    return OrderedDict(
        {f"module.{name}": value for name, value in p.items()} | {"module.sigmas": SIGMAS}
    )


@pytest.fixture(scope="module")
def checkpoint():
    """A checkpoint that has not learned anything yet."""
    return trained(1)


@pytest.fixture(scope="module")
def trained_checkpoint():
    return trained(80)


@pytest.mark.parametrize(("size", "rescaled"), [(32, False), (32, True), (96, False), (256, False)])
def test_scores_are_the_published_networks(size, rescaled):
    """At any level, of images of other sizes too, to the rounding of float64. The biased variance
    is off by 1e-3 or more.
    """
    p = Weights(3, 4, size)
    model = from_ncsnv2(wrapped(p), rescaled=rescaled, shape=(3, 32, 32)).double()
    p.update({name: value.double() for name, value in p.items()})
    assert torch.equal(torch.tensor(model.sde.sigmas).flip(0), SIGMAS.double())
    assert model.data_range == ((-1, 1) if rescaled else (0, 1))
    for i, pixels in ((0, 32), (1, 48), (7, 16)):
        x = torch.rand(
            2, 3, pixels, pixels, generator=torch.Generator().manual_seed(i), dtype=torch.float64
        )
        expected = score(p, x, torch.tensor([i, i]), rescaled)
        found = model.score(1 - i / 7, x)
        torch.testing.assert_close(
            found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    p = Weights(3, 4, 32)
    model = from_ncsnv2(wrapped(p), shape=(3, 32, 32))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = model.score(0.5, x)
    half = model.to(dtype).score(0.5, x)
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_checkpoint_is_the_list_that_training_writes(checkpoint):
    """The averaged weights unless the last are wanted; with the prefix of DataParallel or without;
    a state dict as it is.
    """
    last = {name.removeprefix("module."): value for name, value in checkpoint[0].items()}
    average = {**checkpoint[4], "sigmas": SIGMAS}
    assert not torch.equal(last["begin_conv.weight"], average["begin_conv.weight"])
    x = images(2, seed=3)
    t = 0.5
    scores = {id(used): from_ncsnv2(used).score(t, x) for used in (last, average)}
    for weights, ema, used in (
        (checkpoint, True, average),
        (tuple(checkpoint), False, last),
        (checkpoint[:4], False, last),
        ([last, *checkpoint[1:]], True, average),
        (checkpoint[0], True, last),
        (average, True, average),
    ):
        assert torch.equal(from_ncsnv2(weights, ema=ema).score(t, x), scores[id(used)])


@needs_safe_torch
@pytest.mark.filterwarnings("ignore:the least noise of")  # the last sample is not denoised
def test_a_trained_checkpoint_denoises_and_samples(trained_checkpoint, tmp_path, monkeypatch):
    """From a file, as published: annealed Langevin dynamics and a last denoising. N(0, sigma_1^2)
    is 1.1 from the pattern. The check tries the other range alone: test_check.py has the rest.
    """
    monkeypatch.setattr(check, "alternatives", lambda *_: [])
    torch.save(trained_checkpoint, tmp_path / "checkpoint_80.pth")
    x = images(64, seed=2)
    model = from_ncsnv2(tmp_path / "checkpoint_80.pth", shape=(1, 8, 8), check=x)
    assert not model.training
    sigmas = tuple(SIGMAS.tolist())
    settings = NCSNSettings(sigmas, 10, langevin_step_size(SIGMAS, 10))
    samples = sample(model, 8, method=settings.method, denoise=True, seed=0)
    distances = (samples - PATTERN).square().flatten(1).mean(dim=1).sqrt()
    assert distances.median() < 0.3
    few = NCSNSettings(sigmas, 1, langevin_step_size(SIGMAS, 1))
    short = {"method": few.method, "denoise": True, "seed": 0}
    torch.testing.assert_close(
        sample(model, 2, sde=few.sde, **short), sample(model, 3, **short)[:2], rtol=1e-3, atol=1e-3
    )
    assert sample(model, 2, sde="vp", steps=5, seed=0).isfinite().all()
    save(model, tmp_path / "own")
    again = load(tmp_path / "own")
    assert again.sde == model.sde
    assert torch.equal(again.score(0.3, x), model.score(0.3, x))


def test_a_wrong_range_is_named(trained_checkpoint):
    x = images(64, seed=2)
    with pytest.raises(ValueError, match="With rescaled=False it is"):
        from_ncsnv2(trained_checkpoint, rescaled=True, check=x)


def changed(checkpoint, part=0, **values):
    """A checkpoint with some weights replaced, or removed where they are None."""
    weights = {name.replace("__", "."): value for name, value in values.items()}
    new = {
        name: value for name, value in {**checkpoint[part], **weights}.items() if value is not None
    }
    return [*checkpoint[:part], new, *checkpoint[part + 1 :]]


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (0, {"module__sigmas": None}, "has no sigmas"),
        (0, {"module__sigmas": torch.ones(2, 2)}, "which are not noise levels"),
        (0, {"module__sigmas": torch.ones(1).expand(10**10)}, "which are not noise levels"),
        (0, {"module__sigmas": torch.ones(200_000)}, "which are not noise levels"),
        (0, {"module__sigmas": torch.tensor([1.0, math.nan])}, "not noise levels: NCSN needs two"),
        (
            0,
            {"module__res2__0__conv1__bias": None},
            "averages of other weights than its own, such as res2.0.conv1.bias",
        ),
        (
            4,
            {"normalizer__alpha": None},
            "averages of other weights than its own, such as normalizer.alpha",
        ),
        (
            4,
            {"normalizer__alpha": torch.ones(5)},
            r"has shape \(5,\) as normalizer.alpha, where .* "
            r"has shape \(4,\)",
        ),
        (4, {"normalizer__alpha": torch.ones(1).expand(4)}, "has no numbers as normalizer.alpha"),
        (
            4,
            {"normalizer__alpha": torch.ones(4, dtype=torch.int64)},
            "has no numbers as normalizer.alpha",
        ),
        (4, {"end_conv__bias": torch.tensor([True])}, "has no numbers as end_conv.bias"),
        (
            4,
            {"end_conv__bias": torch.tensor([math.inf])},
            "NaN or infinite numbers in last.conv.bias",
        ),
        (
            4,
            {"begin_conv__weight": torch.ones(1).expand(10**6, 1, 3, 3)},
            "not the weights of NCSNv2, NCSNv2Deeper or",
        ),
        (4, {"res4__1__conv2__weight": torch.ones(1)}, "has shape"),
    ],
)
def test_damage_is_refused(checkpoint, part, values, message):
    with pytest.raises(CheckpointError, match=message):
        from_ncsnv2(changed(checkpoint, part, **values))


def test_other_networks_are_refused(checkpoint):
    state = {name.removeprefix("module."): value for name, value in checkpoint[0].items()}
    with pytest.raises(
        CheckpointError,
        match=r"shape \(3,\) as normalizer.embed.weight, .* has no "
        r"numbers",
    ):
        from_ncsnv2({**state, "normalizer.embed.weight": torch.ones(3)})
    shallow = {name: value for name, value in state.items() if "res4" not in name}
    with pytest.raises(
        CheckpointError, match="not the weights of NCSNv2, NCSNv2Deeper or NCSNv2Deepest"
    ):
        from_ncsnv2(shallow)
    with pytest.raises(CheckpointError, match=r"no averaged weights .* pass ema=False"):
        from_ncsnv2(checkpoint[:4])
    for strange in ([], [1, 2], "text".split(), {}, {"model": state}, {1: torch.ones(1)}, 3):
        with pytest.raises(CheckpointError, match="not a list that begins with a state dict"):
            from_ncsnv2(strange)


def test_files_are_data(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        from_ncsnv2(tmp_path / "no.pth")
    torch.save([print], tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match=r"code\.pth (is refused|is a pickle)"):
        from_ncsnv2(tmp_path / "code.pth")
