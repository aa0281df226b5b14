"""The state of every stage: counts, reasons and rate are those of the last outcomes; large ledgers take seconds."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from avpipe.pipeline.cli import inspect
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.inspect.status import StageStatus, status, status_table
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.train.cli.main import app

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def root(fresh_root) -> Root:
    """The corpus's manifest; nothing has happened yet."""
    (fresh_root.ledger / "download").rename(fresh_root.path / "elsewhere")
    return fresh_root


def write(root: Root, *outcomes: tuple[str, float, str | None], stage: str = "download") -> None:
    """(clip, minute, reason) each."""
    rows = [Outcome(clip_id=c, reason=r, finished_at=BEGIN + timedelta(minutes=m)) for c, m, r in outcomes]
    Ledger(root.ledger, stage).write(rows)


def of(rows: list[StageStatus], stage: str, split: str | None = None) -> StageStatus:
    (row,) = (row for row in rows if row.stage == stage and row.split == split)
    return row


def test_before_anything_all_is_left(root):
    (row,) = status(root)
    assert (row.split, row.stage, row.listed, row.done, row.failed, row.left) == (None, "download", 20, 0, 0, 20)
    assert (row.per_hour, row.hours_left, row.last_at) == (None, None, None)
    stages = [(row.split, row.stage) for row in status(root, "synth_test")]
    assert stages == [("synth_test", "download"), ("synth_test", "shard")]


def test_the_last_outcome_of_a_clip_counts_in_each_split_that_has_it(root):
    manifest = Manifest.open(root.manifest)
    test, train = manifest.split_ids("synth_test"), manifest.split_ids("synth_train")
    write(root, (test[0], 0, "network"), (test[1], 1, "removed"), (train[0], 2, None))
    write(root, (test[0], 3, None), (test[2], 4, "network"), (train[1], 5, "removed"), (train[2], 6, "removed"))
    rows = status(root)
    row = of(rows, "download", "synth_test")
    assert (row.listed, row.done, row.failed, row.left, row.winnable) == (4, 1, 2, 1, 1)
    assert row.reasons == {"network": 1, "removed": 1}
    whole = of(rows, "download")
    assert (whole.done, list(whole.reasons.items()), whole.winnable) == (2, [("removed", 3), ("network", 1)], 1)
    assert [row.split for row in rows] == [None, "synth_train", "synth_train", "synth_test", "synth_test"]
    assert of(rows, "shard", "synth_test").left == 4


def test_extraction_and_shards_are_counted_apart_and_a_bad_index_is_a_sentence(done_root, root):
    rows = status(done_root)
    name = f"extract {ExtractSettings().name}"
    assert (of(rows, name).done, of(rows, name, "synth_test").done, of(rows, name, "synth_test").left) == (20, 4, 0)
    assert (of(rows, "shard", "synth_train").done, of(rows, "shard", "synth_train").left) == (16, 0)
    (root.shards / "synth_test").mkdir(parents=True)
    (root.shards / "synth_test/index.parquet").write_bytes(b"x")
    with pytest.raises(AvpipeError, match="is not an index, or is damaged"):
        status(root)


def test_the_rate_is_that_of_the_last_hour_of_activity(root):
    ids = Manifest.open(root.manifest).ids(None)
    write(root, *((clip, minute, None) for minute, clip in enumerate(ids[:4])))  # yesterday, so to say
    write(root, *((clip, 1000 + 10 * step, None) for step, clip in enumerate(ids[4:9])))
    row = of(status(root), "download")
    assert row.per_hour == pytest.approx(6)
    assert row.left == 11 and row.hours_left == pytest.approx(11 / 6)
    assert row.last_at == "2026-01-01T17:20:00+00:00"


def test_the_table_fits_100_columns_and_says_what_a_retry_may_win(root):
    numbers = {"listed": 199_176, "done": 123_456, "failed": 45_678, "winnable": 5_678, "per_hour": 1234.5}
    reasons = {"removed": 40_000, "bot_check": 5_678}
    name = "extract lvs_logspec+ezvsl_logspec+ssltie_mel-0123abcd"
    rows = [
        StageStatus(split=split, stage=stage, reasons=reasons, last_at=None, **numbers)
        for split in (None, "ssltie_retrieval_seen_144k")
        for stage in ("download", name)
    ]
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(status_table(rows))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert all(word in text for word in ("123,456", "45,678", "30,042", "1,234", "24 h 20 min", "(every clip)"))
    assert "download: 45,678 failed, a retry may recover 5,678" in text
    assert "removed          40,000  lost for good" in text and "worth a retry" in text


def test_the_command_prints_a_table_or_one_object(done_root):
    command = ["--root", str(done_root.path), "status"]
    assert "synth_test" in CliRunner().invoke(app, command).output
    stages = json.loads(CliRunner().invoke(app, [*command, "--split", "synth_test", "--json"]).output)["stages"]
    assert [row["stage"] for row in stages] == ["download", f"extract {ExtractSettings().name}", "shard"]
    assert stages[0].keys() >= {"done", "failed", "left", "reasons", "winnable", "per_hour", "hours_left"}


def test_watching_ends_quietly(done_root, monkeypatch):
    sleep = iter([None, None, KeyboardInterrupt])

    def interrupted(seconds):
        if error := next(sleep):
            raise error

    monkeypatch.setattr(inspect, "time", SimpleNamespace(sleep=interrupted))
    command = ["--root", str(done_root.path), "status", "--watch"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "synth_test" in result.output
    assert isinstance(CliRunner().invoke(app, [*command, "--json"]).exception, AvpipeError)
