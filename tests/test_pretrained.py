"""Networks of diffusers as models: the same chain, labels and outputs as their schedulers have."""

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sdekit_diffusion import (
    DDPM,
    VESDE,
    AdaptiveFlow,
    CheckpointError,
    Guided,
    Recipe,
    check_model,
    cosine_betas,
    data,
    fit,
    from_diffusers,
    linear_betas,
    log_likelihood,
    sample,
)


class Output:
    """What networks of diffusers return."""

    def __init__(self, value):
        self.sample = value


class Stub(nn.Module):
    """Remembers its labels; its output has more channels than its input where a variance is
    learned.
    """

    def __init__(self, size=4, extra=0):
        super().__init__()
        self.config = {"in_channels": 2, "sample_size": size}
        self.extra = extra

    def forward(self, x, t, class_labels=None):
        self.seen = t, class_labels
        return Output(torch.cat([0.1 * x, x.new_ones(len(x), self.extra, *x.shape[2:])], dim=1))


BETAS = {"num_train_timesteps": 50, "beta_start": 0.001, "beta_end": 0.1, "beta_schedule": "linear"}
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def test_labels_are_the_numbers_of_steps():
    """Step i, from 0, is at t = (i + 1) / N; between two steps fractions."""
    unet = Stub()
    model = from_diffusers(unet, BETAS)
    assert model.shape == (2, 4, 4)
    assert model.data_range == (-1.0, 1.0)
    for t, label in ((1 / 50, 0.0), (1.0, 49.0), (0.51, 24.5)):
        model.denoise(t, X)
        torch.testing.assert_close(unet.seen[0], torch.full((3,), label), rtol=0, atol=1e-5)
    model.given(class_labels=torch.arange(3)).denoise(0.5, X)
    assert unet.seen[1].tolist() == [0, 1, 2]


def test_a_class_that_stands_for_unknown():
    unet = Stub()
    model = from_diffusers(unet, BETAS, null={"class_labels": 9})
    model.unconditional().denoise(0.5, X)
    assert unet.seen[1].tolist() == [9, 9, 9]
    Guided(model.given(class_labels=torch.arange(3)), 2.0).denoise(0.5, X)
    assert unet.seen[1].tolist() == [0, 1, 2, 9, 9, 9]


@pytest.mark.parametrize(
    ("name", "predicts"), [("epsilon", "noise"), ("sample", "data"), ("v_prediction", "velocity")]
)
@pytest.mark.parametrize("extra", [0, 2])
def test_outputs(name, predicts, extra):
    model = from_diffusers(Stub(extra=extra), {**BETAS, "prediction_type": name})
    alpha, sigma = model.sde.kernel(0.4)
    out = 0.1 * X
    data = {"noise": (X - sigma * out) / alpha, "data": out, "velocity": alpha * X - sigma * out}[
        predicts
    ]
    torch.testing.assert_close(model.denoise(0.4, X), data)


def test_sizes():
    assert from_diffusers(Stub((6, 8)), BETAS).shape == (2, 6, 8)
    assert from_diffusers(Stub(None), BETAS, data_range=None).shape is None


def test_a_variance_exploding_network_is_told_sigma_and_gives_the_score():
    unet = Stub()
    model = from_diffusers(
        unet, {"sigma_min": 0.01, "sigma_max": 100.0, "snr": 0.15, "num_train_timesteps": 2000}
    )
    assert model.sde == VESDE(0.01, 100.0, exact=False)
    torch.testing.assert_close(model.score(0.5, X), 0.1 * X)
    torch.testing.assert_close(unet.seen[0], torch.ones(3))


def test_betas_may_be_given():
    betas = [0.01, 0.02, 0.05]
    assert from_diffusers(Stub(), {"trained_betas": betas}).sde == DDPM(betas)
    assert from_diffusers(
        Stub(), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 20}
    ).sde == DDPM(cosine_betas(20))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {**BETAS, "beta_schedule": "sigmoid"},
            "beta_schedule = 'sigmoid' is not one of linear.*trained_betas",
        ),
        ({}, "beta_schedule = None"),
        (
            {"beta_schedule": "linear"},
            r"beta_start must be a positive number .*, not None; "
            r"beta_start is 0.0001",
        ),
        ({**BETAS, "beta_end": "0.02"}, r"beta_end must be a positive number .*, not '0.02'"),
        ({"trained_betas": ["a"]}, "trained_betas must be numbers"),
        ({"num_train_timesteps": 1000, "shift": 3.0}, "flow matching have no betas"),
        ({**BETAS, "prediction_type": "flow_prediction"}, "flow matching have no betas"),
        (
            {**BETAS, "prediction_type": "eps"},
            "prediction_type = 'eps' is not one of epsilon.*did you mean 'epsilon'",
        ),
        ({**BETAS, "rescale_betas_zero_snr": True}, "ends at alpha = 0"),
        ({**BETAS, "timestep_type": "continuous"}, "continuous timesteps"),
        (
            {**BETAS, "snr_shift_scale": 3.0},
            r"snr_shift_scale = 3.0 changes .*'trained_betas': 1 -",
        ),
    ],
)
def test_what_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers(Stub(), config)


def test_betas_of_shifted_levels():
    """As the message says, for the levels of diffusers' CogVideoXDDIMScheduler."""
    config = {**BETAS, "snr_shift_scale": 1}
    products = torch.cumprod(1 - torch.tensor(from_diffusers(Stub(), config).sde.betas), dim=0)
    c = products / (3 + (1 - 3) * products)
    betas = 1 - c / torch.cat([c.new_ones(1), c[:-1]])
    sde = from_diffusers(Stub(), {**config, "trained_betas": betas}).sde
    for i in (0, 20, 49):
        assert float(sde.alpha((i + 1) / 50)) ** 2 == pytest.approx(float(c[i]), rel=1e-3)


def test_a_scheduler_is_not_its_config():
    for unet, config in (
        (Stub(), Stub()),
        (Stub(), "folder"),
        (Stub(), None),
        (torch.nn.Identity(), BETAS),
    ):
        with pytest.raises(
            TypeError,
            match=r"takes a folder, or a network with a config, .* and "
            r"scheduler\.config; not",
        ):
            from_diffusers(unet, config)


def test_folders_need_diffusers(tmp_path, monkeypatch):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(BETAS))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'sdekit\[diffusers\]'"):
        from_diffusers(tmp_path)


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


def unet_of(diffusers, channels=(16, 32), attention=True):
    torch.manual_seed(0)
    kind = "Attn" if attention else ""
    others = len(channels) - 1
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=channels,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * others + (f"{kind}DownBlock2D",),
        up_block_types=(f"{kind}UpBlock2D",) + ("UpBlock2D",) * others,
        mid_block_type="UNetMidBlock2D" if attention else None,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_chain_is_that_of_the_scheduler(diffusers, schedule):
    """alpha^2 after each of its steps, in its float32; and its network's output at each."""
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule=schedule)
    unet = unet_of(diffusers)
    model = from_diffusers(unet, scheduler.config)
    times = torch.arange(1, 101, dtype=torch.float64) / 100
    torch.testing.assert_close(
        model.sde.alpha(times).square().float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-9
    )
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 10, 50, 99])
    expected = unet(x, steps).sample
    torch.testing.assert_close(
        model.predict_noise(*model.sde.normalised(times[steps], x)), expected, rtol=1e-3, atol=1e-5
    )
    noisy = scheduler.add_noise(x, torch.ones_like(x), steps)
    mean, sigma = model.sde.marginal(times[steps], x)
    torch.testing.assert_close((mean + sigma).float(), noisy, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_networks_of_diffusers_in_half_precision(diffusers, dtype):
    """As its pipelines call them: with steps that are not rounded."""
    unet = unet_of(diffusers).to(dtype)
    model = from_diffusers(unet, {**BETAS, "num_train_timesteps": 1000}, data_std=0.5)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    steps = torch.tensor([541, 998])
    expected = unet(x, steps).sample
    found = model(x, steps)
    assert torch.equal(found, expected)
    assert not torch.equal(unet(x, torch.tensor([540, 1000])).sample, expected)
    assert sample(model, 2, steps=2, seed=0).isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_network_of_diffusers_trains_samples_and_has_a_likelihood(diffusers, monkeypatch):
    """On digits, for a few seconds: it comes to denoise, makes samples of their deviation, and
    tells them from noise.

    Read by another config it is found out. Eight images are checked as they are, not many times.
    """
    monkeypatch.setattr("sdekit_diffusion._models.check._MIN_COORDINATES", 512)
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    unet = unet_of(diffusers, (8,), attention=False)
    model = from_diffusers(unet, scheduler.config, data_std=0.7)
    x = data.load("digits").train.float() / 8 - 1
    fit(model, x, Recipe(steps=40, batch_size=16, warmup=10, lr=4e-3), progress=False)
    assert check_model(model, x[:8]).score < 0.9
    assert 0.5 < sample(model, 8, steps=10, seed=0).std() < 1.0
    noise = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = log_likelihood(
        model, torch.cat([x[:2], noise]), end=0.03, method=AdaptiveFlow(rtol=2e-2, atol=2e-2)
    )
    assert found.value[:2].min() - found.value[2:].max() > 10 * found.stderr.max()
    config = dict(scheduler.config)
    with pytest.raises(
        ValueError,
        match=r"With prediction_type = 'v_prediction' in the "
        r"scheduler's config it is",
    ):
        from_diffusers(unet, {**config, "prediction_type": "epsilon"}, check=x[:8])
    with pytest.raises(ValueError, match=r"With x moved from \[0, 1\] to \[-1, 1\] it is"):
        from_diffusers(unet, config, check=(x[:8] + 1) / 2)


class Texts(nn.Module):
    """Called as diffusers' `UNet2DConditionModel`: with a class, and embeddings `(B, L, D)` that it
    needs.
    """

    def __init__(self):
        super().__init__()
        self.config = {"in_channels": 1, "sample_size": 8}
        self.words = nn.Linear(6, 8 * 8)
        self.table = nn.Embedding(4, 1)

    def forward(self, x, t, encoder_hidden_states, class_labels):
        words = self.words(encoder_hidden_states).sin().mean(1).reshape(x.shape)
        shift = self.table(class_labels)[..., None, None]
        return Output(0.3 * x + words + shift + (t / 1000).to(x)[:, None, None, None])


def conditional_unet(diffusers):
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
        num_class_embeds=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


@pytest.fixture(params=["stand-in", "UNet2DConditionModel"])
def conditional(request):
    """A network of texts and classes, 3 of them known, with random weights."""
    torch.manual_seed(0)
    if request.param == "stand-in":
        return Texts()
    return conditional_unet(pytest.importorskip("diffusers"))


NO_TEXT = {"encoder_hidden_states": 0.0, "class_labels": 3}
TEXT = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
LABEL = torch.tensor([0, 2, 1])


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_conditional_network_of_diffusers(conditional):
    """Its samples have their texts and classes, and guidance compares with none of either."""
    settings = {"data_std": 0.5, "data_range": None}
    model = from_diffusers(conditional, BETAS, null=NO_TEXT, **settings)
    model.eval()
    given = model.given(encoder_hidden_states=TEXT, class_labels=LABEL)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    steps = t * 50 - 1
    with torch.no_grad():
        wanted = conditional(x, steps, encoder_hidden_states=TEXT, class_labels=LABEL).sample
        unknown = conditional(
            x,
            steps,
            encoder_hidden_states=torch.zeros(3, 5, 6),
            class_labels=torch.full((3,), 3),
        ).sample
    assert (wanted - unknown).abs().max() > 1e-3
    point = model.sde.normalised(t, x)
    close(given.predict_noise(*point), wanted)
    close(given.unconditional().predict_noise(*point), unknown)
    for together in (True, False):
        for scale in (0.0, 1.0, 2.5):
            guided = Guided(given, scale, together=together)
            close(guided.predict_noise(*point), unknown + scale * (wanted - unknown))
    empty = model.given(encoder_hidden_states=torch.zeros(3, 5, 6), class_labels=3)
    solves = [sample(Guided(given, 2.0, by=by), 3, steps=2, seed=0) for by in (None, empty)]
    close(*solves)
    one = model.given(encoder_hidden_states=TEXT[1:2], class_labels=2)
    close(sample(one, 1, steps=2, seed=0, first=1), sample(given, 3, steps=2, seed=0)[1:2])
    with pytest.raises(TypeError, match="encoder_hidden_states"):
        sample(from_diffusers(conditional, BETAS, **settings), 3, steps=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_texts_are_dropped_in_training(conditional):
    """Each with the class or without, and replaced by zeros."""
    model = from_diffusers(conditional, BETAS, null=NO_TEXT, data_std=0.5, data_range=None)
    seen = []
    conditional.register_forward_pre_hook(
        lambda net, args, named: seen.append(named), with_kwargs=True
    )
    n = 40
    texts = torch.randn(n, 5, 6, generator=torch.Generator().manual_seed(3))
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    conditions = {"encoder_hidden_states": texts, "class_labels": torch.arange(n) % 3}
    recipe = Recipe(steps=1, batch_size=n, drop={"encoder_hidden_states": 0.5, "class_labels": 0.2})
    before = [weight.clone() for weight in model.parameters()]
    fit(model, (x, conditions), recipe, progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    (named,) = seen
    kept = (named["encoder_hidden_states"] != 0).flatten(1).any(1)
    texts_seen = named["encoder_hidden_states"][kept].flatten(1)
    rows = (texts_seen[:, None] - texts.flatten(1)).abs().amax(2)
    assert rows.amin(1).max() == 0
    assert 8 < int(kept.sum()) < 32  # of 20, standard deviation 3.2
    classes = named["class_labels"]
    assert 0 < int((classes == 3).sum()) < 20  # of 8, standard deviation 2.5
    both = kept & (classes != 3)
    assert torch.equal(rows.argmin(1)[both[kept]] % 3, classes[both])


@pytest.fixture
def folder(diffusers, tmp_path):
    """A pipeline that save_pretrained wrote."""
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=100, prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"
    )
    diffusers.DDPMPipeline(unet_of(diffusers), scheduler).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def edited(path, **changes):
    """A JSON file with other entries; None takes one away."""
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@quiet
def test_a_folder_is_the_network_and_its_scheduler(diffusers, folder, tmp_path):
    """Of a pipeline, or of a network with the scheduler's config beside it: bit-identical to
    what save_pretrained was given.
    """
    unet = unet_of(diffusers)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    model = from_diffusers(folder)
    expected = from_diffusers(unet, config)
    assert not model.training
    assert not model.net.training
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.denoise(0.37, x), expected.eval().denoise(0.37, x))
    assert (model.sde, model.predicts, model.conditioning, model.shape) == (
        DDPM(cosine_betas(100)),
        "velocity",
        (100, -1),
        (1, 8, 8),
    )
    diffusers.DDPMScheduler(num_train_timesteps=50).save_pretrained(tmp_path / "flat")
    unet.save_pretrained(tmp_path / "flat")
    flat = from_diffusers(str(tmp_path / "flat"))
    assert flat.sde == DDPM(linear_betas(50))
    noise = flat.predict_noise(*flat.sde.normalised(1.0, x))
    assert torch.equal(noise, expected.net(x, torch.full((3,), 49.0)))
    assert from_diffusers(folder, BETAS).sde == from_diffusers(unet, BETAS).sde


@quiet
@pytest.mark.parametrize(("spacing", "n"), [("linspace", 100), ("trailing", 20)])
def test_the_scheduler_samples_alike(diffusers, folder, spacing, n):
    """DDIM with its own spacing of timesteps, x_0 at the end: `grid="time"` from step to step, and
    `denoise=True`.
    """
    model = from_diffusers(folder)
    last = 0 if spacing == "linspace" else 100 // n - 1
    options = {"timestep_spacing": spacing, "clip_sample": False, "set_alpha_to_one": True}
    scheduler = diffusers.DDIMScheduler.from_config(
        json.loads((folder / "scheduler/scheduler_config.json").read_text()), **options
    )
    scheduler.set_timesteps(n)
    x_T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = x_T
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model.net(x, t.expand(2)), t, x).prev_sample
    assert scheduler.timesteps[-1] == last
    model.record_scale(0.0, 1.0)
    end = math.exp(-float(model.sde.log_snr((last + 1) / 100)))
    ours = sample(model, x_T=x_T, method="ddim", grid="time", steps=n - 1, end=end, denoise=True)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4)


@quiet
def test_a_folder_of_variance_exploding(diffusers, tmp_path):
    """NCSN++ by diffusers' blocks: told sigma, it gives the score, and centres its images
    itself.
    """
    torch.manual_seed(0)
    settings = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {
        "block_out_channels": (8, 16),
        "down_block_types": ("SkipDownBlock2D",) * 2,
        "up_block_types": ("SkipUpBlock2D",) * 2,
    }
    unet = diffusers.UNet2DModel(
        **settings, **blocks, time_embedding_type="fourier", center_input_sample=True
    )
    unet.save_pretrained(tmp_path)
    diffusers.ScoreSdeVeScheduler(num_train_timesteps=20, sigma_max=9.0).save_pretrained(tmp_path)
    model = from_diffusers(tmp_path)
    assert (model.sde, model.data_range) == (VESDE(0.01, 9.0, exact=False), (0, 1))
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.3, 3.0])
    torch.testing.assert_close(
        model.score(model.sde.time(-sigma.log()), x),
        unet.eval()(x, sigma).sample,
        rtol=1e-4,
        atol=1e-4,
    )


@quiet
def test_a_folder_of_a_conditional_network(diffusers, tmp_path):
    torch.manual_seed(0)
    unet = conditional_unet(diffusers).eval()
    unet.save_pretrained(tmp_path)
    model = from_diffusers(tmp_path, BETAS, null=NO_TEXT, data_std=0.5, data_range=None)
    given = model.given(encoder_hidden_states=TEXT, class_labels=LABEL)
    wanted = from_diffusers(unet, BETAS, null=NO_TEXT, data_std=0.5, data_range=None)
    wanted_given = wanted.given(encoder_hidden_states=TEXT, class_labels=LABEL)
    samples = sample(Guided(given, 2.0), 3, steps=2, seed=0)
    assert torch.equal(samples, sample(Guided(wanted_given, 2.0), 3, steps=2, seed=0))
    deep = [1, [10**9, 1]]
    edited(tmp_path / "config.json", reverse_transformer_layers_per_block=deep)
    with pytest.raises(CheckpointError, match=": reverse_transformer_layers_per_block is"):
        from_diffusers(tmp_path, BETAS)
    edited(tmp_path / "config.json", transformer_layers_per_block=deep)
    with pytest.raises(CheckpointError, match=": transformer_layers_per_block is"):
        from_diffusers(tmp_path, BETAS)


@quiet
def test_a_network_that_centres_its_input_has_images_from_0_to_1(diffusers, folder):
    edited(folder / "unet" / "config.json", center_input_sample=True)
    assert from_diffusers(folder).data_range == (0, 1)
    assert from_diffusers(folder, data_range=None).data_range is None
    assert from_diffusers(folder, data_range=(-1, 1)).data_range == (-1, 1)


@quiet
def test_old_names_and_old_weights(diffusers, folder):
    """Attention's names before diffusers 0.17, pickled weights, and a config without a prediction
    type, which was epsilon.
    """
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in state.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = value.clone()
    assert set(renamed) != set(state)
    path.unlink()
    torch.save(renamed, path.with_suffix(".bin"))
    edited(folder / "scheduler" / "scheduler_config.json", prediction_type=None)
    if torch.__version__ < "2.10":
        with pytest.raises(CheckpointError, match=r"torch 2\.10"):
            from_diffusers(folder)
        return
    model = from_diffusers(folder)
    assert model.predicts == "noise"
    x = torch.ones(1, 1, 8, 8)
    assert torch.equal(model.net(x, torch.ones(1)), unet_of(diffusers)(x, torch.ones(1)).sample)
    edited(folder / "scheduler" / "scheduler_config.json", predict_epsilon=False)
    assert from_diffusers(folder).predicts == "data"


@quiet
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "unet/config.json",
            {"_class_name": "UNet1DModel"},
            "is of a 'UNet1DModel'; it must be of a UNet2DModel or UNet2DConditionModel",
        ),
        ("unet/config.json", {"norm_num_group": 4}, "has 'norm_num_group', which a UNet2DModel of"),
        (
            "unet/config.json",
            {"layers_per_block": 10**9},
            "layers_per_block is 1000000000, and the weights have",
        ),
        (
            "unet/config.json",
            {"layers_per_block": 2},
            "does not describe a UNet2DModel of these weights: its network has",
        ),
        ("unet/config.json", {"norm_num_groups": 5}, "does not describe a UNet2DModel"),
        ("unet/config.json", {"sample_size": "8"}, "sample_size = '8'"),
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "sigmoid"},
            "beta_schedule = 'sigmoid' is not one of",
        ),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 10**12},
            "num_train_timesteps must be",
        ),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "a pipeline with vqvae"),
    ],
)
def test_a_folder_that_is_not_understood_is_refused(folder, name, changes, message):
    edited(folder / name, **changes)
    with pytest.raises(ValueError, match=message):
        from_diffusers(folder)


@quiet
def test_a_folder_that_lacks_something_is_refused(folder):
    for name, message in (
        (
            "scheduler/scheduler_config.json",
            r"has no scheduler_config\.json.*pass "
            r"from_diffusers\(folder, scheduler\.config\)",
        ),
        (
            "unet/diffusion_pytorch_model.safetensors",
            r"has no diffusion_pytorch_model\.safetensors "
            r"or \.bin",
        ),
    ):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=message):
            from_diffusers(folder)
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a folder"):
        from_diffusers(folder / "nowhere")
