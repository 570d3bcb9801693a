"""Models of checkpoints of score_sde_pytorch."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sdekit import geometric
from sdekit_diffusion._diffusions.ddpm import DDPM, linear_betas
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._diffusions.names import diffusion
from sdekit_diffusion._diffusions.ncsn import NCSN
from sdekit_diffusion._diffusions.ve import VESDE
from sdekit_diffusion._diffusions.vp import VPSDE, SubVPSDE
from sdekit_diffusion._loading.weights import fill, plain, read_pickle, unwrapped
from sdekit_diffusion._models.check import require_denoising
from sdekit_diffusion._models.checkpoint import CheckpointError
from sdekit_diffusion._models.conditioning import Conditioning
from sdekit_diffusion._models.prediction import Prediction
from sdekit_diffusion._models.score_model import ScoreModel

_MAX_LEVELS = 100_000
Interpretation = tuple[AbstractDiffusion, Prediction, Conditioning]


class _Nearest(nn.Module):
    """net(x, i) with the integer number i of the nearest level."""

    def __init__(self, net: nn.Module, levels: int) -> None:
        super().__init__()
        self.net = net
        self.levels = levels

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:  # noqa: ANN401
        return self.net(x, t.round().clamp(0, self.levels - 1).long(), **conditions)


def from_score_sde(
    weights: str | Path | Mapping[str, Any],
    net: nn.Module | None = None,
    sde: AbstractDiffusion | str = "vp",
    *,
    continuous: bool = True,
    levels: int | None = None,
    ema: bool = True,
    centered: bool | None = None,
    shape: tuple[int, ...] | None = None,
    data_std: float | None = None,
    check: Tensor | None = None,
) -> ScoreModel:
    """A `ScoreModel` from a checkpoint of score_sde_pytorch and a network of its architecture.

    The conventions of these networks, where discrete training has N levels, and VE is
    sigma(t) = sigma_min (sigma_max / sigma_min)^t:

    | training | diffusion | input | output |
    | --- | --- | --- | --- |
    | VP, sub-VP | `VPSDE`, `SubVPSDE` | 999 t | eps |
    | discrete VP | `DDPM(linear_betas(N, beta_min / N, beta_max / N))` | step, from 0 | eps |
    | VE | `VESDE(exact=False)` | sigma | score |
    | discrete VE | `NCSN`, N sigmas in geometric progression | integer, 0 noisiest | score |

    A network that returns eps has the score -net / sigma.

    Arguments:
        weights: a .pth file, whose pickle is read as data and never executed, or its content: a
            dict with "model" and "ema"; or a state dict alone.
        net: the network to fill, called as `net(x, label)`: an NCSN++ or DDPM++ (`ncsnpp`,
            `ddpmpp`) as its repository builds it from its config, or any module with parameters of
            the same names. sdekit does not contain these networks.
        sde: "vp", "subvp", "ve", or such a diffusion with other parameters, as
            `VESDE(0.01, 90.0)`. The range of "ve" is read from `sigmas` in the checkpoint.
        continuous: `training.continuous` of its config; without effect for sub-VP, which always is.
        levels: N, `model.num_scales` of its config; unless given, the number of `sigmas` in the
            checkpoint, or else 1000.
        ema: use the averaged weights, as the authors do for sampling; False for those of the last
            step. Without effect on a state dict alone.
        centered: `data.centered` of its config: the images are in [-1, 1], else in [0, 1]; unless
            given True for VP and sub-VP, and False for VE.
        shape: the shape of one sample.
        data_std: the standard deviation of a coordinate of the data; estimated from the network
            unless given.
        check: a batch of data, on which the conventions are checked as by `check_model`.

    Returns:
        the model, in evaluation mode, around the given network, which `load` needs again.

    Raises:
        ValueError: without a network, for other diffusions or numbers of levels, or when the model
            does not denoise the batch.
        CheckpointError: for a file that is damaged or holds more than data, or weights that are not
            the network's.

    Example:
        >>> class Net(torch.nn.Module):  # stands for the published network
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(3, 3, 1)
        ...     def forward(self, x, label):
        ...         return self.conv(x)
        >>> model = sd.from_score_sde(Net().state_dict(), Net(), "vp", shape=(3, 8, 8))
        >>> model.predicts, model.conditioning
        ('noise', (999.0, 0.0))

    References:
        Song et al. 2021, arXiv 2011.13456; github.com/yang-song/score_sde_pytorch, models/utils.py
        and losses.py.
    """
    source = "the checkpoint" if isinstance(weights, Mapping) else str(weights)
    content = weights if isinstance(weights, Mapping) else read_pickle(Path(weights))
    state, averages = _parts(content, ema, source)
    if net is None:
        raise _without_network(state, source)
    state = unwrapped(state, net.state_dict())
    sigmas = state.get("sigmas")
    sde, levels = _with_levels(sde, sigmas, levels)
    if averages is not None:
        state = {**state, **_averages_by_name(state, averages, net, source)}
    if "sigmas" not in net.state_dict():
        state = {name: value for name, value in state.items() if name != "sigmas"}
    fill(net, state, source)
    centered = type(sde) is not VESDE if centered is None else centered
    low = -1.0 if centered else 0.0

    def model(sde: AbstractDiffusion, continuous: bool) -> ScoreModel:
        selected, predicts, label = _INTERPRETATIONS[type(sde)](sde, continuous, levels)
        network = net if type(selected) is not NCSN else _Nearest(net, levels)
        return ScoreModel(
            network,
            selected,
            predicts,
            shape=shape,
            conditioning=label,
            data_std=data_std,
            data_range=(low, 1.0),
        ).eval()

    return require_denoising(
        model(sde, continuous), check, _alternatives(model, sde, continuous, sigmas)
    )


def _without_network(state: Mapping[str, Any], source: str) -> ValueError:
    """The error when weights come without the network that they fill."""
    ncsnpp = any("all_modules." in name for name in state)
    kind = "of an NCSN++ or DDPM++" if ncsnpp else f"such as {next(iter(state))}"
    return ValueError(
        f"{source} holds weights {kind}, not their network, and ncsnpp, ddpmpp and "
        "their like are not among sdekit's: pass net=, the module that score_sde_pytorch "
        "builds from the config of the run, or convert the checkpoint with diffusers' script "
        "and use from_diffusers"
    )


def _alternatives(
    model: Callable[[AbstractDiffusion, bool], ScoreModel],
    sde: AbstractDiffusion,
    continuous: bool,
    sigmas: Any,  # noqa: ANN401 - a tensor, or whatever the checkpoint has
) -> Iterator[tuple[str, ScoreModel]]:
    """The models with other conventions for the same network, and the arguments for each."""
    for name, other_continuous in (
        ("vp", True),
        ("vp", False),
        ("subvp", True),
        ("ve", True),
        ("ve", False),
    ):
        same = type(diffusion(name)) is type(sde)
        if same and (other_continuous == continuous or name == "subvp"):
            continue
        with suppress(CheckpointError):  # of sigmas that are not noise levels
            yield (
                f"sde={name!r}, continuous={other_continuous}",
                model(sde if same else _with_levels(name, sigmas, None)[0], other_continuous),
            )


def _vp(sde: Any, continuous: bool, n: int) -> Interpretation:  # noqa: ANN401 - a VPSDE
    if continuous:
        return sde, "noise", (999.0, 0.0)
    return DDPM(linear_betas(n, sde.beta_min / n, sde.beta_max / n)), "noise", (n, -1.0)


def _ve(sde: Any, continuous: bool, n: int) -> Interpretation:  # noqa: ANN401 - a VESDE
    if continuous:
        return VESDE(sde.sigma_min, sde.sigma_max, exact=False), "score", "sigma"
    return NCSN(geometric(sde.sigma_max, sde.sigma_min, n - 1)), "score", (1.0 - n, n - 1.0)


_INTERPRETATIONS: dict[type[AbstractDiffusion], Callable[[Any, bool, int], Interpretation]] = {
    VPSDE: _vp,
    SubVPSDE: lambda sde, _, n: (sde, "noise", (999.0, 0.0)),
    VESDE: _ve,
}


def _with_levels(
    sde: AbstractDiffusion | str,
    sigmas: Any,  # noqa: ANN401
    levels: int | None,
) -> tuple[AbstractDiffusion, int]:
    """The diffusion and the number of levels, from the checkpoint's `sigmas` where it has them."""
    selected = diffusion(sde)
    if type(selected) not in _INTERPRETATIONS:
        raise ValueError(
            f"sde = {sde!r} is none of score_sde_pytorch's: pass 'vp', 'subvp', 've' or such a "
            "diffusion"
        )
    if levels is not None and not 2 <= levels <= _MAX_LEVELS:
        raise ValueError(
            f"levels must be a number of noise levels from 2 to {_MAX_LEVELS}, such as 1000, not "
            f"{levels}"
        )
    noise_levels = _noise_levels(sigmas)
    if noise_levels is None:
        return selected, 1000 if levels is None else levels
    if isinstance(selected, VESDE):
        selected = _ve_of(noise_levels, None if isinstance(sde, str) else selected)
    return selected, len(noise_levels) if levels is None else levels


def _noise_levels(sigmas: Any) -> Tensor | None:  # noqa: ANN401 - a tensor, or whatever there is
    """The `sigmas` of a checkpoint, None unless there are two or more."""
    if not isinstance(sigmas, Tensor):
        return None
    if not (plain(sigmas) and sigmas.ndim < 2 and sigmas.numel() <= _MAX_LEVELS):
        raise CheckpointError(
            f"the checkpoint's sigmas, of shape {tuple(sigmas.shape)}, are not noise levels; it is "
            "damaged"
        )
    return sigmas if sigmas.ndim == 1 and len(sigmas) > 1 else None


def _ve_of(sigmas: Tensor, given: VESDE | None) -> VESDE:
    """The VE diffusion with the range of `sigmas`; one that was given must have it."""
    low, high = (float(end) for end in sigmas.double().aminmax())
    if not 0 < low < high < math.inf:
        raise CheckpointError(
            f"the checkpoint's sigmas, from {low:g} to {high:g}, are not noise levels; it is "
            "damaged"
        )
    if given is None:
        return VESDE(low, high)
    if abs(low / given.sigma_min - 1) > 1e-3 or abs(high / given.sigma_max - 1) > 1e-3:
        raise ValueError(
            f"{given} is not what the checkpoint was trained with, sigma from {low:g} to {high:g}; "
            "pass sde='ve'"
        )
    return given


def _parts(
    content: Any,  # noqa: ANN401
    ema: bool,
    source: str,
) -> tuple[Mapping[str, Any], list[Tensor] | None]:
    """The state dict of a checkpoint; with ema, the averages of its parameters too."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(
            f"{source} holds {type(content).__name__}, not a dict with 'model' and 'ema'"
        )
    state = content.get("model", content)
    tensors = isinstance(state, Mapping) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    )
    if not tensors or not state:
        raise CheckpointError(
            f"{source} holds {', '.join(map(str, list(content)[:8]))}: no state dict alone, nor "
            "one as 'model'"
        )
    if state is content or not ema:
        return state, None
    ema_state = content.get("ema")
    averages = ema_state.get("shadow_params") if isinstance(ema_state, Mapping) else None
    if not isinstance(averages, list) or not all(isinstance(value, Tensor) for value in averages):
        raise CheckpointError(
            f"{source} has no averages, a list 'shadow_params' in 'ema'; pass ema=False for the "
            "last weights"
        )
    return state, averages


def _averages_by_name(
    state: Mapping[str, Any], averages: list[Tensor], net: nn.Module, source: str
) -> dict[str, Tensor]:
    """Averages by name. They are in the order of the parameters in the state dict, without those
    that were not trained.
    """
    parameters = dict(net.named_parameters())
    names = [name for name in state if name in parameters]
    for subset in ([name for name in names if parameters[name].requires_grad], names):
        if subset and [state[name].shape for name in subset] == [value.shape for value in averages]:
            return dict(zip(subset, averages, strict=True))
    raise CheckpointError(
        f"{source} has {len(averages)} averages for {len(names)} parameters of this network, or of "
        "other shapes; call requires_grad_(False) on those that were not trained, such as Fourier "
        "features, or pass ema=False"
    )
