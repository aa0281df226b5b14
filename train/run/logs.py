"""Logs of a training: tables with a row per step and per epoch, TensorBoard, Weights & Biases, progress figures."""

import csv
import math
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write

LOG, VALIDATION, TENSORBOARD = "log.csv", "validation.csv", "tensorboard"
COLUMNS = {
    LOG: ("step", "epoch", "loss", "clips_per_s", "data_wait"),
    VALIDATION: ("step", "epoch", "measure", "value"),
}
# Weight of the latest step in the figures of the progress line.
SMOOTHING = 0.1
# Steps between the points of a curve, in TensorBoard and W&B.
CURVE_STEPS = 10


class Meter:
    """Loss, speed and fraction of time waiting for data: smoothed for the progress line, totalled for the result."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.loss = self.rate = self.wait = math.nan
        self.seconds = self._waited = 0.0
        self._steps = 0
        self._smooth_loss = math.nan

    def wait_for(self, stream: Iterator):
        """Return the next batch and measure the wait for it."""
        self._begin = time.monotonic()
        batch = next(stream)
        self._wait_s = time.monotonic() - self._begin
        return batch

    def finish_step(self, loss: float) -> None:
        """Record a step with its loss and the time since the wait for its batch began."""
        step_s = time.monotonic() - self._begin
        self.loss = loss
        self._steps += 1
        self.seconds += step_s
        self._waited += self._wait_s
        self._smooth_loss = _smoothed(self._smooth_loss, loss)
        self.rate = _smoothed(self.rate, self._batch_size / step_s)
        self.wait = _smoothed(self.wait, self._wait_s / step_s)

    @property
    def total_rate(self) -> float:
        """Clips per second over all steps."""
        return self._steps * self._batch_size / self.seconds if self.seconds else 0.0

    @property
    def total_wait(self) -> float:
        """Fraction of the total time spent waiting for data."""
        return self._waited / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return f"loss {self._smooth_loss:.3f} · {self.rate:.1f} clips/s · waiting for data {self.wait:.0%}"


def _smoothed(old: float, new: float) -> float:
    return new if math.isnan(old) else (1 - SMOOTHING) * old + SMOOTHING * new


class Log:
    """Rows and curves of a run; those after the checkpoint that it resumes from are dropped."""

    def __init__(self, run: Path, first_step: int, epochs_done: int, settings: dict, wandb_project: str | None):
        self._curves = [_TensorBoard(run, first_step)] if find_spec("tensorboard") else []
        if wandb_project:
            self._curves.append(_WeightsAndBiases(wandb_project, run, settings))
        self._steps = _Rows(run / LOG, "step", first_step)
        self._epochs = _Rows(run / VALIDATION, "epoch", epochs_done)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        self._steps.close()
        self._epochs.close()
        for curves in self._curves:
            curves.close()

    def step(self, step: int, epoch: int, meter: Meter, terms: dict[str, Tensor]) -> None:
        """Append one step and the terms of its loss; the loss has all digits, so that runs compare bit for bit."""
        self._steps.append([step, epoch, repr(meter.loss), f"{meter.rate:.2f}", f"{meter.wait:.4f}"])
        if step % CURVE_STEPS == 0:
            figures = {"loss": meter.loss, "clips_per_s": meter.rate, "data_wait": meter.wait}
            self._points(step, figures | {name: term.item() for name, term in terms.items()})

    def epoch(self, step: int, epoch: int, measure: str, value: float) -> None:
        """Append the result of the validation after an epoch."""
        self._epochs.append([step, epoch, measure, repr(value)])
        self._points(step, {measure: value})

    def _points(self, step: int, values: dict[str, float]) -> None:
        for curves in self._curves:
            curves.add(step, values)

    def flush(self) -> None:
        """Flush the rows; called before each checkpoint, which must not have more steps than the log."""
        self._steps.flush()
        self._epochs.flush()


class NoLog(Log):
    """The log of all ranks but the first: it discards everything."""

    def __init__(self):
        self._curves = []

    def __exit__(self, *_) -> None: ...

    def step(self, *_) -> None:
        """Discard a step."""

    def epoch(self, *_) -> None:
        """Discard an epoch."""

    def flush(self) -> None:
        """Do nothing."""


class _Rows:
    """A table to append rows to; existing rows that are incomplete or have a `column` above `last` are dropped."""

    def __init__(self, path: Path, column: str, last: int):
        rows = []
        if last and path.exists():
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                rows = [row for row in csv.reader(file) if _whole(row, path.name, column, last)]
        with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS[path.name], *rows])
        self._file = open(path, "a", newline="")  # noqa: SIM115 - closed by close()
        self.append = csv.writer(self._file).writerow
        self.flush, self.close = self._file.flush, self._file.close


def _whole(row: list[str], name: str, column: str, last: int) -> bool:
    """Return whether a row of the table `name` has all columns and a number of at most `last` in `column`."""
    columns = COLUMNS[name]
    if len(row) != len(columns):
        return False
    number = row[columns.index(column)]
    return number.isdecimal() and len(number) < 19 and int(number) <= last


class _TensorBoard:
    def __init__(self, run: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run / TENSORBOARD, purge_step=first_step + 1)

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, project: str, run: Path, settings: dict):
        if not find_spec("wandb"):
            raise AvpipeError("--wandb needs the package wandb, which is not installed; run: pip install wandb")
        import wandb

        # The same id each time, so that a run that was killed continues the same curves.
        self._run = wandb.init(project=project, name=run.name, id=run.name, dir=run, resume="allow", config=settings)

    def add(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
