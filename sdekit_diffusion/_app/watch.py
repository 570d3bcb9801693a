"""What `sdekit-diffusion train` measures during a training run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdekit_diffusion import Recipe, ScoreModel, sample, validation_loss
from sdekit_diffusion._app.figures import picture
from sdekit_diffusion._app.held_out import measured, summed
from sdekit_diffusion._app.options import QUICK
from sdekit_diffusion._training.fit import Measure
from sdekit_diffusion.data import Dataset

_PICTURE_SAMPLES = 36
_VALIDATION_SAMPLES = 2000


@dataclass(frozen=True)
class Watch:
    """What is measured with the averaged weights; intervals in updates, 0 for never.

    Attributes:
        validate_every: the loss on up to 2000 held-out samples, to metrics.jsonl; its best
            checkpoint is kept.
        bits_every: the likelihood of a hundred held-out samples, bits per dimension or nats, to
            metrics.jsonl.
        sample_every: a picture of samples, to the folder progress.

    Raises:
        ValueError: for numbers below 0.
    """

    validate_every: int = 0
    bits_every: int = 0
    sample_every: int = 0

    def __post_init__(self) -> None:
        if min(self.validate_every, self.bits_every, self.sample_every) < 0:
            raise ValueError(
                f"validate_every, bits_every and sample_every are updates, or 0 for never: {self}"
            )

    def measures(self, source: Dataset, recipe: Recipe, run: Path) -> Sequence[tuple[int, Measure]]:
        """The measures of `fit`."""

        def bits(model: ScoreModel, step: int) -> Mapping[str, float]:
            numbers = summed(measured(model, source.test[:100], QUICK), model.scale).numbers()
            return {
                numbers["unit"]: numbers["mean"],
                f"{numbers['unit']}, standard error": numbers["stderr"],
            }

        def pictures(model: ScoreModel, step: int) -> Mapping[str, float]:
            x = model.scale.decode(sample(model, _PICTURE_SAMPLES, seed=0, steps=20).cpu())
            folder = run / "progress"
            folder.mkdir(exist_ok=True)
            picture(x, model.scale).savefig(folder / f"{step:08d}.png")
            return {}

        validate = validation_loss(
            source.test[:_VALIDATION_SAMPLES], recipe, transform=source.scale.encode
        )
        schedule = [
            (self.validate_every, validate),
            (self.bits_every, bits),
            (self.sample_every, pictures),
        ]
        return [(interval, measure) for interval, measure in schedule if interval]
