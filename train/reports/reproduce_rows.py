"""The papers' tables as rows, and what each row is in avpipe: a recipe, a training split, an evaluation, a protocol."""

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

from pipeline.errors import AvpipeError
from train.recipes import Recipe, get_recipe

TABLES = "paper_tables.csv"
RANDOM = "baseline-random-init"
RETRIEVAL = ("audio_retrieval", "cross_modal_retrieval")

# Whose lists and test sets a paper used: their splits to ours. LVS and SSPL published no training lists; SSL-TIE's
# stand in for VGG-Sound, because they hold no test clip, EZ-VSL's for Flickr.
_STAND_INS = {
    "flickr_10k": "flickr_10k",
    "flickr_144k": "flickr_144k",
    "vggsound_10k": "ssltie_10k",
    "vggsound_144k": "ssltie_144k",
    "vggsound_full": "ssltie_full",
    "vggsound_heard_70k": "ezvsl_heard",
}
TRAINING = {
    "lvs": _STAND_INS,
    "sspl": _STAND_INS,
    "ssl-tie": {
        "flickr_10k": "flickr_ssltie_10k",
        "flickr_144k": "flickr_144k",
        "vggsound_144k": "ssltie_144k",
        "vggsound_seen_144k": "ssltie_seen_144k",
        "vggsound_heard_70k": "ssltie_openset_70k",
    },
    "marginnce": {
        "flickr_144k": "flickr_144k",
        "vggsound_144k": "ezvsl_144k",
        "vggsound_heard_70k": "ezvsl_heard",
    },
}
_WHOLE = {"flickr": "flickr_test", "vggss": "vggss", "vggss_heard": "vggss_heard", "vggss_unheard": "vggss_unheard"}
EVALUATION = {
    "lvs": _WHOLE,
    "sspl": {"flickr": "flickr_test", "vggss": "vggss_sspl"},
    "ssl-tie": {
        "flickr": "flickr_test",
        "vggss": "vggss_ssltie",
        "vggss_heard": "vggss_heard_ssltie",
        "vggss_unheard": "vggss_unheard_ssltie",
        **dict.fromkeys(RETRIEVAL, "retrieval"),
    },
    "marginnce": _WHOLE,
}
# Who stands behind a paper's name, in notes.
NAMES = {"lvs": "LVS", "sspl": "SSPL", "ssl-tie": "SSL-TIE", "marginnce": "MarginNCE"}

# Methods with the protocol of their own evaluators; a key is a recipe, too.
PROTOCOL = {"lvs": "lvs", "ez-vsl": "ez-vsl", "marginnce": "ez-vsl", "ssl-tie": "ssl-tie", "sspl": "sspl"}
WITHOUT = "avpipe has no method {}"

# What a method's own paper leaves open.
OPEN = {
    "lvs": "LVS names no number of epochs; 20 is ours",
    "marginnce": "MarginNCE states no learning rate, batch or decay; EZ-VSL's and a decay of 1e-4 stand in",
    "sspl": "SSPL stops early without saying when; the part held back and the patience are ours",
    "vgg-h": "SSL-TIE names no training of VGG-H; all its numbers are ours",
}

_MARGIN = re.compile(r"(?:margin |m=)([+-]?[0-9.]+)")
_NO_MIXING = ("equivariance=0", "mixing=none")
# Variant, without its OGL, to changes of the method's recipe.
CHANGES: dict[str, dict[str, tuple[str, ...]]] = {
    "lvs": {
        "reproduction": (),
        "all categories": (),
        "positives only": ("hard_negatives=false",),
        "hard negatives without tri-map": ("tri_map=false",),
        "tri-map": (),
    },
    "ssl-tie": {
        "110 categories": (),
        "all categories": (),
        "A: contrastive only": ("view=crop", "geometric=false", "masking=false", *_NO_MIXING),
        "B: + appearance": ("geometric=false", "masking=false", *_NO_MIXING),
        "C: + geometric": ("masking=false", *_NO_MIXING),
        "D: + masking": _NO_MIXING,
        "E: + audio mixing": ("equivariance=0",),
        "F: + geometric consistency": (),
    },
    "vgg-h": {"supervised": ()},
    "sspl": {  # of these the first and T=… are with PCM
        "w/ PCM": (),
        "T=1": ("cycles=0",),  # the paper counts the pass before the cycles
        "T=3": ("cycles=2",),
        "T=5": ("cycles=4",),
        "w/o PCM": (),
        "scratch without stop-grad": ("init=random", "train_extractors=true", "stop_gradient=false"),
        "pre-trained without stop-grad": ("stop_gradient=false",),
        "scratch with stop-grad": ("init=random", "train_extractors=true"),
        "crop": ("view=crop-only",),
        "crop+horizontal-flip": (),
        "crop+vertical-flip": ("view=vertical-flip",),
        "crop+translation": ("view=translation",),
        "crop+rotation": ("view=rotation",),
        "crop+grayscale": ("view=greyscale",),
        "crop+color-jitter": ("view=jitter",),
        "crop+gaussian-blur": ("view=blur",),
        **{f"scaling={name}": (f"scaling={name}",) for name in ("relu", "sigmoid", "softmax", "min-max")},
        "scaling=relu+softmax": ("scaling=relu-softmax",),
        **{f"fusion={name}": (f"fusion={name}",) for name in ("concatenate", "multiply", "add", "attention")},
    },
}
_WITH_PCM = ("w/ PCM", "T=1", "T=3", "T=5")
# SSPL without PCM, supplement, table S1: 2e-3 and 5e-4 on Flickr; the recipe's are those of VGG-Sound.
_FLICKR_RATES = ("learning_rate=2e-3", "rest_rate=0.25")


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
    """A name in train.recipes; None: a network before any training."""
    changes: tuple[str, ...] = ()
    train_split: str | None
    eval_split: str
    protocol: str | None
    """None: a search task of train.evaluation.retrieval instead of a map."""
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


def read_rows() -> list[Row]:
    """All figures of the papers, in their order."""
    text = resources.files("manifests").joinpath(TABLES).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [Row(**entry | {"value": float(entry["value"])}) for entry in csv.DictReader(lines)]


def runnable(row: Row) -> Runnable | str:
    """What a row is in avpipe, or a sentence that says why it is nothing there."""
    if row.method == "random":
        notes = _notes(row, row.paper)
        eval_split = EVALUATION[row.paper][row.eval_split]
        return Runnable(recipe=None, train_split=None, eval_split=eval_split, protocol=None, notes=notes)
    if row.method not in PROTOCOL and row.method != "vgg-h":
        return WITHOUT.format(row.method)
    source = "lvs" if _quotes_lvs(row) else row.paper
    recipe, changes = _recipe(row)
    return Runnable(
        recipe=recipe,
        changes=changes,
        train_split=TRAINING[source][row.train_split],
        eval_split=EVALUATION[source][row.eval_split],
        protocol=None if row.eval_split in RETRIEVAL else PROTOCOL[row.method],
        object_guided="w/ OGL" in row.variant,
        notes=_notes(row, source),
    )


def _quotes_lvs(row: Row) -> bool:
    """Whether another paper repeats LVS's own figure: SSL-TIE's open set, MarginNCE's table across data sets."""
    return row.method == "lvs" and (row.paper, row.table) in {("ssl-tie", "4"), ("marginnce", "3")}


def _recipe(row: Row) -> tuple[str, tuple[str, ...]]:
    variant = row.variant.replace("w/ OGL", "").replace("w/o OGL", "").strip()
    if margin := _MARGIN.fullmatch(variant):
        changes = (f"margin={float(margin[1])}",)
    else:
        changes = CHANGES[row.method][variant] if variant else ()
    if row.method != "sspl" or variant in _WITH_PCM:
        return row.method, changes
    rates = _FLICKR_RATES if row.train_split.startswith("flickr") else ()
    return "sspl-without-pcm", (*rates, *changes)


def _notes(row: Row, source: str) -> tuple[str, ...]:
    """What is not known to be as in the paper."""
    notes = [OPEN[row.method]] if row.method in OPEN else []
    if source in ("lvs", "sspl") and row.train_split:
        stand_in = TRAINING[source][row.train_split]
        notes += [
            f"{NAMES[source]} did not publish its list of {row.train_split}; the catalogue's {stand_in} stands in"
        ]
    if source == "ssl-tie" and row.train_split == "flickr_144k":
        notes += ["SSL-TIE's Flickr list of 144k was never published; EZ-VSL's flickr_144k stands in"]
    if source != "ssl-tie" and row.train_split == "vggsound_heard_70k":
        notes += ["the published list ezvsl_heard has 59,468 clips where the papers write 70k"]
    if row.eval_split == "flickr":
        notes += ["the papers write 250 clips of Flickr, the published list flickr_test has 249"]
    if row.eval_split in RETRIEVAL:
        notes += ["retrieval lists 21,253 clips, of which SSL-TIE had 20,304"]
    return tuple(notes)


def select(paper: str | None, method: str | None) -> Selected:
    """The rows of a paper and of a method, None for all. Raises AvpipeError for a name that no row has."""
    rows = read_rows()
    for name, value, known in (
        ("paper", paper, {row.paper for row in rows}),
        ("method", method, {row.method for row in rows}),
    ):
        if value is not None and value not in known:
            raise AvpipeError(f"no row has the {name} {value!r}; there are: {', '.join(sorted(known))}")
    chosen = [row for row in rows if paper in (None, row.paper) and method in (None, row.method)]
    return [(row, runnable(row)) for row in chosen]


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
