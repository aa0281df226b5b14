"""Train and score what the papers' tables need, as far as the shards are available."""

import logging
import os
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

log = logging.getLogger(__name__)


def run(paper_runs: PaperRuns, selected: Selected, weights: Path | None, workers: int) -> list[dict]:
    """Train and score what the rows need and have shards for, one after another; finished work is skipped.

    A training that was killed is resumed. Returns the outcome of each run: `training` and, by evaluation, `scored`
    (`done`, `done before`, or the reason why not). Raises StoppedError after a signal, AvpipeError under `torchrun`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AvpipeError(
            "reproduce --run uses a single process; under torchrun run `train … --name RUN` with RUN from --plan, "
            "then rerun this command without torchrun"
        )
    with stage_lock(paper_runs.root.runs, "a reproduction"):
        return _run_all(paper_runs, selected, weights, workers)


def _run_all(paper_runs: PaperRuns, selected: Selected, weights: Path | None, workers: int) -> list[dict]:
    names = dict.fromkeys(runnable.run for _, runnable in selected if isinstance(runnable, Runnable))
    outcomes = []
    for number, name in enumerate(names, 1):
        wanted = evaluations(selected, name)
        first = wanted[0]
        about = " ".join([*first.changes, "on", first.train_split]) if first.recipe else "not trained"
        log.info("%d of %d: %s (%s %s)", number, len(names), name, first.settings.method, about)
        outcome = {"run": name, "training": _train(paper_runs, first, weights, workers), "scored": {}}
        for runnable, shown in zip(wanted, scored_on(selected, name), strict=True):
            outcome["scored"][shown] = _score(paper_runs, runnable, weights, workers)
        outcomes.append(outcome)
    return outcomes


def _train(paper_runs: PaperRuns, runnable: Runnable, weights: Path | None, workers: int) -> str:
    if paper_runs.training(runnable).finished:
        return "done before" if runnable.recipe else "none"
    if missing := paper_runs.lacks(runnable.train_split, runnable.settings.feature):
        return f"skipped: {missing}"
    try:
        fit(
            runnable.settings,
            paper_runs.shards(runnable.train_split),
            paper_runs.root.runs / runnable.run,
            workers,
            weights,
        )
    except StoppedError:
        raise
    except AvpipeError as error:  # the next training may still succeed
        return f"failed: {error}"
    paper_runs.forget(runnable)
    return "done"


def _score(paper_runs: PaperRuns, runnable: Runnable, weights: Path | None, workers: int) -> str:
    training = paper_runs.training(runnable)
    if not training.finished:
        return "skipped: no finished training"
    if not isinstance(metrics_of(paper_runs.root, runnable, training), str):
        return "done before"
    if missing := paper_runs.lacks(runnable.eval_split, runnable.settings.feature):
        return f"skipped: {missing}"
    try:
        if runnable.protocol is None:
            choice = ModelChoice(checkpoint=runnable.run) if runnable.recipe else ModelChoice(baseline="random-init")
            run_retrieval(paper_runs.root, runnable.eval_split, choice, workers)
        else:
            request = Request(
                split=runnable.eval_split,
                checkpoint=runnable.run,
                object_guided=runnable.object_guided,
                weights=weights if runnable.object_guided else None,
                protocol="all",  # one pass of the network covers all, so that no protocol needs a second pass later
                workers=workers,
            )
            run_eval(paper_runs.root, request)
    except AvpipeError as error:
        return f"failed: {error}"
    return "done"


def any_failed(outcomes: list[dict]) -> bool:
    """Return whether a training or an evaluation that had its shards failed."""
    return any(text.startswith("failed") for one in outcomes for text in (one["training"], *one["scored"].values()))
