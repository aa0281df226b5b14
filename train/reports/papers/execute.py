"""Trains and scores what the papers' tables need and the shards are there for."""

import os
import sys
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.locks import stage_lock
from avpipe.train.evaluation.retrieval import run_retrieval
from avpipe.train.evaluation.run import Request, run_eval
from avpipe.train.models.load import ModelChoice
from avpipe.train.reports.papers.paper_rows import Runnable, Selected, evaluations, scored_on
from avpipe.train.reports.papers.reproduce import PaperRuns, metrics_of
from avpipe.train.run.fit import fit
from avpipe.train.run.preemption import StoppedError


def run(bench: PaperRuns, selected: Selected, weights: Path | None, workers: int) -> list[dict]:
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


def _run_all(bench: PaperRuns, selected: Selected, weights: Path | None, workers: int) -> list[dict]:
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


def _train(bench: PaperRuns, what: Runnable, weights: Path | None, workers: int) -> str:
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


def _score(bench: PaperRuns, what: Runnable, weights: Path | None, workers: int) -> str:
    training = bench.training(what)
    if not training.finished:
        return "skipped: no finished training"
    if not isinstance(metrics_of(bench.root, what, training), str):
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
