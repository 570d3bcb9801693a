"""What `sdekit-diffusion train` measures during a training run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdekit_diffusion import Recipe, ScoreModel, sample, validation_loss
from sdekit_diffusion._app.figures import picture
from sdekit_diffusion._app.held_out import measured, summed
from sdekit_diffusion._app.labels import Conditions, by_class, given, held_out
from sdekit_diffusion._app.options import QUICK
from sdekit_diffusion._training.fit import Measure
from sdekit_diffusion.data import Dataset

_PICTURE_SAMPLES = 36
_VALIDATION_SAMPLES = 2000
_LIKELIHOOD_SAMPLES = 100


@dataclass(frozen=True)
class Measurements:
    """What is measured with the averaged weights; intervals in updates, 0 for never.

    Attributes:
        validate_every: write the loss on up to 2000 held-out samples to metrics.jsonl, and keep the
            checkpoint with the smallest.
        bits_every: write the likelihood of up to 100 held-out samples to metrics.jsonl, in bits per
            dimension or nats.
        sample_every: write a picture of samples to the folder progress; for a network with labels
            with a row for each class.

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

    def measures(
        self, source: Dataset, recipe: Recipe, run: Path, label: str | None = None
    ) -> Sequence[tuple[int, Measure]]:
        """The measures for `fit`; `label` is the name of the network's condition for labels.

        Raises:
            ValueError: when the network needs labels and the held-out samples have none.
        """
        held = None
        if self.validate_every or self.bits_every:
            held = held_out(source, label, "leave out --validate-every and --bits-every")

        def bits(model: ScoreModel, step: int) -> Mapping[str, float]:
            x = source.test[:_LIKELIHOOD_SAMPLES]
            bits_of = measured(given(model, held, len(x)), model.scale, x, QUICK)
            numbers = summed(bits_of, model.scale).numbers()
            return {
                numbers["unit"]: numbers["mean"],
                f"{numbers['unit']}, standard error": numbers["stderr"],
            }

        def pictures(model: ScoreModel, step: int) -> Mapping[str, float]:
            rows = None
            names: list[str] = []
            n = _PICTURE_SAMPLES
            if label is not None and source.labels is not None:
                continuous = model.scale.levels is None
                rows, names = by_class(label, source.labels, source.conditions, continuous)
                n = len(rows.values[label])
            elif source.test_conditions:
                rows = Conditions(source.test_conditions)
            x = sample(given(model, rows, n), n, seed=0, steps=20)
            folder = run / "progress"
            folder.mkdir(exist_ok=True)
            shown = picture(model.scale.decode(x.cpu()), model.scale, names)
            shown.savefig(folder / f"{step:08d}.png")
            return {}

        x = source.test[:_VALIDATION_SAMPLES]
        conditions = {} if held is None else held.of(len(x))
        validate = validation_loss((x, conditions), recipe, transform=source.scale.encode)
        schedule = [
            (self.validate_every, validate),
            (self.bits_every, bits),
            (self.sample_every, pictures),
        ]
        return [(interval, measure) for interval, measure in schedule if interval]
