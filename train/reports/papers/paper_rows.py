"""The papers' tables as rows, and what each row is in avpipe: a recipe, a training split, an evaluation, a protocol."""

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
# Who stands behind a paper's name.
NAMES = {"lvs": "LVS", "sspl": "SSPL", "ssl-tie": "SSL-TIE", "marginnce": "MarginNCE"}
# What is not known to be as in the paper, by the words in the table's last column.
NOTES = {
    "lvs_epochs": "LVS names no number of epochs; 20 is ours",
    "marginnce_settings": "MarginNCE states no learning rate, batch or decay; EZ-VSL's and a decay of 1e-4 stand in",
    "sspl_stop": "SSPL stops early without saying when; the part held back and the patience are ours",
    "vggh_settings": "SSL-TIE names no training of VGG-H; all its numbers are ours",
    "lvs_list": "LVS did not publish its list of {train_split}; the catalogue's {trained_on} stands in",
    "sspl_list": "SSPL did not publish its list of {train_split}; the catalogue's {trained_on} stands in",
    "ssltie_flickr": "SSL-TIE's Flickr list of 144k was never published; EZ-VSL's flickr_144k stands in",
    "heard_list": "the published list ezvsl_heard has 59,468 clips where the papers write 70k",
    "flickr_list": "the papers write 250 clips of Flickr, the published list flickr_test has 249",
    "retrieval_list": "retrieval lists 21,253 clips, of which SSL-TIE had 20,304",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure of a paper, as its table has it."""

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
    """A name in avpipe.train.models.recipes; None: a network before any training."""
    changes: tuple[str, ...] = ()
    train_split: str | None
    eval_split: str
    protocol: str | None
    """None: a search task of avpipe.train.evaluation.retrieval instead of a map."""
    object_guided: bool = False
    notes: tuple[str, ...] = ()
    """Where the set-up is not known to be the paper's."""

    @cached_property
    def settings(self) -> Recipe:
        """The whole recipe; of an untrained network the one it would be trained by."""
        return get_recipe(self.recipe or "lvs", list(self.changes) if self.recipe else ["init=random"])

    @cached_property
    def run(self) -> str:
        """Name of the run: the same for all rows with one recipe and training split, whatever they score."""
        if self.recipe is None:
            return RANDOM
        key = json.dumps([self.settings.record(), self.train_split], sort_keys=True)
        return f"paper-{self.settings.method}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


Selected = list[tuple[Row, Runnable | str]]
"""Rows with what they are in avpipe, or why they are nothing there."""


def read_rows() -> Selected:
    """All figures of the papers, in their order."""
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
    """The rows of a paper and of a method, None for all. Raises AvpipeError for a name that no row has."""
    rows = read_rows()
    for name, value, known in (
        ("paper", paper, {row.paper for row, _ in rows}),
        ("method", method, {row.method for row, _ in rows}),
    ):
        if value is not None and value not in known:
            raise AvpipeError(f"no row has the {name} {value!r}; there are: {', '.join(sorted(known))}")
    return [(row, what) for row, what in rows if paper in (None, row.paper) and method in (None, row.method)]


def distinct(selected: Selected) -> list[Runnable]:
    """One runnable for each training that the rows need."""
    found: dict[str, Runnable] = {}
    for _, what in selected:
        if isinstance(what, Runnable) and what.recipe:
            found.setdefault(what.run, what)
    return list(found.values())


def evaluations(selected: Selected, run: str) -> list[Runnable]:
    """One runnable for each evaluation of a run that the rows need."""
    of_run = [what for _, what in selected if isinstance(what, Runnable) and what.run == run]
    return list({(what.eval_split, what.protocol, what.object_guided): what for what in of_run}.values())


def scored_on(selected: Selected, run: str) -> list[str]:
    """The same evaluations in words."""
    shown = []
    for what in evaluations(selected, run):
        how = what.protocol or "retrieval"
        shown.append(f"{what.eval_split} ({how}{', object-guided' if what.object_guided else ''})")
    return shown
