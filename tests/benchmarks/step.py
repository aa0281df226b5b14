"""Samples a second of the training step: with its data on the device, with real loading, and written plainly.

    python tests/benchmarks/step.py [--methods lvs,sspl] [--px 224] [--batch 128] [--steps 200] [--json FILE]

"resident" takes the steps of `avpipe train` over and over on one batch in the device's memory; "loading" the same steps
on batches that the training loader reads from synthetic shards, by one thread less than there are cores; "plain" is the
loop that everybody writes: float32, contiguous tensors, the optimiser as torch makes it, one batch on the device. The
share is "loading" against "resident": what is left of the step's speed once data must come.

On a GPU the methods are those of the papers, at 224 pixels in batches of 128 with precision bf16-mixed. On a CPU they
are the small ones (recipes `lvs-small` and so on), at 112 pixels in batches of 16, all cores at work. avpipe and the
plain loop are processes of their own; they take the steps in four rounds, the ways in turn, and what counts is the
median over the rounds. Memory is the GPU's, or that of the process without the page cache. The hours are 144,000 clips
x 20 epochs at the speed of "loading".
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from common import make_samples, private_kb, write_shards
from rich.console import Console
from rich.table import Table

from avpipe.train.core.distributed import start_fabric
from avpipe.train.data.batch_plan import BatchPlan
from avpipe.train.data.inputs import Inputs
from avpipe.train.data.open import open_shards
from avpipe.train.data.shards import Shards
from avpipe.train.data.training_samples import TrainingSamples, batches
from avpipe.train.methods import METHODS
from avpipe.train.models.recipes import Recipe, get_recipe
from avpipe.train.run.training import OPTIMIZERS, Training

GPU = torch.cuda.is_available()
CHOSEN = ("lvs", "ez-vsl", "marginnce", "ssl-tie", "sspl")
# What is the device's alone; SSL-TIE begins to mix after its first epoch, so mixing is left out.
DEFAULTS = {"px": 224, "batch": 128, "steps": 200} if GPU else {"px": 112, "batch": 16, "steps": 4}
PRECISION = "bf16-mixed" if GPU else "32-true"
ALIKE = ["init=random", "mixing=none", "validation=0", "patience=0"]
FEATURES = ("logspec", "tie-mel", "vggish")
BATCHES, CLIPS, EPOCHS = 8, 144_000, 20
CORES = len(os.sched_getaffinity(0))
THREADS, ROUNDS, WARM_UP = max(1, CORES - 1), 4, 10 if GPU else 1


class Avpipe:
    """The steps of `avpipe train`."""

    def __init__(self, recipe: Recipe, shards: Shards, folder: Path):
        self.training = Training(start_fabric(recipe.precision), recipe, shards, folder, THREADS, None, None)
        self.numbers = iter(range(sys.maxsize))
        stream = self.stream()
        self.batch = self.training.inputs.to_device(next(stream))
        stream.close()

    def stream(self) -> Iterator:
        """Batches of steps that were not taken yet."""
        return batches(self.training.samples(0), self.training.plan, 0, self.numbers, THREADS)

    def resident(self, steps: int) -> float:
        """Seconds of steps on the batch that is there."""
        return seconds(lambda: self.training.take_step(self.batch), steps)

    def loading(self, steps: int) -> float:
        """Seconds of steps whose batches are loaded meanwhile; the first, for which the loader starts, is left out."""
        stream = self.stream()
        self.training.take_step(next(stream))
        taken = seconds(lambda: self.training.take_step(next(stream)), steps)
        stream.close()
        return taken


class Plain:
    """The steps of a loop without any care for speed."""

    def __init__(self, recipe: Recipe, shards: Shards, folder: Path):
        method, device = METHODS[recipe.method], "cuda" if GPU else "cpu"
        self.network = method.network(recipe.options).to(device).train()
        learning = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        rates = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        self.optimizer = OPTIMIZERS[recipe.optimizer](learning, **rates)
        given = {name: getattr(recipe, name) for name in ("feature", "image_px", "seed", "view", "masking")}
        samples = TrainingSamples(shards=shards, views=method.views, **given)
        plan = BatchPlan(indices=np.arange(len(shards)), batch_size=recipe.batch_size, world_size=1, epochs=1, seed=0)
        self.inputs = Inputs(torch.device(device), recipe.feature)
        self.batch = self.inputs.to_device(next(batches(samples, plan, 0, range(1), 0)))

    def step(self) -> None:
        """One step."""
        image, spec = self.inputs(self.batch)
        loss, _ = self.network(image.contiguous(), spec)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()

    def plain(self, steps: int) -> float:
        """Seconds of steps on the batch that is there."""
        return seconds(self.step, steps)


def seconds(step: Callable[[], object], steps: int) -> float:
    """How long it takes to take a step so many times."""
    synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return time.perf_counter() - begin


def synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def serve(kind: type, recipe: Recipe, data: Path) -> None:
    """In a process of its own: for each line `<way> <steps>` answer with seconds and the most memory until then."""
    most = 0

    def watch() -> None:
        nonlocal most
        while True:
            most = max(most, private_kb(os.getpid()) // 1024)
            time.sleep(0.1)

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        worker = kind(recipe, open_shards(data), Path(folder))
        for line in sys.stdin:
            way, steps = line.split()
            taken = getattr(worker, way)(int(steps))
            memory = torch.cuda.max_memory_allocated() // 10**6 if GPU else most
            print(json.dumps({"s": taken, "MB": memory}), flush=True)


SERVED = {"avpipe": Avpipe, "plain": Plain}
WAYS = {"resident": "avpipe", "loading": "avpipe", "plain": "plain"}


def recipe_of(method: str, px: int, batch: int, kind: str) -> Recipe:
    """The published recipe on a GPU, the small one on a CPU."""
    precision = "32-true" if kind == "plain" else PRECISION
    changes = [f"image_px={px}", f"batch_size={batch}", f"precision={precision}"]
    return get_recipe(method if GPU else f"{method}-small", [*ALIKE, *changes])


def measure(method: str, options: argparse.Namespace, data: Path) -> dict[str, list[dict]]:
    """{way: its answers, one a round}; a round before the first warms up."""
    command = [sys.executable, __file__, "--data", data, "--methods", method]
    command += [word for name in DEFAULTS for word in (f"--{name}", getattr(options, name))]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = {kind: subprocess.Popen([*map(str, command), "--serve", kind], **piped) for kind in SERVED}
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for steps in (WARM_UP, *[max(1, options.steps // ROUNDS)] * ROUNDS):
        for way, kind in WAYS.items():
            print(way, steps, file=workers[kind].stdin, flush=True)
            answer = workers[kind].stdout.readline()
            if not answer:
                raise SystemExit(f"{method}, {way}: the process ended")
            found[way].append(json.loads(answer))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {way: answers[1:] for way, answers in found.items()}


def row(found: dict[str, list[dict]], samples: int) -> dict:
    """Medians over the rounds, ratios round by round; `samples` in a round."""
    rates = {way: [samples / answer["s"] for answer in answers] for way, answers in found.items()}
    median = {way: statistics.median(of_rounds) for way, of_rounds in rates.items()}

    def against(way: str) -> float:
        return statistics.median(own / other for own, other in zip(rates["loading"], rates[way], strict=True))

    return {
        **{f"{way}_per_s": round(rate, 2) for way, rate in median.items()},
        "share_percent": round(100 * against("resident"), 1),
        "times_plain": round(against("plain"), 2),
        "MB": max(answer["MB"] for answer in found["loading"]),
        "plain_MB": max(answer["MB"] for answer in found["plain"]),
        "hours": round(CLIPS * EPOCHS / median["loading"] / 3600, 2),
        "plain_hours": round(CLIPS * EPOCHS / median["plain"] / 3600, 2),
    }


def show(result: dict) -> None:
    """The table."""
    heads = ("resident /s", "loading /s", "share", "plain /s", "times plain", "MB", "plain MB", "hours", "plain hours")
    table = Table("method", *heads)
    for name, r in result["methods"].items():
        rates = (f"{r['resident_per_s']:,.1f}", f"{r['loading_per_s']:,.1f}", f"{r['share_percent']:.1f} %")
        plain = (f"{r['plain_per_s']:,.1f}", f"{r['times_plain']:.2f}", f"{r['MB']:,}", f"{r['plain_MB']:,}")
        table.add_row(name, *rates, *plain, f"{r['hours']:,.1f}", f"{r['plain_hours']:,.1f}")
    facts = "{device}, {precision}, {px} px, batches of {batch}, {steps} steps, {loader_threads} loader threads"
    Console(width=120).print(table, facts.format(**result))


def main() -> None:
    """Make the shards, measure each method, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(CHOSEN))
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        recipe = recipe_of(options.methods, options.px, options.batch, options.serve)
        return serve(SERVED[options.serve], recipe, options.data)
    methods, samples = {}, max(1, options.steps // ROUNDS) * options.batch
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "shards"
        write_shards(data, make_samples(BATCHES * options.batch, 256, FEATURES))
        for method in options.methods.split(","):
            methods[method] = row(measure(method, options, data), samples)
    result = {name: getattr(options, name) for name in DEFAULTS}
    result |= {"device": torch.cuda.get_device_name() if GPU else f"CPU, {CORES} cores", "precision": PRECISION}
    result |= {"rounds": ROUNDS, "loader_threads": THREADS, "clips": CLIPS, "epochs": EPOCHS, "methods": methods}
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
