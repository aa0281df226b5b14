"""Start of a training on a large split: time and memory until the first batch is planned, by number of samples.

    python tests/benchmarks/scale.py [--samples 20000 200000 2000000] [--json FILE]

Makes an index up, with tars that are holes of the right size, and opens it in a process of its own as `avpipe train`
does: read the index, look at the tars, shuffle, plan batches. Memory is the largest resident one above that of
the imports. The files' sizes are those of samples with a 22 kB frame, a `logspec` and the sound.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from avpipe.pipeline.core.samples import index_schema
from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
from avpipe.pipeline.shards.index import EXTRA, INDEX, METADATA_KEY

SIZES = {"audio.flac": 63_000, "frame.jpg": 22_000, "logspec.npy": 103_000, "meta.json": 400}
CLASSES, PART = 309, 100_000
MEASURE = """
import json, re, sys, time
import numpy as np
from avpipe.train.data.batch_plan import BatchPlan
from avpipe.train.data.open import open_shards
memory = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000
before, begin, cpu = memory(), time.monotonic(), time.process_time()
shards = open_shards(sys.argv[1])
opened = time.monotonic() - begin
plan = BatchPlan(indices=np.arange(len(shards)), batch_size=128, world_size=1, epochs=20, seed=0)
for step in range(0, plan.steps_per_epoch, 100):
    plan.indices_of(step, 0)
print(json.dumps({"open_s": opened, "planned_s": time.monotonic() - begin, "cpu_s": time.process_time() - cpu,
                  "MB": memory() - before}))
"""


def make_index(folder: Path, count: int) -> int:
    """Write the index and the tars of `count` samples; returns the size of the index in bytes."""
    per = ShardSettings().samples_per_shard
    starts = np.cumsum([0, *((size + 1023) // 512 * 512 for size in SIZES.values())])
    names = [f"big-{number:06d}.tar" for number in range(-(-count // per))]
    for name in names:
        with open(folder / name, "wb") as file:
            file.truncate(per * int(starts[-1]))
    shards = [{"name": name, "samples": per, "bytes": per * int(starts[-1]), "sha256": ""} for name in names]
    metadata = {"format": 1, "split": "big", "listed": count, "listed_sha256": "", "plan": "", "shards": shards}
    metadata |= {"extract": ExtractSettings().record(), "shard": {}}
    schema = index_schema(list(SIZES), EXTRA).with_metadata({METADATA_KEY: json.dumps(metadata)})
    with pq.ParquetWriter(folder / INDEX, schema) as writer:
        for first in range(0, count, PART):
            numbers = np.arange(first, min(first + PART, count))
            writer.write_table(_rows(numbers, names, per, starts, schema))
    return (folder / INDEX).stat().st_size


def _rows(numbers: np.ndarray, names: list[str], per: int, starts: np.ndarray, schema: pa.Schema) -> pa.Table:
    columns = {
        "clip_id": [f"{number * 2_654_435_761 % 10**11:011d}_{number % 300:06d}" for number in numbers],
        "sha256": [f"{number:064x}" for number in numbers],
        "shard": [names[number // per] for number in numbers],
        "label": [f"class {number % CLASSES}" for number in numbers],
        "boxes": [[]] * len(numbers),
    }
    for place, (member, size) in enumerate(SIZES.items()):
        columns[f"{member}.offset"] = (numbers % per) * starts[-1] + starts[place] + 512
        columns[f"{member}.size"] = np.full(len(numbers), size)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def measure(count: int) -> dict:
    """Figures of one size."""
    with tempfile.TemporaryDirectory() as folder:
        size = make_index(Path(folder), count)
        done = subprocess.run([sys.executable, "-c", MEASURE, folder], capture_output=True, text=True, check=True)
    return {"samples": count, "index_MB": size / 1e6} | json.loads(done.stdout)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[20_000, 200_000, 2_000_000])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = [measure(count) for count in chosen.samples]
    table = Table("samples", "index MB", "opened after s", "planned after s", "CPU s", "MB of memory")
    for row in rows:
        figures = [row[name] for name in ("index_MB", "open_s", "planned_s", "cpu_s", "MB")]
        table.add_row(f"{row['samples']:,}", *(f"{figure:,.1f}" for figure in figures))
    Console().print(table)
    if chosen.json:
        chosen.json.write_text(json.dumps({"sizes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
