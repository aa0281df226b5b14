"""Samples a second into shards: `avpipe shard` against webdataset and tarfile, out of the same cache.

    python tests/benchmarks/shard_write.py [--samples 1000] [--rounds 5] [--json FILE]

The samples are made up: frame, sound, spectrogram and meta.json, about 200 kB together. They lie in a cache as `avpipe
extract` writes it; every way reads them from there in the same shuffled order and writes one tar a thousand samples.
The others copy bytes. avpipe also checks each sample's SHA-256, adds label and boxes, takes the SHA-256 of sample and
tar, brings the tar to the disk (fsync) and writes its part of the index; "tarfile + SHA-256, fsync" is a plain script
with the same safety but the index. One process on one core, the ways in turn; the first round does not count.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one core is compared

import numpy as np
import webdataset
from common import cpu_seconds, make_samples
from rich.console import Console
from rich.table import Table

from avpipe.pipeline.core.files import file_sha256
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.core.samples import AUDIO, META, encode_flac, encode_json, index_members, sample_sha256
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.extract.cache_part import CLIPS_PER_PART, Made, write_part
from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
from avpipe.pipeline.shards.write import ShardJob, order_key, write_shard
from avpipe.pipeline.work.base import chunks

SETTINGS, SHARDING = ExtractSettings(), ShardSettings()
BASE, OURS = "tarfile", "avpipe"


@dataclass
class Item:
    """What a cache part is made of."""

    clip_id: str
    members: dict[str, bytes]
    attempts: int = 1


def make_cache(root: Root, count: int) -> list[dict]:
    """Write the samples as `avpipe extract` does; returns the rows that `avpipe shard` would plan."""
    draw, items = np.random.default_rng(0), []
    sounds = [encode_flac(draw.normal(0, 1000, 48_000).astype(np.int16), 16_000) for _ in range(8)]
    for number, sample in enumerate(make_samples(count, 256, SETTINGS.features)):
        clip_id = f"{number:011d}_000000"
        facts = {"clip_id": clip_id, "width": 640, "height": 360, "peak": 0.5, "rms": 0.1, "silent": False}
        added = {AUDIO: sounds[number % len(sounds)], META: encode_json(facts)}
        items.append(Item(clip_id, sample | added))
    for number, part in enumerate(chunks(items, CLIPS_PER_PART)):
        write_part(root, SETTINGS, number, part, lambda item, _: Made(members=item.members, source_sha256="0" * 64))
    rows = Cache(root.cache / SETTINGS.name).table.to_pylist()
    for row in rows:
        row |= {"label": "noise", "boxes": []}
    return sorted(rows, key=lambda row: order_key(SHARDING.seed, row["clip_id"]))


def copied(cache: Path, rows: list[dict], members: list[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(clip id, members) of each row, as they lie in the cache, unchecked."""
    files = {part: open(cache / part, "rb") for part in {row["part"] for row in rows}}  # noqa: SIM115
    try:
        for row in rows:
            sample = {}
            for name in members:
                files[row["part"]].seek(row[f"{name}.offset"])
                sample[name] = files[row["part"]].read(row[f"{name}.size"])
            yield row["clip_id"], sample
    finally:
        for file in files.values():
            file.close()


def with_tarfile(cache: Path, rows: list[dict], members: list[str], out: Path, safe: bool) -> None:
    """Python's own module; `safe` with the hashes and the fsync."""
    for number, part in enumerate(chunks(rows, SHARDING.samples_per_shard)):
        path = out / f"{number:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for clip_id, sample in copied(cache, part, members):
                for name, data in sample.items():
                    header = tarfile.TarInfo(f"{clip_id}.{name}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
                if safe:
                    for _ in ("read", "written"):
                        sample_sha256(sample)
        if safe:
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            file_sha256(path)


def with_tar_writer(cache: Path, rows: list[dict], members: list[str], out: Path) -> None:
    """webdataset, one tar after the other."""
    for number, part in enumerate(chunks(rows, SHARDING.samples_per_shard)):
        with webdataset.TarWriter(str(out / f"{number:06d}.tar"), encoder=False) as writer:
            for clip_id, sample in copied(cache, part, members):
                writer.write({"__key__": clip_id, **sample})


def with_shard_writer(cache: Path, rows: list[dict], members: list[str], out: Path) -> None:
    """webdataset, which begins a new tar by itself."""
    pattern, most = str(out / "%06d.tar"), SHARDING.samples_per_shard
    with webdataset.ShardWriter(pattern, maxcount=most, verbose=0, encoder=False) as writer:
        for clip_id, sample in copied(cache, rows, members):
            writer.write({"__key__": clip_id, **sample})


def avpipe(cache: Path, rows: list[dict], members: list[str], out: Path) -> None:
    """What a worker of `avpipe shard` does."""
    for number, part in enumerate(chunks(rows, SHARDING.samples_per_shard)):
        write_shard([ShardJob(path=out / f"bench-{number:06d}.tar", cache=cache, rows=part)])


WAYS: dict[str, Callable] = {
    BASE: lambda *given: with_tarfile(*given, safe=False),
    "webdataset.TarWriter": with_tar_writer,
    "webdataset.ShardWriter": with_shard_writer,
    "tarfile + SHA-256, fsync": lambda *given: with_tarfile(*given, safe=True),
    OURS: avpipe,
}


def measure(way: Callable, cache: Path, rows: list[dict], members: list[str], out: Path) -> dict:
    """Seconds and CPU seconds of writing all rows once, and the bytes of the tars."""
    out.mkdir()
    cpu, begin = cpu_seconds(), time.perf_counter()
    way(cache, rows, members, out)
    taken = {"s": time.perf_counter() - begin, "cpu_s": cpu_seconds() - cpu}
    taken["bytes"] = sum(path.stat().st_size for path in out.glob("*.tar"))
    shutil.rmtree(out)
    return taken


def summary(found: dict[str, list[dict]], count: int) -> dict[str, dict]:
    """Medians over the rounds; ratios to plain tarfile round by round, in time and in CPU time."""
    ways = {}
    for name, runs in found.items():
        pairs = list(zip(found[BASE], runs, strict=True))
        ways[name] = {
            "per_s": round(statistics.median(count / run["s"] for run in runs)),
            "MB_per_s": round(statistics.median(run["bytes"] / 1e6 / run["s"] for run in runs)),
            "cpu_s_per_1000": round(statistics.median(1000 * run["cpu_s"] / count for run in runs), 2),
            "ratio": round(statistics.median(base["s"] / run["s"] for base, run in pairs), 2),
            "cpu_ratio": round(statistics.median(base["cpu_s"] / run["cpu_s"] for base, run in pairs), 2),
        }
    return ways


def main() -> None:
    """Make the cache, let the ways take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found: dict[str, list[dict]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        root = Root(Path(folder))
        rows, cache = make_cache(root, options.samples), root.cache / SETTINGS.name
        members = index_members(Cache(cache).table.schema)
        for _ in range(options.rounds + 1):
            for name, way in WAYS.items():
                found[name].append(measure(way, cache, rows, members, Path(folder) / "out"))
    ways = summary({name: runs[1:] for name, runs in found.items()}, options.samples)
    table = Table("way", "samples/s", "MB/s", "CPU s per 1,000", f"times as fast as {BASE}", "the same in CPU time")
    for name, row in ways.items():
        table.add_row(name, *(str(value) for value in row.values()))
    Console(width=120).print(table, f"{options.samples} samples, {options.rounds} rounds")
    if options.json:
        result = {"samples": options.samples, "rounds": options.rounds, "ways": ways}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
