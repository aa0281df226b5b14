"""What several benchmarks need: synthetic samples, shards of them, and the CPU time and memory of processes."""

import json
import os
import re
import resource
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avpipe.pipeline.core.samples import (
    FRAME,
    META,
    TarWriter,
    encode_jpeg,
    encode_json,
    encode_npy,
    feature_member,
    index_schema,
)
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.features.specs import SPECS
from avpipe.pipeline.shards.index import EXTRA, INDEX, METADATA_KEY

# Different samples, which come again and again; and how many stand in a shard.
KINDS, PER_SHARD = 64, 512


def make_frame(seed: int, width: int) -> np.ndarray:
    """uint8 (256, width, 3): noise with the spectrum of photographs, so that the JPEG is as large as theirs."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = np.inf
    smoothness = 1.5 + (width - 256) / 560  # tried out
    planes = np.fft.ifft2(np.fft.fft2(draw.standard_normal((3, 256, width))) / frequency**smoothness).real
    planes[1:] = 0.35 * planes[1:] + planes[0]  # the channels of a photograph go together
    planes = 120 + 55 * planes / planes.std()
    return planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def make_samples(count: int, width: int, features: tuple[str, ...]) -> list[dict[str, bytes]]:
    """Members of samples: a frame of 256 x `width` pixels and, of noise, the float16 features."""
    draw, kinds = np.random.default_rng(0), []
    for seed in range(min(KINDS, count)):
        sample = {FRAME: encode_jpeg(make_frame(seed, width), ExtractSettings().jpeg_quality)}
        for name in features:
            wave = draw.uniform(-1, 1, SPECS[name].samples).astype(np.float32)
            sample[feature_member(name)] = encode_npy(SPECS[name].compute(wave).astype(np.float16))
        kinds.append(sample)
    return [kinds[number % len(kinds)] for number in range(count)]


def write_shards(folder: Path, samples: list[dict[str, bytes]]) -> None:
    """Tars and index, as `avpipe shard` writes them."""
    folder.mkdir()
    rows, shards = [], []
    for first in range(0, len(samples), PER_SHARD):
        tar = folder / f"bench-{first // PER_SHARD:06d}.tar"
        with TarWriter(tar) as writer:
            for number, sample in enumerate(samples[first : first + PER_SHARD], first):
                row = writer.add(f"{number:011d}_000000", sample | {META: encode_json({})})
                rows.append(row | {"shard": tar.name, "label": "noise", "boxes": []})
        shards.append({"name": tar.name, "samples": len(writer.rows), "bytes": tar.stat().st_size, "sha256": ""})
    metadata = {"format": 1, "split": "bench", "listed": len(rows), "listed_sha256": "", "plan": "", "shards": shards}
    metadata |= {"extract": ExtractSettings().record(), "shard": {}}
    table = pa.Table.from_pylist(rows, index_schema([*samples[0], META], EXTRA))
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}), folder / INDEX)


def cpu_seconds() -> float:
    """Of this process and the workers that it has joined."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def private_kb(pid: int) -> int:
    """Memory of a process and its children that is no file's: anonymous and shared between them."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # gone
        return 0
    own = sum(int(kb) for kb in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+)", status, re.M))
    return own + sum(private_kb(int(child)) for child in children)


def run_measured(command: list, cores: list[int]) -> dict:
    """What a program prints as JSON, run on the cores; unless it says so itself, `MB` is the most memory it had."""
    words = list(map(str, command))
    process = subprocess.Popen(words, stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    most = 0
    while process.poll() is None:
        most = max(most, private_kb(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    return {"MB": most // 1024} | json.loads(process.stdout.read())
