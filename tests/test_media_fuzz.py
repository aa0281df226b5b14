"""Mutated and truncated files through the extraction's own workers: each ends as a row, none ends the run.

AVPIPE_FUZZ says how many (150); `AVPIPE_FUZZ=2000 pytest -s tests/test_media_fuzz.py` is the long run by hand.
"""

import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from media_zoo import ZOO, make
from test_media import REAL

from pipeline.extract import extract
from pipeline.layout import Root
from pipeline.ledger import REASONS, Ledger, Outcome
from pipeline.settings import ExtractSettings

COUNT = int(os.environ.get("AVPIPE_FUZZ", 150))
WORKERS = 2
# Of the real clips the small ones: damage is found at the same places, and sooner.
REAL_BYTES = 700_000


def mutant(whole: bytes, dice: random.Random) -> bytes:
    """One damaged copy: bytes changed, in the headers at both ends or anywhere, blocks moved or zeroed, or cut off."""
    content, kind = bytearray(whole), dice.randrange(5)
    near = dice.choice([64, 1000, 20_000, len(content)])
    if kind == 0:
        del content[dice.randrange(len(content)) :]
    elif kind == 1:
        start, length = dice.randrange(len(content)), dice.choice([16, 1000, 30_000])
        content[start : start + length] = bytes(length) if dice.random() < 0.5 else b""
    elif kind == 2:
        start, target = dice.randrange(len(content)), dice.randrange(len(content))
        content[target:target] = content[start : start + dice.choice([16, 1000, 30_000])]
    else:
        for _ in range(dice.choice([1, 3, 20, 300])):
            place = dice.randrange(min(near, len(content)))
            content[-place - 1 if kind == 3 else place] = dice.choice([0, 1, 127, 128, 255, dice.randrange(256)])
    return bytes(content)


def workers_megabytes() -> float:
    """Memory of the largest child process, MB; 0 where the system does not tell."""
    sizes = [0.0]
    for tasks in Path("/proc/self/task").glob("*/children"):
        for child in tasks.read_text().split():
            status = Path(f"/proc/{child}/status")
            if status.exists():
                sizes += [int(kb) / 1024 for kb in re.findall(r"VmRSS:\s+(\d+)", status.read_text())]
    return max(sizes)


@pytest.mark.timeout(3600)
def test_every_damaged_file_is_a_row(tmp_path):
    root, dice = Root(tmp_path / "root"), random.Random(0)
    sources = [make(tmp_path, name).read_bytes() for name in list(ZOO)[:: 1 if COUNT > 500 else 6]]
    sources += [path.read_bytes() for path in REAL if path.stat().st_size < REAL_BYTES]
    root.clips.mkdir(parents=True)
    rows, seen, memory = [], [], []
    for number in range(COUNT):
        name = f"abcdefghijk_{number:06d}" if number % 2 else str(number)
        root.clip_file(name).write_bytes(mutant(dice.choice(sources), dice))
        rows.append(Outcome(clip_id=name, sha256=f"{number:064d}"))
    Ledger(root.ledger, "download").write(rows)

    def hear(outcomes: list[Outcome]) -> None:
        seen.extend(outcomes)
        memory.append(workers_megabytes())

    extract(root, [row.clip_id for row in rows], ExtractSettings(), WORKERS, on_outcome=hear)
    for outcome in seen:
        if outcome.reason not in (None, "corrupt", "no_audio", "no_video"):
            print(outcome.reason, outcome.clip_id, outcome.detail)
    print(Counter(outcome.reason for outcome in seen), f"slowest {max(outcome.seconds for outcome in seen):.1f} s")
    print("MB of the largest worker after each part:", [round(size) for size in memory])
    assert sorted(outcome.clip_id for outcome in seen) == sorted(row.clip_id for row in rows)
    assert {outcome.reason for outcome in seen} <= {None, *REASONS}
    assert all(outcome.done or outcome.detail for outcome in seen)
    assert {None, "corrupt"} <= {outcome.reason for outcome in seen}
