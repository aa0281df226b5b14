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
from train.methods import METHODS
from train.recipes import Recipe
from train.shards import Shards

LAST = "last.pt"
PACKAGES = ("avpipe", "torch", "torchvision", "numpy")


def save_checkpoint(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, shards: Shards, step: int
) -> None:
    """Write the state after `step` steps."""
    state = {
        "format": 1,
        "recipe": recipe.record(),
        "data": data_record(shards, recipe.feature),
        "step": step,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    with published(path) as temporary:
        torch.save(state, temporary)


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
    """Read a checkpoint, or the last one of a run's folder. Raises AvpipeError for a file that is none."""
    if path.is_dir():
        path = path / LAST
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
    if not isinstance(state, dict) or state.get("format") != 1:
        raise AvpipeError(f"{path} is not a checkpoint of avpipe (format 1)")
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
