"""Files appear whole or not at all, and no id or split name leaves its folder."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write, file_sha256, remove_leftovers
from avpipe.pipeline.core.ids import check_clip_id, check_split_name
from avpipe.pipeline.core.paths import Root

HOSTILE = ["", ".", "..", "../../x", "/etc/passwd", "a/b", "a\\b", "a b", "a\nb", "a\0b", "~", "$HOME", "%(id)s"]
HOSTILE.append("é" * 11)
GOOD = ["zpWuikVorYg_000032", "-aB3_xyzXYZ_000030", "____________000000", "-----------_999999", "10000130166"]
NO_IDS = ["zpWuikVorYg_00032", "zpWuikVorYg_0000320", "zpWuikVorYg-000032", "zpWuikVorY_000032", "zpWuikVorYg_00003２"]
NO_IDS += ["zpWuikVorYg_000032.mp4", "1" * 21, "²", "-123", "１２３", "zpWuikVorYg_000032\n", " zpWuikVorYg_000032"]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_has_its_name_only_after_the_block_and_the_old_one_until_then(tmp_path):
    target = tmp_path / "deep" / "er" / "file.bin"
    for old, new in ((None, b"old"), (b"old", b"new")):
        with atomic_write(target) as temporary:
            temporary.write_bytes(new)
            assert (target.read_bytes() if target.exists() else None) == old
            assert temporary.parent == target.parent  # a rename must not cross file systems
        assert target.read_bytes() == new
    assert names(target.parent) == ["file.bin"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing_and_keeps_the_old_file(tmp_path, failure):
    old, new = tmp_path / "old.bin", tmp_path / "new.bin"
    old.write_bytes(b"old")
    for target in (old, new):
        with pytest.raises(failure), atomic_write(target) as temporary:
            temporary.write_bytes(b"half")
            raise failure
    assert names(tmp_path) == ["old.bin"]
    assert old.read_bytes() == b"old"


def test_a_failed_rename_leaves_no_temporary_file(tmp_path):
    target = tmp_path / "taken"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"), atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ["taken"]


def test_leftovers_of_killed_processes_go_and_nothing_else(tmp_path):
    with atomic_write(tmp_path / "part.tar") as temporary:
        temporary.write_bytes(b"x")
        killed = temporary.with_name(temporary.name.replace(str(os.getpid()), "1"))
        killed.write_bytes(b"half")
    for name in ("a.tmp", ".lock", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(["part.tar", "a.tmp", ".lock", ".hidden"])


def test_all_of_a_root_lies_below_it(tmp_path):
    root = Root(tmp_path)
    parts = ("lists", "manifest", "clips", "cache", "shards", "ledger", "runs", "remote")
    assert [getattr(root, part) for part in parts] == [tmp_path / part for part in parts]
    assert root.clip_file(GOOD[0]) == tmp_path / "clips" / f"{GOOD[0]}.mp4"
    (tmp_path / "abc").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == digest


@pytest.mark.parametrize("text", [*HOSTILE, *NO_IDS])
def test_what_is_no_clip_id_is_refused(tmp_path, text):
    with pytest.raises(AvpipeError, match=r"^list\.txt, line 7: .* is not a clip id"):
        check_clip_id(text, "list.txt, line 7")
    with pytest.raises(AvpipeError, match="is not a clip id"):
        Root(tmp_path).clip_file(text)


near_ids = st.from_regex(r"[A-Za-z0-9_./\\~-]{9,13}_[0-9]{5,7}", fullmatch=True)
good_ids = st.from_regex(r"[A-Za-z0-9_-]{11}_[0-9]{6}|[0-9]{1,20}", fullmatch=True)


@given(text=st.text() | near_ids | good_ids)
@example(text="../../../../x_000030")
def test_an_accepted_clip_id_stays_in_the_folder(text):
    try:
        check_clip_id(text)
    except AvpipeError:
        return
    clips = Path("/data/clips")
    path = Root(Path("/data")).clip_file(text)
    assert Path(os.path.normpath(path)).parent == clips
    assert path.name == f"{text}.mp4"
    assert not path.name.startswith(".")
    assert path.name.isascii()


@given(text=good_ids | st.sampled_from(GOOD))
def test_every_published_kind_of_id_is_accepted(text):
    assert check_clip_id(text) == text


@pytest.mark.parametrize("text", [*HOSTILE, "VGGSS", "vggss\n", "a.b", "-a", "0" * 65, "split{0..3}"])
def test_what_may_not_name_a_folder_is_refused_as_a_split(text):
    assert check_split_name("0" * 64) and check_split_name("ezvsl_144k") == "ezvsl_144k"
    with pytest.raises(AvpipeError, match="is not the name of a split"):
        check_split_name(text)


@given(text=st.text() | st.from_regex(r"[a-z0-9_./]{1,10}", fullmatch=True))
def test_an_accepted_split_name_is_one_folder(text):
    try:
        check_split_name(text)
    except AvpipeError:
        return
    assert Path(os.path.normpath(Path("/data/shards") / text)).parent == Path("/data/shards")
