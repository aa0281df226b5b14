"""The papers' tables run again: what has been run beside what they report.

A figure of ours is read from the files of the run that bears the row's name, and only where its checkpoint was trained
to the end by exactly the row's recipe on the row's split. Nothing else is ever filled in.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.manifest.catalogue import load_catalogue
from avpipe.pipeline.shards.index import INDEX
from avpipe.train.data.batch_plan import BatchPlan
from avpipe.train.data.open import open_shards
from avpipe.train.data.shards import Shards
from avpipe.train.data.split import training_part
from avpipe.train.models.checkpoint import BEST, LAST, load_checkpoint
from avpipe.train.models.recipes import Recipe
from avpipe.train.reports.papers.paper_rows import Row, Runnable, Selected
from avpipe.train.reports.stored import read_metrics, read_search


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """How far the training of a row has come."""

    finished: bool
    reason: str
    """Why there is nothing to read; empty where it is finished."""
    step: int = 0
    """Of the checkpoint that an evaluation takes: the best where epochs were compared, else the last."""
    samples: int = 0


@dataclass(frozen=True)
class _Ids:
    """As much of shards as `training_part` looks at."""

    clip_ids: list[str]

    def __len__(self) -> int:
        return len(self.clip_ids)


class PaperRuns:
    """A root as the rows see it: shards and trainings, each opened once."""

    def __init__(self, root: Root):
        self.root = root
        self._shards: dict[str, Shards | AvpipeError] = {}
        self._trainings: dict[str, TrainingState] = {}

    def shards(self, split: str) -> Shards:
        """The shards of a split. Raises AvpipeError where there are none, or damaged ones."""
        if split not in self._shards:
            try:
                self._shards[split] = open_shards(self.root.shards / split)
            except AvpipeError as error:
                self._shards[split] = error
        found = self._shards[split]
        if isinstance(found, AvpipeError):
            raise found
        return found

    def lacks(self, split: str, feature: str) -> str | None:
        """What of a split's shards is missing for a network that reads a feature, as a sentence; None: nothing."""
        if not (self.root.shards / split / INDEX).exists():
            return f"{split} has no shards"
        try:
            held = self.shards(split).metadata["extract"]["features"]
        except AvpipeError as error:
            return str(error)
        return None if feature in held else f"the shards of {split} hold no {feature}"

    def training(self, what: Runnable) -> TrainingState:
        """How far a row's training has come; an untrained network needs none."""
        if what.recipe is None:
            return TrainingState(finished=True, reason="")
        if what.run not in self._trainings:
            self._trainings[what.run] = _training(self.root.runs / what.run, what)
        return self._trainings[what.run]

    def forget(self, what: Runnable) -> None:
        """Look at a training anew."""
        self._trainings.pop(what.run, None)


def _training(run: Path, what: Runnable) -> TrainingState:
    if not (run / LAST).exists():
        return TrainingState(finished=False, reason="not run")
    try:
        last = load_checkpoint(run / LAST)
        data = last["data"]
        if (last["recipe"], data["split"], last["select_on"]) != (what.settings.record(), what.train_split, None):
            return TrainingState(finished=False, reason=f"{run} was trained with other settings")
        steps = steps_of(what.settings, data["clip_ids"])
        if last["step"] != steps and not last["stopped_early"]:
            return TrainingState(finished=False, reason=f"at step {last['step']:,} of {steps:,}")
        chosen = load_checkpoint(run / BEST) if (run / BEST).exists() else last
        return TrainingState(finished=True, reason="", step=chosen["step"], samples=len(data["clip_ids"]))
    except AvpipeError as error:
        return TrainingState(finished=False, reason=str(error))


def steps_of(recipe: Recipe, clip_ids: list[str]) -> int:
    """Steps of a whole training on these clips. Raises AvpipeError where they do not fill a batch."""
    numbers, _ = training_part(_Ids(clip_ids), recipe.validation, recipe.seed)
    return _plan(recipe, numbers).steps


def _plan(recipe: Recipe, numbers) -> BatchPlan:
    return BatchPlan(
        numbers=numbers, batch_size=recipe.batch_size, world_size=1, epochs=recipe.epochs, seed=recipe.seed
    )


def compare(bench: PaperRuns, selected: Selected) -> list[dict]:
    """Every row with what it is in avpipe and, where it was run, our figure, the difference, coverage and leak.

    `status` is `run`, or why `ours` is None. `leak`: how many scored clips, and of their videos, were trained on; None
    where it is not known or nothing was trained.
    """
    return [_compared(bench, row, what) for row, what in selected]


def _compared(bench: PaperRuns, row: Row, what: Runnable | str) -> dict:
    record = asdict(row)
    empty = {"theirs": record.pop("value"), "ours": None, "difference": None, "status": what}
    record |= empty | dict.fromkeys(("clips_scored", "clips_listed", "leak", "trained_samples", "trained_listed"))
    if isinstance(what, str):
        return record | {"runnable": None}
    record["runnable"] = asdict(what) | {"run": what.run}
    training = bench.training(what)
    if not training.finished:
        return record | {"status": training.reason}
    metrics = metrics_of(bench.root, what, training)
    if isinstance(metrics, str):
        return record | {"status": metrics}
    figures = metrics["protocols"][what.protocol] if what.protocol else metrics.get(row.eval_split, {})
    ours = figures.get("ciou" if row.metric == "ciou@0.5" else row.metric)
    if not isinstance(ours, float):
        return record | {"status": f"not scored by {row.metric}"}
    return record | {
        "status": "run",
        "ours": ours,
        "difference": ours - row.value,
        "clips_scored": figures["clips_scored"] if what.protocol else metrics["clips_scored"],
        "clips_listed": metrics["clips_listed"],
        "leak": metrics.get("trained_on", {}).get("leak"),
        "trained_samples": training.samples if what.recipe else None,
        "trained_listed": listed_clips(what.train_split),
    }


def listed_clips(split: str | None) -> int | None:
    """Clips that a split has by the catalogue; None where it does not say."""
    definition = load_catalogue()[1].get(split)
    return definition.clips if definition else None


def metrics_of(root: Root, what: Runnable, training: TrainingState) -> dict | str:
    """What the row's evaluation wrote, or why it does not count."""
    kind, suffix = ("eval" if what.protocol else "retrieval"), "-object-guided" if what.object_guided else ""
    path = root.runs / what.run / kind / f"{what.eval_split}{suffix}" / "metrics.json"
    if not path.exists():
        return "not scored" if what.recipe else "not run"
    try:
        metrics = read_metrics(path) if what.protocol else read_search(path)
    except AvpipeError as error:
        return f"{error}; remove it"
    seen = metrics.get("trained_on", {})
    of_training = {"split": what.train_split, "step": training.step, "samples": training.samples}
    if what.recipe and any(seen.get(name) != value for name, value in of_training.items()):
        return "scored before the training ended"
    if what.protocol and what.protocol not in metrics["protocols"]:
        return f"not scored under {what.protocol}"
    return metrics
