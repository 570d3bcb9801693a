"""Training by denoising score matching, with an exponential moving average of the weights."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from sdekit import uniform01
from sdekit_diffusion._counters import DEQUANTISATION
from sdekit_diffusion._loss import Weighting, dsm_loss
from sdekit_diffusion._model import ScoreModel

_LOOK = 50  # steps between two looks at whether the loss is finite

Transform = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW with linear warm-up and cosine decay to zero.

    Attributes:
        steps: how many updates.
        batch_size: samples in each.
        lr: the highest learning rate.
        warmup: updates until it is reached.
        clip: bound of the gradient's norm.
        ema: decay of the averaged weights, which rises to it as min(ema, (1 + n) / (10 + n)).
        weighting: "plain" or "likelihood", see `dsm_loss`.
        discrete: train the discrete levels of `DDPM` and `NCSN` and nothing between them, see `dsm_loss`.
        end: sigma / alpha at the least noise that is trained.
        seed: of batches, times, noise and dequantisation.

    Raises:
        ValueError: for a setting out of range.
    """

    steps: int = 1500
    batch_size: int = 128
    lr: float = 2e-3
    warmup: int = 100
    clip: float = 1.0
    ema: float = 0.999
    weighting: Weighting = "plain"
    discrete: bool = False
    end: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.steps >= 1 and self.batch_size >= 1 and self.warmup >= 0):
            raise ValueError(f"steps and batch_size start at 1, warmup at 0: {self}")
        if self.weighting not in ("plain", "likelihood") or not self.end > 0:
            raise ValueError(f"weighting must be 'plain' or 'likelihood', and end positive: {self}")
        if self.discrete and self.weighting != "plain":
            raise ValueError(f"discrete levels are trained with weighting = 'plain': {self}")
        if not (self.lr > 0 and self.clip > 0 and 0 <= self.ema < 1):
            raise ValueError(f"lr and clip must be positive and ema in [0, 1): {self}")

    def rate(self, step: int) -> float:
        """The learning rate's factor before update number `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))))

    def average(self, old: Tensor, new: Tensor, n: Tensor | int) -> Tensor:
        """The averaged weights after an update, n updates having gone before; the first copies the weights."""
        return torch.lerp(old, new, 1 - min(self.ema, (1 + float(n)) / (10 + float(n))))


class Record(NamedTuple):
    """One update: its number from 1, the mean loss of its batch (0-dim, detached), its learning rate."""

    step: int
    loss: Tensor
    lr: float


def training(
    model: ScoreModel, data: Tensor, recipe: Recipe | None = None, *, transform: Transform | None = None
) -> Iterator[Record]:
    """Trains a model in place, a record an update; with the last the model holds the averaged weights.

    Arguments:
        model: on the device and in the dtype that it is to be trained in.
        data: `(N, *shape)`, floating and in the scale that the model is to learn, or whatever transform makes so.
        recipe: the settings.
        transform: `(rows, u)` to model inputs, with u uniform on [0, 1) and shaped like the rows: dequantisation.

    Raises:
        TypeError: for integers without transform.
        ValueError: for no data.
        ArithmeticError: when the loss stops being finite.
    """
    recipe = recipe or Recipe()
    if len(data) < 1:
        raise ValueError(f"there are no data to train on: shape {tuple(data.shape)}")
    if transform is None and not data.is_floating_point():
        raise TypeError(
            f"data of {data.dtype} need transform=, such as a data set's dequantised; or scale them and use .float()"
        )
    if next(model.parameters(), None) is None:
        raise TypeError("this model's network is a plain function and has no weights to train")
    if model.shape is not None and tuple(data.shape[1:]) != model.shape:
        raise ValueError(f"data of shape {tuple(data.shape)} do not fit a model of samples of shape {model.shape}")
    dtype, device = model.place()
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, recipe.rate)
    average = AveragedModel(model, avg_fn=recipe.average)
    model.train()
    for i, rows in enumerate(_batches(len(data), recipe)):
        batch, first = data[rows].to(device), i * recipe.batch_size
        if transform is not None:
            index = torch.arange(first, first + len(rows), device=device)
            batch = transform(batch, uniform01(recipe.seed, index, tuple(data.shape[1:]), counter=DEQUANTISATION))
        loss = dsm_loss(
            model, batch.to(dtype), weighting=recipe.weighting, discrete=recipe.discrete, end=recipe.end, seed=recipe.seed,
            first=first,
        ).mean()  # fmt: skip
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        lr = optimiser.param_groups[0]["lr"]
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
        last = i + 1 == recipe.steps
        if (last or (i + 1) % _LOOK == 0) and not math.isfinite(loss.item()):
            raise ArithmeticError(f"the loss is {loss.item()} at update {i + 1}; lower lr, or look for NaN in the data")
        if last:
            model.load_state_dict(average.module.state_dict())
            model.eval()
        yield Record(i + 1, loss.detach(), lr)


def fit(
    model: ScoreModel,
    data: Tensor,
    recipe: Recipe | None = None,
    *,
    transform: Transform | None = None,
    progress: bool = True,
) -> list[Record]:
    """Trains a model in place to the end of the recipe, with a progress bar, and returns all records.

    Arguments and errors as in `training`, which gives the records one by one.
    """
    recipe = recipe or Recipe()
    records = []
    with tqdm(total=recipe.steps, disable=not progress, unit="step", desc="training") as bar:
        for record in training(model, data, recipe, transform=transform):
            records.append(record)
            bar.update()
            if record.step % _LOOK == 0:
                bar.set_postfix(loss=f"{float(torch.stack([r.loss for r in records[-_LOOK:]]).mean()):.4f}")
    return records


def _batches(n: int, recipe: Recipe) -> Iterator[Tensor]:
    """Row numbers, each epoch a new permutation; a batch may span epochs."""
    generator, left = torch.Generator().manual_seed(recipe.seed % 2**32), torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.steps):
        while len(left) < recipe.batch_size:
            left = torch.cat([left, torch.randperm(n, generator=generator)])
        yield left[: recipe.batch_size]
        left = left[recipe.batch_size :]
