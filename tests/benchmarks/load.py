"""Samples a second that reach the training step: this loader against other ways, on the same samples in the same run.

    python tests/benchmarks/load.py [--samples 3072] [--rounds 5] [--width 256] [--json FILE]

The samples are made up: frames of 256 pixels in height whose JPEG has about 22 kB, and spectrograms of 257x200 float16
(103 kB) as `avpipe extract` stores them. Every way shuffles, decodes, crops 224 pixels out of the stored frame, flips
half of them and makes batches of 128. "float" ways end in normalised float32 images and float32 spectrograms, "uint8"
ways in bytes and float16, the rest left to the accelerator. The row "training view" does more than the others: it
resizes to 246 pixels before the crop, as the papers do, and counts for no ratio.

Every way gets two workers and the same two cores, each round in a process of its own, the ways in turn. The clock runs
over one whole pass after a short first one. Memory is the largest sum over a way's processes, without the page cache.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # two cores are compared, and two workers use them

import numpy as np
from common import PER_SHARD, cpu_seconds, make_samples, run_measured, write_shards
from PIL import Image
from rich.console import Console
from rich.table import Table

from avpipe.pipeline.core.samples import FRAME, feature_member
from avpipe.pipeline.features.specs import SPECS

BATCH, PX, FEATURE, CORES, WORKERS = 128, 224, "logspec", 2, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BASE = "webdataset + PIL, float"
OURS = {"float": "avpipe, float", "uint8": "avpipe, uint8"}


def make_data(folder: Path, count: int, width: int) -> dict:
    """Write the same samples as shards, as loose files and as HDF5; returns the sizes of a frame and a feature."""
    import h5py

    samples = make_samples(count, width, (FEATURE,))
    jpegs, sounds = ([sample[name] for sample in samples] for name in (FRAME, feature_member(FEATURE)))
    write_shards(folder / "shards", samples)
    (folder / "loose").mkdir()
    for number, sample in enumerate(samples):
        for member, data in sample.items():
            (folder / "loose" / f"{number}.{member}").write_bytes(data)
    shape = SPECS[FEATURE].shape
    with h5py.File(folder / "data.h5", "w") as file:
        frames = file.create_dataset("frame", count, h5py.vlen_dtype(np.uint8))
        features = file.create_dataset("feature", (count, *shape), np.float16, chunks=(1, *shape))
        for n in range(count):
            frames[n], features[n] = np.frombuffer(jpegs[n], np.uint8), np.load(io.BytesIO(sounds[n]))
    return {"jpeg_kB": round(np.mean([len(j) for j in jpegs]) / 1000, 1), "feature_kB": round(len(sounds[0]) / 1000)}


def avpipe(data: Path, count: int, view: str, as_float: bool) -> Iterator[int]:
    """This loader; yields the size of each batch, as all ways do."""
    import torch

    from avpipe.train.data.batch_plan import BatchPlan
    from avpipe.train.data.inputs import Inputs
    from avpipe.train.data.open import open_shards
    from avpipe.train.data.training_samples import TrainingSamples, batches

    shards = open_shards(data / "shards")
    samples = TrainingSamples(shards=shards, feature=FEATURE, image_px=PX, seed=0, view=view)
    plan = BatchPlan(indices=np.arange(count), batch_size=BATCH, world_size=1, epochs=1, seed=0)
    inputs = Inputs(torch.device("cpu"), FEATURE)
    for batch in batches(samples, plan, 0, range(plan.steps), WORKERS):
        if as_float:
            inputs(batch)
        yield len(batch["index"])


def pil_transform() -> Callable:
    """What the papers' repositories put behind PIL, without the resize."""
    from torchvision import transforms as t

    return t.Compose([t.RandomCrop(PX), t.RandomHorizontalFlip(), t.ToTensor(), t.Normalize(MEAN, STD)])


def float_feature(array: np.ndarray):
    """(1, F, T) float32 tensor."""
    import torch

    return torch.from_numpy(array).float()[None]


def fast_crop(jpeg: bytes) -> np.ndarray:
    """Decode with the decoder that avpipe has, crop, flip."""
    import simplejpeg

    frame = simplejpeg.decode_jpeg(jpeg)
    top, left = (np.random.randint(side - PX + 1) for side in frame.shape[:2])
    view = frame[top : top + PX, left : left + PX]
    return np.ascontiguousarray(view[:, ::-1] if np.random.rand() < 0.5 else view)


def web_dataset(data: Path, count: int, as_float: bool) -> Iterator[int]:
    """webdataset as its own documentation has it."""
    import webdataset as wds

    tars = sorted(str(path) for path in (data / "shards").glob("*.tar"))
    stream = wds.WebDataset(tars[: count // PER_SHARD], shardshuffle=100, empty_check=False).shuffle(1000)
    if as_float:
        stream = stream.decode("pil").to_tuple("frame.jpg", f"{FEATURE}.npy").map_tuple(pil_transform(), float_feature)
    else:
        stream = stream.to_tuple("frame.jpg", f"{FEATURE}.npy").map_tuple(fast_crop, lambda d: np.load(io.BytesIO(d)))
    for image, _ in wds.WebLoader(stream.batched(BATCH), batch_size=None, num_workers=WORKERS):
        yield len(image)


class Loose:
    """A file for every member, opened by name."""

    def __init__(self, data: Path):
        self.folder, self.transform = data / "loose", pil_transform()

    def __getitem__(self, number: int):
        image = Image.open(self.folder / f"{number}.frame.jpg").convert("RGB")
        return self.transform(image), float_feature(np.load(self.folder / f"{number}.{FEATURE}.npy"))


class Hdf5(Loose):
    """One file for all, opened by every worker."""

    def __init__(self, data: Path):
        self.path, self.file, self.transform = data / "data.h5", None, pil_transform()

    def __getitem__(self, number: int):
        import h5py

        self.file = self.file or h5py.File(self.path)
        image = Image.open(io.BytesIO(self.file["frame"][number].tobytes())).convert("RGB")
        return self.transform(image), float_feature(self.file["feature"][number])


def map_style(data: Path, count: int, kind: type) -> Iterator[int]:
    """torch's DataLoader over single samples."""
    from torch.utils.data import DataLoader, Subset

    loader = DataLoader(Subset(kind(data), range(count)), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    for image, _ in loader:
        yield len(image)


WAYS: dict[str, Callable[[Path, int], Iterator[int]]] = {
    BASE: lambda data, count: web_dataset(data, count, as_float=True),
    "loose files + PIL, float": lambda data, count: map_style(data, count, Loose),
    "HDF5 + PIL, float": lambda data, count: map_style(data, count, Hdf5),
    OURS["float"]: lambda data, count: avpipe(data, count, "stored-crop", as_float=True),
    "webdataset + simplejpeg, uint8": lambda data, count: web_dataset(data, count, as_float=False),
    OURS["uint8"]: lambda data, count: avpipe(data, count, "stored-crop", as_float=False),
    "avpipe, uint8, training view": lambda data, count: avpipe(data, count, "crop", as_float=False),
}


def run_way(name: str, data: Path, count: int) -> None:
    """In a process of its own: warm up, load everything once, print seconds."""
    sum(WAYS[name](data, 2 * PER_SHARD))
    cpu, start = cpu_seconds(), time.perf_counter()
    loaded = sum(WAYS[name](data, count))
    print(json.dumps({"samples": loaded, "s": time.perf_counter() - start, "cpu_s": cpu_seconds() - cpu}))


def measure(name: str, data: Path, count: int, cores: list[int]) -> dict:
    """Run one way on the cores: its seconds, CPU seconds and the most memory it had."""
    return run_measured([sys.executable, __file__, "--way", name, "--data", data, "--samples", count], cores)


def summary(found: dict[str, list[dict]], cores: int) -> dict[str, dict]:
    """Medians over the rounds; ratios to webdataset + PIL round by round."""
    base = [run["samples"] / run["s"] for run in found[BASE]]
    ways = {}
    for name, runs in found.items():
        rate = [run["samples"] / run["s"] for run in runs]
        ways[name] = {
            "per_s_core": round(statistics.median(rate) / cores),
            "ratio": round(statistics.median(own / other for own, other in zip(rate, base, strict=True)), 2),
            "cpu_us": round(statistics.median(1e6 * run["cpu_s"] / run["samples"] for run in runs)),
            "MB": max(run["MB"] for run in runs),
        }
    return ways


def main() -> None:
    """Make the samples, let the ways take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return run_way(options.way, options.data, options.samples)
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    found: dict[str, list[dict]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        sizes = make_data(Path(folder), options.samples, options.width)
        for _ in range(options.rounds):
            for name in WAYS:
                found[name].append(measure(name, Path(folder), options.samples, cores))
    ways = summary(found, len(cores))
    table = Table("way", "samples/s/core", f"ratio to {BASE}", "CPU µs a sample", "peak MB")
    for name, row in ways.items():
        table.add_row(name, *(str(value) for value in row.values()))
    Console(width=120).print(
        table, f"frames 256x{options.width}, JPEG {sizes['jpeg_kB']} kB, feature {sizes['feature_kB']} kB"
    )
    if options.json:
        result = {"ratio_float": ways[OURS["float"]]["ratio"], "uint8_per_core": ways[OURS["uint8"]]["per_s_core"]}
        result |= {"cores": len(cores), "width": options.width, "ways": ways} | sizes
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
