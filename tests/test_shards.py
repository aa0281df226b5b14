"""Opening shards by their index."""

import json
import pickle
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import AvpipeError
from train.data.open import open_shards


@pytest.fixture
def copied(done_root, tmp_path):
    return shutil.copytree(done_root.shards / "synth_train", tmp_path / "synth_train")


def test_any_sample_in_any_order(done_root):
    shards = open_shards(done_root.shards / "synth_train")
    assert len(shards) == 16 and len(set(shards.clip_ids)) == 16 and len(shards.shard_names) == 4
    for number in (15, 0, 7, 7):
        assert shards.read(number, "frame.jpg")[:3] == b"\xff\xd8\xff"
        assert shards.array(number, "logspec.npy").shape == (257, 200)


def test_a_pattern_selects_tars(done_root):
    folder = done_root.shards / "synth_train"
    some = open_shards(f"{folder}/synth_train-{{000001..000002}}.tar")
    assert len(some) == 10
    whole = open_shards(folder)
    numbers = [whole.clip_ids.index(clip_id) for clip_id in some.clip_ids]
    assert [some.read(i, "audio.flac") for i in range(10)] == [whole.read(n, "audio.flac") for n in numbers]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("synth_train-{000003..000004}.tar", "synth_train-000004.tar is not among the 4 shards"),
        ("synth_train-{000003.tar", "braces do not match"),
        ("{a,b}/synth_train-000003.tar", "must lie in one folder; give one of .*/a, .*/b"),
    ],
)
def test_bad_patterns(done_root, pattern, sentence):
    with pytest.raises(AvpipeError, match=sentence):
        open_shards(f"{done_root.shards / 'synth_train'}/{pattern}")


def test_shards_travel_to_workers(done_root):
    shards = open_shards(done_root.shards / "synth_train")
    shards.read(0, "frame.jpg")
    assert pickle.loads(pickle.dumps(shards)).read(3, "meta.json") == shards.read(3, "meta.json")


def test_a_missing_or_short_tar_is_a_sentence_at_opening(copied):
    tar = copied / "synth_train-000002.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) // 2])
    with pytest.raises(AvpipeError, match=r"000002\.tar has \d+ bytes where its samples need \d+"):
        open_shards(copied)
    tar.unlink()
    with pytest.raises(AvpipeError, match=r"000002\.tar is missing"):
        open_shards(copied)


def test_no_index_or_a_foreign_one(copied):
    (copied / "index.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(AvpipeError, match="not an index of avpipe"):
        open_shards(copied)
    for path in copied.iterdir():
        path.unlink()
    with pytest.raises(AvpipeError, match="holds no index"):
        open_shards(copied)


def test_a_member_that_is_not_there(done_root):
    with pytest.raises(AvpipeError, match=r"holds no tie-mel\.npy; it has: .*logspec\.npy"):
        open_shards(done_root.shards / "synth_train").read(0, "tie-mel.npy")


def rewritten(folder, change):
    table = pq.read_table(folder / "index.parquet")
    pq.write_table(change(table), folder / "index.parquet")


@pytest.mark.parametrize("pairs", [None, ["a"], [["a", "b", "c"]], [["a", 1]]])
def test_a_foreign_list_of_negatives_is_a_sentence(copied, pairs):
    def change(table):
        metadata = json.loads(table.schema.metadata[b"avpipe"]) | {"negatives": {"adds_to": None, "pairs": pairs}}
        return table.replace_schema_metadata({"avpipe": json.dumps(metadata)})

    rewritten(copied, change)
    with pytest.raises(AvpipeError, match="not an index of format 1"):
        open_shards(copied)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: table.drop_columns(["boxes"]), "has no columns 'boxes'"),
        (lambda table: table.replace_schema_metadata({"avpipe": '{"format": 1}'}), "not an index of format 1"),
        (lambda table: table.replace_schema_metadata({"avpipe": "[]"}), "not an index of format 1"),
        (
            lambda table: table.set_column(
                table.column_names.index("shard"), "shard", pa.array(["../x.tar"] * len(table))
            ),
            "no plain file name",
        ),
    ],
)
def test_a_foreign_index_is_a_sentence(copied, change, sentence):
    rewritten(copied, change)
    with pytest.raises(AvpipeError, match=sentence):
        open_shards(copied)
