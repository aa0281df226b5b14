"""Tars without an index: the same samples as with one, grouped as webdataset does it, and nothing taken on trust."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import webdataset
from train_fixtures import assert_same_batches

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import ids_sha256
from avpipe.pipeline.core.samples import encode_npy
from avpipe.train.data.batch_plan import BatchPlan
from avpipe.train.data.open import open_shards
from avpipe.train.data.training_samples import TrainingSamples, batches
from avpipe.train.models.checkpoint import data_record

pytest_plugins = ["train_fixtures"]
A, B, C = "AAAAAAAAAAA_000001", "BBBBBBBBBBB_000002", "3376498"
SPEC = encode_npy(np.zeros((257, 200), np.float16))
LINK = b"a link"
BOX = {"annotator": 1, "xmin": 0.1, "ymin": 0.2, "xmax": 0.5, "ymax": 0.75}


def write_tar(path, members, kind=tarfile.PAX_FORMAT):
    """Members: {name: bytes}, or (name, bytes) pairs."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in dict(members).items() if isinstance(members, dict) else members:
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(content), 1234.5678  # in PAX a header of its own
            header.type, header.linkname = (
                (tarfile.SYMTYPE, "/etc/passwd") if content == LINK else (tarfile.REGTYPE, "")
            )
            tar.addfile(header, io.BytesIO(content))


def sample(clip_id, frame="frame.jpg", **meta):
    return {
        f"{clip_id}.{frame}": f"jpeg of {clip_id}".encode(),
        f"{clip_id}.logspec.npy": SPEC,
        f"{clip_id}.meta.json": json.dumps(meta).encode(),
    }


@pytest.fixture
def bare(copied):
    """The tars of synth_train without their index."""
    (copied / "index.parquet").unlink()
    return copied


def test_our_tars_are_the_same_without_their_index(shards, bare, caplog):
    whole, plain = shards, open_shards(bare)
    assert caplog.messages == [f"{bare} holds no index.parquet: reading the headers of 4 tars"]
    assert (plain.clip_ids, plain.labels, list(plain.boxes)) == (whole.clip_ids, whole.labels, list(whole.boxes))
    for member in whole.offset:
        assert (plain.offset[member] == whole.offset[member]).all() and (plain.size[member] == whole.size[member]).all()
    one, other = data_record(whole, "logspec"), data_record(plain, "logspec")
    assert all(one[name] == other[name] for name in ("split", "samples", "feature_digest", "clip_ids"))
    assert (plain.metadata["listed"], plain.metadata["listed_sha256"]) == (16, ids_sha256(plain.clip_ids))
    plan = BatchPlan(indices=np.arange(16), batch_size=4, world_size=1, epochs=2, seed=5)
    one, other = (TrainingSamples(shards=s, feature="logspec", image_px=32, seed=5) for s in (whole, plain))
    assert_same_batches(batches(one, plan, 0, range(3, 8), 0), batches(other, plan, 0, range(3, 8), 2))
    some = open_shards(f"{bare}/synth_train-{{000000,000003}}.tar").shard_names
    assert some == ["synth_train-000000.tar", "synth_train-000003.tar"]
    with pytest.raises(AvpipeError, match=r"000004.tar cannot be opened: No such file"):
        open_shards(f"{bare}/synth_train-{{000003..000004}}.tar")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_that_webdataset_sees(tmp_path, kind):
    folder = tmp_path / "Foreign Set"
    folder.mkdir()
    write_tar(folder / "x-0.tar", sample(B, "jpg") | {f"{B}.{'long.' * 60}txt": b"x"} if kind else sample(B), kind)
    write_tar(folder / "x-1.tar", sample(A, "jpg", label="dog", boxes=[BOX]) | sample(C, "jpeg"), kind)
    shards = open_shards(folder)
    theirs = list(webdataset.WebDataset([str(folder / f"x-{n}.tar") for n in (0, 1)], shardshuffle=False))
    assert shards.clip_ids == [one["__key__"] for one in theirs] == [B, A, C]
    assert [shards.read(n, "logspec.npy") for n in range(3)] == [one["logspec.npy"] for one in theirs]
    assert shards.read(1, "frame.jpg") == next(theirs[1][name] for name in ("jpg", "frame.jpg") if name in theirs[1])
    assert shards.labels == [None, "dog", None] and list(shards.boxes) == [[], [BOX], []]
    assert shards.split == "plain" and list(shards.offset) == ["frame.jpg", "logspec.npy", "meta.json"]


def test_a_feature_of_another_shape_has_no_digest(tmp_path):
    write_tar(tmp_path / "x.tar", sample(A) | {f"{A}.logspec.npy": encode_npy(np.zeros((257, 9)))})
    assert open_shards(tmp_path).metadata["extract"]["features"] == {}


def test_an_incomplete_sample_is_left_out_and_said(tmp_path, caplog):
    lacking = {name: content for name, content in sample(B).items() if "logspec" not in name}
    stray = sample(C) | {f"{C}.tie-mel.npy": encode_npy(np.zeros((2, 2)))}
    write_tar(tmp_path / "x.tar", sample(A) | lacking | stray | sample("1") | {f"{A}.txt": b"text", "2.txt": b"text"})
    shards = open_shards(tmp_path)
    assert shards.clip_ids == [A, C, "1"] and "tie-mel.npy" not in shards.offset
    assert shards.metadata["listed"] == 5
    said = f"2 of 5 samples are left out, as they lack what most have, e.g. {B} its logspec.npy"
    assert said in caplog.text


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"../x.frame.jpg": b""}, r"x.tar: member '../x.frame.jpg': '' is not a clip id"),
        (sample(f"folder/{A}"), "is not a clip id"),
        ({"README": b""}, "'README' is not a clip id"),
        ([*sample(A).items(), *sample(A).items()], "occurs twice"),
        ([*sample(A).items(), (f"{A}.jpg", b"")], f"frame.jpg of {A} occurs twice"),
        ({f"{A}.logspec.npy": SPEC}, "hold no frame.jpg, but logspec.npy"),
        ({f"{A}.txt": b""}, "hold no frame.jpg, but nothing"),
        ({f"{A}.frame.jpg": LINK}, r"frame\.jpg is not a regular file"),
        (sample(A) | {f"{A}.meta.json": b"{"}, rf"x.tar: {A}.meta.json cannot be used \("),
        (sample(A) | {f"{A}.meta.json": b"[" * 60_000}, "meta.json cannot be used"),
        (sample(A) | {f"{A}.meta.json": b"[1]"}, "meta.json cannot be used"),
        (sample(A) | {f"{A}.meta.json": b" " * 70_000}, "it has 70,000 bytes"),
        (sample(A) | {f"{A}.logspec.npy": b"no array"}, rf"x.tar: logspec.npy of {A} is not an array"),
        (sample(A, label=7), "its label is not a string"),
        (sample(A, boxes="all"), "meta.json cannot be used"),
        (sample(A, boxes=[{"xmin": 1.0}]), "a box lacks a corner"),
        (sample(A, boxes=[BOX | {"annotator": 10**30}]), "meta.json cannot be used"),
    ],
)
def test_what_a_stranger_may_have_packed_is_one_sentence(tmp_path, members, sentence):
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(AvpipeError, match=sentence) as caught:
        open_shards(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data[:300_000], r"000001.tar is truncated or damaged after its first \d+ members"),
        (lambda data: data[:-20_480], "is truncated or damaged"),
        (lambda data: data[:512] + bytes([255]) * 100 + data[612:], None),
        (lambda data: bytes([255]) * 700 + data[700:], "is truncated or damaged after its first 0 members"),
        (lambda data: b"", "is truncated or damaged after its first 0 members"),
        (gzip.compress, "is compressed.*decompress it"),
    ],
)
def test_a_damaged_tar_is_named(bare, change, sentence):
    path = bare / "synth_train-000001.tar"
    path.write_bytes(change(path.read_bytes()))
    if sentence is None:  # damage inside of a member shows when it is decoded
        assert len(open_shards(bare)) == 16
        return
    with pytest.raises(AvpipeError, match=sentence) as caught:
        open_shards(bare)
    assert "synth_train-000001.tar" in str(caught.value)
