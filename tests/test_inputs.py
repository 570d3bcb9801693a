"""What callers get wrong: lists, functions without t, devices that are not there, data with NaN.
Each is refused by name.
"""

import json
import math
import re
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch

import sdekit
import sdekit_diffusion as sd
from sdekit.calling import require_call

X = torch.linspace(-0.9, 0.9, 16).reshape(8, 2)
NO_T = "signature \\((x|y)\\), which does not fit"
RECIPE = sd.Recipe(steps=1, batch_size=4, warmup=0)

ENTRIES = {
    "sample": lambda model, x: sd.sample(model, x_T=x, steps=2),
    "log_likelihood": lambda model, x: sd.log_likelihood(model, x),
    "bits_per_dim": lambda model, x: sd.bits_per_dim(model, x, low=-1, high=1, levels=256),
    "encode": lambda model, x: sd.encode(model, x),
    "decode": lambda model, x: sd.decode(model, x),
    "decode with likelihood": lambda model, x: sd.decode(model, x, return_likelihood=True),
    "interpolate": lambda model, x: sd.interpolate(model, x, x, 3),
    "fit": lambda model, x: sd.fit(model, x, RECIPE, progress=False),
    "validation_loss": lambda model, x: sd.validation_loss(x, RECIPE)(model, 1),
    "dsm_loss": lambda model, x: sd.dsm_loss(model, x),
    "check_model": lambda model, x: sd.check_model(model, x),
    "variational_bound": lambda model, x: sd.variational_bound(model, x, sde="ddpm"),
    "denoise": lambda model, x: model.denoise(0.5, x),
    "score": lambda model, x: model.score(0.5, x),
}


class Timeless(torch.nn.Module):
    """A network that does not take t."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x)


class Equation:
    """torchsde's, one of whose methods does not take t."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, wrong):
        methods = {"f": lambda t, y: -y, "g": lambda t, y: y} | {wrong: lambda y: -y}
        self.f = methods["f"]
        self.g = methods["g"]


def solved(x, function=lambda t, x: -x, ts=(0.0, 1.0), noise=None):
    equation = sdekit.ODE(function) if noise is None else sdekit.SDE(function, noise)
    return sdekit.solve(equation, x, ts, solver=sdekit.EulerMaruyama())


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("x", [X.tolist(), X.numpy()], ids=["list", "array"])
def test_lists_and_arrays_are_no_tensors(entry, x):
    if entry == "fit":
        x = X.tolist()  # arrays are data
    model = sd.ScoreModel(sd.nets.MLP((2,), 8, 1), "vp", shape=(2,))
    with pytest.raises(
        TypeError, match=f"must be a .*tensor.*, not {type(x).__name__}; use torch.as_tensor"
    ):
        ENTRIES[entry](model, x)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_network_without_t_is_named(entry):
    model = sd.ScoreModel(Timeless(), "vp", shape=(2,))
    with pytest.raises(TypeError, match=f"called as net\\(x, t\\) has the {NO_T}"):
        ENTRIES[entry](model, X.clone())


def test_a_network_without_its_conditions_is_named():
    model = sd.ScoreModel(sd.nets.MLP((2,), 8, 1), "vp", shape=(2,))
    with pytest.raises(ValueError, match="takes no 'y'; its conditions are label, context"):
        model.given(y=torch.zeros(3))

    few = sd.ScoreModel(Few(), "vp", shape=(2,), data_std=1.0)
    with pytest.raises(TypeError, match=r"called as net\(x, t, y\) has the signature"):
        sd.sample(few.given(y=torch.zeros(3)), 3, steps=2)


class Few(torch.nn.Module):
    """Takes conditions, and no t."""

    def forward(self, x, **more):
        return x


def test_other_type_errors_pass():
    """The message of a failure within the function stays; so does that of a function without a
    signature.
    """

    def broken(x, t):
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        sd.sample(broken, 3, sde="vp", shape=(2,))
    require_call(math.hypot, "f(t, x)", 1, 2)
    require_call(dict.fromkeys, "f(t, x)", 1, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: solved(X, lambda x: -x),
        lambda: solved(X, noise=lambda x: x),
        lambda: sdekit.sdeint(Equation("f"), X, [0.0, 1.0], dt=0.5),
        lambda: sdekit.sdeint(Equation("g"), X, [0.0, 1.0], dt=0.5),
        lambda: sdekit.sdeint(Equation("f"), X, [0.0, 1.0], dt=0.5, adaptive=True),
        lambda: sdekit.odeint(lambda y: -y, X, [0.0, 1.0]),
        lambda: sdekit.odeint(lambda y: -y, X, [0.0, 1.0], method="rk4"),
        lambda: sdekit.odeint(lambda y: -y, X, [0.0, 1.0], method="explicit_adams"),
        lambda: sdekit.odeint_adjoint(Timeless(), X, [0.0, 1.0]),
        lambda: sdekit.odeint_adjoint(Timeless(), X, [0.0, 1.0], method="explicit_adams"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_equation_without_t_is_named(call):
    with pytest.raises(TypeError, match=f"called as .*\\(t, [xy]\\) has the {NO_T}"):
        call()


@pytest.mark.parametrize("solve", [solved, lambda x: sdekit.odeint(lambda t, y: -y, x, [0.0, 1.0])])
def test_lists_are_no_states(solve):
    for x in (X.tolist(), X.numpy()):
        with pytest.raises(TypeError, match=f"floating tensor .*, not {type(x).__name__}"):
            solve(x)


def test_lists_are_no_states_of_the_interop():
    with pytest.raises(ValueError, match=r"y0 must be a tensor of shape \(batch, d\), not list"):
        sdekit.sdeint(Equation("none"), X.tolist(), [0.0, 1.0])
    for method in ("explicit_adams", "dopri5"):
        for call in (sdekit.odeint, sdekit.odeint_adjoint):
            with pytest.raises(
                TypeError, match="y0 must be a floating tensor or a tuple of them, not list"
            ):
                call(Timeless(), X.tolist(), [0.0, 1.0], method=method)


@pytest.mark.parametrize(
    "ts", [None, "ab", ["a", "b"], torch.tensor([False, True]), torch.tensor([0.0, 1.0 + 0.5j])]
)
def test_times_are_numbers(ts):
    equation = Equation("none")
    for call in (
        lambda: solved(X, ts=ts),
        lambda: sdekit.odeint(lambda t, y: -y, X, ts),
        lambda: sdekit.odeint_adjoint(lambda t, y: -y, X, ts, adjoint_params=()),
        lambda: sdekit.sdeint(equation, X, ts, dt=0.5),
    ):
        with pytest.raises(TypeError, match="must be a tensor or a sequence of numbers, not"):
            call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(tmp_path):
    model = sd.ScoreModel(sd.nets.MLP((2,), 8, 1), "vp", shape=(2,))
    sd.save(model, tmp_path)
    for device in ("cuda", "cuda:1", torch.device("cuda"), "abacus"):
        for call in (
            lambda device=device: sd.sample(model, 2, device=device),
            lambda device=device: sd.load(tmp_path, device=device),
            lambda device=device: sd.VPSDE().prior((2, 2), device=device),
        ):
            with pytest.raises(
                ValueError, match=f"the device '{device}' cannot be used .*; cpu always can"
            ):
                call()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["tensor", "array", "rows"])
def test_data_that_are_not_finite_are_refused_when_they_are_read(kind, value):
    """Of a tensor at once, of other data in the batch that holds them: before an update by a loss
    that is not finite.
    """
    x = torch.zeros(40, 2)
    x[17, 1] = value
    x[30] = value
    data = {"tensor": x, "array": x.numpy(), "rows": Lazy(x)}[kind]
    model = sd.ScoreModel(sd.nets.MLP((2,), 8, 1), "vp", shape=(2,))
    with pytest.raises(ValueError, match=r"NaN or infinite values in rows \d+") as error:
        sd.fit(model, data, sd.Recipe(steps=10, batch_size=8, warmup=0), progress=False)
    assert int(re.search(r"rows (\d+)", str(error.value))[1]) % 40 in (17, 30)
    assert all(weight.isfinite().all() for weight in model.parameters())
    if kind == "tensor":
        with pytest.raises(ValueError, match="in rows 17, 30; remove"):
            sd.Training(model, data)
        with pytest.raises(ValueError, match="in rows 17, 30; remove"):
            sd.validation_loss(x)


class Lazy:
    """Rows that are read when they are asked for; those of the fingerprint are finite."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return 4000

    def __getitem__(self, rows):
        return self.x[rows % 40] if len(rows) < 1000 else torch.zeros(len(rows), 2)


@pytest.mark.parametrize(
    "mixture", [sd.GaussianMixture([1.0], [[0.0, 0.0]], [1.0]), sd.EmpiricalMixture(X, 0.1)]
)
def test_mixtures_refuse_lists(mixture):
    for run in (
        lambda: mixture.log_prob([[0.0, 1.0]]),
        lambda: mixture.score(0.5, [[0.0, 1.0]], "vp"),
        lambda: mixture.denoise(0.5, [[0.0, 1.0]], "vp"),
    ):
        with pytest.raises(TypeError, match=r"x must be a tensor.*not list; use torch.as_tensor"):
            run()


WIDTH = {"MLP": 8, "UNet": 8, "NCSN": 8, "NCSNv2": 8}  # of other networks the default


@pytest.mark.parametrize("name", sd.nets.registry)
def test_networks_say_how_they_are_called(name):
    settings = {"width": WIDTH[name]} if name in WIDTH else {}
    net = sd.nets.registry[name](**settings, **({"levels": 3} if name == "NCSN" else {}))
    x = torch.zeros(2, *net.config.get("shape", (net.config.get("channels", 1), 8, 8)))
    for given, what in (
        ((x,), "nothing"),
        ((x, 0.5), "float"),
        ((x.tolist(), torch.zeros(len(x))), "list"),
    ):
        with pytest.raises(
            TypeError,
            match=r"called as net\(x, t\) with tensors .* not with "
            rf".*{what}",
        ):
            net(*given)


def test_a_model_without_t():
    with pytest.raises(TypeError, match=r"a model is called as model\(x, t\).*t is missing"):
        sd.ScoreModel(lambda x, t: x, "vp")(X)


def test_a_device_that_is_not_there_in_one_sentence():
    if torch.backends.mps.is_available():
        pytest.skip("it is there")
    with pytest.raises(ValueError, match="'mps' cannot be used") as caught:
        sd.sample(sd.ScoreModel(lambda x, t: x, "vp", shape=(2,)), device="mps")
    assert len(str(caught.value)) < 200


def test_an_argument_that_a_network_still_needs():
    model = sd.ScoreModel(lambda x, t, y: x * y[:, None], "vp", shape=(2,), data_std=1.0)
    with pytest.raises(TypeError, match=r"the network also needs y: pass model.given\(y=...\)"):
        sd.sample(model, 2, steps=2)
    assert sd.sample(model.given(y=torch.ones(2)), 2, steps=2).shape == (2, 2)


def test_grids_of_points():
    sigmas = torch.linspace(1, 0.01, 40)
    with pytest.raises(
        ValueError,
        match=r"increase: log\(alpha / sigma\).*-torch.log\(sigmas\) "
        r"where alpha = 1",
    ):
        sd.Given(sigmas)
    assert len(sd.Given(-torch.log(sigmas)).l) == 40
    model = sd.ScoreModel(lambda x, t: x, "vp", shape=(2,))
    with pytest.raises(TypeError, match=r"grid must be a name, a grid or noise levels .* int"):
        sd.sample(model, 2, grid=20)
    with pytest.raises(ValueError, match=r"positive numbers that decrease.*not \[0.0, 1.0\]"):
        sd.sample(model, 2, grid=[0.0, 1.0])


def test_equations_read_the_order_of_their_functions_arguments():
    right = lambda t, x: -x  # noqa: E731
    wrong = lambda x, t: -x  # noqa: E731
    for make in (
        lambda: sdekit.ODE(wrong),
        lambda: sdekit.SDE(wrong, right),
        lambda: sdekit.SDE(right, wrong),
    ):
        with pytest.raises(
            TypeError, match=r"called as \(t, x\) here, and this one takes \(x, t\)"
        ):
            make()


def test_general_noise_needs_its_size():
    with pytest.raises(ValueError, match=r"noise_type='general' needs noise_size=m"):
        sdekit.SDE(lambda t, x: x, lambda t, x: x, noise_type="general")


def test_a_file_is_no_folder_to_save_to(tmp_path):
    file = tmp_path / "model.py"
    file.write_text("x = 1")
    with pytest.raises(NotADirectoryError, match="is a file: save writes a folder"):
        sd.save(sd.ScoreModel(sd.nets.MLP(width=8), "vp"), file)
    assert file.read_text() == "x = 1"


def test_a_dtype_given_as_a_name():
    with pytest.raises(TypeError, match=r"such as torch.float32, not 'float16'"):
        sd.sample(sd.ScoreModel(lambda x, t: x, "vp", shape=(2,)), dtype="float16")


@pytest.mark.parametrize("seed", [torch.tensor([5, 6, 7]), torch.tensor(5), 1.0, "1", [1], True])
def test_one_whole_number_is_a_seed(seed):
    """Seeds per sample changed some of the numbers of a call, and not all."""
    law = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    x = torch.zeros(3, 1)
    y = sd.LinearObservation(torch.eye(1), torch.zeros(1), 1.0)
    chain = sd.DDPM(sd.linear_betas(5))
    for name, call in (
        ("seed", lambda: sd.sample(law, 3, sde="vp", steps=2, seed=seed)),
        ("seed", lambda: sd.stepper(law, 3, sde="vp", steps=2, seed=seed)),
        ("seed", lambda: sd.trajectories(law, 3, sde="vp", seed=seed)),
        ("seed", lambda: sd.sample_posterior(law, y, 8, sde="vp", seed=seed)),
        ("first", lambda: sd.sample_between(law, seed, 1, sde="vp", steps=2)),
        ("last", lambda: sd.sample_between(law, 1, seed, sde="vp", steps=2)),
        ("seed", lambda: sd.WeightedSamples(x, x[:, 0]).resampled(2, seed=seed)),
        ("seed", lambda: sd.classify([law, law], x, sde="vp", seed=seed)),
        ("seed", lambda: sd.variational_bound(law, x, sde=chain, seed=seed)),
        (
            "seed",
            lambda: sd.bits_per_dim(law, x.long(), low=-1, high=1, levels=4, sde="vp", seed=seed),
        ),
    ):
        with pytest.raises(
            TypeError, match=rf"{name} is (one whole number for all s|the seed of one end, a w)"
        ):
            call()
    a = sd.sample(law, 3, sde="vp", steps=2, seed=np.int64(5))
    assert torch.equal(a, sd.sample(law, 3, sde="vp", steps=2, seed=5))


NAN = math.nan
NET = sd.nets.MLP(shape=(2,), width=4)
POINTS = sd.GaussianMixture([1.0], [[0.0]], [1.0])
WRONG_VALUES = {
    "means of different lengths": (
        lambda: sd.GaussianMixture([0.5, 0.5], [[0.0], [1.0, 2.0]], [0.1, 0.1]),
        ValueError,
        "means of a GaussianMixture are numbers, in a tensor or in lists of one length",
    ),
    "no conditioning": (lambda: model_of(conditioning=None), ValueError, "conditioning = None"),
    "conditioning NaN": (lambda: model_of(conditioning=(NAN, 1)), ValueError, "finite numbers"),
    "one conditioning": (lambda: model_of(conditioning=NAN), ValueError, "conditioning = nan"),
    "conditioning of texts": (lambda: model_of(conditioning=("1", "2")), ValueError, "pair"),
    "shape 2": (lambda: model_of(shape=2), TypeError, r"shape = 2 .* such as \(2,\)"),
    "half a number": (lambda: model_of(shape=(2.5,)), TypeError, "shape = .* whole numbers"),
    "no numbers": (lambda: model_of(shape=(0, 2)), ValueError, "positive sizes"),
    "huge shape": (lambda: model_of(shape=(2**20, 2**11)), ValueError, "fewer than 2147483648"),
    "half a range": (lambda: model_of(data_range=(0,)), ValueError, r"data_range = \(0,\)"),
    "a range of texts": (lambda: model_of(data_range=("a", "b")), ValueError, "data_range"),
    "a class of networks": (lambda: sd.ScoreModel(sd.nets.MLP, "vp"), TypeError, "the class MLP"),
    "no network": (lambda: sd.ScoreModel(None, "vp"), TypeError, "called as net.x, t., not None"),
    "a shape to sample": (
        lambda: sd.sample(lambda x, t: -x, 2, sde="vp", shape=2),
        TypeError,
        "shape = 2",
    ),
    "a shape of a mixture": (lambda: sd.sample(POINTS, 2, sde="vp", shape=1), TypeError, "shape"),
    "a shape of a model": (lambda: sd.sample(model_of(), 2, shape=2), TypeError, "shape = 2"),
    "a solver by name": (
        lambda: sd.AdaptiveFlow(solver="dopri5"),
        TypeError,
        r"Dopri5\(\), not 'd",
    ),
    "no error estimate": (
        lambda: sd.AdaptiveFlow(solver=sdekit.RK4()),
        ValueError,
        "RK4 has no err",
    ),
    "a class of solvers": (
        lambda: sd.AdaptiveSDE(solver=sdekit.ShARK),
        TypeError,
        r"ShARK\(\), not",
    ),
    "VP of a text": (lambda: sd.VPSDE("a"), TypeError, "beta_min of VPSDE .* not 'a'"),
    "VE of nothing": (lambda: sd.VESDE(0.1, None), TypeError, "sigma_max of VESDE .* not None"),
    "cosine of a text": (lambda: sd.CosineVPSDE("a"), TypeError, "s of CosineVPSDE"),
    "EDM of a text": (lambda: sd.EDMSDE("a"), TypeError, "sigma_max of EDMSDE"),
    "NCSN of a text": (lambda: sd.NCSN("a"), TypeError, "a sequence of numbers"),
    "half a level": (lambda: sd.data.Scale(levels=2.5), ValueError, "whole number of levels"),
    "a shift that is none": (lambda: sd.data.Scale(shift=NAN), ValueError, "finite shifts"),
    "settings": (lambda: sd.ncsn_settings("CIFAR10"), ValueError, "did you mean 'cifar10'"),
    "x_T": (
        lambda: sd.sample(POINTS, sde="vp", x_T=torch.tensor([[1.0], [NAN]])),
        ValueError,
        r"x_T is not finite in 1 of 2 samples \(rows 1\)",
    ),
}


def model_of(**options):
    return sd.ScoreModel(NET, "vp", **options)


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_values_are_refused_when_they_are_given(name):
    call, kind, said = WRONG_VALUES[name]
    with pytest.raises(kind, match=said):
        call()


def test_numbers_of_numpy_are_numbers():
    size = np.int64(2)
    made = sd.ScoreModel(NET, "vp", shape=(size,), conditioning=(np.float32(2), size))
    assert made.shape == (2,)
    assert made.conditioning == (2.0, 2.0)
    assert type(sd.data.Scale(levels=size).levels) is int
    numbers = {"lr": np.float32(0.5), "ema": np.float32(0.5), "widths": (np.float32(0.125),)}
    recipe = sd.Recipe(steps=np.int64(10), flip=np.True_, **numbers)
    plain = sd.Recipe(10, lr=0.5, ema=0.5, widths=(0.125,), flip=True)
    assert json.dumps(asdict(recipe)) == json.dumps(asdict(plain))
    assert sd.Recipe(ema=[np.float32(0.5), 0]).ema == (0.5, 0.0)


@pytest.mark.parametrize("pair", [torch.tensor([-1.0, 1.0]), np.array([-1.0, 1.0]), [-1, 1]])
def test_pairs_of_numbers_are_tensors_and_arrays_too(pair):
    made = sd.ScoreModel(NET, "vp", data_range=pair, conditioning=pair)
    assert made.data_range == made.conditioning == (-1.0, 1.0)
    assert sd.ScoreModel(NET, "vp", data_range=(X.min(), X.max())).data_range == (
        X.min().item(),
        X.max().item(),
    )
    assert sd.ScoreModel(NET, "vp", data_range=torch.aminmax(X)).data_range is not None
    for wrong in (
        "12",
        "ab",
        torch.ones(3),
        torch.ones(2, 2),
        torch.tensor(1.0),
        torch.ones(2) * 1j,
        (0.0, math.inf),
        (-math.inf, 1.0),
        (math.nan, 1.0),
    ):
        with pytest.raises(ValueError, match="is not a least and a largest value"):
            sd.ScoreModel(NET, "vp", data_range=wrong)


@pytest.mark.parametrize(
    "shape", [torch.Size([2]), torch.tensor([2]), np.array([2]), (torch.tensor(2),), [np.int64(2)]]
)
def test_shapes_are_tensors_and_arrays_too(shape):
    made = sd.ScoreModel(NET, "vp", shape=shape).shape
    assert made == (2,)
    assert type(made[0]) is int
    with pytest.raises(TypeError, match="is not the shape of one sample"):
        sd.ScoreModel(NET, "vp", shape=torch.tensor([2.0]))


@dataclass(frozen=True)
class Labelled(sd.VPSDE):
    label: str = "mine"


def test_parameters_of_diffusions_are_arrays_and_those_of_subclasses_anything():
    assert Labelled().kernel(0.5) == sd.VPSDE().kernel(0.5)
    with pytest.raises(TypeError, match=r"beta_max of Labelled is a number, such as 20.0, not 'a'"):
        Labelled(beta_max="a")
    x = sd.sample(POINTS, 2, sde=sd.VPSDE(np.array(0.1)), steps=2, seed=0)
    assert torch.equal(x, sd.sample(POINTS, 2, sde="vp", steps=2, seed=0))
    for wrong in (np.array([0.1]), np.array("a"), [0.1]):
        with pytest.raises(TypeError, match=r"beta_min of VPSDE is a number, such as 0.1, not"):
            sd.VPSDE(wrong)


LINE = sdekit.ODE(lambda t, x: -x)
RK4 = sdekit.RK4()
SOLVES = {
    "fixed": lambda x0: sdekit.solve(LINE, x0, [0.0, 1.0], solver=RK4),
    "one by one": lambda x0: list(sdekit.integrate(LINE, x0, [0.0, 1.0], solver=RK4)),
    "checkpointed": lambda x0: sdekit.solve(
        LINE, x0, [0.0, 1.0], solver=RK4, gradient=sdekit.Checkpointed()
    ),
    "adaptive": lambda x0: sdekit.solve(
        LINE, x0, [0.0, 1.0], solver=sdekit.Dopri5(), control=sdekit.PIDController()
    ),
}


@pytest.mark.parametrize("how", SOLVES)
def test_an_initial_state_that_is_not_finite_is_named(how):
    x0 = torch.tensor([[1.0], [NAN], [math.inf]])
    said = r"initial state x0 is not finite in 2 of 3 samples \(rows 1, 2\)"
    with pytest.raises(ArithmeticError, match=said):
        SOLVES[how](x0)
    for method in ("dopri5", "rk4"):
        with pytest.raises(ArithmeticError, match="initial state x0 is not finite"):
            sdekit.odeint(lambda t, y: -y, x0, [0.0, 1.0], method=method)
    with pytest.raises(ArithmeticError, match="the state is not finite after step 1"):
        sdekit.solve(sdekit.ODE(lambda t, x: x / 0), x0[:1], [0.0, 1.0], solver=sdekit.RK4())


class Swapped:
    """torchsde's, whose methods take the time last."""

    noise_type = "diagonal"
    sde_type = "ito"

    def f(self, y, t):
        return -y

    def g(self, y, t):
        return y


@pytest.mark.parametrize(
    "call",
    [
        lambda: sdekit.odeint(lambda y, t: -y, X, [0.0, 1.0]),
        lambda: sdekit.odeint(lambda y, t: -y, X, [0.0, 1.0], method="scipy_solver"),
        lambda: sdekit.odeint_adjoint(lambda y, t: -y, X, [0.0, 1.0], adjoint_params=()),
        lambda: sdekit.odeint(lambda t, y: -y, X, [0.0, 1.0], event_fn=lambda y, t: y.sum() + t),
        lambda: sdekit.sdeint(Swapped(), X, [0.0, 1.0], dt=0.1),
        lambda: sdekit.interop.from_torchsde(Swapped()),
    ],
)
def test_functions_of_other_libraries_take_the_time_first(call):
    with pytest.raises(TypeError, match=r"called as \(t, x\) here, and this one takes \(y, t\)"):
        call()


def test_the_drift_of_y_over_x_is_no_swap():
    """dy/dx = f(x, y)."""
    sdekit.odeint(lambda x, y: -y, X, [0.0, 1.0])


@pytest.mark.parametrize("shape", [(2, 2), (3,), (4, 2)])
def test_times_are_one_for_each_sample(shape):
    law = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    x = torch.zeros(4, 1)
    with pytest.raises(ValueError, match=f"t has shape {re.escape(str(shape))} for x of shape"):
        law.score(torch.full(shape, 0.5), x, "vp")
    assert law.score(torch.full((4, 1), 0.5), x, "vp").shape == x.shape


LAW = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2])


def sampled(**settings):
    return sd.sample(LAW, **{"n": 2, "sde": "vp", "steps": 2, "seed": 0, **settings})


def solved_ode(**settings):
    ode = sdekit.ODE(lambda t, x: -x)
    return sdekit.solve(ode, torch.ones(2, 1), [0.0, 1.0], solver=sdekit.RK4(), **settings)


def integrated(integrate=sdekit.sdeint, **settings):
    equation = sdekit.SDE(lambda t, x: -x, lambda t, x: 0.1 * x)
    return integrate(equation, torch.ones(2, 1), [0.0, 0.1], **{"dt": 0.1, **settings})


def decayed(integrate=sdekit.odeint, **settings):
    return integrate(lambda t, y: -y, torch.ones(2), [0.0, 1.0], **settings)


OF_ANOTHER_TYPE = {
    "steps": (lambda: sampled(steps=2.5), "steps must be a positive integer; not 2.5"),
    "steps as text": (lambda: sampled(steps="5"), "steps must be a positive integer; not '5'"),
    "steps of a method": (lambda: sampled(method=sd.DDIM(steps=2.5), steps=None), "steps of DDIM"),
    "true steps": (lambda: sampled(method=sd.DDIM(steps=True), steps=None), "steps of DDIM must"),
    "n of a fit": (lambda: sd.fit_sampler(LAW, 3, n=2.5), "n must be a positive"),
    "n of trajectories": (lambda: sd.trajectories(LAW, 2.5, sde="vp"), "n must be a positive"),
    "n between": (lambda: sd.sample_between(LAW, 0, 1, 2.5, sde="vp"), "n, the number of samples"),
    "seed between": (lambda: sd.sample_between(LAW, 0.5, 1, sde="vp"), "first is the seed of one"),
    "no seed between": (
        lambda: sd.sample_between(LAW, 0, None, sde="vp"),
        "last is the seed of on",
    ),
    "end": (lambda: sampled(end=True), "end is a number, .*not True"),
    "end as a tensor": (lambda: sampled(end=torch.tensor(True)), "end is a number"),
    "strength": (lambda: sd.Noised(X, strength=True), "strength of Noised is a number"),
    "added noise": (lambda: sd.Noised(X, level=1.0, add_noise="no"), "add_noise is True or False"),
    "eta": (lambda: sd.DDIM(eta=True), "eta of DDIM is a number"),
    "eta on the clock": (lambda: sd.OnClock(eta="1"), "eta must be a number from 0"),
    "denoise": (lambda: sampled(denoise="no"), "denoise is True or False, not 'no'"),
    "solution": (lambda: sampled(return_solution=1), "return_solution is True or False, not 1"),
    "progress": (lambda: sampled(progress=None), "progress is True or False"),
    "callback": (lambda: sampled(callback=3), "callback is a function of a Point, not 3"),
    "class of sde": (lambda: sampled(sde=sd.VPSDE), r"sde is an object, VPSDE\(...\), not the cla"),
    "sde": (lambda: sampled(sde=3), "sde is a name such as 'vp', or a diffusion .* not 3"),
    "exact": (lambda: sd.VESDE(exact="yes"), "exact is True or False"),
    "accuracy": (lambda: sd.trajectories(LAW, 2, sde="vp", accuracy="a"), "of AdaptiveFlow is a"),
    "betas": (lambda: sd.linear_betas(2.5), "n must be a whole number, not 2.5"),
    "cosine": (lambda: sd.cosine_betas("a"), "n must be a whole number, not 'a'"),
    "throw": (lambda: solved_ode(throw="no"), "throw is True or False"),
    "callback of solve": (
        lambda: solved_ode(callback=3),
        "callback is a function of a Point, not 3",
    ),
    "rtol": (lambda: sdekit.PIDController(1e-3, 1e-3, safety=True), "safety is a number, not True"),
    "located": (lambda: sdekit.Event(lambda t, x: x[:, 0], located=1), "located is True or False"),
    "dt": (lambda: integrated(dt="a"), "dt is a number, not 'a'"),
    "adaptive": (lambda: integrated(adaptive="yes"), "adaptive is True or False"),
    "adjoint": (
        lambda: integrated(sdekit.sdeint_adjoint, adjoint_adaptive=1, adjoint_params=()),
        "adjoint_adaptive is True or False",
    ),
    "bm": (lambda: integrated(bm=3), "bm is a Brownian motion of torchsde, .*not 3"),
    "probes": (lambda: sdekit.Hutchinson(2.5), "probes must be a whole number, not 2.5"),
    "seed of probes": (lambda: sdekit.Hutchinson(2, seed="a"), "seed must be a whole number"),
    "k": (lambda: sdekit.DPMSolver(2.0), "k of DPMSolver must be a whole number, not 2.0"),
    "k of single steps": (lambda: sdekit.DPMSolverSingle("2"), "k of DPMSolverSingle must be a"),
    "self-starting": (
        lambda: sdekit.AdamsMoulton(2, self_starting="no"),
        "self_starting is True or False",
    ),
    "together": (lambda: sd.Guided(LAW, 2.0, LAW, together="no"), "together is True or False"),
    "weights of a mixture": (
        lambda: sd.GaussianMixture("a", [[0.0]], [0.1]),
        "weights of a Gau.*not 'a'",
    ),
    "means of a mixture": (lambda: sd.GaussianMixture([1.0], None, [0.1]), "means of a Gau.*None"),
    "covariances of a mixture": (
        lambda: sd.GaussianMixture([1.0], [[0.0]], None),
        "covariances of a Gau.*None",
    ),
    "folder": (lambda: sd.load(None), "folder is the path of what save or fit wrote, not None"),
    "knots": (lambda: sdekit.BrownianPath(knots=3), r"knots are two or more times, .*not 3"),
    "knots of knots": (
        lambda: sdekit.BrownianPath(knots=[[0.0, 1.0], [2.0, 3.0]]),
        "knots are two or more",
    ),
    "texts as knots": (lambda: sdekit.BrownianPath(knots=["a", "b"]), "knots are two or more"),
    "knots as text": (lambda: sdekit.BrownianPath(knots="ab"), "knots are two or more times"),
    "rtol of odeint": (lambda: decayed(rtol="a"), "rtol is a number, or a tensor shaped like y0"),
    "options of odeint": (lambda: decayed(options=3), "options is a dictionary .*not 3"),
    "options of the adjoint": (
        lambda: decayed(sdekit.odeint_adjoint, adjoint_options=3, adjoint_params=()),
        "options is a dictionary",
    ),
    "options of sdeint": (lambda: integrated(options=3), "options is a dictionary .*not 3"),
    "data_std": (lambda: model_of(data_std="a"), "data_std is a number, not 'a'"),
    "n of a posterior": (
        lambda: sd.sample_posterior(LAW, lambda x: x.sum(-1), 2.5, sde="vp"),
        "n must be a whole number, not 2.5",
    ),
}


@pytest.mark.parametrize("name", OF_ANOTHER_TYPE)
def test_what_is_of_another_type_is_a_type_error(name):
    call, message = OF_ANOTHER_TYPE[name]
    with pytest.raises(TypeError, match=message):
        call()


def test_names_of_other_libraries_are_translated():
    for name, ours in (("sigmas", "grid"), ("num_inference_steps", "steps"), ("generator", "seed")):
        with pytest.raises(TypeError, match=f"argument '{name}'; did you mean '{ours}'"):
            sd.stepper(LAW, 2, sde="vp", **{name: 3})


def test_as_many_samples_as_observations_are_asked_for():
    with pytest.raises(ValueError, match=r"y has 8 entries for 1 samples.*; n=8 makes a sample of"):
        sd.sample(sd.Inpainted(LAW, X, torch.ones_like(X).bool()), sde="vp")
