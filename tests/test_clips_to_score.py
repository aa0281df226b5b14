"""Which clips are scored: a part of a split, and the negatives of the extended sets."""

import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shared_files import SHARED
from thin import thin_networks  # noqa: F401

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
from avpipe.pipeline.manifest.catalogue import SplitDefinition
from avpipe.pipeline.manifest.tables import SPLITS, Manifest, write_table
from avpipe.pipeline.shards.write import shard
from avpipe.train.evaluation import evaluate as ev
from avpipe.train.evaluation.eval_set import clips_of_manifest, clips_of_shards, only, open_split, read_only
from avpipe.train.evaluation.run import Request, run_eval


@pytest.fixture(scope="module")
def extended(done_root, tmp_path_factory):
    """A root with a split `quiet` of three negatives, the last with its own sound; and its rows."""
    root = Root(tmp_path_factory.mktemp("extended"))
    shutil.copytree(done_root.manifest, root.manifest)
    for name in ("cache", "clips", "ledger"):
        getattr(root, name).symlink_to(getattr(done_root, name))
    manifest = Manifest.open(root.manifest)
    frames, sounds = sorted(manifest.split_ids("synth_test")), sorted(manifest.split_ids("synth_train"))
    rows = [(frames[0], sounds[0]), (frames[1], sounds[1]), (sounds[2], None)]
    new = [
        {"split": "quiet", "line": None, "clip_id": frame, "audio_clip_id": sound, "position": place}
        for place, (frame, sound) in enumerate(rows)
    ]
    path = manifest.folder / "splits.parquet"
    old = pq.read_table(path)
    facts = manifest.facts()
    facts["splits"]["quiet"] = {"role": "test", "list": "x", "listed": 3, "sha256": ""}
    write_table(pa.concat_tables([old.replace_schema_metadata(), pa.Table.from_pylist(new, SPLITS)]), path, facts)
    definition = SplitDefinition(name="quiet", list="x", role="test", adds_to="synth_test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avpipe.pipeline.manifest.tables.load_catalogue", lambda: ({}, {"quiet": definition}))
        for split in ("synth_test", "quiet"):
            shard(root, split, ExtractSettings(), ShardSettings(), workers=1)
    return root, rows


@pytest.mark.heavy
def test_negatives_stand_behind_the_clips_that_they_are_added_to(extended):
    root, rows = extended
    shards = open_split(root, "quiet")
    clips, alone = clips_of_shards(shards), clips_of_shards(open_split(root, "synth_test"))
    assert clips.clip_ids == alone.clip_ids + [frame for frame, _ in rows]
    assert clips.negative == [False] * 4 + [True] * 3 and alone.negative == []
    assert (clips.listed, clips.negatives_listed, clips.boxes[:4]) == (4, 3, alone.boxes)
    assert [shards.clip_ids[n] for n in clips.indices] == clips.clip_ids
    assert [shards.clip_ids[n] for n in clips.sounds[4:]] == [sound or frame for frame, sound in rows]
    for number in (*clips.indices, *clips.sounds):
        assert shards.read(int(number), "frame.jpg").startswith(b"\xff\xd8")
        assert shards.array(int(number), "logspec.npy").shape == (257, 200)
    assert clips.sounding().clip_ids == alone.clip_ids


@pytest.mark.heavy
def test_an_extended_set_is_scored_with_its_statistics(extended, tmp_path, monkeypatch):
    root, _ = extended
    result = run_eval(root, Request(split="quiet", baseline="random-init", protocol="slavc,avpipe", workers=0))
    assert (result["clips_scored"], result["negatives"], result["negatives_listed"]) == (4, 3, 3)
    assert {"published", "corrected"} == result["slavc"].keys()
    alone = run_eval(root, Request(split="synth_test", baseline="random-init", protocol="slavc", workers=0))
    assert alone["ciou"] == result["ciou"] and alone["wrong_audio"]["ciou"] is not None
    with monkeypatch.context() as patch:
        outside = {"negatives": {"adds_to": "../elsewhere", "pairs": []}}
        patch.setattr("avpipe.train.evaluation.eval_set.open_shards", lambda folder: SimpleNamespace(metadata=outside))
        with pytest.raises(AvpipeError, match=r"'../elsewhere' is not the name of a split"):
            open_split(root, "quiet")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/quiet").symlink_to(root.shards / "quiet")
    with pytest.raises(AvpipeError, match=r"for synth_test, which has no shards; run `avpipe shard --split s"):
        open_split(Root(tmp_path), "quiet")


def test_only_a_part_is_scored_and_what_is_missing_counts(done_root, tmp_path):
    clips = clips_of_shards(open_split(done_root, "synth_test"))
    (tmp_path / "mine.txt").write_text(f"{clips.clip_ids[2]}.jpg\nzzzzzzzzzzz_000001\n")
    part = only(clips, read_only(done_root.manifest, str(tmp_path / "mine.txt")))
    assert (part.clip_ids, part.listed, part.boxes) == ([clips.clip_ids[2]], 2, [clips.boxes[2]])
    assert part.sounds.tolist() == [clips.indices[2]] and part.listed_sha256 != clips.listed_sha256
    (score,) = ev.evaluate(part, lambda frame: iter(np.zeros((1, 7, 7), np.float32)), ["avpipe"])
    assert score.summary()["clips_scored"] == 1
    assert only(clips, read_only(done_root.manifest, "synth_test")).clip_ids == clips.clip_ids
    with pytest.raises(AvpipeError, match="none of the 1 clips of the list is in synth_test"):
        only(clips, ["zzzzzzzzzzz_000001"])
    for text in ("gone.txt", "some/where"):
        with pytest.raises(AvpipeError, match=r"does not exist; --only takes a file with one clip id per line"):
            read_only(tmp_path, text)


@pytest.mark.heavy
def test_the_official_extended_set_is_vggss_and_as_many_negatives(official):
    folder = official.folder
    own, both = (clips_of_manifest(folder, split) for split in ("vggss", "vggss_extended"))
    assert both.sounding().clip_ids == own.clip_ids and both.boxes[:5158] == own.boxes
    assert (both.listed, both.negatives_listed, sum(both.negative), len(both.clip_ids)) == (5158, 5158, 5158, 10316)
    lines = (SHARED / "metadata/slavc/vggss_test_plus_silent.csv").read_text().split()[1:]
    pairs = official.negatives("vggss_extended")["pairs"]
    assert [f"{frame},{sound},non-sounding" for frame, sound in pairs] == lines
    assert len(only(own, read_only(folder, "vggss_sspl")).clip_ids) == 4692
