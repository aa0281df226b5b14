"""What the trainings behind the papers' tables take, and what makes the shards that they lack."""

import statistics
from collections.abc import Iterator

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.train.models.checkpoint import LAST, load_checkpoint, recipe_of
from avpipe.train.reports.papers.paper_rows import Runnable, Selected, distinct, scored_on
from avpipe.train.reports.papers.reproduce import PaperRuns, listed_clips, steps_of
from avpipe.train.reports.stored import read_log
from avpipe.train.run.logs import LOG

# Settings of a recipe and of its method on which the speed of a training hangs.
SPEED = (
    *("method", "feature", "image_px", "view", "masking", "batch_size", "precision", "accumulate", "compile", "mixing"),
    *("spec_pool", "stride14", "geometric", "pcm", "cycles", "train_extractors"),
)


def plan(bench: PaperRuns, selected: Selected) -> dict:
    """`trainings`: what each distinct one takes; `commands`: what makes the shards that are missing.

    `hours` are of the whole training at the speed of a finished run here that differs in nothing on which the speed
    hangs (its own, if it is finished); None where there is none.
    """
    rates = dict(_rates(bench.root))
    trainings = []
    for what in distinct(selected):
        recipe, samples, steps = what.settings, listed_clips(what.train_split), None
        missing = bench.lacks(what.train_split, recipe.feature)
        if missing is None:
            clip_ids = bench.shards(what.train_split).clip_ids
            samples, steps = len(clip_ids), steps_of(recipe, clip_ids)
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


def _commands(bench: PaperRuns, selected: Selected) -> list[str]:
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
