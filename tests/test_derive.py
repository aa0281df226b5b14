"""Derived splits: what is left out, how a draw is made, and that a rebuild makes them again."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_manifest import build

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.manifest.build import build_manifest
from avpipe.pipeline.manifest.derive import RULES, derive
from avpipe.pipeline.manifest.tables import Manifest

# Videos with one to three clips each.
TRAIN = [f"video{v:06d}_{30 * c:06d}" for v in range(60) for c in range(1 + v % 3)]
TEST = [*TRAIN[:5], "another0000_000000"]
LISTS = {"ezvsl_144k": "\n".join(TRAIN), "lvs_test": "\n".join(TEST)}


def video(clip_id: str) -> str:
    return clip_id[:11]


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    return build(tmp_path, LISTS)[0]


def lowest(seed: int, ids: list[str], count: int) -> set[str]:
    """The draw in other words: those with the smallest hash."""
    return set(sorted(ids, key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).hexdigest())[:count])


def test_a_clean_split_shares_no_video_with_what_it_leaves_out(manifest):
    facts = derive(manifest, "clean", "ezvsl_144k", ("vggss",))
    videos = {video(clip_id) for clip_id in TEST}
    kept = [clip_id for clip_id in TRAIN if video(clip_id) not in videos]
    assert manifest.split_ids("clean") == kept
    assert len(kept) < len(TRAIN) - len(set(TRAIN) & set(TEST))  # siblings of test clips went too
    assert manifest.split_facts("clean") == facts
    assert (facts["listed"], facts["role"]) == (len(kept), "train")


@settings(max_examples=20, deadline=None)
@given(clips=st.integers(1, len(TRAIN)), seed=st.integers(0, 5))
def test_a_subset_has_the_size_asked_for_and_keeps_the_order(tmp_path_factory, clips, seed):
    manifest = build(tmp_path_factory.mktemp("m"), LISTS)[0]
    derive(manifest, "some", "ezvsl_144k", clips=clips, seed=seed)
    drawn = lowest(seed, TRAIN, clips)
    assert manifest.split_ids("some") == [clip_id for clip_id in TRAIN if clip_id in drawn]


def test_a_validation_part_and_its_rest_share_no_video_and_make_the_whole(manifest):
    derive(manifest, "val", "ezvsl_144k", clips=20, whole_videos=True, seed=1)
    derive(manifest, "fit", "ezvsl_144k", ("val",))
    val, fit = manifest.split_ids("val"), manifest.split_ids("fit")
    assert 20 <= len(val) <= 22
    assert not {video(i) for i in val} & {video(i) for i in fit}
    assert sorted(val + fit) == sorted(TRAIN)
    videos = list(dict.fromkeys(map(video, TRAIN)))
    assert {video(i) for i in val} == lowest(1, videos, len({video(i) for i in val}))


def test_the_same_rule_again_changes_nothing_and_another_is_refused(manifest):
    first = derive(manifest, "some", "ezvsl_144k", clips=10)
    before = (manifest.folder / "splits.parquet").read_bytes()
    assert derive(manifest, "some", "ezvsl_144k", clips=10) == first
    assert (manifest.folder / "splits.parquet").read_bytes() == before
    with pytest.raises(AvpipeError, match="'some' already"):
        derive(manifest, "some", "ezvsl_144k", clips=11)


def test_a_rebuild_makes_derived_splits_again_and_names_those_it_cannot(manifest, tmp_path):
    derive(manifest, "val", "ezvsl_144k", clips=20, whole_videos=True)
    derive(manifest, "fit", "ezvsl_144k", ("val",))
    before = {name: manifest.split_ids(name) for name in ("val", "fit")}
    counts = build_manifest(tmp_path / "lists", manifest.folder, accept_changed=True)
    assert {name: manifest.split_ids(name) for name in before} == before
    assert counts["splits_not_derived"] == {}
    (tmp_path / "lists/ezvsl/vggss_144k.txt").unlink()
    counts = build_manifest(tmp_path / "lists", manifest.folder, accept_changed=True)
    assert list(counts["splits_not_derived"]) == ["val", "fit"]
    assert "vggss" in counts["splits"]


def test_what_cannot_be_derived_is_refused_and_changes_nothing(manifest):
    before = (manifest.folder / "splits.parquet").read_bytes()
    for arguments, sentence in (
        ({"name": "vggss"}, "'vggss' already"),
        ({"name": "../x"}, "is not the name of a split"),
        ({"base": "nothing"}, "no split 'nothing'"),
        ({"without": ("nothing",)}, "no split 'nothing'"),
        ({"without": ("ezvsl_144k",)}, "no clip of ezvsl_144k is left"),
        ({"clips": 1000}, "1000 clips were asked for, and 120"),
        ({"clips": 0}, "0 clips were asked for"),
    ):
        with pytest.raises(AvpipeError, match=sentence):
            derive(manifest, **({"name": "new", "base": "ezvsl_144k"} | arguments))
    assert (manifest.folder / "splits.parquet").read_bytes() == before
    assert not (manifest.folder / RULES).exists()


def test_damaged_rules_are_a_sentence_and_those_of_another_version_stop_no_build(manifest, tmp_path):
    for text in ("", "[]", "3", '{"../x": {}}', '{"a": 3}'):
        (manifest.folder / RULES).write_text(text)
        with pytest.raises(AvpipeError, match="not a table of derived splits"):
            derive(manifest, "some", "ezvsl_144k", clips=10)
    (manifest.folder / RULES).write_text(json.dumps({"old": {"base": "ezvsl_144k", "every": 3}}))
    counts = build_manifest(tmp_path / "lists", manifest.folder, accept_changed=True)
    assert list(counts["splits_not_derived"]) == ["old"]
