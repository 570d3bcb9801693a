"""Checkpoints of score_sde_pytorch: exact networks in its conventions give the exact score, and
wrong conventions are named.
"""

import itertools
import math
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

from sdekit_diffusion import (
    DDPM,
    NCSN,
    VESDE,
    VPSDE,
    CheckpointError,
    GaussianMixture,
    SubVPSDE,
    from_score_sde,
    linear_betas,
    load,
    log_likelihood,
    sample,
    save,
)

MEANS = torch.tensor(
    [[0.6, -0.7, 0.5, 0.2], [-0.6, -0.5, -0.7, 0.5], [0.5, 0.7, -0.4, -0.6]], dtype=torch.float64
)
VARIANCES = torch.tensor([0.004, 0.002, 0.008], dtype=torch.float64)
# Of a VE run with 100 scales, the largest first.
SIGMAS = torch.exp(torch.linspace(1.2, -4.6, 100, dtype=torch.float64))
needs_safe_torch = pytest.mark.skipif(
    torch.__version__ < "2.10", reason="older versions of torch are refused pickles"
)


def mixture(means=MEANS):
    return GaussianMixture([0.3, 0.3, 0.4], means, VARIANCES)


X = mixture().sample(64, seed=1)


class Exact(nn.Module):
    """A network of that repository: its trained weights are the mixture's means; Fourier features
    are not trained.
    """

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.register_buffer("sigmas", torch.zeros(100, dtype=torch.float64))
        self.fourier = nn.Parameter(torch.zeros(3, dtype=torch.float64), requires_grad=False)
        self.first = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.rest = nn.Parameter(torch.zeros(2, 4, dtype=torch.float64))

    def forward(self, x, label):
        return self.answer(mixture(torch.cat([self.first[None], self.rest]).detach()), x, label)


def noise(sde, t_of):
    def answer(law, x, label):
        t = t_of(label).clamp(0, 1)
        return -law.score(t, x, sde) * sde.sigma(t)[:, None]

    return answer


def by_sigma(law, x, sigma):
    """The score of the data plus noise, from its definition; there may be no data scaled."""
    ve = VESDE(1e-6, 1e3, exact=False)
    return law.score(ve.time(-sigma.clamp(1e-5, 1e2).log()), x, ve)


def by_level(law, x, i):
    assert i.dtype == torch.int64
    return by_sigma(law, x, SIGMAS[i])


BETAS = linear_betas(100, 0.1 / 100, 20 / 100)
# What it was trained with: the answer of its network, our diffusion, and the arguments of the
# adapter.
RUNS = {
    "vp": (noise(VPSDE(), lambda label: label / 999), VPSDE(), {"sde": "vp"}),
    "vp, discrete": (
        noise(DDPM(BETAS), lambda label: (label + 1) / 100),
        DDPM(BETAS),
        {"sde": "vp", "continuous": False},
    ),
    "subvp": (noise(SubVPSDE(), lambda label: label / 999), SubVPSDE(), {"sde": "subvp"}),
    "ve": (by_sigma, VESDE(float(SIGMAS[-1]), float(SIGMAS[0]), exact=False), {"sde": "ve"}),
    "ve, discrete": (by_level, NCSN(SIGMAS), {"sde": "ve", "continuous": False}),
}


def checkpoint(averages=MEANS, last=MEANS + 1.0):
    """What save_checkpoint of that repository writes, of a network in DataParallel."""
    names = {
        "module.sigmas": SIGMAS,
        "module.fourier": torch.ones(3),
        "module.first": last[0],
        "module.rest": last[1:],
    }
    return {
        "optimizer": {
            "state": {0: {"step": torch.tensor(5.0)}},
            "param_groups": [{"lr": 2e-4, "params": [0, 1]}],
        },
        "model": OrderedDict(names),
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": [averages[0], averages[1:]]},
        "step": 7,
    }


@pytest.mark.parametrize("run", RUNS)
def test_scores_are_exact(run):
    """At its levels where it is discrete; under its own diffusion and under another, to the
    rounding of float64.
    """
    answer, sde, arguments = RUNS[run]
    model = from_score_sde(
        checkpoint(), Exact(answer), shape=(4,), check=X, centered=True, **arguments
    )
    for own, given in zip((model.sde.alpha, model.sde.sigma), (sde.alpha, sde.sigma), strict=True):
        times = torch.linspace(0, 1, 100, dtype=torch.float64)
        torch.testing.assert_close(own(times), given(times), rtol=1e-12, atol=1e-12)
    noisy = 2 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in (0, 30, 60, 80):
        t = float(sde.levels[step]) if "discrete" in run else 0.01 * (1 + step)
        torch.testing.assert_close(
            model.score(t, noisy), mixture().score(t, noisy, sde), rtol=1e-9, atol=1e-9
        )
        edm = math.exp(-float(sde.log_snr(t)))
        torch.testing.assert_close(
            model.denoise(edm, noisy, "edm"),
            mixture().denoise(edm, noisy, "edm"),
            rtol=1e-8,
            atol=1e-8,
        )


@pytest.mark.parametrize("beside", [-0.4, 0.0, 0.4])
def test_a_network_of_levels_gets_the_nearest(beside):
    """At every level its own number, counted from the largest sigma; within 0.4 levels of it the
    same.
    """
    seen = []

    def answer(law, x, i):
        seen.append(i)
        return x

    model = from_score_sde(checkpoint(), Exact(answer), "ve", continuous=False, shape=(4,))
    n = len(SIGMAS)
    times = (torch.arange(n, dtype=torch.float64) + beside) / (n - 1)
    model.score(times.clamp(0, 1), torch.zeros(n, 4, dtype=torch.float64))
    assert seen[-1].tolist() == list(reversed(range(n)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("run", RUNS)
def test_half_precision_rounds_no_labels(run, dtype):
    """Label 541.35 of VP would be 540 or 541.5, and level 300 be another in bfloat16."""
    seen = []

    def answer(law, x, label):
        seen.append(label)
        return x

    _, sde, arguments = RUNS[run]
    net = Exact(answer)
    model = from_score_sde(checkpoint(), net, shape=(4,), data_std=1.0, **arguments)
    t = float(sde.levels[77]) if "discrete" in run else 0.5419
    model.score(t, X)
    exact = seen[-1]
    model.to(dtype)
    model.score(t, X)
    expected = exact if exact.dtype == torch.int64 else exact.float()
    assert torch.equal(seen[-1], expected)
    assert sample(model, 3, steps=3, seed=0).isfinite().all()


NEIGHBOURS = [*itertools.pairwise([*RUNS, next(iter(RUNS))])]


@pytest.mark.parametrize(
    ("truth", "told"), [*NEIGHBOURS, *((after, before) for before, after in NEIGHBOURS)]
)
def test_a_wrong_convention_is_named(truth, told):
    """In the adapter's own arguments; also where the network fails over labels that it was not made
    for. The right ones are checked above.
    """
    answer = RUNS[truth][0]
    arguments = RUNS[told][2]
    with pytest.raises(ValueError, match="the model does not denoise x") as refusal:
        from_score_sde(checkpoint(), Exact(answer), check=X, centered=True, **arguments)
    named = re.search(r"With sde='(\w+)', continuous=(\w+) it is", str(refusal.value))
    assert named, refusal.value
    right = RUNS[truth][2]
    assert named.groups() == (right["sde"], str(right.get("continuous", True)))


def test_averages_are_taken_unless_the_last_weights_are_wanted():
    """By the order of the checkpoint's names, whatever that of the network; those that were not
    trained have none.
    """
    answer, _, arguments = RUNS["vp"]
    for ema, expected in ((True, MEANS), (False, MEANS + 1)):
        net = Exact(answer)
        net._parameters = dict(reversed(net._parameters.items()))
        from_score_sde(checkpoint(), net, ema=ema, **arguments)
        assert torch.equal(torch.cat([net.first[None], net.rest]), expected)
        assert net.fourier.tolist() == [1, 1, 1]
        assert not net.training
    frozen = Exact(answer).requires_grad_(False)
    with pytest.raises(
        CheckpointError,
        match=r"2 averages for 3 "
        r"parameters.*requires_grad_\(False\)",
    ):
        from_score_sde(checkpoint(), frozen.requires_grad_(True), **arguments)
    everything = checkpoint()
    everything["ema"]["shadow_params"].insert(0, torch.full((3,), 2.0))
    from_score_sde(everything, frozen.requires_grad_(False), **arguments)
    assert frozen.fourier.tolist() == [2, 2, 2]
    alone = {name.removeprefix("module."): value for name, value in checkpoint()["model"].items()}
    assert torch.equal(from_score_sde(alone, Exact(answer), **arguments).net.first, MEANS[0] + 1)


def test_ranges_of_data_and_noise():
    """Images in [0, 1] under VE, unless centred; sigma's range is the checkpoint's, and another is
    refused.
    """
    answer = RUNS["ve"][0]
    assert from_score_sde(checkpoint(), Exact(answer), "ve").data_range == (0, 1)
    assert from_score_sde(checkpoint(), Exact(answer), "ve", centered=True).data_range == (-1, 1)
    assert from_score_sde(checkpoint(), Exact(answer), "vp").data_range == (-1, 1)
    low = float(SIGMAS[-1])
    high = float(SIGMAS[0])
    sde = from_score_sde(checkpoint(), Exact(answer), VESDE(low, high)).sde
    assert sde.sigma(0.0) == pytest.approx(low, rel=1e-15)
    with pytest.raises(
        ValueError,
        match=r"VESDE\(.*50.* is not what .* trained with, sigma from "
        r"0.01.* to 3.3",
    ):
        from_score_sde(checkpoint(), Exact(answer), VESDE())
    assert from_score_sde(checkpoint(), Exact(answer), VPSDE(0.2, 15.0)).sde == VPSDE(0.2, 15.0)
    unknown = {name: value for name, value in checkpoint()["model"].items() if "sigmas" not in name}
    net = Exact(answer)
    del net.sigmas
    assert from_score_sde(unknown, net, "ve").sde == VESDE(0.01, 50.0, exact=False)
    assert from_score_sde(checkpoint(), net, "vp", continuous=False).conditioning == (100, -1)
    assert from_score_sde(unknown, net, "vp", continuous=False).conditioning == (1000, -1)
    assert from_score_sde(unknown, net, "ve", continuous=False, levels=30).conditioning == (-29, 29)
    with pytest.raises(ValueError, match=r"With x moved from \[0, 1\] to \[-1, 1\] it is"):
        from_score_sde(checkpoint(), Exact(RUNS["vp"][0]), "vp", check=(X + 1) / 2)


@needs_safe_torch
@pytest.mark.parametrize("legacy", [False, True])
def test_files(tmp_path, legacy):
    path = tmp_path / "checkpoint_7.pth"
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=not legacy)
    model = from_score_sde(path, Exact(RUNS["vp"][0]), "vp", shape=(4,), check=X)
    save(model, tmp_path / "own")
    again = load(tmp_path / "own", net=Exact(RUNS["vp"][0]))
    assert torch.equal(again.score(0.5, X), model.score(0.5, X))
    if legacy:
        return
    assert sample(model, 50, seed=0, dtype=torch.float64).std() == pytest.approx(
        float(X.std()), abs=0.1
    )
    logp = log_likelihood(model, X[:5], sde="subvp").value
    torch.testing.assert_close(logp, mixture().log_prob(X[:5]), rtol=0, atol=0.05)


def assert_untouched(net):
    """A refused checkpoint leaves the network as it was."""
    assert torch.equal(net.first, torch.zeros(4))


def test_what_is_refused(tmp_path):
    net = Exact(by_sigma)
    named = OrderedDict([("module.all_modules.0.W", torch.ones(3))])
    with pytest.raises(
        ValueError,
        match=r"of an NCSN\+\+ or DDPM\+\+, not their network, and "
        r"ncsnpp, ddpmpp .* pass net=",
    ):
        from_score_sde({"model": named, "ema": {"shadow_params": []}})
    with pytest.raises(ValueError, match=r"sde = 'cosine' is none of score_sde_pytorch's"):
        from_score_sde(checkpoint(), net, "cosine")
    with pytest.raises(CheckpointError, match=r"has no averages.*ema=False"):
        from_score_sde({"model": checkpoint()["model"], "step": 3}, net)
    for strange in (
        {"model": [1]},
        {"step": 3},
        {},
        {1: torch.ones(2)},
        {"model": {3: torch.ones(2)}},
    ):
        with pytest.raises(CheckpointError, match=r"no state dict|not a dict with"):
            from_score_sde(strange, net)
    with pytest.raises(CheckpointError, match="does not exist"):
        from_score_sde(tmp_path / "no.pth", net)
    assert_untouched(net)


def test_sigmas_and_levels_that_are_no_noise_levels_are_refused():
    """Where they are used: VP has no need of the sigmas."""
    net = Exact(by_sigma)
    damaged = checkpoint()
    damaged["model"]["module.sigmas"] = torch.zeros(100)
    with pytest.raises(CheckpointError, match="sigmas, from 0 to 0, are not noise levels"):
        from_score_sde(damaged, net, "ve")
    assert from_score_sde(damaged, Exact(RUNS["vp"][0]), "vp", check=X).sde == VPSDE()
    for sigmas in (
        torch.ones(1).expand(10**10),
        torch.ones(100, device="meta"),
        torch.ones(100).to_sparse(),
        torch.ones(200_000),
    ):
        damaged["model"]["module.sigmas"] = sigmas
        with pytest.raises(CheckpointError, match="are not noise levels"):
            from_score_sde(damaged, net, "ve")
    for levels in (0, 1, 10**9):
        with pytest.raises(ValueError, match="levels must be a number"):
            from_score_sde(checkpoint(), net, "vp", levels=levels)
    assert_untouched(net)


def test_weights_that_are_not_the_networks_are_refused():
    net = Exact(by_sigma)
    damaged = checkpoint()
    damaged["model"]["module.more"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"has 1 that the network has not, such as more"):
        from_score_sde(damaged, net)
    for value in (
        torch.ones(2),
        torch.ones(3, dtype=torch.int64),
        torch.tensor([1.0, torch.nan, 1.0]),
        torch.ones(3).to_sparse(),
    ):
        damaged = checkpoint()
        damaged["model"]["module.fourier"] = value
        with pytest.raises(CheckpointError, match="fourier"):
            from_score_sde(damaged, net)
    assert_untouched(net)


@needs_safe_torch
def test_a_bit_that_says_that_numbers_are_a_folder(tmp_path):
    """torch would return memory that nobody has written to; the numbers are there, and so they are
    read.
    """
    net = nn.Linear(1000, 1000)
    torch.save(
        {"weight": torch.full((1000, 1000), 3.0), "bias": torch.ones(1000)}, tmp_path / "a.pth"
    )
    content = bytearray((tmp_path / "a.pth").read_bytes())
    # DOS's attribute, in the directory of the archive.
    content[content.rindex(b"a/data/0") - 8] |= 0x10
    (tmp_path / "a.pth").write_bytes(content)
    from_score_sde(tmp_path / "a.pth", net)
    assert (net.weight == 3).all()


def test_pickles_are_not_read_by_a_torch_that_executes_some(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
    with pytest.raises(
        CheckpointError,
        match=r"torch 2\.9\.1 does not read crafted ones "
        r"safely.*pass what it holds",
    ):
        from_score_sde(tmp_path / "any.pth", Exact(by_sigma))
