"""Samples that are not as avpipe makes them: left out by name, in training and evaluation, and nothing else is."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from thin import thin_networks  # noqa: F401

from pipeline.errors import AvpipeError
from pipeline.samples import decode_flac, encode_flac, encode_npy
from train.data.frames import decode_frame
from train.data.open import open_shards
from train.data.shards import DamagedError

sys.path.insert(0, str(Path(__file__).parent / "chaos"))
import samples as chaos


def with_features(folder, name, arrays):
    """Shards that hold these arrays in the place of their first samples' features of that name."""
    shards = open_shards(folder)
    shards.offset[f"{name}.npy"] = shards.size[f"{name}.npy"] = shards.offset["logspec.npy"]
    shards.view = lambda number, member: memoryview(encode_npy(arrays[number]))
    return shards


def test_hostile_members_cost_their_sample_alone(done_root):
    counts, faults = chaos.attack(done_root.shards / "synth_train", rounds=24, seed=2)
    assert counts.total() == 24 and not faults


@pytest.mark.parametrize("kind", ["f8", "g", "u2", "u8", "M8[s]", "V2", "f4,i2", ">f2", "?"])
def test_one_type_is_right_for_what_avpipe_makes(done_root, kind):
    good = np.zeros((257, 200), np.float16)
    shards = with_features(done_root.shards / "synth_train", "logspec", [good, good.astype(np.dtype(kind))])
    assert shards.feature(0, "logspec").dtype == np.float16
    with pytest.raises(DamagedError, match=r"logspec\.npy of .* cannot be read \(its type is"):
        shards.feature(1, "logspec")


def test_features_of_others_are_like_most_of_them(done_root):
    like, odd = np.ones((2, 3), np.float32), np.ones((2, 3))
    arrays = [odd, *[like] * 14, np.ones((3, 2), np.float32)]
    shards = with_features(done_root.shards / "synth_train", "theirs", arrays)
    assert (shards.feature(1, "theirs") == 1).all()
    for number, said in ((0, "its type is float64, not float32"), (15, r"its shape is \(3, 2\), not \(2, 3\)")):
        with pytest.raises(DamagedError, match=said):
            shards.feature(number, "theirs")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_never_reaches_a_loss(done_root, value):
    array = np.zeros((257, 200), np.float16)
    array[100, 7] = value
    with pytest.raises(DamagedError, match="no finite numbers"):
        with_features(done_root.shards / "synth_train", "logspec", [array]).feature(0, "logspec")
    array[100, 7] = -65504
    assert with_features(done_root.shards / "synth_train", "logspec", [array]).feature(0, "logspec").min() < -6e4


@pytest.mark.parametrize(("size", "right"), [((3840, 2160), True), ((7000, 4800), False), ((65000, 8), False)])
def test_a_picture_is_as_large_as_frames_are(size, right):
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "JPEG")
    if right:
        assert decode_frame(buffer.getvalue()).shape == (size[1], size[0], 3)
    else:
        with pytest.raises(OSError, match=f"{size[0]}x{size[1]} pixels"):
            decode_frame(buffer.getvalue())


def test_a_sound_that_claims_days_takes_no_memory():
    data = encode_flac(np.arange(5000, dtype=np.int16), 16_000)
    assert len(decode_flac(data)) == 5000
    with pytest.raises(ValueError, match=r"channels of [\d,]{14} samples, not one of"):
        decode_flac(data[:21] + bytes([data[21] | 0x0F]) + b"\xff\xff\xff\xff" + data[26:])


def test_an_evaluation_goes_on_without_what_is_damaged(done_root, tmp_path, monkeypatch, capsys):
    from pipeline.layout import Root
    from train.data.shards import Shards
    from train.evaluation.results import Request, run_eval
    from train.evaluation.retrieval import run_retrieval
    from train.models import ModelChoice
    from train.reports.stored import read_scores

    def first_rows(result):
        return next(iter(read_scores(Path(result["per_clip"])).values())).rows

    root = Root(tmp_path)
    root.shards.symlink_to(done_root.shards)
    request = Request(split="synth_test", baseline="random-init", workers=0)
    whole, view = run_eval(root, request), Shards.view
    rows = first_rows(whole)
    bad = encode_npy(np.zeros((257, 200)))
    damaged = lambda self, n, member: memoryview(bad) if (n, member) == (1, "logspec.npy") else view(self, n, member)  # noqa: E731
    monkeypatch.setattr(Shards, "view", damaged)
    result = run_eval(root, request)
    lost = open_shards(root.shards / "synth_test").clip_ids[1]
    assert f"left out: {root.shards}/synth_test/" in capsys.readouterr().err and result["clips_damaged"] == 1
    assert result["clips_scored"] == whole["clips_scored"] - 1
    assert first_rows(result) == [row for row in rows if row["clip_id"] != lost]
    searched = run_retrieval(root, "synth_test", ModelChoice(baseline="random-init"), workers=0)
    assert (searched["clips_damaged"], searched["clips_scored"]) == (1, len(rows) - 1)
    assert lost not in np.load(searched["embeddings"])["clip_ids"]
    monkeypatch.setattr(Shards, "view", lambda self, n, member: memoryview(bad))
    with pytest.raises(AvpipeError, match="clips cannot be read, and no other has a usable box"):
        run_eval(root, request)
