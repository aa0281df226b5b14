"""The papers' tables reproduced: results of runs next to the published ones.

A result is read from the files of the row's run, and only if its checkpoint was trained to the end with exactly the
row's recipe on the row's split. No other value is ever filled in.
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
from avpipe.train.data.split import train_validation_split
from avpipe.train.models.checkpoint import BEST, LAST, load_checkpoint
from avpipe.train.models.recipes import Recipe
from avpipe.train.reports.papers.paper_rows import Row, Runnable, Selected
from avpipe.train.reports.stored import read_metrics, read_search


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The progress of a row's training."""

    finished: bool
    reason: str
    """Why there is no result; empty if the training is finished."""
    step: int = 0
    """Step of the checkpoint that an evaluation uses: the best if epochs were compared, else the last."""
    samples: int = 0


@dataclass(frozen=True)
class _Ids:
    """The part of the interface of `Shards` that `train_validation_split` uses."""

    clip_ids: list[str]

    def __len__(self) -> int:
        return len(self.clip_ids)


class PaperRuns:
    """The shards and trainings of a root, each opened once."""

    def __init__(self, root: Root):
        self.root = root
        self._shards: dict[str, Shards | AvpipeError] = {}
        self._trainings: dict[str, TrainingState] = {}

    def shards(self, split: str) -> Shards:
        """Return the shards of a split. Raises AvpipeError if they are missing or damaged."""
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
        """Return what a split's shards lack for a network that reads a feature; None if they lack nothing."""
        if not (self.root.shards / split / INDEX).exists():
            return f"{split} has no shards"
        try:
            held = self.shards(split).metadata["extract"]["features"]
        except AvpipeError as error:
            return str(error)
        return None if feature in held else f"the shards of {split} hold no {feature}"

    def training(self, runnable: Runnable) -> TrainingState:
        """Return the progress of a row's training; an untrained network counts as finished."""
        if runnable.recipe is None:
            return TrainingState(finished=True, reason="")
        if runnable.run not in self._trainings:
            self._trainings[runnable.run] = _training(self.root.runs / runnable.run, runnable)
        return self._trainings[runnable.run]

    def forget(self, runnable: Runnable) -> None:
        """Drop a training from the cache, so that it is read again."""
        self._trainings.pop(runnable.run, None)


def _training(run: Path, runnable: Runnable) -> TrainingState:
    if not (run / LAST).exists():
        return TrainingState(finished=False, reason="not run")
    try:
        last = load_checkpoint(run / LAST)
        data = last["data"]
        if (last["recipe"], data["split"], last["select_on"]) != (
            runnable.settings.record(),
            runnable.train_split,
            None,
        ):
            return TrainingState(finished=False, reason=f"{run} was trained with other settings")
        steps = steps_of(runnable.settings, data["clip_ids"])
        if last["step"] != steps and not last["stopped_early"]:
            return TrainingState(finished=False, reason=f"at step {last['step']:,} of {steps:,}")
        chosen = load_checkpoint(run / BEST) if (run / BEST).exists() else last
        return TrainingState(finished=True, reason="", step=chosen["step"], samples=len(data["clip_ids"]))
    except AvpipeError as error:
        return TrainingState(finished=False, reason=str(error))


def steps_of(recipe: Recipe, clip_ids: list[str]) -> int:
    """Return the steps of a complete training on these clips. Raises AvpipeError if they do not fill a batch."""
    indices, _ = train_validation_split(_Ids(clip_ids), recipe.validation, recipe.seed)
    return _plan(recipe, indices).steps


def _plan(recipe: Recipe, indices) -> BatchPlan:
    return BatchPlan(
        indices=indices, batch_size=recipe.batch_size, world_size=1, epochs=recipe.epochs, seed=recipe.seed
    )


def compare(paper_runs: PaperRuns, selected: Selected) -> list[dict]:
    """Return every row with its equivalent in avpipe and, if it was run, our result, difference, coverage and leak.

    `status` is `run`, or the reason why `ours` is None. `leak`: how many scored clips, and how many of their videos,
    were trained on; None if unknown or if nothing was trained.
    """
    return [_compared(paper_runs, row, runnable) for row, runnable in selected]


def _compared(paper_runs: PaperRuns, row: Row, runnable: Runnable | str) -> dict:
    record = asdict(row)
    empty = {"theirs": record.pop("value"), "ours": None, "difference": None, "status": runnable}
    record |= empty | dict.fromkeys(("clips_scored", "clips_listed", "leak", "trained_samples", "trained_listed"))
    if isinstance(runnable, str):
        return record | {"runnable": None}
    record["runnable"] = asdict(runnable) | {"run": runnable.run}
    training = paper_runs.training(runnable)
    if not training.finished:
        return record | {"status": training.reason}
    metrics = metrics_of(paper_runs.root, runnable, training)
    if isinstance(metrics, str):
        return record | {"status": metrics}
    figures = metrics["protocols"][runnable.protocol] if runnable.protocol else metrics.get(row.eval_split, {})
    ours = figures.get("ciou" if row.metric == "ciou@0.5" else row.metric)
    if not isinstance(ours, float):
        return record | {"status": f"not scored by {row.metric}"}
    return record | {
        "status": "run",
        "ours": ours,
        "difference": ours - row.value,
        "clips_scored": figures["clips_scored"] if runnable.protocol else metrics["clips_scored"],
        "clips_listed": metrics["clips_listed"],
        "leak": metrics.get("trained_on", {}).get("leak"),
        "trained_samples": training.samples if runnable.recipe else None,
        "trained_listed": listed_clips(runnable.train_split),
    }


def listed_clips(split: str | None) -> int | None:
    """Return the number of clips of a split in the catalogue; None if it is not stated."""
    definition = load_catalogue()[1].get(split)
    return definition.clips if definition else None


def metrics_of(root: Root, runnable: Runnable, training: TrainingState) -> dict | str:
    """Return the results of the row's evaluation, or why they do not count."""
    kind, suffix = ("eval" if runnable.protocol else "retrieval"), "-object-guided" if runnable.object_guided else ""
    path = root.runs / runnable.run / kind / f"{runnable.eval_split}{suffix}" / "metrics.json"
    if not path.exists():
        return "not scored" if runnable.recipe else "not run"
    try:
        metrics = read_metrics(path) if runnable.protocol else read_search(path)
    except AvpipeError as error:
        return f"{error}; remove it"
    trained_on = metrics.get("trained_on", {})
    expected = {"split": runnable.train_split, "step": training.step, "samples": training.samples}
    if runnable.recipe and any(trained_on.get(name) != value for name, value in expected.items()):
        return "scored before the training ended"
    if runnable.protocol and runnable.protocol not in metrics["protocols"]:
        return f"not scored under {runnable.protocol}"
    return metrics
