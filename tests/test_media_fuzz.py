"""Mutated and truncated files: each ends as a row of the extraction, and what comes out is what was in the whole file.

`python tests/chaos/media.py CLIPS_DIR` is the long run by hand.
"""

import random
from collections import Counter

import pytest
from chaos import media as chaos
from chaos.media import mutant
from media_zoo import ZOO, make
from test_media import REAL

from avpipe.pipeline.core.ledger import REASONS, Ledger, Outcome
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.extract.stage import extract
from avpipe.pipeline.features.settings import ExtractSettings

COUNT = 60
WORKERS = 2
# Of the real clips the small ones: damage is found at the same places, and sooner.
REAL_BYTES = 700_000


@pytest.mark.heavy
def test_every_damaged_file_is_a_row(tmp_path):
    root, dice = Root(tmp_path / "root"), random.Random(0)
    sources = [make(tmp_path, name).read_bytes() for name in list(ZOO)[::6]]
    sources += [path.read_bytes() for path in REAL if path.stat().st_size < REAL_BYTES]
    root.clips.mkdir(parents=True)
    rows, seen = [], []
    for number in range(COUNT):
        name = f"abcdefghijk_{number:06d}" if number % 2 else str(number)
        root.clip_file(name).write_bytes(mutant(dice.choice(sources), dice))
        rows.append(Outcome(clip_id=name, sha256=f"{number:064d}"))
    Ledger(root.ledger, "download").write(rows)
    extract(root, [row.clip_id for row in rows], ExtractSettings(), WORKERS, on_outcome=seen.extend)
    for outcome in seen:
        if outcome.reason not in (None, "corrupt", "no_audio", "no_video"):
            print(outcome.reason, outcome.clip_id, outcome.detail)
    print(Counter(outcome.reason for outcome in seen), f"slowest {max(outcome.seconds for outcome in seen):.1f} s")
    assert sorted(outcome.clip_id for outcome in seen) == sorted(row.clip_id for row in rows)
    assert {outcome.reason for outcome in seen} <= {None, *REASONS}
    assert all(outcome.done or outcome.detail for outcome in seen)
    assert {None, "corrupt"} <= {outcome.reason for outcome in seen}


@pytest.mark.parametrize("name", ["h264.mp4", "h264_long_gop.mkv", "vp9.webm", "h264.ts"])
def test_a_damaged_clip_is_refused_or_comes_out_whole(tmp_path, name):
    said = []
    outcomes = chaos.run([make(tmp_path, name)], 25, 3, tmp_path, said.append)
    assert not said
    assert sum(outcomes.values()) == 25
