"""The loss of a recipe as a module, which can be compiled and distributed over processes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sdekit import uniform01
from sdekit.calling import require_call, warn_caller
from sdekit_diffusion._models.condition_values import dropped
from sdekit_diffusion._models.counters import DEQUANTISATION, DROP, FLIP
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._storage.distributed import world
from sdekit_diffusion._training.loss import dsm_loss
from sdekit_diffusion._training.recipe import Recipe
from sdekit_diffusion.data._batches import GIVEN_LEVEL, GIVEN_NOISE, Batch, given_draws
from sdekit_diffusion.data._hashed import hashed

Transform = Callable[[Tensor, Tensor], Tensor]


def require_transform(transform: Transform | None) -> None:
    """Refuses a transform that does not take two arguments.

    Raises:
        TypeError: says what it receives.
    """
    if transform is not None:
        call = "transform(rows, u), where u is uniform on [0, 1) to dequantise the rows,"
        require_call(transform, call, None, None)


class RecipeLoss(nn.Module):
    """`dsm_loss` with the settings of a recipe, as a module, which distributed training needs.

    Called with (rows, conditions, first) it returns the loss of each sample, `(batch,)`.
    """

    def __init__(self, model: ScoreModel, recipe: Recipe, transform: Transform | None) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe.suited(model.predicts)
        self.transform = transform

    def forward(self, rows: Tensor, conditions: Mapping[str, Tensor], first: int) -> Tensor:
        recipe = self.recipe
        index = torch.arange(first, first + len(rows), device=rows.device)
        if self.transform is not None:
            rows = self.transform(
                rows, uniform01(recipe.seed, index, tuple(rows.shape[1:]), counter=DEQUANTISATION)
            )
        if recipe.flip:
            rows = torch.where(
                uniform01(recipe.seed, index, (1, 1, 1), counter=FLIP) < 0.5, rows.flip(-1), rows
            )
        model = self.model
        draws = given_draws(model.condition_names())
        noise = conditions.get(GIVEN_NOISE) if GIVEN_NOISE in draws else None
        log_snr = conditions.get(GIVEN_LEVEL) if GIVEN_LEVEL in draws else None
        own = {name: value for name, value in conditions.items() if name not in draws}
        if own:
            model = model.given(**self._dropped(own, index))
        with torch.autocast(
            rows.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"
        ):
            return dsm_loss(
                model,
                rows.to(self.model.place()[0]),
                weighting=recipe.weighting or "plain",
                density=recipe.density,
                stratified=recipe.stratified,
                discrete=recipe.discrete,
                end=recipe.end,
                huber=recipe.huber,
                seed=recipe.seed,
                first=first,
                noise=None if noise is None else noise.to(self.model.place()[0]),
                log_snr=None if log_snr is None else log_snr.to(torch.float64),
            )

    def _dropped(self, conditions: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """The conditions of the samples of an index, each dropped with its probability."""
        null = self.model.null
        names = sorted(conditions)
        drops = self.recipe.drop_of([name for name in names if name in null])
        result = dict(conditions)
        for i, name in enumerate(names):
            if drops.get(name, 0.0) > 0:
                u = uniform01(self.recipe.seed, index, (), counter=DROP - i)
                result[name] = dropped(conditions[name], null[name], u < drops[name])
        return result


def loss_module(
    model: ScoreModel, recipe: Recipe, transform: Transform | None, batch: Batch, first: int
) -> RecipeLoss | DistributedDataParallel:
    """The loss of a recipe, with gradients averaged over processes; compiled if the recipe asks
    for it and a trial with a batch succeeds.
    """
    loss = RecipeLoss(model, recipe, transform)
    if recipe.compile:
        compiled = RecipeLoss(model.with_network(torch.compile(model.net)), recipe, transform)
        # The trial must not change buffers, such as running means.
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            with seeded_dropout(recipe.seed, first, batch.x.device):
                compiled(*batch, first).sum().backward()
            loss = compiled
        except Exception as error:  # whatever compilers raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warn_caller(
                f"torch.compile failed ({reason}); training continues without it",
                RuntimeWarning,
            )
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
    return DistributedDataParallel(loss) if world() > 1 else loss


@contextmanager
def seeded_dropout(seed: int, first: int, device: torch.device) -> Iterator[None]:
    """A context in which torch's global generators are seeded by the seed and the position in the
    stream; afterwards they are as before.
    """
    # torch.manual_seed also seeds all accelerators, and where there are none keeps the stack of its
    # caller for later, which takes time in every update.
    manual_seed = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        manual_seed(hashed(seed, first))
        yield
