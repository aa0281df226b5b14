"""What disk, processor and device can do for a training over given shards, and which of them limits it.

Four measurements of a few seconds each: reading, loading by different numbers of threads, the training step on one
batch that lies on the device, and all of it together, by the very parts that `run.fit` is made of. Loading goes on
where the measurement before it ended, so no sample comes twice before all have come.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.progress import ProgressLine
from avpipe.pipeline.core.samples import FRAME, feature_member
from avpipe.pipeline.work.base import default_workers
from avpipe.train.core.distributed import start_fabric
from avpipe.train.data.loader import Batch
from avpipe.train.data.shards import Shards
from avpipe.train.data.training_samples import batches
from avpipe.train.models.recipes import Recipe
from avpipe.train.run.logs import Meter
from avpipe.train.run.training import Training

# Share of the time spent waiting for data from which on the data counts as the limit.
WAITING = 0.05
# Steps before the clock runs: cuDNN chooses its kernels, the optimiser gets its state, torch compiles.
WARM_UP = 3
TEXT_COLUMNS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What was measured; rates are samples a second."""

    device: str
    cores: int
    batch_size: int
    read: float
    """Frames and features copied out of the tars, not decoded, by as many threads as there are cores."""
    read_mb_per_s: float
    loaded: dict[int, float]
    """Number of threads to what the training loader makes with them."""
    step: float
    """Forward, backward and optimiser on a batch that lies on the device."""
    peak_device_mb: float | None
    """Most memory of a GPU in use during a step; None on a CPU."""
    threads: int
    """Of the loader in the measurements that follow: as many as `avpipe train` takes."""
    together: float
    """Loading and steps, as in a training."""
    data_wait: float
    """Share of that time spent waiting for data."""
    epoch_samples: int
    """Samples that the steps of an epoch take."""
    epochs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the figures mean."""

    limit: str
    """`disk`, `threads` or `step`."""
    enough_threads: int | None
    """Loader threads that keep the step busy; None where the disk cannot."""
    epoch_s: float
    training_s: float
    """Of all epochs; without validation, checkpoints and the search for sounds to mix."""
    text: str
    """The same in sentences."""


def bench(recipe: Recipe, shards: Shards, seconds: float) -> tuple[Figures, Verdict]:
    """Measure each part for about `seconds` s, at least one batch; the weights are fresh, which changes no speed.

    Raises AvpipeError as `run.fit.fit` does: shards without the recipe's feature, too few samples for a batch.
    """
    recipe = replace(recipe, options=replace(recipe.options, init="random"))
    fabric = start_fabric(recipe.precision)
    if fabric.world_size > 1:
        raise AvpipeError("avpipe bench measures a single process; run it without torchrun")
    cores = default_workers()
    threads = max(1, cores - 1)
    counts = thread_counts(cores)
    with tempfile.TemporaryDirectory() as run, ProgressLine("bench", len(counts) + 3, "measurements") as line:

        def measured(what: str, measure: Callable, *arguments):
            result = measure(training, *arguments, seconds)
            line.advance(note=what)
            return result

        training = Training(fabric, recipe, shards, Path(run), threads, None, None)
        steps = iter(range(sys.maxsize))
        read, read_mb_per_s = measured("reading", _reading, cores)
        loaded = {n: measured(f"loading, {_threads(n)}", _loading, steps, n) for n in counts}
        step, peak = measured("training step", _step, steps)
        together, data_wait = measured("loading and steps", _together, steps, threads)
    figures = Figures(
        device=torch.cuda.get_device_name() if _on_gpu(training) else fabric.device.type,
        cores=cores,
        batch_size=recipe.batch_size,
        read=read,
        read_mb_per_s=read_mb_per_s,
        loaded=loaded,
        step=step,
        peak_device_mb=peak,
        threads=threads,
        together=together,
        data_wait=data_wait,
        epoch_samples=training.plan.steps_per_epoch * recipe.batch_size,
        epochs=recipe.epochs,
    )
    return figures, judge(figures)


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, … and the number of cores itself."""
    return sorted({cores, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)})


def _reading(training: Training, threads: int, seconds: float) -> tuple[float, float]:
    """(samples/s, MB/s) of copying frame and feature of random samples, each once, until the time is over."""
    shards, members = training.shards, [FRAME, feature_member(training.recipe.feature)]
    numbers = iter(np.random.default_rng(0).permutation(training.numbers).tolist())
    begin = time.monotonic()

    def copied(_) -> tuple[int, int]:
        """(samples, bytes) of one thread."""
        samples = size = 0
        for number in numbers:
            # NumPy's copy lets the other threads wait for the disk at the same time; bytes() would not.
            size += sum(np.frombuffer(shards.view(number, member), np.uint8).copy().nbytes for member in members)
            samples += 1
            if time.monotonic() > begin + seconds:
                break
        return samples, size

    with ThreadPoolExecutor(threads) as pool:
        samples, size = map(sum, zip(*pool.map(copied, range(threads)), strict=True))
    taken = time.monotonic() - begin
    return samples / taken, size / 1e6 / taken


def _stream(training: Training, steps: Iterator[int], threads: int) -> Iterator[Batch]:
    """Batches of one step after the other, past the recipe's last epoch too."""
    return batches(training.samples(0), training.plan, 0, steps, threads, training.skipped)


def _loading(training: Training, steps: Iterator[int], threads: int, seconds: float) -> float:
    """Samples/s of the training loader with nobody else at work."""
    stream = _stream(training, steps, threads)
    next(stream)  # threads start, loops are compiled
    begin, samples = time.monotonic(), 0
    while not samples or time.monotonic() < begin + seconds:
        samples += len(next(stream)["number"])
    rate = samples / (time.monotonic() - begin)
    stream.close()
    return rate


def _step(training: Training, steps: Iterator[int], seconds: float) -> tuple[float, float | None]:
    """(samples/s of the step on data in the device's memory, peak MB of a GPU)."""
    batch = training.inputs.to_device(next(_stream(training, steps, 0)))
    for _ in range(WARM_UP):
        training.take_step(batch)
    if _on_gpu(training):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin, done = time.monotonic(), 0
    while not done or time.monotonic() < begin + seconds:
        training.take_step(batch)
        done += len(batch["number"])
    if _on_gpu(training):
        torch.cuda.synchronize()
    rate = done / (time.monotonic() - begin)
    return rate, torch.cuda.max_memory_allocated() / 1e6 if _on_gpu(training) else None


def _together(training: Training, steps: Iterator[int], threads: int, seconds: float) -> tuple[float, float]:
    """(samples/s, share of the time spent waiting for data) of loading and steps, as in a training."""
    meter, stream = Meter(training.recipe.batch_size), _stream(training, steps, threads)
    training.take_step(next(stream))
    while meter.seconds < seconds:
        meter.finish_step(training.take_step(meter.wait_for(stream)))
    stream.close()
    return meter.total_rate, meter.total_wait


def _on_gpu(training: Training) -> bool:
    return training.fabric.device.type == "cuda"


def judge(figures: Figures) -> Verdict:
    """Which part limits a training: a pure function of the figures.

    The step, where the training waits less than 5 % of its time; the disk, where loading is too slow for the step with
    any number of threads and more than half of its time is reading; else the loader's threads.
    """
    fastest = max(figures.loaded.values())
    enough = min((n for n, rate in figures.loaded.items() if rate >= figures.step), default=None)
    if figures.data_wait < WAITING:
        limit, enough = "step", min(enough or figures.threads, figures.threads)
    elif enough is None and fastest > figures.read / 2:
        limit = "disk"
    else:
        limit, enough = "threads", enough or math.ceil(figures.step / fastest * max(figures.loaded))
    epoch_s = figures.epoch_samples / figures.together
    training_s = epoch_s * figures.epochs
    epoch = f"An epoch of {figures.epoch_samples:,} samples takes {_duration(epoch_s)}"
    times = f"{epoch}, the recipe's {figures.epochs} together {_duration(training_s)}."
    text = f"{_why(figures, limit, enough)} {times}"
    return Verdict(limit=limit, enough_threads=enough, epoch_s=epoch_s, training_s=training_s, text=text)


def _why(figures: Figures, limit: str, enough: int | None) -> str:
    """The sentence on what limits."""
    f = figures
    if limit == "step":
        waits = f"with {_threads(f.threads)} to load it waits {f.data_wait:.1%} of its time for data"
        return f"The training step limits: {waits}, and {enough} would be enough."
    if limit == "disk":
        rate = f"{f.read:,.0f} samples/s ({f.read_mb_per_s:,.0f} MB/s)"
        helps = "no number of threads helps, shards on a faster disk do"
        return f"The disk limits: reading gives {rate}, where the step could take {f.step:,.0f}; {helps}."
    head = f"Loading limits: with {_threads(f.threads)} to load the step waits {f.data_wait:.1%} of its time for data"
    if enough > f.cores:
        return f"{head}; about {enough} cores would be needed, here are {f.cores}."
    if enough > f.threads:
        return f"{head}; {enough} would be enough (--workers {enough})."
    return f"{head}; alone they would be fast enough, but they share {f.cores} cores with the step."


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def table(figures: Figures, verdict: Verdict) -> str:
    """The measurements and the verdict as text."""
    rows = Table("", "samples/s", "", box=None, pad_edge=False)
    rows.columns[1].justify = "right"
    note = f"{figures.read_mb_per_s:,.0f} MB/s; what was read before comes from memory"
    rows.add_row("reading", f"{figures.read:,.0f}", note)
    for threads, rate in figures.loaded.items():
        rows.add_row(f"loading, {_threads(threads)}", f"{rate:,.0f}", "")
    peak = "" if figures.peak_device_mb is None else f"; {figures.peak_device_mb:,.0f} MB of its memory"
    rows.add_row("training step", f"{figures.step:,.1f}", f"batches of {figures.batch_size} on {figures.device}{peak}")
    wait = f"{_threads(figures.threads)} to load, waiting for data {figures.data_wait:.1%} of the time"
    rows.add_row("loading and steps", f"{figures.together:,.1f}", wait)
    console = Console(width=TEXT_COLUMNS, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(rows)
        console.print(verdict.text)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def record(figures: Figures, verdict: Verdict) -> dict:
    """Both as plain values, for scripts."""
    return asdict(figures) | {"verdict": asdict(verdict)}
