"""Models: the mean of the data given noisy data, under any diffusion."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from sdekit.elementary import Time, broadcast, sigmoid, sqrt
from sdekit_diffusion._arguments.inputs import require_tensor
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._diffusions.names import diffusion
from sdekit_diffusion._models.affine import Affine, NetworkCall


def signal_scale(l: Time) -> Time:
    """a = e^l / sqrt(1 + e^{2 l}), the factor of x_0 in u = a x_0 + b eps at the log-SNR l.

    a^2 + b^2 = 1 and log(a / b) = l; b is `noise_scale`. l is a number or a tensor.

    Example:
        >>> round(sd.signal_scale(0.0) ** 2, 6)  # as much signal as noise
        0.5
    """
    return sqrt(sigmoid(2 * l))


def noise_scale(l: Time) -> Time:
    """b = 1 / sqrt(1 + e^{2 l}), the factor of eps in u = a x_0 + b eps, see `signal_scale`.

    Example:
        >>> round(sd.signal_scale(0.5) ** 2 + sd.noise_scale(0.5) ** 2, 6)
        1.0
    """
    return sqrt(sigmoid(-2 * l))


def require_gradient(has_gradient: bool) -> None:
    """Refuses a model whose output has no gradient, where one is needed: without an error it would
    be taken as 0.

    Raises:
        ValueError: with what to change.
    """
    if not has_gradient:
        raise ValueError(
            "the model's output does not depend on x in a way autograd can see: remove no_grad or "
            "detach, or give a model that is not constant"
        )


def solved_like(model: "AbstractModel") -> Tensor:
    """A number in the dtype in which samples of a model are solved, at least float32, and on its
    device.
    """
    dtype, device = model.place()
    return torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=device)


class _NoneInObjects:
    """An attribute that is None in objects and that their class does not have."""

    def __get__(self, instance: object | None, owner: type) -> None:
        if instance is None:
            raise AttributeError


def _none_in_objects() -> Any:  # noqa: ANN401 - stands for values of several types
    """The value None, but no default of a field where a dataclass declares the attribute."""
    return _NoneInObjects()


class AbstractModel(ABC):
    """A denoiser: the mean of the data given noisy data, D = E[x_0 | u] with u = a x_0 + b eps,
    a^2 + b^2 = 1.

    The noise level is the log-SNR l = log(a / b). The states x_t = alpha x_0 + sigma eps of every
    diffusion are u up to a factor, so that a model does not depend on the diffusion: samplers and
    likelihoods convert x_t to u.

    A subclass defines `predict_data`, and `predict_noise` if it predicts the noise more accurately
    than from the data. One that replaces `predict_data` of its base class alone has the noise of
    these data, by a division by b, which in float32 has few digits where the noise is small.

    Attributes:
        shape: the shape of one sample; None if it is not known.
        sde: the diffusion that the model was trained under; None if it has none.
        data_mean: the mean of the data, a number or shaped like one sample.
        data_std: the standard deviation of a coordinate of the data, as a root mean square over the
            coordinates; None if it is not known, then it is estimated when a solve begins. Solves
            use coordinates in which the data have mean 0 and standard deviation 1; neither value
            has to be exact.
        principal_std: the standard deviation of the data in the direction in which it is largest,
            the square root of the largest eigenvalue of their covariance; None if it is not known.
            With correlated coordinates it is larger than `data_std`. Noisy data are nearly normal
            only where the noise is several times as large.
        learned: whether the predictions are those of a network. Networks are less smooth than exact
            scores, and the default sampler has shorter rules and other grids for them. A subclass
            with a network sets it; for `ScoreModel` a network is a module with parameters.
        predicts_noise: whether this network predicts the noise or the score, so that its errors in
            the data grow with the noise; for such networks there are further rules and grids.
        stiffness: |w - 1| under guidance of scale w, and 0 without guidance; from 1 on the flow is
            stiff, and the default sampler uses shorter rules.
        starts_at_mean: whether draws from the prior are shifted to the mean that D has at the noisy
            end, by one more evaluation; for laws whose mean is not `data_mean`, such as that of
            data given an observation.
        jumps: the levels l at which predictions jump, such as the ends of an interval of guidance;
            adaptive steps end there.

    Example:
        >>> from sdekit.elementary import scaled
        >>> class StandardNormal(sd.AbstractModel):
        ...     shape, sde, data_std = (2,), None, 1.0
        ...     def predict_data(self, l, u):
        ...         return scaled(sd.signal_scale(l), u)
        ...     def place(self):
        ...         return torch.float32, torch.device("cpu")
        >>> sd.sample(StandardNormal(), 4, sde="vp", seed=0).shape
        torch.Size([4, 2])
    """

    shape: tuple[int, ...] | None = _none_in_objects()
    sde: AbstractDiffusion | None = _none_in_objects()
    data_std: float | None = _none_in_objects()
    data_mean: Tensor | float = 0.0
    principal_std: float | None = None
    learned: bool = False
    predicts_noise: bool = False
    stiffness: float = 0.0
    starts_at_mean: bool = False
    jumps: tuple[float, ...] = ()

    def __init_subclass__(cls, **settings: Any) -> None:  # noqa: ANN401 - of other base classes
        """Has the predictions of a subclass checked. One whose `predict_data` replaces that of a
        base class gets the noise of these data, unless it replaces `predict_noise` too: that of the
        base class is the noise of other data.
        """
        super().__init_subclass__(**settings)
        for name in ("predict_data", "predict_noise"):
            if isinstance(own := vars(cls).get(name), FunctionType):
                setattr(cls, name, _like_states(own))
        data, noise = (
            next(base for base in cls.__mro__ if name in vars(base))
            for name in ("predict_data", "predict_noise")
        )
        replaced = cls.__mro__.index(data) < cls.__mro__.index(noise)
        if replaced and issubclass(noise, AbstractModel):
            cls.predict_noise = AbstractModel.predict_noise

    @abstractmethod
    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        """D(l, u) = E[x_0 | u], shaped like u.

        Arguments:
            l: log(a / b), a float or `(batch,)`; -infinity is pure noise, infinity is the data.
            u: states a x_0 + b eps, `(batch, *shape)`.

        Raises:
            TypeError: when a subclass returns what is not a floating-point tensor.
            ValueError: when it is not shaped like u.
        """

    def predict_noise(self, l: Time, u: Tensor) -> Tensor:
        """eps(l, u) = E[eps | u] = (u - a D) / b, shaped like u; b > 0."""
        b = noise_scale(l)
        return u * broadcast(1 / b, u) - self.predict_data(l, u) * broadcast(signal_scale(l) / b, u)

    def network_call(self) -> NetworkCall | None:
        """How the network is called, if predictions are affine functions of the output of one
        network; else None.
        """
        return None

    def affine(self, l: Time, prediction: Literal["data", "noise"]) -> Affine:
        """A prediction at levels l of any shape, float64, as an affine function of the network's
        output, for models with a `network_call`.

        The coefficients are computed once for a whole solve, or for the stages of an adaptive step.

        Raises:
            NotImplementedError: for other models.
        """
        raise NotImplementedError

    def denoise(self, t: Time, x: Tensor, sde: AbstractDiffusion | str | None = None) -> Tensor:
        """D(x, t) = E[x_0 | x_t = x], shaped like x, at time t of a diffusion.

        Arguments:
            t: a float or `(batch,)`, or `(batch, 1, ...)`, which functions in `sdekit.solve`
                receive with adaptive steps.
            x: `(batch, *shape)`.
            sde: the diffusion, an object or a name; by default that of the model.

        Raises:
            ValueError: when t is outside the diffusion's range or has another shape, or without a
                diffusion.
        """
        require_tensor("x", x)
        return self.predict_data(*self.under(sde).normalised(times_of(t, x), x))

    def score(self, t: Time, x: Tensor, sde: AbstractDiffusion | str | None = None) -> Tensor:
        """grad log p_t(x) = -eps / sigma, shaped like x; arguments are those of `denoise`.

        Raises:
            ValueError: as `denoise`, and where sigma = 0.
        """
        require_tensor("x", x)
        kernel = self.under(sde)
        t = kernel.checked(times_of(t, x))
        sigma = kernel.sigma(t)
        if bool((sigma == 0).any()) if isinstance(sigma, Tensor) else sigma == 0:
            raise ValueError(
                "the score is not known where sigma = 0: ask for it at a later t, such as 1e-3"
            )
        return self.predict_noise(*kernel.normalised(t, x)) * broadcast(-1 / sigma, x)

    def under(self, sde: AbstractDiffusion | str | None) -> AbstractDiffusion:
        """The given diffusion, an object or a name; by default that of the model.

        Raises:
            ValueError: when there is neither, or for an unknown name.
        """
        if sde is None and self.sde is None:
            raise ValueError(
                f"{type(self).__name__} has no diffusion of its own: pass sde=VPSDE(), for example"
            )
        selected = self.sde if sde is None else sde
        assert selected is not None
        return diffusion(selected)

    def rows(self, index: Tensor) -> Self:
        """The model for the samples of an index; itself if it has no values per sample."""
        return self

    def entries(self) -> dict[str, Tensor]:
        """The tensors with one entry per sample, such as labels, by name."""
        return {}

    def diffusions(self) -> list[AbstractDiffusion]:
        """The diffusions whose ranges of noise levels all its parts were trained for, of which a
        solve uses what they share.
        """
        return [] if self.sde is None else [self.sde]

    def made_from(self) -> list["AbstractModel"]:
        """This model, and all models that it is made from."""
        return [self]

    def networks(self) -> list[nn.Module]:
        """The modules that are put into evaluation mode."""
        return []

    def place(self) -> tuple[torch.dtype, torch.device]:
        """The dtype and the device of its parameters; without parameters torch's default dtype, on
        the CPU.
        """
        return torch.get_default_dtype(), torch.device("cpu")


def _like_states(predict: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`predict`, a method of a model, that refuses predictions that are not shaped like the states,
    with which they would be broadcast.
    """

    @wraps(predict)
    def refusing(self: AbstractModel, l: Time, u: Tensor, *more: object, **named: object) -> Tensor:
        prediction = predict(self, l, u, *more, **named)
        if not isinstance(prediction, Tensor) or not prediction.is_floating_point():
            found = prediction.dtype if isinstance(prediction, Tensor) else f"{prediction!r:.60}"
            raise TypeError(
                f"{type(self).__name__} predicts {found}; it must return a floating-point tensor "
                f"shaped like its states, {tuple(u.shape)}"
            )
        if prediction.shape != u.shape:
            raise ValueError(
                f"{type(self).__name__} predicts {tuple(prediction.shape)} for states of "
                f"{tuple(u.shape)}; it must return their shape"
            )
        return prediction

    return refusing


def times_of(t: Time, x: Tensor) -> Time:
    """A time for all samples of x, or one for each of them, `(batch,)`, from one of more dimensions
    too; in float64, since the conversions to a log-SNR and back would round a step's number.

    Raises:
        ValueError: for another number of times.
    """
    if not isinstance(t, Tensor):
        return t
    t = t.to(torch.float64)
    if t.numel() == 1:
        return t.reshape(())
    if x.ndim == 0 or t.shape[0] != len(x) or t.numel() != len(x):
        raise ValueError(
            f"t has shape {tuple(t.shape)} for x of shape {tuple(x.shape)}: give one time, or one "
            f"for each sample, ({', '.join(map(str, x.shape[:1]))},)"
        )
    return t.reshape(-1)
