"""The training loop: plan, step, log, checkpoint; a run that was killed resumes from its last checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from avpipe.pipeline.core.progress import ProgressLine
from avpipe.train.core.distributed import any_rank, locked_by_first, start_fabric
from avpipe.train.data.shards import Shards
from avpipe.train.models.recipes import Recipe
from avpipe.train.run.logs import Log, Meter, NoLog
from avpipe.train.run.preemption import StopNowError, StopSignals
from avpipe.train.run.training import Training


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """The result of a training."""

    run: Path
    steps: int
    """Steps done by this process and those before it."""
    resumed_at: int
    """Step of the checkpoint that this process resumed from; 0 for a new run."""
    loss: float | None
    """Loss of the last step; None if all steps had been done before."""
    seconds: float
    clips_per_s: float
    data_wait: float
    """Fraction of the time spent waiting for data."""
    best: dict | None
    """`epoch`, `measure` and `value` of the best epoch; None without validation."""
    stopped_early: bool
    skipped: int
    """Number of damaged samples that were left out."""


def fit(
    recipe: Recipe,
    shards: Shards,
    run: Path,
    workers: int,
    weights: Path | None = None,
    select_on: Shards | None = None,
    wandb_project: str | None = None,
) -> Trained:
    """Train to the end of the recipe, from the run's last checkpoint if it has one.

    Writes `run/last.pt`, `run/log.csv`, TensorBoard's files, and `run/best.pt` if epochs are compared: by the loss on
    the clips that `recipe.validation` holds out, or by the cIoU on `select_on`. A damaged sample is left out of its
    batch and named in `run/skipped.csv`; with several processes it stops them. Under `torchrun` every rank calls this
    function. Raises AvpipeError if the run was created with other settings or data or is being trained by another
    process, if the shards do not fill a batch or lack the feature, or if the loss is no longer finite; StoppedError
    after a signal.
    """
    fabric = start_fabric(recipe.precision)
    with locked_by_first(fabric, run, "a training"):
        training = Training(fabric, recipe, shards, run, workers, weights, select_on)
        return _train(training, wandb_project)


def _train(training: Training, wandb_project: str | None) -> Trained:
    """Run the remaining epochs; a signal ends them with a checkpoint."""
    fabric, recipe, run, plan = training.fabric, training.recipe, training.run, training.plan
    meter, first_step, first = Meter(recipe.batch_size), training.step, fabric.is_global_zero
    log = Log(run, first_step, training.epochs_done, recipe.record(), wandb_project) if first else NoLog()
    signals = StopSignals(single_process=fabric.world_size == 1)
    with log, ProgressLine("train", plan.steps, "steps", shown=first) as line, signals:
        line.start_at(first_step)
        try:
            while training.epochs_done < plan.epochs and not training.stopped_early:
                _train_epoch(training, meter, log, line, signals)
                training.end_epoch(log, signals)
        except StopNowError:
            training.save(log)
            raise signals.stopped(training.step) from None
    return Trained(
        run=run,
        steps=training.step,
        resumed_at=first_step,
        loss=meter.loss if first_step < training.step else None,
        seconds=meter.seconds,
        clips_per_s=meter.total_rate,
        data_wait=meter.total_wait,
        best=training.best,
        stopped_early=training.stopped_early,
        skipped=len(training.skipped),
    )


def _train_epoch(training: Training, meter: Meter, log: Log, line: ProgressLine, signals: StopSignals) -> None:
    """Run the remaining steps of the current epoch. Raises StopNowError between two steps."""
    recipe, plan, epoch = training.recipe, training.plan, training.epochs_done
    stream = training.batches_of(epoch)
    for _ in range(training.step, (epoch + 1) * plan.steps_per_epoch):
        with signals.interrupting():
            batch = meter.wait_for(stream)
        meter.finish_step(training.take_step(batch))
        log.step(training.step, epoch + 1, meter, training.terms)
        line.advance(note=f"epoch {epoch + 1}/{plan.epochs} · {meter}{training.skipped}")
        if any_rank(training.fabric, signals.received):
            raise StopNowError
        if training.step % recipe.checkpoint_steps == 0:
            training.save(log)
