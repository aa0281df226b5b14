"""Benchmark of training over given shards: the throughput of disk, loader and device, and which one is the bottleneck.

Four measurements of a few seconds each, with the code that `run.fit` uses: reading, loading with different numbers of
threads, the training step on one batch in the device's memory, and loading and steps together. Loading continues where
the previous measurement ended, so that no sample is repeated before all were used.
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

# Fraction of the time spent waiting for data from which the data counts as the bottleneck.
WAITING = 0.05
# Steps before timing starts: cuDNN selects its kernels, the optimiser creates its state, torch compiles.
WARM_UP = 3
TEXT_COLUMNS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """The measurements; rates are samples per second."""

    device: str
    cores: int
    batch_size: int
    read: float
    """Frames and features copied out of the tars, not decoded, with one thread per core."""
    read_mb_per_s: float
    loaded: dict[int, float]
    """Number of threads to the rate of the training loader with them."""
    step: float
    """Forward, backward and optimiser on a batch in the device's memory."""
    peak_device_mb: float | None
    """Peak GPU memory during a step; None on a CPU."""
    threads: int
    """Loader threads in the measurements that follow: as many as `avpipe train` uses."""
    together: float
    """Loading and steps together, as in a training."""
    data_wait: float
    """Fraction of that time spent waiting for data."""
    epoch_samples: int
    """Samples used by the steps of an epoch."""
    epochs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The interpretation of the figures."""

    limit: str
    """`disk`, `threads` or `step`."""
    enough_threads: int | None
    """Loader threads that keep the step busy; None if the disk is too slow for that."""
    epoch_s: float
    training_s: float
    """Time of all epochs; without validation, checkpoints and the search for sounds to mix."""
    text: str
    """The same as text."""


def bench(recipe: Recipe, shards: Shards, seconds: float) -> tuple[Figures, Verdict]:
    """Measure each stage for about `seconds` s, at least one batch, with random weights, which do not affect speed.

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
    """Return 1, 2, 4, … up to the number of cores, and that number."""
    return sorted({cores, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)})


def _reading(training: Training, threads: int, seconds: float) -> tuple[float, float]:
    """Return (samples/s, MB/s) of copying frame and feature of random samples, each once, until the time is up."""
    shards, members = training.shards, [FRAME, feature_member(training.recipe.feature)]
    indices = iter(np.random.default_rng(0).permutation(training.indices).tolist())
    begin = time.monotonic()

    def copied(_) -> tuple[int, int]:
        """Return (samples, bytes) of one thread."""
        samples = size = 0
        for index in indices:
            # NumPy's copy releases the GIL, so that other threads can read from disk meanwhile; bytes() does not.
            size += sum(np.frombuffer(shards.view(index, member), np.uint8).copy().nbytes for member in members)
            samples += 1
            if time.monotonic() > begin + seconds:
                break
        return samples, size

    with ThreadPoolExecutor(threads) as pool:
        samples, size = map(sum, zip(*pool.map(copied, range(threads)), strict=True))
    taken = time.monotonic() - begin
    return samples / taken, size / 1e6 / taken


def _stream(training: Training, steps: Iterator[int], threads: int) -> Iterator[Batch]:
    """Yield the batches of consecutive steps, also beyond the recipe's last epoch."""
    return batches(training.samples(0), training.plan, 0, steps, threads, training.skipped)


def _loading(training: Training, steps: Iterator[int], threads: int, seconds: float) -> float:
    """Return samples/s of the training loader while nothing else runs."""
    stream = _stream(training, steps, threads)
    next(stream)  # starts the threads and compiles the loops
    begin, samples = time.monotonic(), 0
    while not samples or time.monotonic() < begin + seconds:
        samples += len(next(stream)["index"])
    rate = samples / (time.monotonic() - begin)
    stream.close()
    return rate


def _step(training: Training, steps: Iterator[int], seconds: float) -> tuple[float, float | None]:
    """Return (samples/s of the step on data in the device's memory, peak MB of a GPU)."""
    batch = training.inputs.to_device(next(_stream(training, steps, 0)))
    for _ in range(WARM_UP):
        training.take_step(batch)
    if _on_gpu(training):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin, done = time.monotonic(), 0
    while not done or time.monotonic() < begin + seconds:
        training.take_step(batch)
        done += len(batch["index"])
    if _on_gpu(training):
        torch.cuda.synchronize()
    rate = done / (time.monotonic() - begin)
    return rate, torch.cuda.max_memory_allocated() / 1e6 if _on_gpu(training) else None


def _together(training: Training, steps: Iterator[int], threads: int, seconds: float) -> tuple[float, float]:
    """Return (samples/s, fraction of the time spent waiting for data) of loading and steps, as in a training."""
    meter, stream = Meter(training.recipe.batch_size), _stream(training, steps, threads)
    training.take_step(next(stream))
    while meter.seconds < seconds:
        meter.finish_step(training.take_step(meter.wait_for(stream)))
    stream.close()
    return meter.total_rate, meter.total_wait


def _on_gpu(training: Training) -> bool:
    return training.fabric.device.type == "cuda"


def judge(figures: Figures) -> Verdict:
    """Return the bottleneck of a training: a pure function of the figures.

    It is the step if the training waits less than 5 % of its time; the disk if loading is too slow for the step with
    any number of threads and spends more than half of its time reading; else the loader's threads.
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
    times = f"{epoch}, all {figures.epochs} epochs of the recipe {_duration(training_s)}."
    text = f"{_why(figures, limit, enough)} {times}"
    return Verdict(limit=limit, enough_threads=enough, epoch_s=epoch_s, training_s=training_s, text=text)


def _why(figures: Figures, limit: str, enough: int | None) -> str:
    """Return the explanation of the bottleneck."""
    f = figures
    if limit == "step":
        waits = f"with {_threads(f.threads)} loading it waits {f.data_wait:.1%} of its time for data"
        return f"The training step is the bottleneck: {waits}; --workers {enough} would be enough."
    if limit == "disk":
        rate = f"{f.read:,.0f} samples/s ({f.read_mb_per_s:,.0f} MB/s)"
        helps = "more threads do not help, a faster disk does"
        return f"The disk is the bottleneck: it reads {rate}, the step could take {f.step:,.0f}; {helps}."
    head = (
        f"Loading is the bottleneck: with {_threads(f.threads)} the step waits {f.data_wait:.1%} of its time for data"
    )
    if enough > f.cores:
        return f"{head}; about {enough} cores would be needed, this machine has {f.cores}."
    if enough > f.threads:
        return f"{head}; {enough} would be enough (--workers {enough})."
    return f"{head}; on their own they would be fast enough, but they share {f.cores} cores with the step."


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def table(figures: Figures, verdict: Verdict) -> str:
    """Return the measurements and the verdict as text."""
    rows = Table("", "samples/s", "", box=None, pad_edge=False)
    rows.columns[1].justify = "right"
    note = f"{figures.read_mb_per_s:,.0f} MB/s; files read before come from the page cache"
    rows.add_row("reading", f"{figures.read:,.0f}", note)
    for threads, rate in figures.loaded.items():
        rows.add_row(f"loading, {_threads(threads)}", f"{rate:,.0f}", "")
    peak = "" if figures.peak_device_mb is None else f"; {figures.peak_device_mb:,.0f} MB of its memory"
    rows.add_row("training step", f"{figures.step:,.1f}", f"batches of {figures.batch_size} on {figures.device}{peak}")
    wait = f"{_threads(figures.threads)} loading, waiting for data {figures.data_wait:.1%} of the time"
    rows.add_row("loading and steps", f"{figures.together:,.1f}", wait)
    console = Console(width=TEXT_COLUMNS, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(rows)
        console.print(verdict.text)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def record(figures: Figures, verdict: Verdict) -> dict:
    """Return both as plain values, for scripts."""
    return asdict(figures) | {"verdict": asdict(verdict)}
