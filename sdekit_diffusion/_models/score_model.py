"""`ScoreModel`: a denoiser from a network, for any prediction and conditioning."""

import copy
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from sdekit import computed
from sdekit.calling import (
    ChangedError,
    changed_in_place,
    checked_call,
    has_no_version_counter,
    require_order,
    warn_caller,
)
from sdekit.elementary import Time, axpy, broadcast, clip, reciprocal, scaled, sqrt
from sdekit_diffusion._arguments.checked import Checked
from sdekit_diffusion._arguments.immutable import is_immutable
from sdekit_diffusion._arguments.inputs import is_one_number, require_tensor, shape_given
from sdekit_diffusion._diffusions.diffusion import LARGEST, AbstractDiffusion
from sdekit_diffusion._diffusions.names import diffusion
from sdekit_diffusion._models.affine import Affine, NetworkCall
from sdekit_diffusion._models.condition_values import (
    Null,
    expanded,
    names_of,
    null_of,
    require_entries,
    require_name,
    require_no_array,
    require_no_infinity,
    unknown_like,
)
from sdekit_diffusion._models.conditioning import Conditioning, conditioning_of, pair
from sdekit_diffusion._models.model import (
    AbstractModel,
    noise_scale,
    require_gradient,
    signal_scale,
)
from sdekit_diffusion._models.network_errors import explain_failure, refuse_output
from sdekit_diffusion._models.prediction import DATA, NOISE, Prediction, prediction_of
from sdekit_diffusion._models.recorded import Recorded, Samplers
from sdekit_diffusion._models.wrapped import (
    has_parameters,
    modules_of,
    unwrapped,
    unwrapped_net,
)
from sdekit_diffusion.data import Scale
from sdekit_diffusion.nets._conditions import Conditions


def _require_network(net: object) -> None:
    """Refuses what is not a network: a model, or what cannot be called.

    Raises:
        TypeError: says what is.
    """
    if isinstance(unwrapped(net, AbstractModel), AbstractModel):
        raise TypeError(
            f"net is a {type(net).__name__}, a model with a diffusion of its own; pass it "
            "where a model is expected, or give its network: ScoreModel(model.net, ...)"
        )
    if not callable(net) or isinstance(net, type):
        given = f"the class {net.__name__}" if isinstance(net, type) else f"{net!r:.60}"
        raise TypeError(f"net is a function or a module, called as net(x, t), not {given}")


class ScoreModel(nn.Module, AbstractModel):
    """A denoiser from a network, with the diffusion that it is trained under and the meaning of its
    output.

    For x = alpha x_0 + sigma eps the output predicts one of

    - "noise": eps,
    - "data": x_0,
    - "score": -eps / sigma,
    - "velocity": alpha eps - sigma x_0,
    - "flow": eps - x_0, the velocity of flow matching,
    - "reverse_flow": x_0 - eps, the same with a time that runs from the noise at 0 to the data at
      1; use it under "flow" with conditioning=(-1, 1).

    Under another diffusion the network is evaluated at the same signal-to-noise ratio, at the point
    with the same x / alpha. A network that ignores t and predicts "noise" has the score
    -net(x) / sigma: where alpha = 1 this is, up to the sign, technique 3 of Song and Ermon (2020).

    Arguments:
        net: `net(x, t)`, shaped like x, t of shape `(batch,)`; a module or a plain function. x has
            the dtype of its first floating parameter, and t too, but at least float32.
        sde: the diffusion, or its name in `DIFFUSIONS`, such as "vp".
        predicts: the meaning of the output. The names of diffusers, "epsilon", "sample",
            "v_prediction" and "flow_prediction", stand for "noise", "data", "velocity" and "flow".
        shape: the shape of one sample.
        conditioning: the arguments of the network. "time" calls `net(x, t)`, "sigma"
            `net(x, sigma(t))`, and a pair (a, b) `net(x, a t + b)`: (N, -1) counts DDPM's N steps
            from 0, and (1 - L, L - 1) NCSN's L levels from the noisiest; between them a t + b is a
            fraction, so that a network with a table needs t.round().long(). "log_snr" calls
            `net(u, l)` with l = log(alpha / sigma) and u = x / sqrt(alpha^2 + sigma^2). Then the
            network does not depend on the diffusion, and its output is as above for
            u = a x_0 + b eps, a^2 + b^2 = 1. "standardised" is "log_snr" for data x_0 / s with
            s = data_std: it calls `net(x / sqrt(alpha^2 s^2 + sigma^2), log(alpha s / sigma))`, and
            the output is as above for x_0 / s. With "velocity" this is EDM's preconditioning,
            x_0 = c_skip x + c_out F(c_in x, .), up to the sign of F.
        data_mean, data_std: the mean of the data, a number or shaped like one sample, and the
            standard deviation of a coordinate, as a root mean square over the coordinates. Training
            records them; a data_std of None is estimated from the network when a solve begins. With
            conditions per sample it is that of the network without them, because no sample may
            depend on those of the others; a network that does not work without them is taken to
            have a quarter of the width of data_range, or 1, of which a warning is raised. Give both
            there.
        data_range: the smallest and the largest value that the data can have, such as (-1, 1); None
            for no bounds.
        scale: the conversion of the data from their own range and dtype to those of this model, and
            back: `model.scale.decode(x)`. The model only stores and saves it, and callers apply it;
            all other arguments are for data in the range of the model.
        null: for each condition that the network can be called without, a number that stands for an
            unknown value, such as `{"class_labels": 1000}`: training replaces dropped conditions by
            it, and guidance uses it for the reference. Networks of `sdekit_diffusion.nets` have
            their own.

    Raises:
        ValueError: for an unknown name, also in null, a data_std that is not positive, a data_mean
            that is not finite or of another shape, or a data_range that is not increasing; when
            called, for a network that returns another shape than that of x.
        TypeError: for a net that is a model itself, is not callable, or takes (t, x), a shape that
            is not one, a data_std that is not a number, or a null that does not have numbers.

    Example:
        >>> net = sd.nets.MLP(shape=(2,), width=16)
        >>> model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr")
        >>> model.denoise(0.5, torch.zeros(4, 2)).shape
        torch.Size([4, 2])
        >>> sd.sample(model, 4, steps=10, seed=0).shape
        torch.Size([4, 2])
    """

    sde: Checked[AbstractDiffusion | str, AbstractDiffusion] = Checked(diffusion)
    predicts: Checked[str, Prediction] = Checked(prediction_of)
    conditioning: Checked[Conditioning, Conditioning] = Checked(conditioning_of)
    plain = False  # whether net is a score function that was passed where a model is expected

    def __init__(
        self,
        net: Callable[[Tensor, Tensor], Tensor],
        sde: AbstractDiffusion | str,
        predicts: Prediction | str = "noise",
        *,
        shape: tuple[int, ...] | None = None,
        conditioning: Conditioning = "time",
        data_mean: Tensor | float = 0.0,
        data_std: float | None = None,
        data_range: tuple[float, float] | None = None,
        scale: Scale = Scale(),  # noqa: B008 - frozen
        null: Null | None = None,
    ) -> None:
        super().__init__()
        _require_network(net)
        self.predicts = predicts
        require_order(net, "x, t")
        self.net = net
        self._learned = has_parameters(net)
        self.conditioning = conditioning
        self.sde = sde  # pyright: ignore[reportIncompatibleVariableOverride]
        self.shape = None if shape is None else shape_given(shape)
        self._recorded = Recorded()
        self.record_scale(data_mean, data_std)
        self.data_range = None if data_range is None else _range(data_range)
        self.scale = scale
        self.given_null = null
        self.null = null_of(net, null)
        self.conditions: Mapping[str, Any] = {}

    @property
    def data_mean(self) -> Tensor | float:
        if isinstance(self._recorded.mean, Tensor):
            self._recorded.mean = self._recorded.mean.to(self.place()[1])
        return self._recorded.mean

    @data_mean.setter
    def data_mean(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
        mean: Tensor | float,
    ) -> None:
        self.record_scale(mean, self.data_std)

    @computed
    def learned(self) -> bool:
        return self._learned

    @computed
    def predicts_noise(self) -> bool:
        return self.predicts in ("noise", "score") and self.learned

    @property
    def data_std(self) -> float | None:
        return self._recorded.std

    @data_std.setter
    def data_std(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
        std: float | None,
    ) -> None:
        self.record_scale(self.data_mean, std)

    @property
    def scale(self) -> Scale:
        return self._recorded.scale

    @scale.setter
    def scale(self, scale: Scale) -> None:
        self._recorded.scale = scale

    @property
    def never_dropped(self) -> tuple[str, ...]:
        return self._recorded.never_dropped

    @never_dropped.setter
    def never_dropped(self, names: tuple[str, ...]) -> None:
        self._recorded.never_dropped = names

    @property
    def trained_levels(self) -> tuple[float, ...]:
        return self._recorded.trained_levels

    @trained_levels.setter
    def trained_levels(self, levels: tuple[float, ...]) -> None:
        self._recorded.trained_levels = levels

    @property
    def samplers(self) -> Samplers:
        """The rules and grids that `fit_sampler` has fitted to the network, by the scale of
        guidance and the number of steps.
        """
        return self._recorded.samplers or {}

    @samplers.setter
    def samplers(self, samplers: Samplers) -> None:
        self._recorded.samplers = dict(samplers)

    def _load_from_state_dict(
        self,
        state_dict: Any,  # noqa: ANN401
        prefix: Any,  # noqa: ANN401
        local_metadata: Any,  # noqa: ANN401
        strict: Any,  # noqa: ANN401
        missing_keys: Any,  # noqa: ANN401
        unexpected_keys: Any,  # noqa: ANN401
        error_msgs: Any,  # noqa: ANN401
    ) -> None:
        """That of `torch.nn.Module`, which `load_state_dict` calls, also that of a module around
        this one; removes `samplers`, which were fitted to other weights.
        """
        self.samplers = {}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def record_scale(self, mean: Tensor | float, std: float | None) -> None:
        """Sets `data_mean` and `data_std`, also those of copies that `given` has made.

        Raises:
            ValueError: for a standard deviation that is not positive, or a mean that is not finite
                or not shaped like one sample.
        """
        if std is not None and not is_one_number(std):
            raise TypeError(f"data_std is a number, not {std!r:.60}")
        std = None if std is None else float(std)
        if not 0 < (1.0 if std is None else std) < math.inf:
            raise ValueError(
                f"data_std = {std} is not a positive number; it is the standard deviation of a "
                "coordinate"
            )
        tensor = torch.as_tensor(mean).detach()
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"data_mean must be finite, not {mean!r:.60}")
        require_mean(tensor, self.shape)
        if tensor.ndim:
            dtype = torch.promote_types(tensor.dtype, torch.float32)
            self._recorded.mean = tensor.to(device=self.place()[1], dtype=dtype)
        else:
            self._recorded.mean = float(tensor)
        self._recorded.std = std

    def given(self, *observations: object, **conditions: Any) -> Self:  # noqa: ANN401
        """The same model with conditions, which its network receives as `net(x, t, **conditions)`.

        A tensor of one or more dimensions has one entry per sample, such as labels `(batch,)`; the
        network receives it, if floating, in the dtype of x. Everything else is for all samples: a
        number is repeated if the condition has a value in `null`, and lists, dicts and other
        objects are passed unchanged, also to each part of a batch. The result shares the network.

        Raises:
            TypeError: for a condition without a name, such as an observation y, or an array of
                numpy, which is not split into batches.
            ValueError: for a condition that is not in the signature of the network, or has infinite
                values.
        """
        if observations:
            raise TypeError(
                "a network is given conditions by name, such as label=labels; given an observation "
                "y it is sampled by sample_posterior(model, observation)"
            )
        for name in conditions.keys() - self.conditions.keys() - self.null.keys():
            require_name(name, self.net, self.null)
        for name, value in conditions.items():
            require_no_array(name, value)
            require_no_infinity(name, value, self.null)
        model = copy.copy(self)  # shares the network, until one of the two is given another
        model._modules = dict(self._modules)
        model.conditions = {**self.conditions, **conditions}
        return model

    def unconditional(self) -> Self:
        """The same model with an unknown value for each condition in `null`. Where the model was
        given a tensor with two or more dimensions, such as embeddings, the value fills one of its
        shape.

        A warning is raised if training never dropped one of them.

        Raises:
            ValueError: when the network has no values for unknown conditions.
        """
        if not self.null:
            raise ValueError(
                "this network is not known to work without its conditions: give the number that "
                "stands for an unknown one, as in ScoreModel(net, ..., null={'class_labels': "
                "1000}), or a network of sdekit_diffusion.nets, such as MLP(classes=10)"
            )
        self.warn_of_missing({})
        return self.without(self.null)

    def without(self, names: Iterable[str]) -> Self:
        """The same model with an unknown value for some of the conditions in `null`."""
        return self.given(**{name: self._unknown(name, self.null[name]) for name in names})

    def _unknown(self, name: str, null: float) -> float | Tensor | None:
        """The value that stands for an unknown condition, in the shape of the one given; None for
        networks of the library, and where the network has NaN for a condition of unknown shape.
        """
        value = self.conditions.get(name)
        left_out = value is None and math.isnan(null)
        left_out = left_out or isinstance(getattr(self.net, "conditions", None), Conditions)
        if left_out and self.given_null is None:
            return None
        if not isinstance(value, Tensor):
            return null
        if value.ndim >= 2:
            return unknown_like(value, null)
        return float(null) if value.is_floating_point() else null

    def warn_of_missing(self, given: Mapping[str, Any]) -> None:
        """Warns if conditions that training never dropped are not given."""
        if missing := [name for name in self.never_dropped if name not in given]:
            names = ", ".join(missing)
            warn_caller(
                f"this model was trained with drop = 0 for {names}: what it predicts without was "
                "never trained; train it with Recipe(drop=0.1), or do not ask it without",
            )

    def condition_names(self) -> tuple[str, ...] | None:
        """The names of the conditions that the network takes; None if its signature accepts any."""
        return names_of(self.net, self.null)

    def with_network(self, net: Callable[..., Tensor]) -> Self:
        """The same model around another network, such as a compiled one; of a subclass, with its
        methods.

        Raises:
            TypeError: when net is a model, or not callable.
        """
        _require_network(net)
        require_order(net, "x, t")
        model = copy.copy(self)
        model._modules = {name: module for name, module in self._modules.items() if name != "net"}
        model._recorded = replace(self._recorded)
        if unwrapped_net(net) is not unwrapped_net(self.net):
            model.samplers = {}
        model.net = net
        model._learned = has_parameters(net)
        return model

    def rows(self, index: Tensor) -> Self:
        entries = self.entries()
        if not entries:
            return self
        return self.given(
            **{name: value[index.to(value.device)] for name, value in entries.items()}
        )

    def entries(self) -> dict[str, Tensor]:
        return {
            name: value
            for name, value in self.conditions.items()
            if isinstance(value, Tensor) and value.ndim
        }

    def networks(self) -> list[nn.Module]:
        return [self] if isinstance(self.net, nn.Module) else [self, *modules_of(self.net)]

    def extra_repr(self) -> str:
        given = f", given {', '.join(self.conditions)}" if self.conditions else ""
        return (
            f"{self.sde}, predicts={self.predicts!r}, conditioning={self.conditioning!r}, "
            f"shape={self.shape}{given}"
        )

    def place(self) -> tuple[torch.dtype, torch.device]:
        parameter = self._parameter()
        return (
            (torch.get_default_dtype(), torch.device("cpu"))
            if parameter is None
            else (parameter.dtype, parameter.device)
        )

    def _parameter(self) -> Tensor | None:
        """The first floating parameter, whose dtype is that of the points."""
        if not self._modules and not self._parameters:  # found without an iterator
            return None
        return next(filter(torch.is_floating_point, self.parameters()), None)

    def forward(self, point: Tensor, label: Time | None = None) -> Tensor:
        """The output of the network, in the dtype of its input.

        Arguments:
            point: the first argument of the network, `(batch, *shape)`, as `conditioning` says.
            label: its second argument, a number or `(batch,)`.

        Raises:
            TypeError: when the signature of the network does not fit, when it does not return a
                tensor of real floating numbers, or when a plain score returns the output of a
                model.
            ValueError: when the output has another shape than the input, or a condition has another
                number of entries.
            RuntimeError: when the network changes its input in place.
        """
        require_tensor("x", point)
        if label is None:
            raise TypeError(
                "a model is called as model(x, t), t the label of its network; here t is missing"
            )
        for name, value in self.entries().items():
            require_entries(name, value, point.shape[0])
        parameter = self._parameter()
        dtype = point.dtype if parameter is None else parameter.dtype
        label_dtype = torch.promote_types(dtype, torch.float32)
        if not isinstance(label, Tensor):
            label = torch.full(point.shape[:1], label, dtype=label_dtype, device=point.device)
        label = label.to(device=point.device, dtype=label_dtype, non_blocking=True)
        out = self._call_network(self.net, None, point.to(dtype), label.expand(point.shape[0]))
        if self.plain and _OUTPUT.of is not None and _OUTPUT.of() is out:
            raise TypeError(
                "this score returns what model(x, t) returned, the output of a network, which is "
                "not a score: pass the model itself, or return model.score(t, x)"
            )
        out = out.to(point.dtype)
        if not torch.compiler.is_compiling():
            _OUTPUT.of = (
                None
                if self.predicts == "score" and self.conditioning == "time"
                else weakref.ref(out)
            )
        return out

    def _call_network(
        self,
        net: nn.Module | Callable[..., Tensor],
        dtype: torch.dtype | None,
        point: Tensor,
        label: Tensor,
    ) -> Tensor:
        """The output of the network in the dtype of the point, computed in `dtype`, or in that of
        the point if it is None; refused if it is not shaped like the point.

        Arguments:
            net: `self.net`, looked up once for all steps, since modules take long for it.
        """
        x = point if dtype is None or point.dtype is dtype else point.to(dtype)
        checked = self.conditions or x.requires_grad or has_no_version_counter(x)
        versions = 0 if checked else x._version + label._version
        network = (
            partial(checked_call, "the network", net, **self._arguments(x)) if checked else net
        )
        try:
            out = network(x, label)
        except ChangedError:
            raise
        except Exception as error:
            explain_failure(error, net, self._arguments(x), x, label)
            raise
        if not checked and x._version + label._version != versions:
            raise changed_in_place("the network")
        fits = isinstance(out, Tensor) and out.shape == x.shape
        # The second question is the slower one.
        if not fits or not (out.dtype is x.dtype or out.is_floating_point()):
            refuse_output(out, net, self._arguments(x), x, label)
        if checked and x.requires_grad and torch.is_grad_enabled():
            require_gradient(out.requires_grad)
        return out if out.dtype is point.dtype else out.to(point.dtype)

    def _arguments(self, point: Tensor) -> dict[str, Any]:
        """The conditions as the network receives them for these points."""
        trained = bool(self.conditions) and self._parameter() is not None
        dtype = point.dtype if trained else None  # to which the point is cast
        return expanded(self.conditions, self.null, point.shape[0], point.device, dtype)

    def network_call(self) -> NetworkCall | None:
        if _prediction_methods(type(self)) != _prediction_methods(ScoreModel):
            return None  # of a subclass, which may predict anything
        parameter = self._parameter()
        if self._forward_hooks or self._forward_pre_hooks:
            network = self
        elif self.plain:
            network = self.forward
        else:
            dtype = None if parameter is None else parameter.dtype
            network = partial(self._call_network, self.net, dtype)
        sde = self.sde
        key = (sde, self.predicts, self.conditioning, self._unit()) if is_immutable(sde) else None
        if parameter is None:
            return NetworkCall(network, None, None, key)
        label_dtype = torch.promote_types(parameter.dtype, torch.float32)
        return NetworkCall(network, label_dtype, parameter.device, key)

    def affine(self, l: Time, prediction: Literal["data", "noise"]) -> Affine:
        size, label, alpha, sigma = self._levels(l)
        if prediction == "data":
            skip, out = self._data(alpha, sigma)
        else:
            skip, out = NOISE[self.predicts](alpha, sigma)
        return Affine(label, size, skip * size, out)

    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        point, label, alpha, sigma = self._inputs(l, u)
        a, b = self._data(alpha, sigma)
        return _combine(a, point, b, self(point, label))

    def predict_noise(self, l: Time, u: Tensor) -> Tensor:
        point, label, alpha, sigma = self._inputs(l, u)
        a, b = NOISE[self.predicts](alpha, sigma)
        return _combine(a, point, b, self(point, label))

    def _data(self, alpha: Time, sigma: Time) -> tuple[Time, Time]:
        """a and b in x_0 = a point + b output."""
        a, b = DATA[self.predicts](alpha, sigma)
        unit = self._unit()
        return (a, b) if unit == 1 else (unit * a, unit * b)

    def _unit(self) -> float:
        """s of "standardised" conditioning, else 1."""
        return (self.data_std or 1.0) if self.conditioning == "standardised" else 1.0

    def _inputs(self, l: Time, u: Tensor) -> tuple[Tensor, Time, Time, Time]:
        """The arguments of the network, point and label, and alpha and sigma of the point."""
        size, label, alpha, sigma = self._levels(l)
        point = scaled(size, u) if isinstance(size, Tensor) or size != 1 else u
        return point, label, alpha, sigma

    def _levels(self, l: Time) -> tuple[Time, Time, Time, Time]:
        """The factor point / u, the label, and alpha and sigma of the point."""
        conditioning = self.conditioning
        if conditioning == "log_snr":
            l = clip(l, -LARGEST, LARGEST)
            return 1.0, l, signal_scale(l), noise_scale(l)
        if conditioning == "standardised":
            l = clip(l, -LARGEST, LARGEST)
            unit = self._unit()
            label = l + math.log(unit)
            return (
                reciprocal(sqrt((unit * signal_scale(l)) ** 2 + noise_scale(l) ** 2)),
                label,
                signal_scale(label),
                noise_scale(label),
            )
        sde = self.sde
        t = sde.time(l)
        alpha = sde.alpha(t)
        sigma = sde.sigma(t)
        size = 1.0 if sde.preserves_variance else sqrt(alpha * alpha + sigma * sigma)
        label = sigma if conditioning == "sigma" else t
        if isinstance(conditioning, tuple):
            label = conditioning[0] * t + conditioning[1]
        return size, label, alpha, sigma


# The methods by which a class predicts, to see whether a subclass has overridden one.
_prediction_methods = attrgetter("predict_data", "predict_noise", "forward")


class _Output(threading.local):
    """The last output of a network in this thread, unless it is a score."""

    of: weakref.ref[Tensor] | None = None


_OUTPUT = _Output()


def _range(given: object) -> tuple[float, float]:
    """The smallest and the largest value of data, as floats.

    Raises:
        ValueError: unless they are two increasing finite numbers.
    """
    bounds = pair(given)
    if bounds is None or not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise ValueError(
            f"data_range = {given!r} is not a least and a largest value, finite numbers such as "
            "(-1, 1)"
        )
    return bounds


def require_mean(mean: Tensor | float, shape: tuple[int, ...] | None) -> None:
    """Refuses a mean of the data that is neither a number nor shaped like one sample.

    Raises:
        ValueError: with both shapes.
    """
    given = getattr(mean, "shape", ())
    if given and shape is not None and tuple(given) != shape:
        raise ValueError(
            f"data_mean has shape {tuple(given)}, and a sample {shape}; give a number, or a tensor "
            "shaped like one sample"
        )


def _combine(a: Time, x: Tensor, b: Time, out: Tensor) -> Tensor:
    """a x + b out."""
    scaled = out * broadcast(b, out)
    if isinstance(a, Tensor):
        return torch.addcmul(scaled, broadcast(a, x), x)
    return axpy(a, x, scaled) if a else scaled
