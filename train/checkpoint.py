"""Checkpoints: one file with all that resuming or scoring needs, written by rename, loaded without pickle's code."""

import pickle
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import AvpipeError
from pipeline.layout import published
from train.data.shards import Shards
from train.methods import METHODS
from train.recipes import Recipe

LAST, BEST = "last.pt", "best.pt"
FORMAT = 2
PACKAGES = ("avpipe", "torch", "torchvision", "numpy")


def epoch_name(epoch: int) -> str:
    """File name of a checkpoint that is kept beside the last and the best one."""
    return f"epoch-{epoch:04}.pt"


def save_checkpoint(path: Path, state: dict[str, Any], recipe: Recipe, shards: Shards, select_on: Shards | None):
    """Write the state of a training (step, network, optimizer, …) with the recipe and the data that it belongs to."""
    whole = state | {
        "format": FORMAT,
        "recipe": recipe.record(),
        "data": data_record(shards, recipe.feature),
        "select_on": select_on.split if select_on else None,
        "versions": {name: version(name) for name in PACKAGES},
    }
    with published(path) as temporary:
        torch.save(whole, temporary)


def check_same(state: dict, recipe: Recipe, shards: Shards, select_on: Shards | None, run: Path) -> None:
    """Raise AvpipeError unless settings and data are those that a run was begun with."""
    before = _flat(state["recipe"]) | _flat(state["data"]) | {"select_on": state["select_on"]}
    now = _flat(recipe.record()) | _flat(data_record(shards, recipe.feature))
    now["select_on"] = select_on.split if select_on else None
    for name in sorted(before | now):
        if before.get(name) != now.get(name):
            difference = "" if name == "clip_ids" else f" ({before.get(name)} then, {now.get(name)} now)"
            raise AvpipeError(f"{run} was begun with another {name}{difference}; give another --name to start anew")


def _flat(record: dict) -> dict:
    flat = {}
    for name, value in record.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


def data_record(shards: Shards, feature: str) -> dict[str, Any]:
    """What a training stands on: split, list, the plan of the shards, and the recipe of the feature."""
    extract = shards.metadata["extract"]
    return {
        "split": shards.split,
        "listed_sha256": shards.metadata["listed_sha256"],
        "plan": shards.metadata["plan"],
        "samples": len(shards),
        "feature": feature,
        "feature_digest": extract["features"].get(feature),
        "clip_ids": shards.clip_ids,
    }


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; of a run's folder the best one, or the last where epochs were not compared.

    Raises AvpipeError for a file that is none.
    """
    if path.is_dir():
        path = path / (BEST if (path / BEST).exists() else LAST)
    if not path.exists():
        raise AvpipeError(f"{path} does not exist; give a run's folder or a checkpoint that `avpipe train` wrote")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise AvpipeError(
            f"{path} holds more than tensors and plain values, which could run code; not loaded"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError):
        raise AvpipeError(f"{path} is damaged or not a checkpoint; train again or copy it again") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise AvpipeError(
            f"{path} is not a checkpoint of this avpipe (format {FORMAT}); train again; a published one needs --format"
        )
    return state


def recipe_of(state: dict[str, Any]) -> Recipe:
    """The recipe that a checkpoint was trained with."""
    record = dict(state["recipe"])
    record["options"] = METHODS[record["method"]].config(**record["options"])
    return Recipe(**record)


def network_of(state: dict[str, Any]) -> nn.Module:
    """The trained network of a checkpoint."""
    recipe = recipe_of(state)
    network = METHODS[recipe.method].network(replace(recipe.options, init="random"))  # its weights follow at once
    network.load_state_dict(state["network"])
    return network
