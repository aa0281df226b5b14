"""Every kind of damage to a folder of shards is found, and named by sample."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import verify as stage
from pipeline.errors import AvpipeError
from pipeline.verify import Report, verify
from pipeline.verify_shard import check_shard

TAR = "synth_train-000001.tar"


@pytest.fixture
def folder(tmp_path, done_root) -> Path:
    """Four shards with 5, 5, 5 and 1 samples, free to be damaged."""
    return shutil.copytree(done_root.shards / "synth_train", tmp_path / "synth_train")


@pytest.fixture
def serial(monkeypatch) -> None:
    """Shards are checked in this process."""
    monkeypatch.setattr(stage, "run_parts", lambda function, parts, workers: map(function, parts))


def found(report: Report) -> list[tuple[str, str, str]]:
    return [(problem.kind, problem.shard, problem.clip_id) for problem in report.problems]


def rows_of(folder: Path, tar: str = TAR) -> list[dict]:
    return [row for row in pq.read_table(folder / "index.parquet").to_pylist() if row["shard"] == tar]


def rewrite_index(
    folder: Path, change_rows=lambda rows: None, change_metadata=lambda metadata: None, checksums=False
) -> None:
    table = pq.read_table(folder / "index.parquet")
    rows, metadata = table.to_pylist(), json.loads(table.schema.metadata[b"avpipe"])
    change_rows(rows)
    change_metadata(metadata)
    if not checksums:  # as an older version wrote it
        for key in ("columns_sha256", "metadata_sha256"):
            metadata.pop(key)
    table = type(table).from_pylist(rows, table.schema.with_metadata({b"avpipe": json.dumps(metadata)}))
    pq.write_table(table, folder / "index.parquet")


def append(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "a") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def test_what_was_written_has_no_problems(done_root):
    checked = []
    report = verify(done_root.shards / "synth_train", workers=2, on_shard=checked.append)
    assert (report.samples, report.shards, report.listed) == (16, 4, 16)
    assert (report.problems, report.counts()) == ([], {})
    assert sorted(checked) == [1, 5, 5, 5]


def test_a_deleted_tar_is_missing(folder, serial):
    (folder / TAR).unlink()
    report = verify(folder, workers=1)
    assert found(report) == [("missing", TAR, "")]
    assert report.counts() == {"missing": 1}


def test_samples_behind_a_truncation_are_short(folder, serial):
    rows = rows_of(folder)
    with open(folder / TAR, "r+b") as file:
        file.truncate(rows[3]["meta.json.offset"])
    assert found(verify(folder, workers=1)) == sorted(("short", TAR, row["clip_id"]) for row in rows[3:])


@pytest.mark.parametrize("member", ["audio.flac", "frame.jpg", "logspec.npy", "meta.json"])
def test_a_flipped_bit_damages_its_sample(folder, serial, member):
    row = rows_of(folder)[2]
    content = bytearray((folder / TAR).read_bytes())
    content[row[f"{member}.offset"] + row[f"{member}.size"] // 2] ^= 1
    (folder / TAR).write_bytes(content)
    assert found(verify(folder, workers=1)) == [("damaged", TAR, row["clip_id"])]


def test_a_flipped_bit_between_samples_is_found_too(folder, serial):
    content = bytearray((folder / TAR).read_bytes())
    content[-1] ^= 1
    (folder / TAR).write_bytes(content)
    assert found(verify(folder, workers=1)) == [("damaged", TAR, "")]


def test_a_sample_that_stands_twice_is_duplicated(folder, serial):
    row = rows_of(folder)[0]
    with tarfile.open(folder / TAR) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar if m.name.startswith(row["clip_id"])}
    append(folder / TAR, members)
    assert found(verify(folder, workers=1)) == [("duplicated", TAR, row["clip_id"])] * 4


def test_a_clip_with_two_rows_is_duplicated(folder, serial):
    row = rows_of(folder)[0]
    rewrite_index(folder, change_rows=lambda rows: rows.append(row))
    report = verify(folder, workers=1)
    assert ("duplicated", "", row["clip_id"]) in found(report)


@pytest.mark.parametrize("name", ["zzzzzzzzzzz_000001.meta.json", "README", "../evil.json"])
def test_a_member_of_nobody_is_unlisted(folder, serial, name):
    append(folder / TAR, {name: b"{}"})
    clip_id = "zzzzzzzzzzz_000001" if name.startswith("z") else name
    assert found(verify(folder, workers=1)) == [("unlisted", TAR, clip_id)]


def test_two_tars_that_changed_places_are_found(folder, serial):
    other = "synth_train-000002.tar"
    for source, target in ((TAR, "away"), (other, TAR), ("away", other)):
        (folder / source).rename(folder / target)
    problems = found(verify(folder, workers=1))
    listed = {row["clip_id"] for row in rows_of(folder)} | {row["clip_id"] for row in rows_of(folder, other)}
    wrong = {(tar, clip_id) for kind, tar, clip_id in problems if kind in ("damaged", "short")}
    assert {clip_id for _, clip_id in wrong} == listed
    assert {kind for kind, _, _ in problems} >= {"unlisted"}


def test_a_row_that_is_gone_from_the_index_is_missed(folder, serial):
    gone = rows_of(folder, "synth_train-000000.tar")[0]["clip_id"]
    rewrite_index(folder, change_rows=lambda rows: rows.pop(0))
    expected = [("missing", "synth_train-000000.tar", ""), ("unlisted", "synth_train-000000.tar", gone)]
    assert found(verify(folder, workers=1)) == expected


def test_a_tar_that_the_index_does_not_name_is_unlisted(folder, serial):
    (folder / "synth_train-000099.tar").write_bytes((folder / TAR).read_bytes())
    assert found(verify(folder, workers=1)) == [("unlisted", "synth_train-000099.tar", "")]


def test_rows_of_a_tar_that_the_index_does_not_describe_are_missing(folder, serial):
    rewrite_index(folder, change_metadata=lambda metadata: metadata["shards"].pop())
    assert found(verify(folder, workers=1)) == [("missing", "synth_train-000003.tar", "")]


@pytest.mark.parametrize("name", ["../x.tar", "/etc/x.tar", "a/b.tar", "x.tar\n", "x.txt", ""])
def test_an_index_that_names_a_file_elsewhere_is_refused(folder, serial, name):
    original = (folder / "index.parquet").read_bytes()
    rewrite_index(folder, change_metadata=lambda metadata: metadata["shards"][1].update(name=name))
    with pytest.raises(AvpipeError, match="no plain file name"):
        verify(folder, workers=1)
    (folder / "index.parquet").write_bytes(original)
    rewrite_index(folder, change_rows=lambda rows: rows[1].update(shard=name))
    with pytest.raises(AvpipeError, match="no plain file name"):
        verify(folder, workers=1)


WRONG = {
    "frame.jpg.offset": 512,
    "audio.flac.size": 7,
    "label": "another",
    "boxes": [],
    "sha256": "0" * 64,
    "clip_id": "zzzzzzzzzzz_000001",
}


@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize("column", WRONG)
def test_whatever_the_index_says_wrongly_of_a_sample_is_found(tmp_path, done_root, serial, column, checksums):
    folder = shutil.copytree(done_root.shards / "synth_test", tmp_path / "synth_test")
    before = rows_of(folder, "synth_test-000000.tar")[2]
    assert before[column] != WRONG[column]
    rewrite_index(folder, lambda rows: rows[2].update({column: WRONG[column]}), checksums=checksums)
    problems = found(verify(folder, workers=1))
    kind, clip_id = ("missing", WRONG[column]) if column == "clip_id" else ("differs", before["clip_id"])
    assert (kind, "synth_test-000000.tar", clip_id) in problems
    assert (("damaged", "index.parquet", "") in problems) == checksums


def test_metadata_that_were_changed_are_found(folder, serial):
    rewrite_index(folder, change_metadata=lambda metadata: metadata.update(listed=17), checksums=True)
    assert found(verify(folder, workers=1)) == [("damaged", "index.parquet", "")]
    rewrite_index(folder, checksums=False)
    assert found(verify(folder, workers=1)) == []


def test_a_worker_lost_twice_leaves_a_shard_unchecked(folder, monkeypatch):
    monkeypatch.setattr(stage, "check_shard", die_over_the_second)
    problems = verify(folder, workers=1).problems
    assert [(p.kind, p.shard) for p in problems] == [("damaged", TAR)] and "could not be checked" in problems[0].detail


def die_over_the_second(checks: list):
    """Run in a worker."""
    for check in checks:
        if check.name == TAR:
            os._exit(3)
    return check_shard(checks)


def test_a_folder_without_index_is_refused(folder):
    (folder / "index.parquet").unlink()
    with pytest.raises(AvpipeError, match=r"holds no index\.parquet"):
        verify(folder, workers=1)


def test_an_index_of_another_format_is_refused(folder):
    rewrite_index(folder, change_metadata=lambda metadata: metadata.update(format=2))
    with pytest.raises(AvpipeError, match="not an index of format 1"):
        verify(folder, workers=1)
