"""The papers' tables as rows with their equivalents in avpipe: recipe, training split, evaluation, protocol."""

import csv
import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import resources

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.models.recipes import Recipe, get_recipe

TABLES = "paper_tables.csv"
UNTRAINED, RANDOM = "untrained", "baseline-random-init"
# Display names of the papers.
NAMES = {"lvs": "LVS", "sspl": "SSPL", "ssl-tie": "SSL-TIE", "marginnce": "MarginNCE"}
# Known or possible differences from the paper, by the keys in the table's last column.
NOTES = {
    "lvs_epochs": "LVS does not state the number of epochs; 20 is our choice",
    "marginnce_settings": "MarginNCE states no learning rate, batch or decay; EZ-VSL's and a decay of 1e-4 are used",
    "sspl_stop": "SSPL stops early without stating when; the held-out fraction and the patience are our choice",
    "vggh_settings": "SSL-TIE does not describe the training of VGG-H; all its settings are our choice",
    "lvs_list": "LVS did not publish its list of {train_split}; the catalogue's {trained_on} is used",
    "sspl_list": "SSPL did not publish its list of {train_split}; the catalogue's {trained_on} is used",
    "ssltie_flickr": "SSL-TIE's Flickr list of 144k was never published; EZ-VSL's flickr_144k is used",
    "heard_list": "the published list ezvsl_heard has 59,468 clips where the papers write 70k",
    "flickr_list": "the papers write 250 clips of Flickr, the published list flickr_test has 249",
    "retrieval_list": "the split retrieval lists 21,253 clips, of which SSL-TIE had 20,304",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One result of a paper, as in its table."""

    paper: str
    table: str
    method: str
    variant: str
    train_split: str
    eval_split: str
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Runnable:
    """What to train and score in avpipe for a row."""

    recipe: str | None
    """A name in avpipe.train.models.recipes; None for an untrained network."""
    changes: tuple[str, ...] = ()
    train_split: str | None
    eval_split: str
    protocol: str | None
    """None for a retrieval task of avpipe.train.evaluation.retrieval."""
    object_guided: bool = False
    notes: tuple[str, ...] = ()
    """Known or possible differences from the paper's setup."""

    @cached_property
    def settings(self) -> Recipe:
        """The complete recipe; for an untrained network the one that defines it."""
        return get_recipe(self.recipe or "lvs", list(self.changes) if self.recipe else ["init=random"])

    @cached_property
    def run(self) -> str:
        """Name of the run: the same for all rows with one recipe and training split, whatever they score."""
        if self.recipe is None:
            return RANDOM
        key = json.dumps([self.settings.record(), self.train_split], sort_keys=True)
        return f"paper-{self.settings.method}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


Selected = list[tuple[Row, Runnable | str]]
"""Rows with their equivalents in avpipe, or the reason why there is none."""


def read_rows() -> Selected:
    """Return all results of the papers, in the order of the table."""
    text = resources.files("avpipe.manifests").joinpath(TABLES).read_text(encoding="utf-8")
    entries = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [(_row(entry), _runnable(entry)) for entry in entries]


def _row(entry: dict[str, str]) -> Row:
    return Row(**{field.name: entry[field.name] for field in fields(Row)} | {"value": float(entry["value"])})


def _runnable(entry: dict[str, str]) -> Runnable | str:
    if not entry["recipe"]:
        return f"avpipe has no method {entry['method']}"
    return Runnable(
        recipe=None if entry["recipe"] == UNTRAINED else entry["recipe"],
        changes=tuple(entry["changes"].split()),
        train_split=entry["trained_on"] or None,
        eval_split=entry["scored_on"],
        protocol=entry["protocol"] or None,
        object_guided=entry["object_guided"] == "yes",
        notes=tuple(NOTES[name].format(**entry) for name in entry["notes"].split()),
    )


def select(paper: str | None, method: str | None) -> Selected:
    """Return the rows of a paper and a method, None for all. Raises AvpipeError for a name that no row has."""
    rows = read_rows()
    for name, value, known in (
        ("paper", paper, {row.paper for row, _ in rows}),
        ("method", method, {row.method for row, _ in rows}),
    ):
        if value is not None and value not in known:
            raise AvpipeError(f"no row has the {name} {value!r}; there are: {', '.join(sorted(known))}")
    return [(row, runnable) for row, runnable in rows if paper in (None, row.paper) and method in (None, row.method)]


def distinct(selected: Selected) -> list[Runnable]:
    """Return one runnable per training that the rows need."""
    found: dict[str, Runnable] = {}
    for _, runnable in selected:
        if isinstance(runnable, Runnable) and runnable.recipe:
            found.setdefault(runnable.run, runnable)
    return list(found.values())


def evaluations(selected: Selected, run: str) -> list[Runnable]:
    """Return one runnable per evaluation of a run that the rows need."""
    of_run = [runnable for _, runnable in selected if isinstance(runnable, Runnable) and runnable.run == run]
    return list(
        {(runnable.eval_split, runnable.protocol, runnable.object_guided): runnable for runnable in of_run}.values()
    )


def scored_on(selected: Selected, run: str) -> list[str]:
    """Return the same evaluations as text."""
    shown = []
    for runnable in evaluations(selected, run):
        how = runnable.protocol or "retrieval"
        shown.append(f"{runnable.eval_split} ({how}{', object-guided' if runnable.object_guided else ''})")
    return shown
