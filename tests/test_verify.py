"""Every kind of damage to a folder of shards is found, and named by sample."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.shards import verify as stage
from avpipe.pipeline.shards.verify import Report, verify
from avpipe.pipeline.shards.verify_shard import check_shard

TAR = "synth_train-000001.tar"


@pytest.fixture
def folder(tmp_path, done_root) -> Path:
    """Four shards with 5, 5, 5 and 1 samples, free to be damaged."""
    return shutil.copytree(done_root.shards / "synth_train", tmp_path / "synth_train")


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
            metadata.pop(key, None)
    table = type(table).from_pylist(rows, table.schema.with_metadata({b"avpipe": json.dumps(metadata)}))
    pq.write_table(table, folder / "index.parquet")


def append(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "a") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


@pytest.mark.heavy
def test_what_was_written_has_no_problems(done_root):
    checked = []
    report = verify(done_root.shards / "synth_train", workers=2, on_shard=checked.append)
    assert (report.samples, report.shards, report.listed) == (16, 4, 16)
    assert (report.problems, report.counts()) == ([], {})
    assert sorted(checked) == [1, 5, 5, 5]


def test_a_deleted_tar_is_missing_and_one_that_the_index_does_not_name_unlisted(folder, serial):
    (folder / TAR).rename(folder / "synth_train-000099.tar")
    report = verify(folder, workers=1)
    assert found(report) == [("missing", TAR, ""), ("unlisted", "synth_train-000099.tar", "")]
    assert report.counts() == {"missing": 1, "unlisted": 1}


def test_samples_behind_a_truncation_are_short(folder, serial):
    rows = rows_of(folder)
    with open(folder / TAR, "r+b") as file:
        file.truncate(rows[3]["meta.json.offset"])
    assert found(verify(folder, workers=1)) == sorted(("short", TAR, row["clip_id"]) for row in rows[3:])


@pytest.mark.parametrize("member", ["audio.flac", "frame.jpg", "logspec.npy", "meta.json", "the end"])
def test_a_flipped_bit_is_found_in_its_sample_and_between_them(folder, serial, member):
    row, content = rows_of(folder)[2], bytearray((folder / TAR).read_bytes())
    place = -1 if member == "the end" else row[f"{member}.offset"] + row[f"{member}.size"] // 2
    content[place] ^= 1
    (folder / TAR).write_bytes(content)
    assert found(verify(folder, workers=1)) == [("damaged", TAR, "" if member == "the end" else row["clip_id"])]


def test_a_sample_that_stands_twice_is_duplicated(folder, serial):
    row = rows_of(folder)[0]
    with tarfile.open(folder / TAR) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar if m.name.startswith(row["clip_id"])}
    append(folder / TAR, members)
    assert found(verify(folder, workers=1)) == [("duplicated", TAR, row["clip_id"])] * 4


def test_members_of_nobody_are_unlisted(folder, serial):
    append(folder / TAR, dict.fromkeys(["zzzzzzzzzzz_000001.meta.json", "README", "../evil.json"], b"{}"))
    assert found(verify(folder, workers=1)) == [
        ("unlisted", TAR, name) for name in ("../evil.json", "README", "zzzzzzzzzzz_000001")
    ]


def test_two_tars_that_changed_places_are_found(folder, serial):
    other = "synth_train-000002.tar"
    for source, target in ((TAR, "away"), (other, TAR), ("away", other)):
        (folder / source).rename(folder / target)
    problems = found(verify(folder, workers=1))
    listed = {row["clip_id"] for row in rows_of(folder)} | {row["clip_id"] for row in rows_of(folder, other)}
    wrong = {(tar, clip_id) for kind, tar, clip_id in problems if kind in ("damaged", "short")}
    assert {clip_id for _, clip_id in wrong} == listed
    assert {kind for kind, _, _ in problems} >= {"unlisted"}


def test_rows_that_are_gone_or_there_twice_are_missed(folder, serial):
    first, row = rows_of(folder, "synth_train-000000.tar")[0], rows_of(folder)[0]
    rewrite_index(folder, lambda rows: rows.pop(0))
    expected = [("missing", "synth_train-000000.tar", ""), ("unlisted", "synth_train-000000.tar", first["clip_id"])]
    assert found(verify(folder, workers=1)) == expected
    rewrite_index(folder, lambda rows: rows.insert(0, first))
    rewrite_index(folder, lambda rows: rows.append(row))
    assert ("duplicated", "", row["clip_id"]) in found(verify(folder, workers=1))
    rewrite_index(folder, lambda rows: rows.pop(), lambda metadata: metadata["shards"].pop())
    assert found(verify(folder, workers=1)) == [("missing", "synth_train-000003.tar", "")]


def test_an_index_that_names_a_file_elsewhere_is_refused(folder, serial):
    original = (folder / "index.parquet").read_bytes()
    for name in ("../x.tar", "/etc/x.tar", "a/b.tar", "x.tar\n", "x.txt", ""):
        for changes in (
            {"change_metadata": lambda metadata, name=name: metadata["shards"][1].update(name=name)},
            {"change_rows": lambda rows, name=name: rows[1].update(shard=name)},
        ):
            rewrite_index(folder, **changes)
            with pytest.raises(AvpipeError, match="not a plain file name"):
                verify(folder, workers=1)
            (folder / "index.parquet").write_bytes(original)


WRONG = {
    "frame.jpg.offset": 512,
    "audio.flac.size": 7,
    "label": "another",
    "boxes": [],
    "sha256": "0" * 64,
    "clip_id": "zzzzzzzzzzz_000001",
}


@pytest.mark.parametrize("checksums", [False, True])
def test_whatever_the_index_says_wrongly_of_a_sample_is_found(tmp_path, done_root, serial, checksums):
    folder, tar = shutil.copytree(done_root.shards / "synth_test", tmp_path / "synth_test"), "synth_test-000000.tar"
    before, original = rows_of(folder, tar)[2], (folder / "index.parquet").read_bytes()
    for column, wrong in WRONG.items():
        assert before[column] != wrong
        rewrite_index(folder, lambda rows, change={column: wrong}: rows[2].update(change), checksums=checksums)
        problems = found(verify(folder, workers=1))
        kind, clip_id = ("missing", wrong) if column == "clip_id" else ("differs", before["clip_id"])
        assert (kind, tar, clip_id) in problems
        assert (("damaged", "index.parquet", "") in problems) == checksums
        (folder / "index.parquet").write_bytes(original)


def test_metadata_that_were_changed_are_found(folder, serial):
    rewrite_index(folder, change_metadata=lambda metadata: metadata.update(listed=17), checksums=True)
    assert found(verify(folder, workers=1)) == [("damaged", "index.parquet", "")]
    rewrite_index(folder, checksums=False)
    assert found(verify(folder, workers=1)) == []


@pytest.mark.heavy
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


def test_an_index_that_is_none_of_ours_is_refused(folder):
    rewrite_index(folder, change_metadata=lambda metadata: metadata.update(format=2))
    with pytest.raises(AvpipeError, match="not an index of format 1"):
        verify(folder, workers=1)
    (folder / "index.parquet").unlink()
    with pytest.raises(AvpipeError, match=r"holds no index\.parquet"):
        verify(folder, workers=1)
