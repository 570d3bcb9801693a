"""Training by denoising score matching, with an exponential moving average of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, Self

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._models.wrapped import require_own
from sdekit_diffusion._storage.distributed import rank, world
from sdekit_diffusion._training.averages import Averages
from sdekit_diffusion._training.finite import FiniteCheck
from sdekit_diffusion._training.loss import require_levels
from sdekit_diffusion._training.moments import data_moments, warn_of_raw
from sdekit_diffusion._training.recipe import Recipe, recipe_given
from sdekit_diffusion._training.recipe_loss import (
    RecipeLoss,
    Transform,
    loss_module,
    require_transform,
    seeded_dropout,
)
from sdekit_diffusion._training.trainable import (
    has_levels,
    never_dropped,
    require_conditions,
    require_count,
    require_fitting,
    require_gradients,
    require_rows,
    require_trainable,
    trained_levels,
)
from sdekit_diffusion.data import Dataset, Scale
from sdekit_diffusion.data._batches import GIVEN_LEVEL, Batch
from sdekit_diffusion.data._given import Data, source_of

_CHECK_INTERVAL = 50  # updates between two checks that loss and weights are finite


class Record(NamedTuple):
    """One update of a training run.

    Arguments:
        step: its number, from 1.
        loss: the mean loss of its batch, `()`, detached.
        lr: its learning rate.

    Example:
        >>> model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", shape=(2,))
        >>> recipe = sd.Recipe(steps=3, batch_size=8)
        >>> [record.step for record in sd.Training(model, torch.randn(32, 2), recipe)]
        [1, 2, 3]
    """

    step: int
    loss: Tensor
    lr: float


class Training(Iterator[Record]):
    """An iterator that trains a model in place, with one record per update; after the last record
    the model has the averaged weights and is in evaluation mode.

    The model's `data_mean` and `data_std` are set to those of the data. A warning is raised where
    the data seem to be those that the model's `scale` was not applied to, and where the largest
    noise of its diffusion is small for the direction in which they vary most.

    Each sample of the stream of training samples has its own time, noise and dequantisation. Those
    of sample i depend only on (seed, i) and on the standard deviation of the data; i is the epoch
    times the number of samples plus the position in the permutation of the epoch. Under
    torch.distributed each process takes a part of each batch, and gradients are averaged: the
    result is the same up to rounding. `state_dict` and `load_state_dict` stop and resume a run; on
    the CPU the result is then bit-identical, because dropout, too, depends only on the seed and on
    the position in the stream.

    Attributes:
        step: the number of completed updates.
        whole: whether the last update is complete; after an exception within an update the state is
            invalid.

    Arguments:
        model: the model, on the device and in the dtype in which it is trained.
        data: samples `(N, *shape)`, floating and in the scale of the model, or such that transform
            converts them to that: a tensor, an array, any object with a length that takes a
            tensor of row numbers, or an `AbstractSource`. With conditions: a pair (x, labels); a
            dictionary such as {"x": x, "label": y}, with one entry per sample under the names of
            the network's arguments; or a source that yields both. "noise" and "log_snr" in a
            dictionary are eps and the level log(alpha / sigma) of each sample, which are then not
            drawn, as for `Trajectories`; with levels the model keeps its `data_mean` and
            `data_std`. A data set of torch or a `DataLoader` is read in the batches of the recipe,
            and in its order unless it is iterable or has a sampler or batch sampler of its own. A
            `sdekit_diffusion.data.Dataset` brings its labels, where the network takes them, and its
            scale, which becomes that of the model, and whose `encode` is the transform; with
            another transform the model keeps its own scale.
        recipe: the settings; `Recipe()` unless given.
        transform: a function (rows, u) that returns model inputs, with u uniform on [0, 1) and
            shaped like the rows, for dequantisation; such as `Scale.encode`.

    Raises:
        TypeError: for integers without transform, a model without weights, a wrapper of a model, a
            recipe that is none, or a transform that does not take two arguments.
        ValueError: for a model that was given a condition with one entry per sample, such as
            labels, which belong to the data; for conditions that the network does not take, or
            misses; for no data, data of another shape, flips of data that are not images, or
            that have images as conditions; a batch with fewer samples than parts, weights of half
            precision, weights in float64 with precision "bfloat16", or weights that are all frozen.
            While iterating, for a source that yields another number of samples than it is asked
            for, or noise levels that the diffusion does not have.
        ArithmeticError: while iterating, when the loss or the weights are not finite.
        RuntimeError: while iterating, within torch.no_grad() or torch.inference_mode().

    Example:
        >>> model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", shape=(2,))
        >>> training = sd.Training(model, torch.randn(32, 2), sd.Recipe(steps=20, batch_size=8))
        >>> losses = [float(record.loss) for record in training]
        >>> len(losses), training.step
        (20, 20)
    """

    def __init__(
        self,
        model: ScoreModel,
        data: Data,
        recipe: Recipe | None = None,
        *,
        transform: Transform | None = None,
    ) -> None:
        require_own(
            model,
            ScoreModel,
            "pass the model that is inside the wrapper: compiled._orig_mod, or parallel.module. "
            "Recipe(compile=True) compiles its network, and each process of a group takes a part "
            "of each batch",
        )
        self.model = model
        self.recipe = recipe_given(recipe)
        self.step = 0
        require_trainable(model, self.recipe)
        require_transform(transform)
        if isinstance(data, Dataset):
            transform = transform or data.scale.encode
            if getattr(transform, "__self__", None) == data.scale:
                model.scale = _scale_for(model, data)
        self.source = source_of(data, model.condition_names(), model.null)
        row = Batch.of(next(self.source.batches(1)))
        require_rows(row.x, model, self.recipe, transformed=transform is not None)
        require_conditions(row, model, self.recipe)
        require_fitting(self.source, row, model, self.recipe.batch_size)
        model.trained_levels = trained_levels(self.source, row, model)
        model.samplers = {}
        model.never_dropped = never_dropped(row.conditions, model, self.recipe)
        self._transform = transform
        if not has_levels(row, model):  # else of another law
            if getattr(transform, "__self__", None) != model.scale:
                warn_of_raw(self.source, self._encoded, model.scale)
            model.record_scale(*data_moments(self.source, self._encoded, model.sde))
        self._weights: list[Tensor] = list(model.parameters())
        self._averages = Averages(self._weights, self.recipe.decays, self.recipe.widths)
        self._finite = FiniteCheck(self._weights)
        self._optimiser = torch.optim.AdamW(self._weights, lr=self.recipe.lr)
        self._loss: RecipeLoss | DistributedDataParallel | None = None  # made for the first batch
        self._batches: Iterator[Tensor | tuple[Tensor, Mapping[str, Tensor]]] | None = None
        self.whole = True
        model.train()

    def _encoded(self, rows: Tensor) -> Tensor:
        """Rows as inputs of the model, dequantised with u = 1/2, computed as in training: on the
        model's device, and with torch's generators seeded.

        Raises:
            ValueError: for a transform that changes the shape of samples.
        """
        if self._transform is None:
            return rows
        device = self.model.place()[1]
        rows = _to_device(rows, device)
        middle = torch.full(rows.shape, 0.5, dtype=torch.float64, device=device)
        with seeded_dropout(self.recipe.seed, 0, device):
            encoded = self._transform(rows, middle)
        if self.model.shape not in (None, tuple(encoded.shape[1:])):
            raise ValueError(
                f"transform returned shape {tuple(encoded.shape)} for rows of shape "
                f"{tuple(rows.shape)}, and samples of the model have shape {self.model.shape}"
            )
        return encoded

    def moments_of_few(self) -> tuple[Tensor, float]:
        """Mean and standard deviation of 1024 samples, as earlier versions estimated those of
        arrays.
        """
        return data_moments(self.source, self._encoded, few=True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        recipe = self.recipe
        size = self.recipe.batch_size
        if self.step == recipe.steps:
            self.finish()
            raise StopIteration
        require_gradients()
        self.whole = False
        share = slice(rank() * size // world(), (rank() + 1) * size // world())
        if self._batches is None:
            self._batches = self.source.batches(
                size, seed=recipe.seed, first=self.step * size, part=share
            )
        samples = Batch.of(next(self._batches))
        self._require_samples(samples, share.stop - share.start)
        loss = self._backward(samples, self.step * size + share.start)
        torch.nn.utils.clip_grad_norm_(self._weights, recipe.clip)
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.rate(self.step)
        self._optimiser.step()
        self._averages.update(self.step)
        self.step += 1
        self.whole = True
        if self.step == recipe.steps:
            self.require_finite(loss)
        elif self.step % _CHECK_INTERVAL == 0:
            self._finite.require_deferred(loss, self.step)
        return Record(self.step, loss, recipe.rate(self.step - 1))

    def _require_samples(self, samples: Batch, count: int) -> None:
        """Refuses a batch with another number of samples, over which its loss would not be a mean,
        or with noise levels that the diffusion does not have.

        Raises:
            ValueError: says which.
        """
        require_count(samples, count)
        if has_levels(samples, self.model):
            levels = samples.conditions[GIVEN_LEVEL]
            if levels.device.type == "cpu":  # elsewhere it would synchronise
                require_levels(levels, self.model.sde)

    def finish(self) -> None:
        """Gives the model the averaged weights, in evaluation mode, as after the last record."""
        self._averages.fill()
        self.model.eval()

    def require_finite(self, loss: Tensor) -> None:
        """Raises ArithmeticError unless a loss and all weights are finite; synchronises once."""
        self._finite.require(loss, self.step)

    def _backward(self, samples: Batch, first: int) -> Tensor:
        """The mean loss of a batch over all processes, whose gradient the weights then have; the
        samples are those of this process, from number `first` of the stream on.
        """
        self._optimiser.zero_grad(set_to_none=True)
        device = self.model.place()[1]
        total = torch.zeros((), device=device)
        parts = samples.split(self.recipe.accumulate)
        for i, part in enumerate(parts):
            batch = Batch(
                _to_device(part.x, device),
                {name: _to_device(value, device) for name, value in part.conditions.items()},
            )
            module = self._loss = self._loss or loss_module(
                self.model, self.recipe, self._transform, batch, first
            )
            last = i + 1 == len(parts)
            context = (
                module.no_sync()
                if isinstance(module, DistributedDataParallel) and not last
                else nullcontext()
            )
            with context, seeded_dropout(self.recipe.seed, first, device):
                loss: Tensor = module(*batch, first).sum() / self.recipe.batch_size
                (loss * world()).backward()  # the processes' gradients are averaged
            total = total + loss.detach()
            first = first + len(part.x)
        if world() > 1:
            distributed.all_reduce(total)
        return total

    @contextmanager
    def averaged(self, index: int = 0) -> Iterator[ScoreModel]:
        """A context in which the model has averaged weights, in evaluation mode: those of number
        `index` of the recipe's decays, followed by its widths.
        """
        training = self.model.training
        with self._averages.filled(index):
            self.model.eval()
            try:
                yield self.model
            finally:
                self.model.train(training)

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the run: the number of updates, the weights, their averages and the moments
        of AdamW. To resume, model, data and recipe must be given again.

        There is no random state: all noise is a function of the seed and of the step.

        Raises:
            ValueError: when the model is in evaluation mode, as when the training is over and it
                has the averaged weights.
        """
        if not self.model.training:
            raise ValueError(
                "the training is over, or the model was put into evaluation mode; ask for its "
                "state before that"
            )
        names = [name for name, _ in self.model.named_parameters()]
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for i in range(len(self._averages.values)):
            state |= {f"average.{i}.{name}": value for name, value in self.average(i).items()}
        for i, moments in self._optimiser.state_dict()["state"].items():
            state |= {f"adamw.{names[i]}/{key}": value for key, value in moments.items()}
        return {name: value.detach().clone() for name, value in state.items()} | {
            "step": torch.tensor(self.step)
        }

    def average(self, index: int) -> dict[str, Tensor]:
        """The averaged weights of a decay or, after these, of a width, by name."""
        numbers = {id(weight): i for i, weight in enumerate(self._weights)}
        # A weight that is used twice has two names.
        named = self.model.named_parameters(remove_duplicate=False)
        return {name: self._averages.values[index][numbers[id(weight)]] for name, weight in named}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resumes the run from where `state_dict` was called.

        Raises:
            ValueError: for the state of another model, or with another number of averages.
        """
        names = [name for name, _ in self.model.named_parameters()]
        state = dict(state)
        moments = {}
        try:
            self.step = int(state.pop("step"))
            self.model.load_state_dict(
                {name[6:]: v for name, v in state.items() if name.startswith("model.")}
            )
            for i, average in enumerate(self._averages.values):
                for name, value in zip(names, average, strict=True):
                    value.copy_(state[f"average.{i}.{name}"])
            if f"average.{len(self._averages.values)}.{names[0]}" in state:
                raise KeyError(f"it has more than {len(self._averages.values)} averages")
            for i, name in enumerate(names):
                if f"adamw.{name}/step" in state:  # of a weight that was ever moved
                    moments[i] = {
                        key: state[f"adamw.{name}/{key}"]
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"this state is not of such a training run: {str(error).splitlines()[-1].strip()}"
            ) from error
        self._optimiser.load_state_dict(
            {"state": moments, "param_groups": self._optimiser.state_dict()["param_groups"]}
        )
        self._batches = None
        self.model.train()


def _scale_for(model: ScoreModel, data: Dataset) -> Scale:
    """The scale of a data set, for a model that has none or the same.

    Raises:
        ValueError: when the model has another one.
    """
    if model.scale not in (Scale(), data.scale):
        raise ValueError(
            f"the model is for data of {model.scale}, and {data.name} has {data.scale}: leave out "
            "scale, or train on data.train with transform=model.scale.encode"
        )
    return data.scale


def _to_device(rows: Tensor, device: torch.device) -> Tensor:
    """Rows on a device, copied without host synchronisation, for which they must be pinned."""
    if device.type == "cuda" and rows.device.type == "cpu":
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)
