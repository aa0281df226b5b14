"""The audit and the coverage against sets and plain loops over small tables."""

import hashlib
import json
import random
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.inspect.coverage import coverage, histogram
from avpipe.pipeline.manifest.audit import audit, audit_table

ROLES = {"train_a": "train", "test_a": "test", "flickr": "train", "test_long_name_b": "test", "lone": "test"}
TEXT, NUMBER = pa.string(), pa.int32()


def write_manifest(folder: Path, clips: list[tuple], boxes: list[tuple], splits: list[tuple]) -> Path:
    schemas = {
        "clips": (clips, {"clip_id": TEXT, "youtube_id": TEXT, "label": TEXT}),
        "boxes": (boxes, {"clip_id": TEXT, "annotator": NUMBER, "defect": TEXT}),
        "splits": (splits, {"split": TEXT, "clip_id": TEXT, "audio_clip_id": TEXT}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (rows, schema) in schemas.items():
        records = [dict(zip(schema, row, strict=True)) for row in rows]
        pq.write_table(pa.Table.from_pylist(records, pa.schema(schema)), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def tables() -> tuple[list, list, list]:
    """Sixty clips of thirty videos and ten Flickr clips, spread over the splits by chance; `lone` stands apart."""
    rng = random.Random(3)
    clips = [(f"video{i // 2:06d}_{i:06d}", f"video{i // 2:06d}", rng.choice("xyz")) for i in range(60)]
    clips += [(f"{i}", None, None) for i in range(100, 110)]
    clips = [*clips, ("videolonely_000000", "videolonely", None)]
    rng.shuffle(clips)
    names = [row[0] for row in clips if row[0] != "videolonely_000000"]
    splits = [(split, name, None) for split in list(ROLES)[:-1] for name in rng.sample(names, 15)]
    splits += [("test_a", names[0], names[i]) for i in range(5)] + [("lone", "videolonely_000000", None)]
    boxes = [("a", 0, None), ("a", 1, "zero_area"), ("b", 0, "zero_area"), ("b", 0, "not_a_number")]
    return clips, [*boxes, ("c", 0, "zero_area"), ("d", 0, None)], splits


@pytest.fixture
def folder(tmp_path, tables) -> Path:
    return write_manifest(tmp_path / "manifest", *tables)


def members(tables, split: str) -> tuple[set, set]:
    """Clips and videos of a split, by plain loops."""
    video_of = {clip_id: youtube_id or clip_id for clip_id, youtube_id, _ in tables[0]}
    clips = {name for row in tables[2] if row[0] == split for name in row[1:] if name}
    return clips, {video_of[clip_id] for clip_id in clips}


def shared(tables, a: str, b: str) -> dict:
    (clips_a, videos_a), (clips_b, videos_b) = members(tables, a), members(tables, b)
    return {"clips": len(clips_a & clips_b), "videos": len(videos_a & videos_b)}


NO_BOXES = {"total": 0, "defective": 0, "defects": {}, "clips_without_usable_box": 0, "annotators": 0}


def test_leaks_and_overlaps_are_those_of_sets(folder, tables):
    report = audit(folder, ROLES)
    train, test = ([name for name in ROLES if ROLES[name] == role] for role in ("train", "test"))
    assert report["leaks"] == [{"train": a, "test": b} | shared(tables, a, b) for a in train for b in test]
    assert report["overlaps"] == [{"a": a, "b": b} | shared(tables, a, b) for a, b in combinations(test, 2)]
    assert any(pair["clips"] < pair["videos"] for pair in report["leaks"])
    assert json.loads(json.dumps(report)) == report


def test_splits_are_counted_with_the_clips_that_only_sound(folder, tables):
    label_of = {row[0]: row[2] for row in tables[0]}
    for name, split in audit(folder, ROLES)["splits"].items():
        clips, videos = members(tables, name)
        rows = sorted(row[1] for row in tables[2] if row[0] == name)
        labels = [label_of[clip_id] for clip_id in clips if label_of[clip_id]]
        assert split == {
            "role": ROLES[name],
            "listed": len(rows),
            "sha256": hashlib.sha256("".join(f"{clip_id}\n" for clip_id in rows).encode()).hexdigest(),
            "clips": len(clips),
            "videos": len(videos),
            "labelled": len(labels),
            "categories": len(set(labels)),
        }


def test_another_clip_of_the_same_video_leaks_the_video(tmp_path):
    clips = [("sameVideo01_000000", "sameVideo01", None), ("sameVideo01_000010", "sameVideo01", None)]
    splits = [("train_a", clips[0][0], None), ("test_a", clips[1][0], None)]
    report = audit(write_manifest(tmp_path, clips, [], splits), ROLES)
    assert report["leaks"] == [{"train": "train_a", "test": "test_a", "clips": 0, "videos": 1}]
    assert "0 (1)" in audit_table(report)


def test_boxes_are_counted_by_defect(folder, tmp_path):
    counts = {"total": 6, "defective": 4, "defects": {"zero_area": 3, "not_a_number": 1}}
    assert audit(folder, ROLES)["boxes"] == counts | {"clips_without_usable_box": 2, "annotators": 2}
    assert audit(write_manifest(tmp_path / "none", [], [], []), ROLES)["boxes"] == NO_BOXES


def test_a_split_without_a_role_and_a_clip_that_is_missing_are_refused(folder, tables, tmp_path):
    with pytest.raises(AvpipeError, match="whether split train_a is for training"):
        audit(folder, {})
    lost = write_manifest(tmp_path / "lost", tables[0], [], [("test_a", tables[0][0][0], "nowhere")])
    with pytest.raises(AvpipeError, match="a split names a clip that is not there"):
        audit(lost, ROLES)


def test_the_table_shows_what_leaks_and_names_what_is_clean(folder, tables):
    text = audit_table(audit(folder, ROLES))
    assert max(map(len, text.splitlines())) <= 120
    leak = shared(tables, "train_a", "test_a")
    assert f"{leak['clips']} ({leak['videos']})" in text
    assert text.count("nothing in lone") == 2
    assert "Boxes: 6, unusable 4 (3 zero_area, 1 not_a_number); clips without a usable box: 2" in text


def test_the_table_keeps_to_its_width_with_many_splits():
    names = [f"vggss_unheard_number_{i}" for i in range(13)]
    facts = {"listed": 200_000, "sha256": "0" * 64, "clips": 200_000, "videos": 200_000, "labelled": 9, "categories": 9}
    report = {
        "leaks": [{"train": "ezvsl", "test": name, "clips": 199_999, "videos": 199_999} for name in names],
        "overlaps": [{"a": a, "b": b, "clips": 0, "videos": 0} for a, b in combinations(names, 2)],
        "boxes": NO_BOXES,
        "splits": {"ezvsl": {"role": "train"} | facts} | {name: {"role": "test"} | facts for name in names},
    }
    text = audit_table(report)
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("199,999 (199,999)") == 13
    assert "…" not in text


def test_coverage_counts_the_clips_asked_for_in_every_stage(tmp_path):
    root = Root(tmp_path)
    nothing = {"clips": 2, "downloaded": 0, "failed": {}, "extracted": {}, "sharded": {}}
    assert coverage(root, ["100", "101", "100"]) == nothing
    outcomes = [Outcome(clip_id=str(i), reason="removed" if i > 6 else None) for i in range(10)]
    Ledger(root.ledger, "download").write([*outcomes, Outcome(clip_id="9", reason="network")])
    for path, ids in {
        "cache/one/part-000000-a.parquet": "0123",
        "cache/one/part-000001-b.parquet": "34",  # 3 was extracted anew
        "shards/vggss/index.parquet": "028",
        "shards/.vggss-12345678/index.parquet": "0123456789",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"clip_id": list(ids), "shard": ["x"] * len(ids)}), tmp_path / path)
    (tmp_path / "cache/empty").mkdir()
    assert coverage(root, list("23456789")) == {
        "clips": 8,
        "downloaded": 5,
        "failed": {"removed": 2, "network": 1},
        "extracted": {"empty": 0, "one": 3},
        "sharded": {"vggss": 2},
    }
    (tmp_path / "shards/vggss/index.parquet").write_bytes(b"no")
    with pytest.raises(AvpipeError, match=r"shards/vggss/index\.parquet is not an index, or is damaged"):
        coverage(root, ["2"])


def test_the_histogram_is_sorted_and_counts_the_unlabelled_apart():
    assert histogram(["b", "a", None, "c", "c", "b", None, None]) == [("b", 2), ("c", 2), ("a", 1), (None, 3)]
    assert histogram([]) == []
