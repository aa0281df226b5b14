"""A split as WebDataset tars with an index: the same bytes however it was made, readable by others, never mixed."""

import hashlib
import io
import json
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import webdataset
from chaos.common import hashes
from conftest import copied

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.extract.stage import extract
from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.pipeline.shards.index import read_metadata
from avpipe.pipeline.shards.write import ShardSummary, order_key, shard

SETTINGS = ExtractSettings()
MEMBERS = ["audio.flac", "frame.jpg", "logspec.npy", "meta.json"]


def make(root: Root, split: str = "synth_train", workers: int = 1, **changes) -> ShardSummary:
    return shard(root, split, SETTINGS, ShardSettings(**{"samples_per_shard": 5} | changes), workers=workers)


def index_rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / "index.parquet").to_pylist()


@pytest.mark.heavy
def test_two_workers_give_the_bytes_of_one(extracted_root, done_root):
    make(extracted_root, workers=2)
    expected = hashes(done_root.shards / "synth_train")
    assert list(expected) == ["README.md", "index.parquet", *(f"synth_train-{number:06d}.tar" for number in range(4))]
    assert hashes(extracted_root.shards / "synth_train") == expected


@pytest.mark.heavy
def test_a_cache_made_in_instalments_by_more_workers_gives_the_same_bytes(fresh_root, done_root, monkeypatch, request):
    monkeypatch.setattr("avpipe.pipeline.extract.cache_part.CLIPS_PER_PART", 3)
    ids = Manifest.open(fresh_root.manifest).ids(None)
    extract(fresh_root, ids[:4:-1], SETTINGS, workers=2)
    request.getfixturevalue("serial")
    partial = make(fresh_root)
    assert 0 < partial.samples < 16
    partial_ids = [row["clip_id"] for row in index_rows(partial.folder)]
    extract(fresh_root, ids, SETTINGS, workers=1)
    whole = make(fresh_root)
    assert (whole.samples, whole.listed, whole.shards, whole.written) == (16, 16, 4, 4)
    assert hashes(whole.folder) == hashes(done_root.shards / "synth_train")
    # Those that came later lie in between; the others keep their order.
    assert [row["clip_id"] for row in index_rows(whole.folder) if row["clip_id"] in partial_ids] == partial_ids


@pytest.mark.parametrize("split", ["synth_train", "synth_test"])
def test_plain_webdataset_reads_every_sample(done_root, split):
    folder = done_root.shards / split
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    flac = webdataset.handle_extension("flac", lambda data: soundfile.read(io.BytesIO(data), dtype="int16"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode(flac, "rgb8")
    rows = index_rows(folder)
    read = list(dataset)
    assert [sample["__key__"] for sample in read] == [row["clip_id"] for row in rows]
    assert sorted(sample["__key__"] for sample in read) == sorted(Manifest.open(done_root.manifest).ids(split))
    for sample, row in zip(read, rows, strict=True):
        assert sorted(key for key in sample if not key.startswith("__")) == MEMBERS
        assert sample["frame.jpg"].shape == (256, 341, 3)
        assert (sample["logspec.npy"].dtype, sample["logspec.npy"].shape) == (np.float16, (257, 200))
        assert (sample["audio.flac"][0].shape, sample["audio.flac"][1]) == ((48_000,), 16_000)
        assert (sample["meta.json"]["label"], sample["meta.json"]["boxes"]) == (row["label"], row["boxes"])


def test_the_index_points_at_the_bytes_of_the_members(done_root):
    folder = done_root.shards / "synth_train"
    for row in index_rows(folder):
        with tarfile.open(folder / row["shard"]) as tar:
            members = {name: tar.extractfile(f"{row['clip_id']}.{name}").read() for name in MEMBERS}
        content = (folder / row["shard"]).read_bytes()
        whole = hashlib.sha256()
        for name in MEMBERS:
            offset, size = row[f"{name}.offset"], row[f"{name}.size"]
            assert content[offset : offset + size] == members[name]
            whole.update(f"{name}\0{size}\0".encode() + members[name])
        assert whole.hexdigest() == row["sha256"]


def test_tars_say_nothing_of_time_and_owner(done_root):
    for path in done_root.shards.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in tar}
        assert facts == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}


@pytest.mark.parametrize(("seed", "order"), [(0, "cdba"), (1, "adbc")])
def test_the_order_is_that_of_seeded_hashes(extracted_root, serial, seed, order):
    """`printf 0:a_000000 | sha256sum` and so on, sorted by hand."""
    assert sorted((f"{name}_000000" for name in "abcd"), key=partial(order_key, seed)) == [f"{n}_000000" for n in order]
    found = [row["clip_id"] for row in index_rows(make(extracted_root, seed=seed).folder)]
    assert found == sorted(found, key=partial(order_key, seed)) and len(found) == 16


def test_metadata_say_what_was_packed_and_how(done_root):
    folder = done_root.shards / "synth_train"
    metadata = read_metadata(folder / "index.parquet")
    ids = Manifest.open(done_root.manifest).split_ids("synth_train")
    assert (metadata["format"], metadata["split"], metadata["listed"]) == (1, "synth_train", len(ids))
    assert metadata["listed_sha256"] == hashlib.sha256("".join(f"{i}\n" for i in sorted(ids)).encode()).hexdigest()
    assert metadata["shard"] == {"samples_per_shard": 5, "seed": 0, "version": 1}
    assert metadata["extract"]["features"] == SETTINGS.record()["features"]
    tars = sorted(folder.glob("*.tar"))
    assert metadata["shards"] == [
        {"name": t.name, "samples": n, "bytes": t.stat().st_size, "sha256": hashlib.sha256(t.read_bytes()).hexdigest()}
        for t, n in zip(tars, (5, 5, 5, 1), strict=True)
    ]


def test_boxes_and_labels_are_those_of_the_lists(done_root, corpus):
    listed = {item["file"]: item for item in json.loads((corpus / "lists/synth/synth_boxes.json").read_text())}
    rows = index_rows(done_root.shards / "synth_test")
    assert {row["clip_id"] for row in rows} == set(listed)
    for row in rows:
        assert row["label"] == listed[row["clip_id"]]["class"]
        boxes = [[box[side] for side in ("xmin", "ymin", "xmax", "ymax")] for box in row["boxes"]]
        assert np.allclose(boxes, listed[row["clip_id"]]["bbox"], atol=1e-6)
    assert all(row["boxes"] == [] for row in index_rows(done_root.shards / "synth_train"))


def test_a_second_run_writes_nothing_and_other_settings_leave_nothing_of_the_old(extracted_root, serial):
    first = make(extracted_root, samples_per_shard=3)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.folder.iterdir()}
    second = make(extracted_root, samples_per_shard=3)
    assert (first.written, second.written, len(list(first.folder.glob("*.tar")))) == (6, 0, 6)
    assert before == {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in second.folder.iterdir()}
    folder, tars = (
        make(extracted_root, samples_per_shard=8).folder,
        ["synth_train-000000.tar", "synth_train-000001.tar"],
    )
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "index.parquet", *tars]
    assert sorted({row["shard"] for row in index_rows(folder)}) == tars


def test_leftovers_of_killed_runs_are_removed(extracted_root, done_root, serial):
    shards = extracted_root.shards
    (shards / ".synth_train-deadbeef").mkdir(parents=True)
    (shards / ".synth_train-deadbeef/synth_train-000000.tar").write_bytes(b"of another plan")
    (shards / ".synth_test-deadbeef").mkdir()
    make(extracted_root)
    assert sorted(path.name for path in shards.iterdir()) == [".locks", ".synth_test-deadbeef", "synth_train"]
    (shards / ".synth_train.old.tmp").mkdir()
    make(extracted_root)
    assert not (shards / ".synth_train.old.tmp").exists()
    assert hashes(shards / "synth_train") == hashes(done_root.shards / "synth_train")


def test_what_is_not_extracted_or_being_sharded_cannot_be_sharded(fresh_root, serial):
    with pytest.raises(AvpipeError, match="avpipe extract"):
        make(fresh_root)
    for split, sentence in (
        ("../synth_train", "is not the name"),
        ("nosuchsplit", "no split"),
        ("", "is not the name"),
    ):
        with pytest.raises(AvpipeError, match=sentence):
            make(fresh_root, split=split)
    assert not fresh_root.shards.exists()
    manifest = Manifest.open(fresh_root.manifest)
    extract(fresh_root, manifest.split_ids("synth_train")[:1], SETTINGS, workers=1)
    with pytest.raises(AvpipeError, match="no clip of synth_test is extracted"):
        make(fresh_root, split="synth_test")
    with (
        stage_lock(fresh_root.shards / ".locks/synth_train", "it"),
        pytest.raises(AvpipeError, match="another process"),
    ):
        make(fresh_root)
    assert make(fresh_root).samples == 1
    assert sorted(path.name for path in fresh_root.shards.iterdir() if path.name != ".locks") == ["synth_train"]


def test_a_damaged_cache_is_never_packed(extracted_root, serial):
    (part,) = extracted_root.cache.glob("*/part-*.tar")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    (row,) = (r for r in pq.read_table(part.with_suffix(".parquet")).to_pylist() if spans(r, len(content) // 2))
    train = row["clip_id"] in Manifest.open(extracted_root.manifest).split_ids("synth_train")
    with pytest.raises(AvpipeError, match=f"{part.name}.*{row['clip_id']} is damaged"):
        make(extracted_root, split="synth_train" if train else "synth_test")
    assert [path.name for path in extracted_root.shards.glob("[!.]*")] == []


def spans(row: dict, position: int) -> bool:
    return any(0 <= position - row[f"{name}.offset"] < row[f"{name}.size"] for name in MEMBERS)


@pytest.mark.parametrize("damage", ["cut tar", "cut index", "changed index"])
def test_what_was_damaged_since_is_written_again(done_root, tmp_path, serial, damage):
    root = copied(done_root, tmp_path / "root", "manifest", "cache", "shards")
    (path,) = (root.shards / "synth_test").glob("*.tar" if damage == "cut tar" else "index.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[: -30 if damage == "cut index" else -1])
    if damage == "changed index":
        path.write_bytes(whole)
        table = pq.read_table(path)
        pq.write_table(table.set_column(2, "shard", pa.array(["x.tar"] * len(table))), path)
    assert make(root, split="synth_test").written == 1
    assert path.read_bytes() == whole
    assert make(root, split="synth_test").written == 0


def test_a_card_leads_datasets_to_the_tars(done_root):
    """Without one `datasets.load_dataset(folder)` reads index.parquet alone."""
    card = (done_root.shards / "synth_test/README.md").read_text()
    assert card.startswith("---\nconfigs:\n")
    assert '  - split: test\n    path: "*.tar"\n---\n' in card
    assert "  - split: train\n" in (done_root.shards / "synth_train/README.md").read_text()
    datasets = pytest.importorskip("datasets")
    builder = datasets.load_dataset_builder(str(done_root.shards / "synth_test"))
    assert "webdataset" in type(builder).__module__ and list(builder.config.data_files) == ["test"]
