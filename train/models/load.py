"""Load the model to evaluate: a run by name or path, the newest run, a published checkpoint or a baseline."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.features.specs import SPECS
from avpipe.train.data.shards import Shards
from avpipe.train.models.author_checkpoints import IMAGE_PX, folder_name, load_published_checkpoint
from avpipe.train.models.baselines import check_baseline, object_prior, random_init
from avpipe.train.models.checkpoint import LAST, load_checkpoint, network_of, recipe_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelChoice:
    """The model that a user asks for; without checkpoint and baseline the newest run."""

    checkpoint: str | None = None
    """The name of a run, or a path."""
    format_name: str | None = None
    """Format of a published checkpoint; None for a checkpoint of avpipe."""
    baseline: str | None = None
    """`centre`, `object` or `random-init`."""
    weights: Path | None = None
    """File or folder with the ImageNet weights of the baseline `object`."""

    def check_choice(self, *baselines: str) -> None:
        """Raise AvpipeError for an invalid combination; `baselines` are those that the command supports."""
        if self.checkpoint is not None and self.baseline is not None:
            raise AvpipeError(f"give either --checkpoint RUN or --baseline {'|'.join(baselines)}")
        if self.format_name is not None and self.checkpoint is None:
            raise AvpipeError("--format is the format of --checkpoint; give that file too")


NEWEST_RUN = ModelChoice()


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """The training data of a checkpoint of avpipe."""

    split: str
    clip_ids: list[str]
    step: int
    select_on: str | None
    """The split whose scores selected the epoch."""

    def record(self) -> dict[str, Any]:
        """Return plain values, with the number of clips instead of their ids."""
        return {"split": self.split, "samples": len(self.clip_ids), "step": self.step, "select_on": self.select_on}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network and its inputs."""

    run: Path
    """The folder of its results."""
    network: nn.Module
    image_px: int
    feature: str
    feature_digest: str
    checkpoint: dict[str, Any] | None = None
    """How a published checkpoint matched the network: format, matched, unused, never_read, missing."""
    trained_on: TrainedOn | None = None
    """None if unknown or untrained."""

    def check_feature(self, shards: Shards) -> None:
        """Raise AvpipeError unless the shards hold the feature that the network reads, with the same digest."""
        found = shards.metadata["extract"]["features"].get(self.feature)
        if found != self.feature_digest:
            raise AvpipeError(
                f"{self.run} was trained on {self.feature} {self.feature_digest}, {shards.folder} holds {found}; "
                "extract and shard the split with the same feature"
            )


def choose_model(root: Root, shards: Shards, choice: ModelChoice) -> Model:
    """Return the chosen model, as `named_model` does, for these shards.

    Raises AvpipeError as `named_model` does, and if the shards do not hold the feature that the network reads.
    """
    model = named_model(root, shards.metadata["extract"]["features"], choice)
    model.check_feature(shards)
    return model


def named_model(root: Root, available: dict[str, str], choice: ModelChoice) -> Model:
    """Return the chosen model; an untrained network if the newest run is chosen and there is none.

    `available` maps the features of the shards to their digests. Raises AvpipeError for an unknown name and an
    unreadable checkpoint.
    """
    check_baseline(choice.baseline)
    if choice.checkpoint is not None and choice.format_name is not None:
        return published_model(root, Path(choice.checkpoint), choice.format_name, available)
    if choice.checkpoint is not None:
        return trained_model(find_run(root, choice.checkpoint))
    if choice.baseline == "object":
        return object_model(root, available, choice.weights)
    if choice.baseline is None and (newest := newest_run(root)) is not None:
        return trained_model(newest)
    if choice.baseline is None:
        log.warning("no trained run in %s; using the baseline random-init", root.runs)
    return fresh_model(root)


def trained_model(path: Path) -> Model:
    """Return the model of a run folder or checkpoint file. Raises AvpipeError if it is damaged or not avpipe's."""
    state = load_checkpoint(path)
    try:
        recipe, network, data = recipe_of(state), network_of(state), state["data"]
    except AvpipeError as error:
        raise AvpipeError(f"{path} is not a valid checkpoint of this avpipe ({error}); train it again") from None
    trained_on = TrainedOn(
        split=data["split"], clip_ids=data["clip_ids"], step=state["step"], select_on=state["select_on"]
    )
    return Model(
        run=path if path.is_dir() else path.parent,
        network=network,
        image_px=recipe.image_px,
        feature=recipe.feature,
        feature_digest=data["feature_digest"],
        trained_on=trained_on,
    )


def published_model(root: Root, path: Path, format_name: str, available: Collection[str]) -> Model:
    """Return the model of a published checkpoint, and log how well the file matched the network.

    `available` are the features of the shards. Raises AvpipeError as `load_published_checkpoint` does.
    """
    loaded = load_published_checkpoint(path, format_name, available)
    for line in loaded.text().splitlines():
        log.info("%s", line)
    return Model(
        run=root.runs / folder_name(path, format_name),
        network=loaded.network,
        image_px=IMAGE_PX,
        feature=loaded.feature,
        feature_digest=SPECS[loaded.feature].digest,
        checkpoint=loaded.record(),
    )


def fresh_model(root: Root) -> Model:
    """Return the baseline `random-init`: LVS before any training, with a fixed seed."""
    recipe, network = random_init()
    return Model(
        run=root.runs / "baseline-random-init",
        network=network,
        image_px=recipe.image_px,
        feature=recipe.feature,
        feature_digest=SPECS[recipe.feature].digest,
    )


def object_model(root: Root, available: dict[str, str], weights: Path | None) -> Model:
    """Return the baseline `object`; it ignores the audio, so the loader may read any feature of the shards.

    `available` maps these features to their digests. Raises AvpipeError if the ImageNet weights are not available.
    """
    feature, digest = next(iter(available.items()))
    return Model(
        run=root.runs / "baseline-object",
        network=object_prior(weights),
        image_px=IMAGE_PX,
        feature=feature,
        feature_digest=digest,
    )


def find_run(root: Root, text: str) -> Path:
    """Return the folder of a run by name, or any existing path. Raises AvpipeError if there is neither."""
    for path in (root.runs / text, Path(text)):
        if path.exists():
            return path
    raise AvpipeError(f"there is no run {text!r} in {root.runs}, nor a file or folder of that name")


def newest_run(root: Root) -> Path | None:
    """Return the run whose checkpoint was written last, or None if there is no run."""
    checkpoints = sorted(root.runs.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime_ns)
    return checkpoints[-1].parent if checkpoints else None
