"""Which network an evaluation asks for: a run by name or path, the newest run, or a fresh one."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import AvpipeError
from pipeline.features import SPECS
from pipeline.layout import Root
from train.checkpoint import LAST, load_checkpoint, network_of, recipe_of
from train.methods import METHODS
from train.recipes import get_recipe
from train.shards import Shards

BASELINES = ("centre", "random-init")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network with what it reads."""

    run: Path
    """Folder for its results."""
    network: nn.Module
    image_px: int
    feature: str
    feature_digest: str

    def check_feature(self, shards: Shards) -> None:
        """Raise AvpipeError unless the shards hold the very feature that the network reads."""
        there = shards.metadata["extract"]["features"].get(self.feature)
        if there != self.feature_digest:
            raise AvpipeError(
                f"{self.run} was trained on {self.feature} {self.feature_digest}, {shards.folder} holds {there}; "
                "extract and shard the split with the same feature"
            )


def choose_model(root: Root, checkpoint: str | None, baseline: str | None) -> Model:
    """The model that a checkpoint or baseline names; with neither the newest run, or a fresh network if there is none.

    Raises AvpipeError for an unknown name or an unreadable checkpoint.
    """
    if baseline not in (None, "random-init"):
        raise AvpipeError(f"there is no baseline {baseline!r}; there are: {', '.join(BASELINES)}")
    if checkpoint is not None:
        return trained_model(find_run(root, checkpoint))
    newest = newest_run(root) if baseline is None else None
    if newest is not None:
        return trained_model(newest)
    if baseline is None:
        print(f"avpipe: no trained run in {root.runs}; scoring the baseline random-init", file=sys.stderr)
    return fresh_model(root)


def trained_model(path: Path) -> Model:
    """The network of a run's folder or of a checkpoint file. Raises AvpipeError for one that is damaged or foreign."""
    state = load_checkpoint(path)
    try:
        recipe, network, digest = recipe_of(state), network_of(state), state["data"]["feature_digest"]
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AvpipeError(f"{path} is not a whole checkpoint of this avpipe ({reason}); train it again") from None
    return Model(
        run=path if path.is_dir() else path.parent,
        network=network,
        image_px=recipe.image_px,
        feature=recipe.feature,
        feature_digest=digest,
    )


def fresh_model(root: Root) -> Model:
    """The baseline `random-init`: LVS before any training, seeded."""
    recipe = get_recipe("lvs", ["init=random"])
    torch.manual_seed(recipe.seed)
    return Model(
        run=root.runs / "baseline-random-init",
        network=METHODS[recipe.method].network(recipe.options),
        image_px=recipe.image_px,
        feature=recipe.feature,
        feature_digest=SPECS[recipe.feature].digest,
    )


def find_run(root: Root, text: str) -> Path:
    """A run by name, or any folder or file by path. Raises AvpipeError if there is none."""
    for path in (root.runs / text, Path(text)):
        if path.exists():
            return path
    raise AvpipeError(f"there is no run {text!r} in {root.runs}, nor a file or folder of that name")


def newest_run(root: Root) -> Path | None:
    """The run whose checkpoint was written last; None where nothing is trained."""
    checkpoints = sorted(root.runs.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime_ns)
    return checkpoints[-1].parent if checkpoints else None
