"""The cost of the trainings behind the papers' tables, and the commands that make their missing shards."""

import statistics
from collections.abc import Iterator

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.train.models.checkpoint import LAST, load_checkpoint, recipe_of
from avpipe.train.reports.papers.paper_rows import Runnable, Selected, distinct, scored_on
from avpipe.train.reports.papers.reproduce import PaperRuns, listed_clips, steps_of
from avpipe.train.reports.stored import read_log
from avpipe.train.run.logs import LOG

# Settings of a recipe and of its method that determine the speed of a training.
SPEED = (
    *("method", "feature", "image_px", "view", "masking", "batch_size", "precision", "accumulate", "compile", "mixing"),
    *("spec_pool", "stride14", "geometric", "pcm", "cycles", "train_extractors"),
)


def plan(paper_runs: PaperRuns, selected: Selected) -> dict:
    """Return `trainings`, the cost of each distinct one, and `commands`, which make the missing shards.

    `hours` is the duration of the entire training at the speed of a finished run in this root with the same
    speed-determining settings (the run itself, if it is finished); None if there is none.
    """
    rates = dict(_rates(paper_runs.root))
    trainings = []
    for runnable in distinct(selected):
        recipe, samples, steps = runnable.settings, listed_clips(runnable.train_split), None
        missing = paper_runs.lacks(runnable.train_split, recipe.feature)
        if missing is None:
            clip_ids = paper_runs.shards(runnable.train_split).clip_ids
            samples, steps = len(clip_ids), steps_of(recipe, clip_ids)
        elif samples:  # entire videos are held out, so that an epoch may differ by a step or two
            steps = int(samples * (1 - recipe.validation)) // recipe.batch_size * recipe.epochs
        rate = rates.get(_speed(recipe.record()))
        training = paper_runs.training(runnable)
        trainings.append(
            {
                "run": runnable.run,
                "recipe": runnable.recipe,
                "changes": list(runnable.changes),
                "split": runnable.train_split,
                "scored_on": scored_on(selected, runnable.run),
                "samples": samples,
                "samples_of": "list" if missing else "shards",
                "steps": steps,
                "clips_per_s": rate,
                "hours": steps * recipe.batch_size / rate / 3600 if rate and steps else None,
                "status": "trained" if training.finished else training.reason,
                "missing": missing,
            }
        )
    return {"trainings": trainings, "commands": _commands(paper_runs, selected)}


def _commands(paper_runs: PaperRuns, selected: Selected) -> list[str]:
    """Return the commands that make the missing shards, each split with all the features that it needs."""
    wanted: dict[str, set[str]] = {}
    for _, runnable in selected:
        if isinstance(runnable, Runnable):
            for split in filter(None, (runnable.train_split, runnable.eval_split)):
                wanted.setdefault(split, set()).add(runnable.settings.feature)
    commands = []
    for split, features in wanted.items():
        if not any(paper_runs.lacks(split, feature) for feature in features):
            continue
        try:
            features |= set(paper_runs.shards(split).metadata["extract"]["features"])
            fetch = ""
        except AvpipeError:
            fetch = "avpipe import FOLDER" if split.startswith("flickr") else f"avpipe download --split {split}"
            fetch += " && "
        how = f"--split {split} --features {','.join(sorted(features))}"
        commands.append(f"{fetch}avpipe extract {how} && avpipe shard {how}")
    return commands


def _rates(root: Root) -> Iterator[tuple[tuple, float]]:
    """Yield (speed-determining settings, clips per second) of every finished run in the root, the newest last."""
    for path in sorted(root.runs.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime_ns):
        try:
            state = load_checkpoint(path)
            finished = state["stopped_early"] or state["step"] == steps_of(recipe_of(state), state["data"]["clip_ids"])
        except (AvpipeError, KeyError, TypeError):
            continue
        if finished and (path.parent / LOG).exists():
            rates = [rate for _, rate in read_log(path.parent / LOG, ("step", "clips_per_s"))]
            if rates:
                yield _speed(state["recipe"]), statistics.median(rates)


def _speed(record: dict) -> tuple:
    settings = record | record["options"]
    return tuple(settings.get(name) for name in SPEED)
