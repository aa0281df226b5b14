"""The papers' tables run again: what has been run beside what they report, what the rest would take, and running it.

A figure of ours is read from the files of the run that bears the row's name, and only where its checkpoint was trained
to the end by exactly the row's recipe on the row's split. Nothing else is ever filled in.
"""

import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.catalogue import load_catalogue
from pipeline.errors import AvpipeError
from pipeline.index import INDEX
from pipeline.layout import Root
from pipeline.parts import stage_lock
from train.checkpoint import BEST, LAST, load_checkpoint, recipe_of
from train.data.batch_plan import BatchPlan
from train.data.open import open_shards
from train.data.shards import Shards
from train.data.split import training_part
from train.evaluation.results import Request, run_eval
from train.evaluation.retrieval import run_retrieval
from train.fit import fit
from train.logs import LOG
from train.models import ModelChoice
from train.recipes import Recipe
from train.reports.reproduce_rows import Row, Runnable, Selected, distinct, evaluations, scored_on
from train.reports.stored import read_log, read_metrics, read_search
from train.signals import StoppedError

# Settings of a recipe and of its method on which the speed of a training hangs.
SPEED = (
    *("method", "feature", "image_px", "view", "masking", "batch_size", "precision", "accumulate", "compile", "mixing"),
    *("spec_pool", "stride14", "geometric", "pcm", "cycles", "train_extractors"),
)


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


class Bench:
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
        steps = _steps(what.settings, data["clip_ids"])
        if last["step"] != steps and not last["stopped_early"]:
            return TrainingState(finished=False, reason=f"at step {last['step']:,} of {steps:,}")
        chosen = load_checkpoint(run / BEST) if (run / BEST).exists() else last
        return TrainingState(finished=True, reason="", step=chosen["step"], samples=len(data["clip_ids"]))
    except AvpipeError as error:
        return TrainingState(finished=False, reason=str(error))


def _steps(recipe: Recipe, clip_ids: list[str]) -> int:
    """Steps of a whole training on these clips. Raises AvpipeError where they do not fill a batch."""
    numbers, _ = training_part(_Ids(clip_ids), recipe.validation, recipe.seed)
    return _plan(recipe, numbers).steps


def _plan(recipe: Recipe, numbers) -> BatchPlan:
    return BatchPlan(
        numbers=numbers, batch_size=recipe.batch_size, world_size=1, epochs=recipe.epochs, seed=recipe.seed
    )


def compare(bench: Bench, selected: Selected) -> list[dict]:
    """Every row with what it is in avpipe and, where it was run, our figure, the difference, coverage and leak.

    `status` is `run`, or why `ours` is None. `leak`: how many scored clips, and of their videos, were trained on; None
    where it is not known or nothing was trained.
    """
    return [_compared(bench, row, what) for row, what in selected]


def _compared(bench: Bench, row: Row, what: Runnable | str) -> dict:
    record = asdict(row)
    empty = {"theirs": record.pop("value"), "ours": None, "difference": None, "status": what}
    record |= empty | dict.fromkeys(("clips_scored", "clips_listed", "leak", "trained_samples", "trained_listed"))
    if isinstance(what, str):
        return record | {"runnable": None}
    record["runnable"] = asdict(what) | {"run": what.run}
    training = bench.training(what)
    if not training.finished:
        return record | {"status": training.reason}
    metrics = _metrics(bench.root, what, training)
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
        "trained_listed": _listed(what.train_split),
    }


def _listed(split: str | None) -> int | None:
    definition = load_catalogue()[1].get(split)
    return definition.clips if definition else None


def _metrics(root: Root, what: Runnable, training: TrainingState) -> dict | str:
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


def plan(bench: Bench, selected: Selected) -> dict:
    """`trainings`: what each distinct one takes; `commands`: what makes the shards that are missing.

    `hours` are of the whole training at the speed of a finished run here that differs in nothing on which the speed
    hangs (its own, if it is finished); None where there is none.
    """
    rates = dict(_rates(bench.root))
    trainings = []
    for what in distinct(selected):
        recipe, samples, steps = what.settings, _listed(what.train_split), None
        missing = bench.lacks(what.train_split, recipe.feature)
        if missing is None:
            clip_ids = bench.shards(what.train_split).clip_ids
            samples, steps = len(clip_ids), _steps(recipe, clip_ids)
        elif samples:  # whole videos are held back, so that a step or two an epoch may differ
            steps = int(samples * (1 - recipe.validation)) // recipe.batch_size * recipe.epochs
        rate = rates.get(_speed(recipe.record()))
        training = bench.training(what)
        trainings.append(
            {
                "run": what.run,
                "recipe": what.recipe,
                "changes": list(what.changes),
                "split": what.train_split,
                "scored_on": scored_on(selected, what.run),
                "samples": samples,
                "samples_of": "list" if missing else "shards",
                "steps": steps,
                "clips_per_s": rate,
                "hours": steps * recipe.batch_size / rate / 3600 if rate and steps else None,
                "status": "trained" if training.finished else training.reason,
                "missing": missing,
            }
        )
    return {"trainings": trainings, "commands": _commands(bench, selected)}


def _commands(bench: Bench, selected: Selected) -> list[str]:
    """What makes the shards that the rows lack; each split with all the features that it needs."""
    wanted: dict[str, set[str]] = {}
    for _, what in selected:
        if isinstance(what, Runnable):
            for split in filter(None, (what.train_split, what.eval_split)):
                wanted.setdefault(split, set()).add(what.settings.feature)
    commands = []
    for split, features in wanted.items():
        if not any(bench.lacks(split, feature) for feature in features):
            continue
        try:
            features |= set(bench.shards(split).metadata["extract"]["features"])
            fetch = ""
        except AvpipeError:
            fetch = "avpipe import FOLDER" if split.startswith("flickr") else f"avpipe download --split {split}"
            fetch += " && "
        how = f"--split {split} --features {','.join(sorted(features))}"
        commands.append(f"{fetch}avpipe extract {how} && avpipe shard {how}")
    return commands


def _rates(root: Root) -> Iterator[tuple[tuple, float]]:
    """(what the speed hangs on, clips a second) of every finished run in the root, the newest last."""
    for path in sorted(root.runs.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime_ns):
        try:
            state = load_checkpoint(path)
            finished = state["stopped_early"] or state["step"] == _steps(recipe_of(state), state["data"]["clip_ids"])
        except (AvpipeError, KeyError, TypeError):
            continue
        if finished and (path.parent / LOG).exists():
            rates = [rate for _, rate in read_log(path.parent / LOG, ("step", "clips_per_s"))]
            if rates:
                yield _speed(state["recipe"]), statistics.median(rates)


def _speed(record: dict) -> tuple:
    settings = record | record["options"]
    return tuple(settings.get(name) for name in SPEED)


def run(bench: Bench, selected: Selected, weights: Path | None, workers: int) -> list[dict]:
    """Train and score what the rows need and have the shards for, one after another; what is done is not done again.

    A training that was killed goes on. Returns for each run what came of it: `training` and, by evaluation, `scored`
    (`done`, `done before`, or why not). Raises StoppedError after a signal, AvpipeError under `torchrun`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AvpipeError(
            "reproduce --run is one process; under torchrun use `train … --name RUN`, RUN as --plan names it, "
            "then repeat this without torchrun"
        )
    with stage_lock(bench.root.runs, "a reproduction"):
        return _run_all(bench, selected, weights, workers)


def _run_all(bench: Bench, selected: Selected, weights: Path | None, workers: int) -> list[dict]:
    names = dict.fromkeys(what.run for _, what in selected if isinstance(what, Runnable))
    outcomes = []
    for number, name in enumerate(names, 1):
        wanted = evaluations(selected, name)
        first = wanted[0]
        about = " ".join([*first.changes, "on", first.train_split]) if first.recipe else "not trained"
        print(f"avpipe: {number} of {len(names)}: {name} ({first.settings.method} {about})", file=sys.stderr)
        outcome = {"run": name, "training": _train(bench, first, weights, workers), "scored": {}}
        for what, shown in zip(wanted, scored_on(selected, name), strict=True):
            outcome["scored"][shown] = _score(bench, what, weights, workers)
        outcomes.append(outcome)
    return outcomes


def _train(bench: Bench, what: Runnable, weights: Path | None, workers: int) -> str:
    if bench.training(what).finished:
        return "done before" if what.recipe else "none"
    if missing := bench.lacks(what.train_split, what.settings.feature):
        return f"skipped: {missing}"
    try:
        fit(what.settings, bench.shards(what.train_split), bench.root.runs / what.run, workers, weights)
    except StoppedError:
        raise
    except AvpipeError as error:  # the next training may have all it needs
        return f"failed: {error}"
    bench.forget(what)
    return "done"


def _score(bench: Bench, what: Runnable, weights: Path | None, workers: int) -> str:
    training = bench.training(what)
    if not training.finished:
        return "skipped: no finished training"
    if not isinstance(_metrics(bench.root, what, training), str):
        return "done before"
    if missing := bench.lacks(what.eval_split, what.settings.feature):
        return f"skipped: {missing}"
    try:
        if what.protocol is None:
            choice = ModelChoice(checkpoint=what.run) if what.recipe else ModelChoice(baseline="random-init")
            run_retrieval(bench.root, what.eval_split, choice, workers)
        else:
            request = Request(
                split=what.eval_split,
                checkpoint=what.run,
                object_guided=what.object_guided,
                weights=weights if what.object_guided else None,
                protocol="all",  # one pass of the network serves all, and later questions need no second one
                workers=workers,
            )
            run_eval(bench.root, request)
    except AvpipeError as error:
        return f"failed: {error}"
    return "done"


def any_failed(outcomes: list[dict]) -> bool:
    """Whether anything that had all its shards still came to nothing."""
    return any(text.startswith("failed") for one in outcomes for text in (one["training"], *one["scored"].values()))
