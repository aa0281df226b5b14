"""Opening shards by their index."""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.data.open import open_shards

pytest_plugins = ["train_fixtures"]


def test_any_sample_in_any_order(shards):
    assert len(shards) == 16 and len(set(shards.clip_ids)) == 16 and len(shards.shard_names) == 4
    for number in (15, 0, 7, 7):
        assert shards.read(number, "frame.jpg")[:3] == b"\xff\xd8\xff"
        assert shards.array(number, "logspec.npy").shape == (257, 200)


def test_a_pattern_selects_tars(shards):
    some = open_shards(f"{shards.folder}/synth_train-{{000001..000002}}.tar")
    assert some.clip_ids == shards.clip_ids[5:15]
    assert [some.read(n, "audio.flac") for n in range(10)] == [shards.read(n + 5, "audio.flac") for n in range(10)]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("synth_train-{000003..000004}.tar", "synth_train-000004.tar is not among the 4 shards"),
        ("synth_train-{000003.tar", "braces do not match"),
        ("{a,b}/synth_train-000003.tar", "must be in one folder; give one of .*/a, .*/b"),
    ],
)
def test_bad_patterns(shards, pattern, sentence):
    with pytest.raises(AvpipeError, match=sentence):
        open_shards(f"{shards.folder}/{pattern}")


def test_shards_travel_to_workers_and_know_their_members(shards):
    shards.read(0, "frame.jpg")
    assert pickle.loads(pickle.dumps(shards)).read(3, "meta.json") == shards.read(3, "meta.json")
    with pytest.raises(AvpipeError, match=r"holds no tie-mel\.npy; it has: .*logspec\.npy"):
        shards.read(0, "tie-mel.npy")


def test_a_missing_or_short_tar_is_a_sentence_at_opening(copied):
    tar = copied / "synth_train-000002.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) // 2])
    with pytest.raises(AvpipeError, match=r"000002\.tar has \d+ bytes, but its samples need \d+"):
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


def described(change):
    """The index with other metadata: `change` is put into it, or is all of it where it is text."""

    def apply(table):
        whole = change if isinstance(change, str) else json.dumps(json.loads(table.schema.metadata[b"avpipe"]) | change)
        return table.replace_schema_metadata({"avpipe": whole})

    return apply


def outside(table):
    place = table.column_names.index("shard")
    return table.set_column(place, "shard", pa.array(["../x.tar"] * len(table)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: table.drop_columns(["boxes"]), "has no columns 'boxes'"),
        (outside, "not a plain file name"),
        (described('{"format": 1}'), "not an index of format 1"),
        (described("[]"), "not an index of format 1"),
    ]
    + [
        (described({"negatives": {"adds_to": None, "pairs": pairs}}), "not an index of format 1")
        for pairs in (None, ["a"], [["a", "b", "c"]], [["a", 1]])
    ],
)
def test_a_foreign_index_is_a_sentence(copied, change, sentence):
    pq.write_table(change(pq.read_table(copied / "index.parquet")), copied / "index.parquet")
    with pytest.raises(AvpipeError, match=sentence):
        open_shards(copied)
