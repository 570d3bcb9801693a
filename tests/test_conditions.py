"""Labels, contexts and images that networks receive: what unknown means, independence of samples,
derivatives, configuration and refusals.
"""

import json
import math
import re

import pytest
import torch
from test_nets import awake
from torch import nn

from sdekit_diffusion import nets
from sdekit_diffusion.nets import MLP, DiT, UNet
from sdekit_diffusion.nets._conditions import Conditions

CASES = {
    "mlp": (lambda: MLP((2,), 16, 1, classes=3, context=2), (2,)),
    "unet": (lambda: UNet(1, 8, classes=3, context=2, image=2), (1, 4, 4)),
    "unet of series": (
        lambda: UNet(2, 8, (1, 2), 1, (False, True), 0.0, 3, 2, 2, 1, circular=True),
        (2, 8),
    ),
    "unet of volumes": (
        lambda: UNet(1, 8, (1, 1), classes=3, context=2, image=2, dimensions=3),
        (1, 2, 4, 2),
    ),
    "dit": (lambda: DiT(1, (4, 6), 2, 8, 2, 2, classes=3, context=2, image=2), (1, 4, 6)),
}
NAN = math.nan


@pytest.fixture(params=CASES)
def case(request):
    """A network with all its conditions in float64, its inputs and the conditions of 5 samples, of
    which the third knows none.
    """
    build, shape = CASES[request.param]
    torch.manual_seed(0)
    net = awake(build()).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    context = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    context[2, 1] = NAN
    conditions = {"label": torch.tensor([0, 2, -1, 1, 0]), "context": context}
    if "image" in net.null:
        image = torch.randn(5, 2, *shape[1:], generator=generator, dtype=torch.float64)
        image[2].view(-1)[-1] = NAN
        conditions["image"] = image
    return net, x, torch.linspace(-5, 7, 5, dtype=torch.float64), conditions


def unknown(conditions):
    """The same with nothing known."""
    return {
        name: torch.full_like(value, -1 if name == "label" else NAN)
        for name, value in conditions.items()
    }


def test_unknown_for_all_samples_is_none(case):
    net, x, t, conditions = case
    out = net(x, t)
    assert torch.equal(net(x, t, **unknown(conditions)), out)
    assert torch.equal(net(x, t, label=None, context=None), out)
    assert torch.equal(net(x, t, **conditions)[2], out[2])


def test_every_condition_matters(case):
    """To the samples for which it changes, and to no others."""
    net, x, t, conditions = case
    out = net(x, t, **conditions)
    assert out.isfinite().all()
    for name, value in conditions.items():
        for other in (unknown(conditions)[name], value.roll(1, dims=0)):
            change = (net(x, t, **{**conditions, name: other}) - out).abs().flatten(1).amax(dim=1)
            assert (change > 1e-4).tolist() == [
                not (torch.equal(a, b) or (a.isnan().any() and b.isnan().any()))
                for a, b in zip(value, other, strict=True)
            ], name


def test_a_sample_does_not_depend_on_its_batch(case):
    net, x, t, conditions = case
    whole = net(x, t, **conditions)
    for i in range(5):
        alone = {name: value[i : i + 1] for name, value in conditions.items()}
        found = net(x[i : i + 1], t[i : i + 1], **alone)
        torch.testing.assert_close(found, whole[i : i + 1], rtol=0, atol=1e-12)
    empty = {name: value[:0] for name, value in conditions.items()}
    assert net(x[:0], t[:0], **empty).shape == x[:0].shape


def test_gradients_reach_what_is_learned_and_are_finite(case):
    """Of known and of unknown conditions; a NaN does not reach the weights."""
    net, x, t, conditions = case
    net(x, t, **conditions).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    learned = dict(net.conditions.named_parameters())
    assert all(parameter.grad.abs().sum() > 1e-6 for parameter in learned.values())
    assert (learned["labels.weight"].grad.abs().sum(dim=1) > 1e-6).all()
    net.zero_grad()
    net(x, t).square().sum().backward()
    rows = learned["labels.weight"].grad.abs().sum(dim=1) > 1e-6
    assert rows.tolist() == [True, False, False, False]
    assert learned["unknown_context"].grad.abs().sum() > 1e-6


def test_derivatives_by_contexts_and_images(case):
    """Numerically, and in forward mode; those of unknown ones are 0."""
    net, x, t, conditions = case
    real = {name: value for name, value in conditions.items() if name != "label"}

    def net_of(*values):
        return net(x, t, label=conditions["label"], **dict(zip(real, values, strict=True)))

    values = [value.clone().requires_grad_() for value in real.values()]
    tangents = [torch.linspace(-1, 1, v.numel()).double().view_as(v) for v in values]
    out, change = torch.func.jvp(net_of, tuple(values), tuple(tangents))
    gradients = torch.autograd.grad(net_of(*values), values, torch.ones_like(out))
    for gradient in gradients:
        assert not gradient[2].any()
        assert gradient[[0, 1, 3, 4]].any()
    products = [(a * b).sum() for a, b in zip(gradients, tangents, strict=True)]
    torch.testing.assert_close(change.sum(), sum(products))
    step = 1e-6
    moved = net_of(*(v + step * w for v, w in zip(values, tangents, strict=True)))
    torch.testing.assert_close((moved - out) / step, change, rtol=1e-3, atol=1e-4)


def test_second_derivatives(case):
    net, x, t, conditions = case

    def net_of(y):
        return net(y, t[1:3], **{name: value[1:3] for name, value in conditions.items()})

    y = x[1:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(net_of, (y,), fast_mode=True)
    assert torch.autograd.gradgradcheck(net_of, (y,), fast_mode=True)


def test_conditions_under_vmap(case):
    """Over samples, each with its conditions, and over probes of one batch."""
    net, x, t, conditions = case
    names = list(conditions)

    def one(x, t, *values):
        rows = {name: value[None] for name, value in zip(names, values, strict=True)}
        return net(x[None], t[None], **rows)[0]

    whole = net(x, t, **conditions)
    found = torch.func.vmap(one)(x, t, *conditions.values())
    torch.testing.assert_close(found, whole)
    probes = torch.stack([torch.ones_like(x), x])
    by_probe = torch.func.vmap(
        lambda v: torch.func.jvp(lambda y: net(y, t, **conditions), (x,), (v,))[1]
    )(probes)
    for probe, product in zip(probes, by_probe, strict=True):
        alone = torch.func.jvp(lambda y: net(y, t, **conditions), (x,), (probe,))[1]
        torch.testing.assert_close(product, alone)


def test_no_value_is_read_from_a_device(case):
    """Meta tensors have none: reading one raises."""
    net, x, t, conditions = case
    net = net.to("meta")
    given = {name: value.to("meta") for name, value in conditions.items()}
    assert net(x.to("meta"), t.to("meta"), **given).shape == x.shape


# One level, one without attention and one block, so that there is less to trace.
SHALLOW = {
    "unet": lambda: UNet(1, 8, (1,), 1, (True,), classes=3, context=2, image=2),
    "unet of series": lambda: UNet(2, 8, (1, 2), 1, (False, False), 0.0, 3, 2, 2, 1, circular=True),
    "dit": lambda: DiT(1, (4, 6), 2, 8, 1, 2, classes=3, context=2, image=2),
}


@pytest.mark.parametrize("name", ["mlp", "unet", "unet of series", "dit"])
def test_conditions_in_one_compiled_graph(name):
    """Traced by torch.compile without a break, and run without a compiler of machine code. A UNet
    has levels in the other case, and every class of network is run without conditions once.
    """
    build, shape = CASES[name]
    if name in SHALLOW:
        build = SHALLOW[name]
    torch.manual_seed(0)
    net = awake(build())
    x = torch.ones(2, *shape)
    t = torch.zeros(2)
    given = {"label": torch.tensor([-1, 2]), "context": torch.tensor([[0.5, 1.0], [NAN, 0.0]])}
    if "image" in net.null:
        given["image"] = torch.ones(2, 2, *shape[1:])
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, **given), net(x, t, **given))
    if name in ("mlp", "unet", "dit"):
        torch.testing.assert_close(compiled(x, t), net(x, t))
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conditions_of_another_dtype_than_the_weights(case, dtype):
    net, x, t, conditions = case
    exact = net(x, t, **conditions)
    found = net.to(dtype)(x.to(dtype), t, **conditions)
    assert found.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    assert (found.double() - exact).abs().max() < tolerance * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_integer_dtype(dtype):
    """Up to the largest number that the dtype holds: the row of label + 1 is beyond it."""
    net = awake(MLP((2,), 8, 1, classes=256))
    x = torch.ones(2, 2)
    t = torch.zeros(2)
    label = torch.tensor([3, min(torch.iinfo(dtype).max, 255)])
    assert torch.equal(net(x, t, label=label.to(dtype)), net(x, t, label=label))
    assert not torch.equal(net(x, t, label=label)[1], net(x, t)[1])


def test_what_the_null_values_are():
    every = {"label": -1, "context": NAN, "image": NAN}
    for build, size in ((MLP, 2), (UNet, 3), (DiT, 3)):
        assert build().null == {}
        for name, argument in (("label", "classes"), ("context", "context"), ("image", "image")):
            if size == 3 or name != "image":
                null = build(**{argument: 2}).null
                assert list(null) == [name]
                assert repr(null[name]) == repr(every[name])


def test_networks_built_without_conditions_are_as_before():
    """Names and shapes of parameters, the draws of their first weights and their config, which
    checkpoints and their runs have.
    """
    mlp = "embedding.layers.0 embedding.layers.2 first blocks.0.inner blocks.0.modulation "
    mlp += "blocks.0.outer last"
    block = "norm1 conv1 modulation norm2 conv2"
    unet = "embedding.layers.0 embedding.layers.2 first "
    unet += " ".join(f"down.0.blocks.0.{name}" for name in block.split())
    unet += " " + " ".join(f"up.0.blocks.0.{name}" for name in block.split()) + " norm last"
    for build, layers, config, draw in (
        (lambda: MLP((2,), 8, 1), mlp, {"shape": [2], "width": 8, "depth": 1}, MLP_DRAW),
        (
            lambda: UNet(1, 8, (1,), 1, (False,)),
            unet,
            {
                "channels": 1,
                "width": 8,
                "multipliers": [1],
                "blocks": 1,
                "attention": [False],
                "dropout": 0.0,
            },
            UNET_DRAW,
        ),
    ):
        torch.manual_seed(0)
        net = build()
        found = sum(parameter.double().abs().sum().item() for parameter in net.parameters())
        assert (found, float(torch.rand(()))) == pytest.approx(draw, rel=1e-5)
        names = [f"{layer}.{part}" for layer in layers.split() for part in ("weight", "bias")]
        assert list(net.state_dict()) == names
        assert net.config == config


# The sum of the magnitudes of all first weights, and what torch's generator draws next.
MLP_DRAW = (91.398914, 0.32954985)
UNET_DRAW = (261.79099, 0.15075397)


def test_conditions_leave_the_other_first_weights_as_they_are():
    for build in (MLP, UNet, DiT):
        torch.manual_seed(0)
        plain = build().state_dict()
        torch.manual_seed(0)
        found = build(classes=3, context=2).state_dict()
        assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_the_configuration_rebuilds_the_network(case):
    net, x, t, conditions = case
    config = json.loads(json.dumps(net.config))
    assert config["classes"] == 3
    assert config["context"] == 2
    assert ("image" in config) == ("image" in net.null)
    rebuilt = nets.registry[type(net).__name__](**config).double().eval()
    rebuilt.load_state_dict(net.state_dict())
    assert rebuilt.config == net.config
    assert torch.equal(rebuilt(x, t, **conditions), net(x, t, **conditions))


def test_labels_and_contexts_are_added_to_the_embedding_of_time():
    """A row of the table, the first where the label is unknown; two layers, or what is learned."""
    torch.manual_seed(0)
    conditions = awake(Conditions("net", 4, classes=3, context=2)).double()
    embedding = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    label = torch.tensor([2, -1, 0])
    context = torch.tensor([[0.5, -1.0], [2.0, 1.0], [NAN, 1.0]], dtype=torch.float64)
    first, _, second = conditions.contexts
    h = context @ first.weight.T + first.bias
    known = (h * torch.sigmoid(h)) @ second.weight.T + second.bias
    table = conditions.labels.weight
    wanted = torch.stack(
        [
            embedding[0] + table[3] + known[0],
            embedding[1] + table[0] + known[1],
            embedding[2] + table[1] + conditions.unknown_context,
        ]
    )
    torch.testing.assert_close(conditions(embedding, label, context), wanted)
    assert conditions.labels.weight.shape == (4, 4)
    assert not Conditions("net", 4, context=2).unknown_context.any()


def test_images_are_channels_of_the_input():
    """After those of x, the last one 1 where the image is known; all of them 0 where not."""
    conditions = Conditions("net", 4, image=2)
    x = torch.full((3, 1, 2, 2), 7.0)
    image = torch.arange(24.0).reshape(3, 2, 2, 2)
    image[1, 0, 1, 0] = NAN
    found = conditions.append_image(x, image)
    assert torch.equal(found[:, :1], x)
    assert torch.equal(found[[0, 2], 1:3], image[[0, 2]])
    assert torch.equal(found[[0, 2], 3], torch.ones(2, 2, 2))
    assert not found[1, 1:].any()
    assert torch.equal(conditions.append_image(x)[0], found[1])
    assert Conditions("net", 4, classes=2).append_image(x) is x


X = torch.zeros(3, 1, 4, 4)
T = torch.zeros(3)
NET = UNet(1, 4, classes=10, context=2, image=2)
PLAIN = UNet(1, 4)


@pytest.mark.parametrize(
    ("net", "given", "error", "message"),
    [
        (
            PLAIN,
            {"label": torch.zeros(3, dtype=torch.long)},
            ValueError,
            "label was given, but this UNet was built without: leave it out, or build "
            "UNet(classes=10), for example",
        ),
        (PLAIN, {"context": torch.zeros(3, 2)}, ValueError, "build UNet(context=4)"),
        (PLAIN, {"image": X}, ValueError, "build UNet(image=1)"),
        (
            NET,
            {"label": [1, 2, 3]},
            TypeError,
            "label must be a tensor of integers, not list; use torch.as_tensor(label)",
        ),
        (NET, {"label": 1}, TypeError, "not int"),
        (
            NET,
            {"context": 0.5},
            TypeError,
            "context must be a tensor of floating-point numbers, not float",
        ),
        (NET, {"image": [0.5]}, TypeError, "image must be a tensor of floating-point numbers"),
        (
            NET,
            {"label": torch.zeros(3)},
            TypeError,
            "label must hold integers, not torch.float32; use label.long()",
        ),
        (NET, {"label": torch.zeros(3, dtype=torch.bool)}, TypeError, "not torch.bool"),
        (
            NET,
            {"context": torch.zeros(3, 2, dtype=torch.long)},
            TypeError,
            "context must hold floating-point numbers, not torch.int64; use context.float()",
        ),
        (NET, {"image": X.to(torch.uint8)}, TypeError, "not torch.uint8; use image.float()"),
        (NET, {"image": X.to(torch.complex64)}, TypeError, "not torch.complex64"),
        (
            NET,
            {"label": torch.zeros(2, dtype=torch.long)},
            ValueError,
            "label has shape (2,), but this UNet needs (3,), one label per sample of x; reshape "
            "it, or repeat one for all samples with label.expand(3)",
        ),
        (
            NET,
            {"context": torch.zeros(2)},
            ValueError,
            "context has shape (2,), but this UNet needs (3, 2), one context per sample of x; "
            "reshape it, or repeat one for all samples with context.expand(3, 2)",
        ),
        (NET, {"context": torch.zeros(3, 1)}, ValueError, "needs (3, 2)"),
        (NET, {"image": torch.zeros(3, 2, 4, 5)}, ValueError, "needs (3, 2, 4, 4)"),
        (NET, {"image": torch.zeros(3, 1, 4, 4)}, ValueError, "needs (3, 2, 4, 4)"),
        (
            NET,
            {"label": torch.tensor([0, 10, 3])},
            ValueError,
            "label has values from 0 to 10, but the classes of this UNet are 0 to 9, and -1 where "
            "unknown; build UNet(classes=...) with one more than the largest label",
        ),
        (NET, {"label": torch.tensor([0, -2, 3])}, ValueError, "values from -2 to 3"),
        (MLP((1, 4, 4)), {"image": X}, TypeError, "image"),
    ],
)
def test_wrong_conditions_are_refused(net, given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        net(X, T, **given)


@pytest.mark.parametrize("net", [MLP((1, 4, 4), 4, 1, classes=2), NET, DiT(1, (4, 4), classes=2)])
def test_every_network_refuses_wrong_labels(net):
    with pytest.raises(ValueError, match=f"of this {type(net).__name__} are 0 to"):
        net(X, T, label=torch.tensor([0, 1, 10]))


@pytest.mark.parametrize("argument", ["classes", "context", "image"])
def test_negative_numbers_are_refused(argument):
    for build in (MLP, UNet, DiT) if argument != "image" else (UNet, DiT):
        message = f"{build.__name__} takes numbers of classes.*{argument}=-5"
        with pytest.raises(ValueError, match=message):
            build(**{argument: -5})


def test_a_network_learns_what_depends_on_conditions():
    """The mean of x that is c + label, where the label is known, and c + 1 / 2 where not."""
    torch.manual_seed(0)
    net = MLP((1,), 32, 1, classes=2, context=1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        label = torch.randint(0, 2, (128,), generator=generator)
        context = torch.rand(128, 1, generator=generator)
        target = context + label[:, None]
        given = torch.where(torch.rand(128, generator=generator) < 0.5, -1, label)
        out = net(torch.zeros(128, 1), torch.zeros(128), label=given, context=context)
        loss = nn.functional.mse_loss(out, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = net(
        torch.zeros(3, 1),
        torch.zeros(3),
        label=torch.tensor([0, 1, -1]),
        context=torch.full((3, 1), 0.25),
    )
    assert (found[:, 0] - torch.tensor([0.25, 1.25, 0.75])).abs().max() < 0.15
