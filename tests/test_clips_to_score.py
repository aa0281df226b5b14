"""Which clips are scored: a part of a split, and the negatives of the extended sets."""

from types import SimpleNamespace

import numpy as np
import pytest
from shared_files import SHARED

from pipeline.errors import AvpipeError
from pipeline.manifest import Manifest
from pipeline.manifest_build import build_manifest
from train import evaluate as ev
from train.clips_to_score import clips_of_manifest, clips_of_shards, only, read_only

BOX = [{"annotator": 0, "xmin": 0.0, "ymin": 0.0, "xmax": 0.5, "ymax": 1.0}]
PAIRS = [["b_000000", "a_000000"], ["a_000000", "a_000000"], ["d_000000", "e_000000"]]


def shards_of(ids, **metadata):
    """What of opened shards says which clips there are; d has not been downloaded."""
    return SimpleNamespace(
        split="t",
        metadata={"listed": 9, "listed_sha256": "f" * 64} | metadata,
        clip_ids=ids,
        labels=[clip_id[0] for clip_id in ids],
        boxes=[BOX if clip_id[0] in "ab" else [] for clip_id in ids],
    )


def test_pairs_are_negatives_behind_their_frames():
    clips = clips_of_shards(shards_of(["e_000000", "b_000000", "a_000000"], pairs=PAIRS))
    assert clips.clip_ids == ["a_000000", "b_000000", "b_000000", "a_000000"]  # e gives its sound alone
    assert clips.negative == [False, False, True, True]
    assert clips.numbers.tolist() == [2, 1, 1, 2] and clips.sounds.tolist() == [2, 1, 2, 2]
    assert (clips.listed, clips.labels) == (3, ["a", "b", "b", "a"])
    assert clips.sounding().clip_ids == ["a_000000", "b_000000"] and clips.sounding().negative == [False, False]


def test_without_pairs_every_clip_has_its_own_sound():
    clips = clips_of_shards(shards_of(["e_000000", "b_000000", "a_000000"]))
    assert clips.numbers.tolist() == clips.sounds.tolist() == [2, 1, 0]
    assert (clips.listed, clips.negative, clips.sounding()) == (9, [], clips)


def test_only_a_part_is_scored_and_what_is_missing_counts(tmp_path):
    clips = clips_of_shards(shards_of(["e_000000", "b_000000", "a_000000"], pairs=PAIRS))
    (tmp_path / "mine.txt").write_text("b_000000.jpg\nzzzzzzzzzzz_000001\n")
    ids = read_only(tmp_path, str(tmp_path / "mine.txt"))
    part = only(clips, ids)
    assert (part.clip_ids, part.negative, part.listed) == (["b_000000", "b_000000"], [False, True], 2)
    assert part.sounds.tolist() == [1, 2] and part.listed_sha256 != clips.listed_sha256
    maps = np.zeros((2, 7, 7), np.float32)
    (score,) = ev.evaluate(part, lambda frame: iter(maps), ["slavc"])
    assert (score.summary()["clips_scored"], score.summary()["negatives"]) == (1, 1)
    with pytest.raises(AvpipeError, match="none of the 1 clips of the list is in t"):
        only(clips, ["zzzzzzzzzzz_000001"])


@pytest.mark.parametrize("text", ["gone.txt", "some/where"])
def test_a_list_that_is_not_there_is_a_sentence(tmp_path, text):
    with pytest.raises(AvpipeError, match=r"is not there; --only takes a file with one clip id a line"):
        read_only(tmp_path, text)


def test_the_official_extended_set_is_vggss_and_as_many_negatives(once):
    if not SHARED:
        pytest.skip("no official lists: set AVPIPE_SHARED to the folder that holds metadata/")
    folder = once("official-manifest", lambda folder: build_manifest(SHARED / "metadata", folder))
    own, extended = (clips_of_manifest(folder, split) for split in ("vggss", "vggss_extended"))
    assert extended.sounding().clip_ids == own.clip_ids and extended.boxes[:5158] == own.boxes
    assert (extended.listed, sum(extended.negative), len(extended.clip_ids)) == (5158, 5158, 10316)
    lines = (SHARED / "metadata/slavc/vggss_test_plus_silent.csv").read_text().split()[1:]
    assert [f"{frame},{sound},non-sounding" for frame, sound in Manifest.open(folder).pairs("vggss_extended")] == lines
    assert len(only(own, read_only(folder, "vggss_sspl")).clip_ids) == 4692
