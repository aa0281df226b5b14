"""Samples that are not as avpipe makes them: left out by name, in training and evaluation, and nothing else is."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from thin import thin_networks  # noqa: F401

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.samples import decode_flac, encode_flac, encode_npy
from avpipe.train.data.frames import decode_frame
from avpipe.train.data.open import open_shards
from avpipe.train.data.shards import DamagedError, Shards
from avpipe.train.evaluation.retrieval import run_retrieval
from avpipe.train.evaluation.run import Request, run_eval
from avpipe.train.models.load import ModelChoice
from avpipe.train.reports.stored import read_scores

sys.path.insert(0, str(Path(__file__).parent / "chaos"))
import samples as chaos

pytestmark = pytest.mark.heavy

pytest_plugins = ["train_fixtures"]


def test_hostile_members_cost_their_sample_alone(done_root):
    counts, faults = chaos.attack(done_root.shards / "synth_train", rounds=16, seed=2)
    assert counts.total() == 16 and not faults


GOOD, THEIRS = np.zeros((257, 200), np.float16), np.ones((2, 3), np.float32)
LOWEST = np.where(np.arange(200) == 7, -65504, GOOD).astype(np.float16)


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [("logspec", GOOD, None), ("logspec", LOWEST, None), ("theirs", THEIRS, None)]
    + [
        ("logspec", GOOD.astype(kind), "its type is")
        for kind in ("f8", "g", "u2", "u8", "M8[s]", "V2", [("a", "f4"), ("b", "i2")], ">f2", "?")
    ]
    + [("logspec", GOOD + np.float16(value), "not finite") for value in (np.nan, np.inf, -np.inf)]
    + [
        ("theirs", THEIRS.astype(float), "its type is float64, not float32"),
        ("theirs", THEIRS.T, r"its shape is \(3, 2\), not \(2, 3\)"),
    ],
)
def test_features_are_as_avpipe_makes_them_or_like_most_of_others(done_root, name, array, said):
    shards = open_shards(done_root.shards / "synth_train")
    shards.offset[f"{name}.npy"] = shards.size[f"{name}.npy"] = shards.offset["logspec.npy"]
    shards.view = lambda number, member: memoryview(encode_npy(array if number == 1 else THEIRS))
    if said is None:
        assert (shards.feature(1, name) == array).all()
    else:
        with pytest.raises(DamagedError, match=rf"{name}\.npy of .* \(.*{said}"):
            shards.feature(1, name)


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
    with pytest.raises(ValueError, match=r"channels of [\d,]{14} samples, not 1 of"):
        decode_flac(data[:21] + bytes([data[21] | 0x0F]) + b"\xff\xff\xff\xff" + data[26:])


@pytest.mark.heavy
def test_an_evaluation_goes_on_without_what_is_damaged(own_root, monkeypatch, caplog):
    def first_rows(result):
        return next(iter(read_scores(Path(result["per_clip"])).values())).rows

    root = own_root
    request = Request(split="synth_test", baseline="random-init", workers=0)
    whole, view = run_eval(root, request), Shards.view
    rows = first_rows(whole)
    bad = encode_npy(np.zeros((257, 200)))
    damaged = {(1, "logspec.npy"): bad}
    monkeypatch.setattr(Shards, "view", lambda self, *key: memoryview(damaged.get(key) or view(self, *key)))
    result = run_eval(root, request)
    lost = open_shards(root.shards / "synth_test").clip_ids[1]
    assert f"left out: {root.shards}/synth_test/" in caplog.text and result["clips_damaged"] == 1
    assert result["clips_scored"] == whole["clips_scored"] - 1
    assert first_rows(result) == [row for row in rows if row["clip_id"] != lost]
    searched = run_retrieval(root, "synth_test", ModelChoice(baseline="random-init"), workers=0)
    assert (searched["clips_damaged"], searched["clips_scored"]) == (1, len(rows) - 1)
    assert lost not in np.load(searched["embeddings"])["clip_ids"]
    monkeypatch.setattr(Shards, "view", lambda self, n, member: memoryview(bad))
    with pytest.raises(AvpipeError, match="clips cannot be read, no other has a usable box"):
        run_eval(root, request)
