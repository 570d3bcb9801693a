"""Score networks: shapes, dtypes, derivatives, independence of samples, configuration and
refusals.
"""

import json
import math

import pytest
import torch
from torch import nn

from sdekit_diffusion import ScoreModel, nets
from sdekit_diffusion.nets import MLP, NCSN, DiT, NCSNv2, UNet
from sdekit_diffusion.nets._embedding import TimeEmbedding
from sdekit_diffusion.nets._unet_blocks import norm


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """Replaces the zeros that networks start from: with them every derivative would be zero, and
    every test pass.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            scale = 0.5 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.1
            parameter.add_(
                scale
                * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(
                    parameter.dtype
                )
            )
    return net.eval()


CASES = {
    "mlp": (lambda: MLP((2,), width=16, depth=2), (2,)),
    "mlp of scalars": (lambda: MLP((), width=16, depth=1), ()),
    "mlp of matrices": (lambda: MLP((3, 2), width=16, depth=1), (3, 2)),
    "mlp with a skip": (lambda: MLP((2,), width=16, depth=1, skip=True), (2,)),
    "mlp of scalars with a skip": (lambda: MLP((), width=16, depth=1, skip=True), ()),
    "unet": (lambda: UNet(1, width=8), (1, 8, 8)),
    "unet with a skip": (lambda: UNet(1, width=8, skip=True), (1, 8, 8)),
    "unet of colours": (
        lambda: UNet(3, width=8, multipliers=(1, 2, 2), blocks=2, attention=(True, False, True)),
        (3, 8, 12),
    ),
    "unet of one level": (
        lambda: UNet(1, width=6, multipliers=(1,), attention=(False,)),
        (1, 5, 3),
    ),
    "unet down to one pixel": (lambda: UNet(1, width=8), (1, 2, 2)),
    "unet of series": (lambda: UNet(2, width=8, dimensions=1), (2, 12)),
    "unet of volumes": (lambda: UNet(1, width=8, dimensions=3), (1, 4, 6, 2)),
    "unet of periodic space": (lambda: UNet(1, width=8, circular=True), (1, 8, 4)),
    "dit": (lambda: DiT(1, width=16, depth=2, heads=2), (1, 8, 8)),
    "dit with a skip": (lambda: DiT(1, width=16, depth=1, heads=2, skip=True), (1, 8, 8)),
    "dit of colours": (lambda: DiT(3, (6, 9), 3, width=12, depth=1, heads=3), (3, 6, 9)),
    "ncsnv2": (lambda: NCSNv2(1, width=8), (1, 8, 8)),
    "ncsnv2 of colours, of odd size": (
        lambda: NCSNv2(3, 4, (1, 2, 2, 4, 4), (1, 1, 1, 2, 4)),
        (3, 13, 10),
    ),
    "ncsnv2, centred": (lambda: NCSNv2(1, 4, (1, 2), (1, 2), centred=True), (1, 6, 6)),
    "ncsnv2 of one stage": (lambda: NCSNv2(1, 6, (1,), (1,)), (1, 5, 3)),
    "ncsn": (lambda: NCSN(1, width=8, levels=5), (1, 8, 8)),
}
# Another network is tested with its defaults, on images of 8 pixels where it has no shape of its
# own.
KNOWN = {type(build()) for build, _ in CASES.values()}
OTHERS = {
    name: (
        network,
        tuple(config["shape"])
        if "shape" in (config := network().config)
        else (config["channels"], 8, 8),
    )
    for name, network in nets.registry.items()
    if network not in KNOWN
}
CASES |= OTHERS


@pytest.fixture(params=CASES)
def case(request):
    build, shape = CASES[request.param]
    torch.manual_seed(0)
    return build(), shape


def inputs(shape, batch=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.linspace(-5.0, 7.0, batch, dtype=torch.float64).to(dtype)


def test_a_new_network_returns_zeros_of_the_shape_of_x(case):
    """And with a skip connection half of x."""
    net, shape = case
    x, t = inputs(shape)
    assert torch.equal(net(x, t), 0.5 * x if "skip" in net.config else torch.zeros_like(x))


@pytest.mark.parametrize("name", ["mlp", "unet", "dit"])
def test_a_gated_skip_connection(name):
    """(1 - g) x + sqrt(g) F, with the F of the same weights without it; and 1 - g is not rounded
    under autocast.
    """
    build, shape = CASES[f"{name} with a skip"]
    torch.manual_seed(0)
    net = awake(build()).double()
    nn.init.normal_(net.skip.gate.weight, std=2.0)
    plain = type(net)(**{**net.config, "skip": False}).double().eval()
    weights = {key: v for key, v in net.state_dict().items() if not key.startswith("skip.")}
    plain.load_state_dict(weights)
    assert "skip" not in plain.config
    x, t = inputs(shape, dtype=torch.float64)
    embedding = net.embedding(t)
    if name == "dit":
        embedding = nn.functional.silu(embedding)
    g = torch.sigmoid(net.skip.gate(embedding)).reshape(-1, *[1 for _ in shape])
    assert g.std() > 0.01
    wanted = (1 - g) * x + g.sqrt() * plain(x, t)
    assert torch.allclose(net(x, t), wanted, rtol=0, atol=1e-12)
    new = build()  # whose F is 0
    nn.init.constant_(new.skip.gate.bias, -6.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = new(x.float(), t.float())
    assert found.dtype == torch.float32
    assert torch.allclose(found, x.float() / (1 + math.exp(-6)), rtol=1e-6)


def test_a_closed_gate_has_finite_gradients():
    """g is 0 in float32, where the derivative of its square root is infinite."""
    net = awake(MLP((2,), width=16, skip=True))
    nn.init.constant_(net.skip.gate.bias, -200.0)
    x, t = inputs((2,))
    out = net(x, t)
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_dtype_agrees_with_float64(case, dtype):
    net, shape = case
    net = awake(net.to(dtype))
    x, t = inputs(shape, dtype=dtype)
    out = net(x, t)
    assert out.dtype == dtype
    assert out.shape == x.shape
    exact = net.double()(x.double(), t.double())
    assert exact.abs().max() > 0.05
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    assert (out.double() - exact).abs().max() < tolerance * exact.abs().max().clamp(min=1)


def test_times_may_be_more_precise_than_the_weights():
    net = awake(MLP(width=32)).to(torch.bfloat16)
    x = torch.zeros(1, 2, dtype=torch.bfloat16)
    fine = torch.tensor([5.0, 5.01])  # bfloat16 has nothing between 5 and 5.03125
    phases = [net.embedding(t[None]) for t in fine]
    assert not torch.equal(*phases)
    assert net(x, fine[:1]).dtype == torch.bfloat16
    assert torch.equal(net(x, torch.tensor([3])), net(x, torch.tensor([3.0])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_in_half_precision_passes_on_precise_times(case, dtype):
    net, shape = case
    net = awake(net.to(dtype))
    x, _ = inputs(shape)
    t = torch.linspace(-5.0, 7.0, len(x)) / 3
    out = ScoreModel(net, "vp", "velocity", conditioning="log_snr")(x, t)
    assert torch.equal(out, net(x.to(dtype), t).float())


@pytest.mark.parametrize(
    "times", [torch.linspace(0, 1, 101), torch.linspace(-6, 8, 281)], ids=["time", "log-snr"]
)
def test_a_network_can_follow_a_function_of_time(times):
    """Resolution of the embedding: least squares on its random features follows a bump a twentieth
    of the range wide.
    """
    torch.manual_seed(0)
    embedding = nets.MLP(width=256).embedding.double()
    features = torch.cat(
        [embedding(times.double()), torch.ones(len(times), 1).double()], dim=1
    ).detach()
    span = float(times.max() - times.min())
    bump = torch.exp(-0.5 * ((times.double() - times.double().mean()) / (0.05 * span)) ** 2)
    fit = features @ torch.linalg.lstsq(features, bump[:, None], driver="gelsd").solution
    assert (fit[:, 0] - bump).abs().max() < 0.02


def test_a_sample_does_not_depend_on_its_batch(case):
    net, shape = case
    net = awake(net).double()
    x, t = inputs(shape, batch=6, dtype=torch.float64)
    whole = net(x, t)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(net(x[order], t[order]), whole[order], rtol=0, atol=1e-12)
    assert torch.allclose(net(x[2:3], t[2:3]), whole[2:3], rtol=0, atol=1e-12)
    assert net(x[:0], t[:0]).shape == (0, *shape)


def test_output_depends_on_x_and_on_t(case):
    net, shape = case
    net = awake(net)
    x, t = inputs(shape)
    out = net(x, t)
    assert ((net(x, 0.5 - t) - out).abs().amax() > 1e-3) == (not isinstance(net, NCSNv2))
    assert (net(x + 0.5, t) - out).abs().amax() > 1e-3


def test_every_parameter_and_every_input_of_every_layer_is_used(case):
    net, shape = case
    net = awake(net)
    net(*inputs(shape)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        # A layer's inputs are dimension 1 of its weight: all of them must matter, the skips' too.
        by_input = parameter.grad.transpose(0, min(1, parameter.dim() - 1)).flatten(
            1 if parameter.dim() > 1 else 0
        )
        assert by_input.any(dim=-1).all(), name


@pytest.mark.parametrize("name", ["mlp", "unet", "ncsnv2", "ncsn", "dit", *OTHERS])
def test_second_derivatives(name):
    """Of a small NCSN: its many norms of few pixels would make numerical derivatives inaccurate."""
    build, shape = CASES[name]
    if name == "ncsn":
        build = lambda: NCSN(1, 4, (1, 2), (1, 2), levels=5)  # noqa: E731
        shape = (1, 4, 4)
    torch.manual_seed(0)
    net = awake(build()).double()
    x, t = inputs((1, 2, 4) if name in ("unet", "ncsnv2") else shape, batch=1, dtype=torch.float64)
    t = t if name != "ncsn" else t.mul(0).add(0.4)
    fast = {"fast_mode": name not in ("mlp", "unet")}
    assert torch.autograd.gradcheck(net, (x.requires_grad_(), t.requires_grad_()), **fast)
    assert torch.autograd.gradgradcheck(net, (x, t), **fast)


def test_the_gradient_of_a_divergence_reaches_the_weights(case):
    """As score matching needs it: a probe's divergence, then its derivative by the parameters."""
    net, shape = case
    net = awake(net)
    x, t = inputs(shape)
    x.requires_grad_()
    probe = torch.ones_like(x)
    (product,) = torch.autograd.grad(net(x, t), x, probe, create_graph=True)
    (product * probe).sum().backward()
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights)
    assert sum(float(weight.grad.abs().sum()) for weight in weights) > 0


def test_batched_backward_and_forward_derivatives_agree(case):
    """Several probes in one backward pass, and forward mode: two ways to the same product with the
    Jacobian.
    """
    net, shape = case
    net = awake(net).double()
    x, t = inputs(shape, batch=2, dtype=torch.float64)
    probes = torch.stack(
        [torch.ones_like(x), torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)]
    )
    x.requires_grad_()
    (batched,) = torch.autograd.grad(net(x, t), x, probes, is_grads_batched=True)
    single = [torch.autograd.grad(net(x, t), x, probe)[0] for probe in probes]
    assert torch.allclose(batched, torch.stack(single))
    tangent = torch.func.jvp(lambda y: net(y, t), (x.detach(),), (probes[1],))[1]
    assert torch.allclose((tangent * probes[0]).sum(), (single[0] * probes[1]).sum())


def test_the_configuration_rebuilds_the_network(case):
    net, shape = case
    net = awake(net)
    text = json.dumps({"name": type(net).__name__, **net.config})
    config = json.loads(text)
    rebuilt = nets.registry[config.pop("name")](**config).eval()
    rebuilt.load_state_dict(net.state_dict())
    x, t = inputs(shape)
    assert rebuilt.config == net.config
    assert torch.equal(rebuilt(x, t), net(x, t))


def test_weights_are_contiguous_as_safetensors_requires(case):
    assert all(tensor.is_contiguous() for tensor in case[0].state_dict().values())


def test_dropout_acts_while_training_only():
    torch.manual_seed(0)
    net = awake(UNet(width=8, dropout=0.5))
    x, t = inputs((1, 8, 8))
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


def test_the_default_unet_has_about_256_000_parameters():
    assert 250_000 < sum(parameter.numel() for parameter in UNet().parameters()) < 260_000


SIZES = {  # published: multipliers and dilations by size of the image
    32: ((1, 2, 2, 2), (1, 1, 2, 4)),
    96: ((1, 2, 2, 4, 4), (1, 1, 1, 2, 4)),
    256: ((1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4)),
}


def count(multipliers, dilations, levels, cascades, channels=3, width=128):
    """Parameters of a RefineNet, added up from the published list of layers: norms of levels or
    cascades rows.
    """

    def conv(inputs, outputs, size=3, bias=True):
        return inputs * outputs * size**2 + bias * outputs

    def units(f, blocks):
        return 2 * blocks * (conv(f, f, bias=False) + 3 * f * cascades)

    sizes = [width * m for m in multipliers]
    total = conv(channels, sizes[0]) + 3 * sizes[0] * levels + conv(sizes[0], channels)
    for i, f in enumerate(sizes):
        before = sizes[i - 1] if i else f
        total += (
            conv(before, before) + conv(before, f) + 2 * conv(f, f) + (6 * before + 6 * f) * levels
        )
        total += conv(before, f, 3 if dilations[i] > 1 else 1) if i else 0
        after = before if i < len(sizes) - 1 else f
        if i < len(sizes) - 1:  # the way up has passed one stage: its output has this stage's size
            total += units(f, 2) + 2 * (conv(f, after) + 3 * f * cascades)
        total += (
            units(f, 2)
            + 2 * (conv(after, after, bias=False) + 3 * after * cascades)
            + units(after, 1 if i else 3)
        )
    return total


@pytest.mark.parametrize("size", SIZES)
def test_refinenets_have_the_published_numbers_of_parameters(size):
    """29.7 million for NCSNv2 at 32 and 64 pixels, 83.4 at 96 and 128, 94.1 at 256; none depends on
    the size itself.
    """
    stages = SIZES[size]
    with torch.device("meta"):
        for net, rows in ((NCSNv2(3, 128, *stages), (1, 0)), (NCSN(3, 128, *stages), (10, 10))):
            assert sum(parameter.numel() for parameter in net.parameters()) == count(*stages, *rows)
    assert count(*stages, 1, 0) == {32: 29_694_083, 96: 83_445_379, 256: 94_132_611}[size]


@pytest.mark.parametrize(
    ("channels", "size", "stages"),
    [
        (1, 8, ((1, 2, 2), (1, 2, 4))),
        (3, 28, SIZES[32]),
        (1, 32, SIZES[32]),
        (3, 64, SIZES[32]),
        (3, 96, SIZES[96]),
        (1, 256, SIZES[256]),
    ],
)
def test_images_of_every_size(channels, size, stages):
    """Forwards and back; a stage with dilation 1 halves the image, the others keep it."""
    net = awake(NCSNv2(channels, 2, *stages))
    seen = []
    for block in net.down[::2]:
        block.register_forward_hook(lambda *call: seen.append(call[2].shape[-1]))
    x, t = inputs((channels, size, size), batch=1)
    out = net(x.requires_grad_(), t)
    out.square().sum().backward()
    assert out.shape == x.shape
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    halved = [i > 0 and dilation == 1 for i, dilation in enumerate(stages[1])]
    assert seen == [size // 2 ** sum(halved[: i + 1]) for i in range(len(halved))]
    assert torch.equal(net.train()(x, t), out)


def test_the_receptive_field_of_a_refinenet():
    """A window of 320 pixels, more than 64 on all sides, by its convolutions and pools alone: norms
    see the whole image.

    They are left out, and means stand for maxima, which would let one input of 25 through.
    """
    net = awake(NCSN(1, 2, *SIZES[32], levels=2)).double()
    for module in net.modules():
        if hasattr(module, "norm"):
            module.norm = None
    x, t = inputs((1, 400, 400), batch=1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(net(x.requires_grad_(), t)[0, 0, 200, 200], x)
    for dim in (0, 1):
        seen = (gradient[0, 0] != 0).any(dim=dim).nonzero().flatten() - 200
        assert (int(seen.min()), int(seen.max()), len(seen)) == (-159, 160, 320)


def test_instance_norm_plus_keeps_the_means_of_channels_apart():
    """Against its definition with numbers: gain (standardised x + pull standardised means) + shift.

    As in the authors' code the variance within a channel is divided by H W, that of the means by
    the channels less one.
    """
    net = NCSN(1, 4, (1,), (1,), levels=3).double()
    norm = net.last.norm
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (
        x * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
        + torch.tensor([5.0, 0.0, -1.0, 2.0])[:, None, None]
    )
    with torch.no_grad():
        norm.rows.copy_(torch.arange(36.0).reshape(3, 12))
    found = norm(x, net._weights(torch.tensor([0.5, 0.75]).double()))
    for sample, rows in zip(
        range(2), (norm.rows[1], (norm.rows[1] + norm.rows[2]) / 2), strict=True
    ):
        gain, pull, shift = rows.chunk(3)
        means = x[sample].mean(dim=(1, 2))
        apart = (means - means.mean()) / (means.var(correction=1) + 1e-5).sqrt()
        for c in range(4):
            own = (x[sample, c] - means[c]) / (x[sample, c].var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(
                found[sample, c], gain[c] * (own + pull[c] * apart[c]) + shift[c]
            )


def test_instance_norm_plus_of_one_channel_is_finite():
    """The unbiased variance of one mean is 0 / 0; there is nothing to keep apart."""
    norm = NCSN(1, 1, (1,), (1,), levels=2).double().last.norm
    x = torch.arange(12, dtype=torch.float64).reshape(1, 1, 3, 4)
    found = norm(x, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    gain, _, shift = norm.rows[0]
    torch.testing.assert_close(found, gain * (x - 5.5) / math.sqrt(143 / 12 + 1e-5) + shift)


def test_a_centred_network_computes_with_two_x_minus_one():
    """Of images in [0, 1]; not the same as other weights in the first convolution, which pads with
    zeros.
    """
    plain = awake(NCSNv2(1, 4, (1, 2), (1, 1)))
    centred = NCSNv2(1, 4, (1, 2), (1, 1), centred=True).eval()
    centred.load_state_dict(plain.state_dict())
    x, t = inputs((1, 8, 8))
    assert torch.equal(centred(x, t), plain(2 * x - 1, t))


def test_a_config_names_centred_where_it_is_so():
    """One without it is as older checkpoints have it: their runs go on only with an equal one."""
    config = {"channels": 1, "width": 4, "multipliers": [1, 2], "dilations": [1, 1]}
    for known in (config, {**config, "centred": True}):
        net = nets.registry["NCSNv2"](**known)
        assert net.config == known
        assert net.centred == ("centred" in known)


def test_an_ncsn_reads_the_rows_of_its_level():
    """At t = i / (L - 1) those of level i alone; in between a mixture, continuous; outside [0, 1]
    those of the end.
    """
    net = awake(NCSN(1, 4, (1, 2), (1, 1), levels=4)).double()
    x, _ = inputs((1, 4, 4), batch=4, dtype=torch.float64)
    levels = torch.arange(4, dtype=torch.float64) / 3
    out = net(x, levels)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("rows"):
                parameter[2] += 1
    changed = (net(x, levels) - out).abs().amax(dim=(1, 2, 3))
    assert (changed > 1e-3).tolist() == [False, False, True, False]
    near = net(x, torch.full((4,), 2 / 3 - 1e-6, dtype=torch.float64))
    assert (near[2] - net(x, levels)[2]).abs().max() < 1e-3
    assert torch.equal(net(x, levels + 2), net(x, torch.ones(4)))
    assert torch.equal(net(x, -levels), net(x, torch.zeros(4)))


@pytest.mark.parametrize("size", [28, 32])
def test_the_unet_of_ddpm(size):
    """Forwards and back at the sizes of MNIST and CIFAR-10, with attention at a quarter, in
    float32.
    """
    net = awake(UNet(3, width=8, multipliers=(1, 2, 2), attention=(False, False, True)))
    x, t = inputs((3, size, size), batch=2)
    net.train()(x, t).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("net", "x", "t", "message"),
    [
        (MLP(), torch.zeros(3, 4), torch.zeros(3), r"\(3, 4\).*samples of shape \(2,\)"),
        (MLP(()), torch.zeros(()), torch.zeros(()), r"samples of shape \(\)"),
        (MLP(), torch.zeros(3, 2), torch.zeros(()), r"one time per sample, shape \(3,\)"),
        (MLP(), torch.zeros(3, 2), torch.zeros(3, 1), r"t has shape \(3, 1\)"),
        (
            UNet(width=4),
            torch.zeros(2, 3, 8, 8),
            torch.zeros(2),
            r"\(2, 3, 8, 8\).*built for \(B, "
            r"1, H, W\)",
        ),
        (UNet(width=4), torch.zeros(2, 8, 8), torch.zeros(2), r"built for \(B, 1, H, W\)"),
        (UNet(width=4), torch.zeros(2, 1, 8, 7), torch.zeros(2), r"8 x 7.*multiples of 2"),
        (UNet(width=4), torch.zeros(2, 1, 0, 8), torch.zeros(2), r"0 x 8.*multiples of 2"),
        (
            UNet(1, 4, (1, 1, 1), 1, (False,) * 3),
            torch.zeros(2, 1, 6, 8),
            torch.zeros(2),
            r"6 x 8.*2 times.*multiples of 4",
        ),
        (
            UNet(width=4),
            torch.zeros(2, 1, 8, 8),
            torch.zeros(1),
            r"one time per sample, shape "
            r"\(2,\)",
        ),
        (
            NCSNv2(width=4),
            torch.zeros(2, 1, 8, 8),
            torch.zeros(2),
            r"this NCSNv2 was built for "
            r"\(B, 3, H, W\)",
        ),
        (
            NCSN(width=4),
            torch.zeros(2, 3, 0, 8),
            torch.zeros(2),
            r"this NCSN was built for \(B, 3, "
            r"H, W\)",
        ),
        (
            NCSN(width=4),
            torch.zeros(2, 3, 8, 8),
            torch.zeros(1),
            r"one time per sample, shape "
            r"\(2,\)",
        ),
    ],
)
def test_wrong_inputs_are_refused(net, x, t, message):
    with pytest.raises(ValueError, match=message):
        net(x, t)


@pytest.mark.parametrize(
    "build",
    [
        lambda: MLP((0,)),
        lambda: MLP(depth=0),
        lambda: UNet(width=0),
        lambda: UNet(multipliers=()),
        lambda: UNet(multipliers=(1, 0)),
        lambda: UNet(multipliers=(1, 2, 2)),
        lambda: NCSNv2(width=0),
        lambda: NCSNv2(multipliers=(1, 2)),
        lambda: NCSN(multipliers=(), dilations=()),
        lambda: NCSN(levels=0),
    ],
)
def test_wrong_sizes_are_refused(build):
    with pytest.raises(ValueError, match="positive sizes"):
        build()


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: MLP(2), "shape"),
        (lambda: MLP((2.0,)), "shape"),
        (lambda: MLP("2"), "shape"),
        (lambda: MLP(width=8.0), "width"),
        (lambda: MLP(classes=None), "classes"),
        (lambda: UNet((1, 8, 8)), "channels"),
        (lambda: UNet(multipliers=2), "multipliers"),
        (lambda: DiT((1, 8, 8)), "channels"),
        (lambda: DiT(size=8), "size"),
        (lambda: NCSNv2(width="8"), "width"),
        (lambda: NCSN(levels=True), "levels"),
        (lambda: NCSN(dilations=None), "dilations"),
    ],
)
def test_sizes_that_are_not_whole_numbers_are_refused_by_name(build, name):
    with pytest.raises(TypeError, match=f"{name} of .* is a (tuple of whole|whole) number"):
        build()


@pytest.mark.parametrize("network", [MLP, UNet, DiT])
def test_a_skip_is_true_or_false(network):
    with pytest.raises(TypeError, match="skip is True or False, not 'no'"):
        network(skip="no")


def test_the_features_of_a_time():
    """t, sin(2^k t) and cos(2^k t) for k from -3 to 5, before the two layers."""
    embedding = TimeEmbedding(4)
    embedding.layers = nn.Identity()
    t = torch.tensor([-5.0, 0.0, 0.3, 7.0], dtype=torch.float64)
    phases = [2.0**k * t for k in range(-3, 6)]
    wanted = torch.stack([t, *map(torch.sin, phases), *map(torch.cos, phases)], dim=1)
    torch.testing.assert_close(embedding(t), wanted.float())


def test_a_residual_block_of_the_unet():
    """x + conv2(SiLU((1 + scale) norm + shift)): the skip where conv2 is 0, SiLU(norm) where the
    time adds nothing.
    """
    net = awake(UNet(1, width=8))
    block = net.down[0].blocks[0]
    assert isinstance(block.skip, nn.Identity)
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    embedding = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        h = block.norm2(block.conv1(nn.functional.silu(block.norm1(x))))
        for parameter in block.modulation.parameters():
            parameter.zero_()
        torch.testing.assert_close(block(x, embedding), x + block.conv2(nn.functional.silu(h)))
        block.modulation.bias[:8] = 0.5
        block.modulation.bias[8:] = -2.0
        torch.testing.assert_close(
            block(x, embedding), x + block.conv2(nn.functional.silu(1.5 * h - 2))
        )
        for parameter in block.conv2.parameters():
            parameter.zero_()
        assert torch.equal(block(x, embedding), x)


def test_the_unet_is_its_levels():
    """Means of two by two pixels on the way down; each pixel four times, beside the skip, on the
    way up; norm, SiLU, last.
    """
    net = awake(UNet(1, width=8))
    x, t = inputs((1, 4, 6))
    embedding = net.embedding(t)
    skip = net.down[0](net.first(x), embedding)
    halved = skip.reshape(4, 8, 2, 2, 3, 2).mean(dim=(3, 5))
    low = net.up[1](net.down[1](halved, embedding), embedding)
    doubled = low.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    top = net.norm(net.up[0](torch.cat([doubled, skip], dim=1), embedding))
    torch.testing.assert_close(net(x, t), net.last(top * torch.sigmoid(top)))


def test_attention_of_the_unet():
    """x + W sum_j softmax_j(q_i . k_j / sqrt(C)) v_j, pixel by pixel."""
    attention = awake(UNet(1, width=8)).down[1].blocks[0].attention
    x = torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    q, k, v = attention.qkv(3 * attention.norm(x)).flatten(2)[0].chunk(3)
    mixed = torch.zeros(16, 6)
    for i in range(6):
        weights = torch.exp((q[:, i, None] * k).sum(dim=0) / 4)
        mixed[:, i] = (v * weights).sum(dim=1) / weights.sum()
    attention.norm.weight.data.mul_(3)
    attention.norm.bias.data.mul_(3)
    torch.testing.assert_close(attention(x), x + attention.out(mixed.reshape(1, 16, 2, 3)))


def test_groups_of_the_unets_norms_have_four_channels_or_more():
    groups = {channels: norm(channels).num_groups for channels in (1, 4, 6, 8, 12, 24, 32, 64, 100)}
    assert groups == {1: 1, 4: 1, 6: 1, 8: 2, 12: 3, 24: 6, 32: 8, 64: 8, 100: 4}


def test_the_mlp_is_its_blocks():
    """h + W2 silu((1 + scale) W1 silu(h) + shift) between the first and the last layer."""
    net = awake(MLP((2,), width=8, depth=2)).double()
    x, t = inputs((2,), dtype=torch.float64)
    embedding = net.embedding(t)
    h = net.first(x)
    for block in net.blocks:
        scale = block.modulation(embedding)[:, :8]
        shift = block.modulation(embedding)[:, 8:]
        h = h + block.outer(
            nn.functional.silu((1 + scale) * block.inner(h * torch.sigmoid(h)) + shift)
        )
    torch.testing.assert_close(net(x, t), net.last(h * torch.sigmoid(h)))


def test_chained_pooling_of_an_ncsn():
    """ELU; then twice norm, mean of five by five, convolution, added up."""
    net = awake(NCSN(1, 4, (1, 2), (1, 1), levels=3)).double()
    cascade = net.up[0]
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = net._weights(torch.tensor([0.2, 1.0], dtype=torch.float64))
    total = path = nn.functional.elu(cascade.units[0](x, weights))
    for layer in cascade.pooling:
        path = layer.conv(nn.functional.avg_pool2d(layer.norm(path, weights), 5, 1, 2))
        total = total + path
    torch.testing.assert_close(cascade([x], weights), cascade.last(total, weights))


def test_refinenets_halve_odd_images_upwards():
    """5 x 3 pixels become 3 x 2, so that the last row and column are seen on the way down too."""
    net = NCSNv2(1, 4, (1, 2), (1, 1))
    seen = []
    net.down[2].register_forward_hook(lambda *call: seen.append(tuple(call[2].shape[2:])))
    net(*inputs((1, 5, 3)))
    assert seen == [(3, 2)]


def test_norms_start_near_the_instance_norm_plus_of_ones():
    """Gains and pulls are N(1, 0.02^2), 3,840 of them, shifts 0; 12 % of the standard deviation are
    10 standard errors.
    """
    torch.manual_seed(0)
    rows = NCSN(1, 64, (1,), (1,), levels=30).last.norm.rows
    scales = rows[:, :128]
    shifts = rows[:, 128:]
    assert not shifts.any()
    assert scales.mean().item() == pytest.approx(1, abs=0.002)
    assert scales.std().item() == pytest.approx(0.02, rel=0.12)


def test_units_of_a_refinenet_are_residual():
    """With convolutions of 0 the units return their input."""
    net = NCSNv2(1, 4, (1, 2), (1, 1))
    units = net.up[0].units[0]
    with torch.no_grad():
        for parameter in units.parameters():
            parameter.zero_()
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(units(x, torch.ones(2, 1)), x)


@pytest.mark.parametrize(
    "net",
    [
        MLP((2,), width=8, classes=3),
        UNet(1, width=8),
        DiT(1, (4, 4), patch=2, width=16, depth=1, heads=2),
    ],
    ids=["mlp", "unet", "dit"],
)
def test_export_with_a_dynamic_number_of_samples(net):
    """Of the network and of its model, which `torch.export` would fix at the number of the example
    if it were read by len().
    """
    shape = getattr(net, "shape", (1, 4, 4))
    model = ScoreModel(net, "vp", "velocity", shape=shape, conditioning="log_snr").eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    example = torch.randn(4, *shape), torch.rand(4)
    x = torch.randn(7, *shape)
    t = torch.rand(7)
    for module in (net.eval(), model):
        exported = torch.export.export(module, example, dynamic_shapes=({0: batch}, {0: batch}))
        assert torch.allclose(exported.module()(x, t), module(x, t), atol=1e-6)
