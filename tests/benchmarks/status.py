"""`avpipe status` and the decision what is left to fetch, on the ledgers of a large job.

    python tests/benchmarks/status.py [--clips 200000] [--splits 5] [--attempts 2] [--files 200]

Makes a manifest and two ledgers up, then measures each question in a process of its own: CPU seconds, seconds, and the
largest resident memory (VmHWM, which unlike ru_maxrss knows nothing of the parent).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avpipe.pipeline.core.ledger import SCHEMA
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.manifest.tables import write_table

QUESTIONS = {
    "status": "from avpipe.pipeline.inspect.status import status; status(root)",
    "what is left": "from avpipe.pipeline.core.ledger import Ledger as L; L(root.ledger, 'download').latest_values('reason')",  # noqa: E501
}
MEASURE = """
import re, sys, time
from pathlib import Path
from avpipe.pipeline.core.paths import Root
root = Root(Path(sys.argv[1]))
cpu, wall = time.process_time(), time.monotonic()
{question}
memory = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(f"{{time.process_time() - cpu:.2f}} s CPU, {{time.monotonic() - wall:.2f}} s, {{memory:.0f}} MB")
"""


def make_large_root(folder, clips: int, splits: int, attempts: int, files: int) -> Root:
    """A manifest and ledgers of two stages of so many clips."""
    root = Root(folder)
    ids = pa.array([f"{number:011d}_{number % 600:06d}" for number in range(clips)])
    facts = {"splits": {f"s{n}": {"role": "train", "listed": clips} for n in range(splits)}, "lists": {}}
    columns = {"split": np.repeat([f"s{n}" for n in range(splits)], clips), "clip_id": pa.concat_arrays([ids] * splits)}
    empty = pa.nulls(clips * splits, pa.string())
    columns |= {"position": np.tile(np.arange(clips), splits), "audio_clip_id": empty, "line": empty}
    write_table(pa.table(columns), root.manifest / "splits.parquet", facts)
    write_table(pa.table({"clip_id": ids}), root.manifest / "clips.parquet", facts)
    draw = np.random.default_rng(0)
    for stage in ("download", "extract-logspec-00000000"):
        (root.ledger / stage).mkdir(parents=True)
        for number in range(files):
            rows = pa.concat_arrays([ids[number::files]] * attempts)
            count = len(rows)
            reasons = pa.array(draw.choice(["removed", "network", None], count).tolist(), pa.string())
            at = pa.array(1_790_000_000_000_000 + draw.integers(0, 10**12, count), pa.timestamp("us", "UTC"))
            values = {"clip_id": rows, "reason": reasons, "finished_at": at}
            values |= {"detail": ["x" * 80] * count, "sha256": ["0" * 64] * count}
            blank = {field.name: pa.nulls(count, field.type) for field in SCHEMA if field.name not in values}
            table = pa.table(values | blank).select(SCHEMA.names)
            pq.write_table(table, root.ledger / stage / f"{number:06d}.parquet")
    return root


def main() -> None:
    """Make the ledgers, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("clips", 200_000), ("splits", 5), ("attempts", 2), ("files", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_large_root(Path(folder), **vars(options))
        for name, question in QUESTIONS.items():
            script = MEASURE.format(question=question)
            print(f"{name}: ", end="", flush=True)
            subprocess.run([sys.executable, "-c", script, folder], check=True)


if __name__ == "__main__":
    main()
