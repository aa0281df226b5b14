"""The ledger: the last outcome of a clip counts, whatever was rewritten, killed or tried in between."""

import os
import time
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import COMPACT_ABOVE, PERMANENT, REASONS, Ledger, Outcome, count_reasons

CLIP, OTHER = "zpWuikVorYg_000032", "-aB3_xyzXYZ_000030"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def at(second: float, clip_id: str = CLIP, **fields) -> Outcome:
    return Outcome(clip_id=clip_id, finished_at=BEGIN + timedelta(seconds=second), **fields)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path, "download")


def test_an_outcome_comes_back_as_it_was_and_to_its_stage_alone(ledger, tmp_path):
    ledger.write([])
    assert ledger.latest() == {} and not ledger.folder.exists()
    done = at(0.123456, bytes=2**40, sha256="ab" * 32, seconds=1.5, attempts=3)
    failed = at(1, OTHER, reason="network", detail='HTTP Error 403: "Forbidden" – später', attempts=2)
    ledger.write([done, failed])
    assert ledger.latest() == Ledger(tmp_path, "download").latest() == {CLIP: done, OTHER: failed}
    assert Ledger(tmp_path, "extract").latest() == {}


def test_the_time_of_an_outcome_counts_and_at_the_same_moment_the_one_written_later(ledger):
    ledger.write([at(2, reason="removed"), at(1, reason="network")])
    assert ledger.latest()[CLIP].reason == "removed"
    ledger.write([at(2, reason="timeout"), at(2, reason="corrupt")])
    assert ledger.latest()[CLIP].reason == "corrupt"


def write_many(ledger: Ledger, files: int) -> None:
    for number in range(files):
        ledger.write([at(number, OTHER, reason="network"), at(number, f"zpWuikVorYg_{number:06d}")])


def test_compaction_of_many_files_keeps_every_latest_outcome_in_one(ledger):
    write_many(ledger, COMPACT_ABOVE)
    files = sorted(ledger.folder.iterdir())
    ledger.compact()
    assert sorted(ledger.folder.iterdir()) == files
    ledger.write([at(500, OTHER, attempts=500)])
    before = ledger.latest()
    ledger.compact()
    assert len(list(ledger.folder.iterdir())) == 1
    assert ledger.latest() == before and len(before) == COMPACT_ABOVE + 1 and before[OTHER].attempts == 500
    ledger.write([at(1000, attempts=99)])
    assert ledger.latest()[CLIP].attempts == 99


def test_the_temporary_file_of_a_killed_writer_is_not_read(ledger):
    ledger.write([at(1)])
    (file,) = ledger.folder.iterdir()
    (ledger.folder / f".{file.name}.999.tmp").write_bytes(file.read_bytes()[:100])
    assert ledger.latest().keys() == {CLIP}


def test_a_writer_that_fails_leaves_the_ledger_as_it_was(ledger, monkeypatch):
    ledger.write([at(1)])

    def broken(table, file, **_):
        file.write(b"half of a table")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", broken)
        with pytest.raises(OSError, match="No space"):
            ledger.write([at(2, reason="network")])
    assert ledger.latest()[CLIP].done
    assert len(os.listdir(ledger.folder)) == 1


def test_the_vocabulary_is_that_of_the_contract_and_only_what_no_retry_can_win_is_permanent():
    words = (
        "removed, private, geo_blocked, age_gate, bot_check, rate_limited, setup, network, no_audio, no_video, "
        "too_short, corrupt, timeout, decoder_crash, disk, unknown"
    )
    assert words.split(", ") == list(REASONS)
    permanent = {"removed", "private", "no_audio", "no_video", "too_short", "corrupt"}
    assert {reason for reason in REASONS if Outcome(clip_id=CLIP, reason=reason).permanent} == permanent == PERMANENT
    assert not Outcome(clip_id=CLIP).permanent
    for reason in ("Removed", "", "rate limited", "done"):
        with pytest.raises(ValueError, match="not among the ledger's reasons"):
            Outcome(clip_id=CLIP, reason=reason)


def test_the_columns_are_those_of_the_contract_and_say_status_and_permanence(ledger):
    ledger.write([at(1), at(1, OTHER, reason="private")])
    (file,) = ledger.folder.iterdir()
    table = pq.read_table(file)
    columns = (
        "clip_id, stage, status, reason, permanent, detail, attempts, seconds, bytes, sha256, finished_at, "
        "tool_version, source"
    )
    assert table.column_names == columns.split(", ")
    assert table.schema.field("finished_at").type == pa.timestamp("us", tz="UTC")
    found = [(row["stage"], row["status"], row["reason"], row["permanent"]) for row in table.to_pylist()]
    assert found == [("download", "done", None, False), ("download", "failed", "private", True)]


def test_rows_of_older_versions_without_a_source_are_read(ledger):
    ledger.write([at(1)])
    (file,) = ledger.folder.iterdir()
    pq.write_table(pq.read_table(file).drop_columns(["source"]), file)
    assert ledger.latest_values("reason", "source") == {CLIP: (None, None)}
    ledger.write([at(2, OTHER, source="youtube")])
    assert ledger.latest_values("source") == {CLIP: (None,), OTHER: ("youtube",)}
    assert ledger.latest()[OTHER].source == "youtube"


def test_reasons_are_counted_the_most_frequent_first():
    reasons = ("network", "removed", "removed", None, "private", "removed", "private")
    counts = count_reasons([at(0, reason=reason) for reason in reasons])
    assert list(counts.items()) == [("removed", 3), ("private", 2), ("network", 1)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from([CLIP, OTHER]), st.sampled_from([None, *REASONS])), max_size=3), max_size=5
    )
)
def test_any_history_ends_in_its_last_outcome(tmp_path_factory, batches):
    ledger, second, expected = Ledger(tmp_path_factory.mktemp("ledger"), "download"), 0, {}
    for batch in batches:
        outcomes = []
        for clip_id, reason in batch:
            second += 1
            outcomes.append(at(second, clip_id, reason=reason))
            expected[clip_id] = outcomes[-1]
        ledger.write(outcomes)
    assert ledger.latest() == expected


def test_twenty_thousand_rows_are_read_quickly(ledger):
    for part in range(4):
        numbers = range(5000 * part, 5000 * part + 5000)
        ledger.write([at(part, f"zpWuikVorYg_{number:06d}", sha256="ab" * 32) for number in numbers])
    begin = time.process_time()
    assert len(ledger.latest()) == 20_000
    assert time.process_time() - begin < 5


def compact_at(monkeypatch, moment: int) -> None:
    """Have the ledger compacted just before the `moment`-th time that a file is read or the folder is listed."""
    read, listing, calls = Ledger._read, Ledger._files, []

    def disturb(whole, ledger, *arguments):
        calls.append(0)
        if len(calls) == moment:
            with monkeypatch.context() as undisturbed:
                undisturbed.setattr(Ledger, "_read", read)
                undisturbed.setattr(Ledger, "_files", listing)
                ledger.compact()
        return whole(ledger, *arguments)

    monkeypatch.setattr(Ledger, "_read", lambda *some: disturb(read, *some))
    monkeypatch.setattr(Ledger, "_files", lambda *some: disturb(listing, *some))


@pytest.mark.parametrize("moment", range(1, 9))
def test_a_reader_beside_a_compaction_sees_every_row_once(ledger, monkeypatch, moment):
    monkeypatch.setattr("avpipe.pipeline.core.ledger.COMPACT_ABOVE", 2)
    for number in range(4):
        ledger.write([at(number, f"zpWuikVorYg_{number:06d}")])
    compact_at(monkeypatch, moment)
    assert sorted(ledger.rows(["clip_id"])["clip_id"].to_pylist()) == [f"zpWuikVorYg_{n:06d}" for n in range(4)]


def test_a_compaction_killed_before_it_removed_the_old_files_shows_no_row_twice(ledger, monkeypatch):
    for number in range(COMPACT_ABOVE + 1):
        ledger.write([at(number, f"zpWuikVorYg_{number:06d}")])
    before = ledger.latest()
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.compact()
    assert ledger.latest() == before
    for files in (COMPACT_ABOVE + 2, 1):
        assert len(list(ledger.folder.glob("*.parquet"))) == files
        assert len(ledger.rows(["clip_id"])) == COMPACT_ABOVE + 1
        ledger.compact()


def test_a_damaged_file_of_the_ledger_is_a_sentence(ledger):
    ledger.write([at(1)])
    (file,) = ledger.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(AvpipeError, match=f"{file.name} is not a file of the ledger, or is damaged.*remove it"):
        ledger.latest()
