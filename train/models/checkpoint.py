"""Checkpoints: one file for resuming and scoring, written atomically and loaded without running pickled code."""

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import (
    Any,
    Literal,
    NotRequired,  # pydantic needs typing_extensions' TypedDict before Python 3.12
)

import torch
from pydantic import TypeAdapter, ValidationError, with_config
from torch import Tensor, nn
from typing_extensions import TypedDict

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write
from avpipe.pipeline.core.text import one_line
from avpipe.train.core.safe_load import read_saved, seal
from avpipe.train.core.schema import Count, PlainText, first_fault
from avpipe.train.data.shards import Shards
from avpipe.train.methods import METHODS
from avpipe.train.models.author_checkpoints import flat_state, format_of, plain_name
from avpipe.train.models.recipes import Recipe

LAST, BEST = "last.pt", "best.pt"
FORMAT = 2
PACKAGES = ("avpipe", "torch", "torchvision", "numpy")


@with_config(strict=True, arbitrary_types_allowed=True)
class _Data(TypedDict):
    split: PlainText
    listed_sha256: PlainText
    plan: Any
    samples: Count
    feature: PlainText
    feature_digest: PlainText | None
    clip_ids: list[str]


@with_config(strict=True, arbitrary_types_allowed=True)
class _Best(TypedDict):
    epoch: Count
    measure: PlainText
    value: float


@with_config(strict=True, arbitrary_types_allowed=True)
class _State(TypedDict):
    """The contents of a checkpoint, apart from `versions`, which is informative only."""

    format: Literal[2]
    step: Count
    epochs_done: NotRequired[Count]
    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    rng: Tensor
    best: NotRequired[_Best | None]
    stopped_early: NotRequired[bool]
    neighbours: NotRequired[Tensor]
    recipe: dict[str, Any]
    data: _Data
    select_on: PlainText | None


_STATE = TypeAdapter(_State)


def epoch_name(epoch: int) -> str:
    """Return the file name of a checkpoint that is kept in addition to the last and the best."""
    return f"epoch-{epoch:04}.pt"


def save_checkpoint(path: Path, state: dict[str, Any], recipe: Recipe, shards: Shards, select_on: Shards | None):
    """Write the state of a training (step, network, optimizer, …) with its recipe and a description of its data."""
    content = state | {
        "format": FORMAT,
        "recipe": recipe.record(),
        "data": data_record(shards, recipe.feature),
        "select_on": select_on.split if select_on else None,
        "versions": {name: version(name) for name in PACKAGES},
    }
    with atomic_write(path) as temporary:
        _save(content, temporary)
        seal(temporary)


def _save(content: dict[str, Any], path: Path) -> None:
    """Call torch.save, but raise the original OSError if the disk is full; torch wraps it in a RuntimeError."""
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def check_same(state: dict, recipe: Recipe, shards: Shards, select_on: Shards | None, run: Path) -> None:
    """Raise AvpipeError unless settings and data equal those that the run was started with."""
    saved = _flat(state["recipe"]) | _flat(state["data"]) | {"select_on": state["select_on"]}
    current = _flat(recipe.record()) | _flat(data_record(shards, recipe.feature))
    current["select_on"] = select_on.split if select_on else None
    for name in sorted(saved | current):
        if saved.get(name) != current.get(name):
            difference = "" if name == "clip_ids" else f" ({saved.get(name)} then, {current.get(name)} now)"
            raise AvpipeError(f"{run} was started with another {name}{difference}; use another --name for a new run")


def _flat(record: dict) -> dict:
    flat = {}
    for name, value in record.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


def data_record(shards: Shards, feature: str) -> dict[str, Any]:
    """Describe the data of a training: split, list, plan of the shards, feature and its digest, clip ids."""
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
    """Read a checkpoint file, or the best checkpoint of a run folder, or the last if epochs were not compared.

    Raises AvpipeError for a file that is not a checkpoint of this avpipe.
    """
    if path.is_dir():
        path = path / (BEST if (path / BEST).exists() else LAST)
    if not path.exists():
        raise AvpipeError(f"{path} does not exist; give a run folder or a checkpoint written by `avpipe train`")
    state = read_saved(path)
    if not isinstance(format_number := state.get("format"), int) or format_number != FORMAT:
        raise AvpipeError(f"{path} is not a checkpoint of this avpipe (format {FORMAT}); {_advice(state, path)}")
    try:
        _STATE.validate_python(state)
    except ValidationError as error:
        raise AvpipeError(
            f"{path} is not a valid checkpoint of this avpipe ({first_fault(error)}); train again"
        ) from None
    return state


def _advice(state: dict, path: Path) -> str:
    """Say what to do with a torch file that is not a checkpoint of this avpipe."""
    try:
        found = format_of(flat_state(state, path))
    except AvpipeError:  # the file holds no named tensors
        return "train again"
    return f"it looks like one of {found}: use --format {found}" if found else "a published checkpoint needs --format"


def recipe_of(state: dict[str, Any]) -> Recipe:
    """Return the recipe of a checkpoint. Raises AvpipeError for invalid settings."""
    record = state["recipe"]
    try:
        options = _typed(METHODS[record["method"]].config, record["options"])
        return _typed(Recipe, record | {"options": options})
    except ValidationError as error:
        raise AvpipeError(f"the checkpoint's recipe is not valid in this avpipe ({first_fault(error)})") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise AvpipeError(f"the checkpoint's recipe is not valid in this avpipe ({one_line(error)})") from None


def _typed(kind: type, record: dict[str, Any]) -> Any:
    """Build a dataclass after validating the types of its fields. Raises pydantic's ValidationError or TypeError."""
    if unknown := record.keys() - {field.name for field in fields(kind)}:
        raise TypeError(f"there is no setting {min(unknown)}")
    return TypeAdapter(kind).validate_python(record)


def network_of(state: dict[str, Any]) -> nn.Module:
    """Return the trained network of a checkpoint. Raises AvpipeError if its tensors do not match its recipe."""
    recipe = recipe_of(state)
    weights = {plain_name(name): value for name, value in state["network"].items()}
    build = partial(
        METHODS[recipe.method].network, replace(recipe.options, init="random")
    )  # its weights are loaded below
    with torch.device("meta"):  # takes no memory, as an untrusted recipe could ask for a huge network
        expected = build().state_dict()
    if mismatch := next(_mismatches(expected, weights), None):
        raise AvpipeError(f"the checkpoint's network is not that of its recipe: {mismatch}")
    network = build()
    network.load_state_dict(weights)
    return network


def _mismatches(expected: dict[str, Tensor], weights: dict[str, Tensor]) -> Iterator[str]:
    for name in expected.keys() - weights.keys():
        yield f"{name} is missing"
    for name in weights.keys() - expected.keys():
        yield f"{name!r:.80} is unknown"
    for name, value in expected.items():
        given = weights[name]
        if given.shape != value.shape:
            yield f"{name} has shape {tuple(given.shape)}, not {tuple(value.shape)}"
        if (given.layout, given.device.type) != (torch.strided, "cpu") or given.dtype.is_floating_point != (
            value.dtype.is_floating_point
        ):
            yield f"{name} is not a dense CPU tensor of {value.dtype}"
        if given.untyped_storage().nbytes() < given.numel() * given.element_size():
            yield f"{name} has fewer bytes than values"
