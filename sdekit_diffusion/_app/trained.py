"""The contents of a run folder: its model, the name of its data, and what results depend on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sdekit_diffusion import data as datasets
from sdekit_diffusion._app.options import Loading
from sdekit_diffusion._arguments.inputs import available_device
from sdekit_diffusion._loading.load import config_folder, load
from sdekit_diffusion._models.checkpoint import CheckpointError, read_config, versions
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._storage.distributed import own_device
from sdekit_diffusion._storage.shards import digest
from sdekit_diffusion.data import Dataset, Scale
from sdekit_diffusion.data._columns import Conditions


def opened(run: str | Path, loading: Loading) -> tuple[ScoreModel, str | None]:
    """The model of a run, as `load` returns it, and the name of its data; None if that is
    unknown.
    """
    device = available_device(own_device(loading.device))
    model = load(
        run, device=device, net=loading.network, width=loading.average_width, best=loading.best
    )
    return model, _data_name(read_config(config_folder(run)))


def _data_name(config: Any) -> str | None:  # noqa: ANN401 - JSON
    """The name of the data in the notes of a config."""
    for key in ("notes", "data", "name"):
        if not isinstance(config, dict) or key not in config:
            return None
        config = config[key]
    return str(config)


def data_of(run: str | Path, requested: str | None, recorded: str | None) -> str:
    """The name of the data, as the user gives it or as the run records it.

    Raises:
        CheckpointError: when neither names them.
    """
    name = requested or recorded
    if name is None:
        raise CheckpointError(
            f"{Path(run) / 'config.json'} does not say what data the model is for; name them by "
            "--data, or data="
        )
    return name


def source_of(name: str, scale: Scale, conditions: Conditions | None = None) -> Dataset:
    """A data set for a model, with the model's scale instead of its own, and with conditions from
    arrays or columns of these names.

    Raises:
        ValueError: when it does not exist, or is of another kind than the model's data.
    """
    source = datasets.load(name, conditions=conditions)
    levels = source.scale.levels
    if (levels is None) != (scale.levels is None):
        data_kinds = [
            "continuous data" if levels is None else "images" for levels in (levels, scale.levels)
        ]
        raise ValueError(
            f"{source.name} holds {data_kinds[0]} and the model is for {data_kinds[1]}; "
            "give it such data"
        )
    # Bytes may be of fewer levels than 256, and other integers of more than their maximum says.
    if levels and scale.levels and levels != scale.levels and len(source.test):
        largest = int(source.test.max())
        if not scale.levels / 2 <= largest < scale.levels:
            raise ValueError(
                f"{source.name} holds images of the levels 0 to {largest} and the model is for 0 "
                f"to {scale.levels - 1}; give it such data"
            )
    return replace(source, scale=scale)


def result_identity(run: str | Path, model: ScoreModel) -> dict[str, str]:
    """What the results of a run depend on besides the settings: its model, the versions of
    libraries and the kind of device.
    """
    excluded = ("files", "notes", "replaces", "sha256", "versions")
    library_versions = versions()
    config = {
        name: value
        for name, value in read_config(config_folder(run)).items()
        if name not in excluded
    }
    identity = {"model": digest(config, model.state_dict()), "device": model.place()[1].type}
    return identity | {name: library_versions[name] for name in ("sdekit", "torch")}
