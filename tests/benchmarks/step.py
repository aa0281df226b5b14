"""Samples a second of the training step: with its data on the device, with real loading, and written plainly.

    python tests/benchmarks/step.py [--methods lvs,sspl] [--px 224] [--batch 128] [--steps 200] [--json FILE]

"resident" takes the steps of `avpipe train` over and over on one batch in the device's memory; "loading" the same steps
on batches that the training loader reads from made-up shards, by one thread less than there are cores; "plain" is the
loop that everybody writes: float32, contiguous tensors, the optimiser as torch makes it, one batch on the device. The
share is "loading" against "resident": what is left of the step's speed once data must come.

On a GPU the methods are those of the papers, at 224 pixels in batches of 128 with precision bf16-mixed. On a CPU they
are the small ones (recipes `lvs-small` and so on), at 112 pixels in batches of 16, all cores at work. Every measurement
is a process of its own, the ways in turn; a few steps before the clock runs do not count. Memory is the GPU's, or that
of the process without the page cache. The hours are 144,000 clips x 20 epochs at the speed of "loading".
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import make_samples, run_measured, write_shards
from rich.console import Console
from rich.table import Table

from train.fit import OPTIMIZERS, Training
from train.frames import normalise
from train.loader import BatchPlan, TrainingSamples, batches
from train.methods import METHODS
from train.ranks import start_fabric
from train.recipes import Recipe, get_recipe
from train.shards import Shards, open_shards

GPU = torch.cuda.is_available()
CHOSEN = ("lvs", "ez-vsl", "marginnce", "ssl-tie", "sspl")
# What is the device's alone; SSL-TIE begins to mix after its first epoch, so mixing is left out.
DEFAULTS = {"px": 224, "batch": 128, "steps": 200} if GPU else {"px": 112, "batch": 16, "steps": 4}
PRECISION = "bf16-mixed" if GPU else "32-true"
ALIKE = ["init=random", "mixing=none", "validation=0", "patience=0"]
FEATURES = ("logspec", "tie-mel", "vggish")
BATCHES, CLIPS, EPOCHS = 8, 144_000, 20
THREADS = max(1, len(os.sched_getaffinity(0)) - 1)


def avpipe_steps(recipe: Recipe, shards: Shards, folder: Path, loading: bool) -> Callable[[], None]:
    """A function that takes one step as `avpipe train` does."""
    training = Training(start_fabric(recipe.precision), recipe, shards, folder, THREADS, None, None)
    stream = batches(training.samples(0), training.plan, 0, iter(range(sys.maxsize)), THREADS)
    if loading:
        return lambda: training.take_step(next(stream))
    batch = tuple(training.fabric.to_device(tensor) for tensor in next(stream))
    stream.close()
    return lambda: training.take_step(batch)


def plain_steps(recipe: Recipe, shards: Shards, device: str) -> Callable[[], None]:
    """A function that takes one step of a loop without any care for speed."""
    method = METHODS[recipe.method]
    network = method.network(recipe.options).to(device).train()
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rates = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    optimizer = OPTIMIZERS[recipe.optimizer](learning, **rates)
    shown = {name: getattr(recipe, name) for name in ("feature", "image_px", "seed", "view", "masking")}
    plan = BatchPlan(numbers=np.arange(len(shards)), batch_size=recipe.batch_size, world_size=1, epochs=1, seed=0)
    samples = TrainingSamples(shards=shards, views=method.views, **shown)
    image, feature, _ = (tensor.to(device) for tensor in next(batches(samples, plan, 0, range(1), 0)))

    def step() -> None:
        loss, _ = network(normalise(image).contiguous(), feature.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def run_way(way: str, recipe: Recipe, data: Path, steps: int) -> dict:
    """In a process of its own: warm up, take the steps, return samples a second and the GPU's memory."""
    shards = open_shards(data)
    with tempfile.TemporaryDirectory() as folder:
        if way == "plain":
            step = plain_steps(recipe, shards, "cuda" if GPU else "cpu")
        else:
            step = avpipe_steps(recipe, shards, Path(folder), way == "loading")
        for _ in range(10 if GPU else 1):
            step()
        synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize()
        taken = time.perf_counter() - begin
    memory = {"MB": torch.cuda.max_memory_allocated() // 10**6} if GPU else {}
    return {"per_s": steps * recipe.batch_size / taken} | memory


def synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def recipe_of(method: str, px: int, batch: int, way: str) -> Recipe:
    """The published recipe on a GPU, the small one on a CPU."""
    precision = "32-true" if way == "plain" else PRECISION
    changes = [f"image_px={px}", f"batch_size={batch}", f"precision={precision}"]
    return get_recipe(method if GPU else f"{method}-small", [*ALIKE, *changes])


def row(method: str, options: argparse.Namespace, data: Path, cores: list[int]) -> dict:
    """All ways of one method."""
    command = [sys.executable, __file__, "--data", data, "--methods", method]
    command += [word for name in DEFAULTS for word in (f"--{name}", getattr(options, name))]
    found = {way: run_measured([*command, "--way", way], cores) for way in ("resident", "loading", "plain")}
    rates = {way: run["per_s"] for way, run in found.items()}
    return {
        **{f"{way}_per_s": round(rate, 2) for way, rate in rates.items()},
        "share_percent": round(100 * rates["loading"] / rates["resident"], 1),
        "times_plain": round(rates["loading"] / rates["plain"], 2),
        "MB": found["loading"]["MB"],
        "plain_MB": found["plain"]["MB"],
        "hours": round(CLIPS * EPOCHS / rates["loading"] / 3600, 2),
        "plain_hours": round(CLIPS * EPOCHS / rates["plain"] / 3600, 2),
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
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        recipe = recipe_of(options.methods, options.px, options.batch, options.way)
        print(json.dumps(run_way(options.way, recipe, options.data, options.steps)))
        return
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder) / "shards", make_samples(BATCHES * options.batch, 256, FEATURES))
        methods = {m: row(m, options, Path(folder) / "shards", cores) for m in options.methods.split(",")}
    result = {name: getattr(options, name) for name in DEFAULTS}
    result |= {"device": torch.cuda.get_device_name() if GPU else f"CPU, {len(cores)} cores", "precision": PRECISION}
    result |= {"loader_threads": THREADS, "clips": CLIPS, "epochs": EPOCHS, "methods": methods}
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
