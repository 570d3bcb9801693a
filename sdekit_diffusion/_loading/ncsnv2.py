"""Models of checkpoints of ermongroup/ncsnv2, the repository of Song and Ermon (2020)."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from sdekit_diffusion._diffusions.ncsn import NCSN
from sdekit_diffusion._loading.published_refinenet import FIRST, network
from sdekit_diffusion._loading.weights import plain, read_pickle, unwrapped
from sdekit_diffusion._models.check import require_denoising
from sdekit_diffusion._models.checkpoint import CheckpointError
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion.nets import NCSNv2

_MAX_LEVELS = 100_000


def from_ncsnv2(
    weights: str | Path | Mapping[str, Any] | Sequence[Any],
    *,
    ema: bool = True,
    rescaled: bool = False,
    shape: tuple[int, ...] | None = None,
    data_std: float | None = None,
    check: Tensor | None = None,
) -> ScoreModel:
    """A `ScoreModel` from a checkpoint of ermongroup/ncsnv2: its NCSNv2, NCSNv2Deeper or
    NCSNv2Deepest as `nets.NCSNv2`.

    The input of the first layer of the published network is h = 2 x - 1 for images x in [0, 1], and
    the score is s(x, sigma_i) = net(h) / sigma_i. The diffusion of the model is `NCSN(sigmas)` with
    the noise levels of the checkpoint. The model predicts "noise", -net(h): the sign of the last
    convolution is reversed. Sample with the published method by
    `sample(model, n, method=ncsn_settings("celeba").method, denoise=True)`, or with any other.

    Arguments:
        weights: a .pth file, whose pickle is read as data and never executed; its content, a list
            of the state dict, that of the optimiser, the epoch, the step and, if stored, the
            averaged weights; or a state dict alone.
        ema: use the averaged weights, as the authors do for sampling; False for those of the last
            step. Without effect on a state dict alone.
        rescaled: `data.rescaled` of its config: the images are in [-1, 1], and h = x.
        shape: the shape of one sample, such as (3, 64, 64); networks take images of any size.
        data_std: the standard deviation of a coordinate of the data; estimated from the network
            unless given.
        check: a batch of data, on which the conventions are checked as by `check_model`.

    Returns:
        the model, in evaluation mode, for which `save` and `load` need no further arguments.

    Raises:
        ValueError: when the model does not denoise the batch.
        CheckpointError: for a file that is damaged, holds more than data, or the weights of another
            network.

    Example:
        >>> weights = "checkpoint_210000.pth"  # of the authors, 64 x 64 pixels
        >>> model = sd.from_ncsnv2(weights, shape=(3, 64, 64))  # doctest: +SKIP
        >>> state = {"conv.weight": torch.zeros(3, 3)}  # of another network
        >>> sd.from_ncsnv2(state)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        CheckpointError: the checkpoint has no sigmas

    References:
        Song and Ermon 2020, arXiv 2006.09011, appendix B; github.com/ermongroup/ncsnv2,
        models/ncsnv2.py.
    """
    path = isinstance(weights, str | Path)
    source = str(weights) if path else "the checkpoint"
    state = _state(read_pickle(Path(weights)) if path else weights, ema, source)
    sde = _levels(state.pop("sigmas", None), source)
    net = network(state, not rescaled, source)
    low = -1.0 if rescaled else 0.0

    def model(net: NCSNv2) -> ScoreModel:
        return ScoreModel(
            net, sde, "noise", shape=shape, data_std=data_std, data_range=(low, 1.0)
        ).eval()

    other = copy.copy(net)  # shares the weights
    other.centred = rescaled
    return require_denoising(model(net), check, [(f"rescaled={not rescaled}", model(other))])


def _state(content: Any, ema: bool, source: str) -> dict[str, Tensor]:  # noqa: ANN401
    """The state dict of a checkpoint; with ema, with the averages of its parameters."""
    listed = isinstance(content, Sequence) and not isinstance(content, str)
    parts = list(content) if listed else [content]
    if not parts or not _tensors(parts[0]):
        raise CheckpointError(
            f"{source} holds {type(content).__name__}, not a list that begins with a state dict, "
            "nor one alone"
        )
    state = unwrapped(parts[0], (FIRST,))
    if not (listed and ema):
        return state
    averages = parts[4] if len(parts) > 4 else None
    if not _tensors(averages):
        raise CheckpointError(
            f"{source} has no averaged weights as its fifth part; pass ema=False for the last "
            "weights"
        )
    averages = unwrapped(averages, (FIRST,))
    if set(averages) != set(state) - {"sigmas"}:
        different = sorted(set(averages) ^ (set(state) - {"sigmas"}))
        raise CheckpointError(
            f"{source} has averages of other weights than its own, such as {different[0]}; pass "
            "ema=False"
        )
    return {**state, **averages}


def _tensors(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether this is a state dict."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items())
    )


def _levels(sigmas: Tensor | None, source: str) -> NCSN:
    """The noise levels that a checkpoint holds."""
    if sigmas is None:
        raise CheckpointError(
            f"{source} has no sigmas, which NCSNv2's weights hold; NCSN's and others have none"
        )
    if not (plain(sigmas) and sigmas.ndim == 1 and len(sigmas) <= _MAX_LEVELS):
        raise CheckpointError(
            f"{source} has sigmas of shape {tuple(sigmas.shape)}, which are not noise levels; it "
            "is damaged"
        )
    try:
        return NCSN(sigmas)
    except ValueError as error:
        raise CheckpointError(
            f"{source} has sigmas that are not noise levels: {error}; it is damaged"
        ) from error
