"""What a report reads is checked once, at the door: files that avpipe did not write are a sentence with their name."""

import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.train.reports.html.report import write_report
from avpipe.train.reports.stored import read_log, read_metrics, read_scores
from avpipe.train.run.logs import LOG

sys.path.insert(0, str(Path(__file__).parent / "chaos"))
import report as chaos

pytestmark = pytest.mark.heavy


@pytest.fixture
def run(tmp_path):
    chaos.made(Root(tmp_path))
    return tmp_path / "runs" / "run"


def test_hostile_files_are_sentences_and_no_markup_comes_through(tmp_path):
    counts, faults = chaos.attack(tmp_path, rounds=16, seed=3)
    assert counts.total() == 16 and not faults


@pytest.mark.parametrize("name", ["metrics.json", "per_clip.parquet", LOG])
def test_a_pipe_never_hangs_a_report(run, name):
    path = next(run.rglob(name))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(AvpipeError, match=f"{name} is not a regular file"):
        write_report(Root(run.parents[1]), ["run"], run / "report.html", clips=0)


def test_a_flipped_bit_in_the_scores_is_found(run):
    path = next(run.rglob("per_clip.parquet"))
    whole = path.read_bytes()
    file = pq.ParquetFile(path)
    for column in (3, 8):
        chunk = file.metadata.row_group(0).column(column)
        place = chunk.data_page_offset + chunk.total_compressed_size - 8
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(AvpipeError, match=r"per_clip\.parquet is damaged"):
            read_scores(path)


def test_what_does_not_fit_is_named(run):
    path = next(run.rglob("metrics.json"))
    path.write_text(path.read_text().replace('"clips_listed": 60', '"clips_listed": "60"'))
    with pytest.raises(AvpipeError, match=r"metrics\.json was not written by avpipe \(clips_listed: .*valid integer"):
        read_metrics(path)
    path.write_bytes(b" " * ((1 << 26) + 1))
    with pytest.raises(AvpipeError, match="more than the limit of 67,108,864"):
        read_metrics(path)


def test_half_a_row_is_no_row(run):
    (run / LOG).write_text("step,loss\n1,2.5\n2,nan\n3,1e300\n-1,2\n4,1.5\n5")
    assert list(read_log(run / LOG, ("step", "loss"))) == [(1.0, 2.5), (4.0, 1.5)]
    assert list(read_log(run / "none.csv", ("step",))) == []
