"""The catalogue agrees with the published files, refuses changed ones, and fetches what is missing."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
from server import Answer, serve
from shared_files import SHARED

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import ids_sha256
from avpipe.pipeline.manifest import catalogue
from avpipe.pipeline.manifest.catalogue import OfficialList, SplitDefinition, fetch_lists, find_lists, load_catalogue
from avpipe.pipeline.manifest.list_parsers import PARSERS

needs_lists = pytest.mark.skipif(SHARED is None, reason="the official lists (shared/metadata) are not on this machine")
LISTS, SPLITS = load_catalogue()
# Too large to lie among the shared files, and without a pinned hash.
NOT_SHARED = {"vggsound_csv"}
PUBLISHED = {name: entry for name, entry in LISTS.items() if entry.repository}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def plain_ids(entry: OfficialList) -> list[str]:
    """Ids of a shared list, read without avpipe's parsers."""
    text = (SHARED / "metadata" / entry.file).read_text()
    if entry.format == "box_json":
        return [item["file"] for item in json.loads(text)]
    if entry.format == "label_csv":
        return [name.split(".")[0] for name, _ in csv.reader(text.splitlines())]
    names = [line.split(",")[0].rpartition("/")[2].split(".")[0] for line in text.split()]
    return names[1:] if entry.format == "pair_csv" else names


def test_every_list_has_a_parser_and_a_file_of_its_own_and_but_for_boxes_a_split():
    assert all(entry.format in PARSERS for entry in LISTS.values())
    assert len({entry.file for entry in LISTS.values()}) == len(LISTS)
    assert all(".." not in entry.file and not Path(entry.file).is_absolute() for entry in LISTS.values())
    used = {name for split in SPLITS.values() for name in (split.list, split.else_list) if name}
    assert used == set(LISTS) - {"synth_boxes", "flickr_boxes"}


def test_every_split_has_a_role_and_a_list_and_stands_behind_the_one_it_looks_at():
    order = list(SPLITS)
    for name, split in SPLITS.items():
        assert split.role in ("train", "test")
        assert split.part in ((None, "train", "test") if LISTS[split.list].format == "vggsound_csv" else (None,))
        assert split.unseen_by is None or order.index(split.unseen_by) < order.index(name)


def test_published_lists_are_pinned_and_have_an_address():
    for name, entry in PUBLISHED.items():
        assert entry.address == f"https://raw.githubusercontent.com/{entry.repository}/HEAD/{entry.path}"
        assert entry.rows
        assert (entry.sha256 is None) == (name in NOT_SHARED)
    unpublished = [entry.name for entry in LISTS.values() if not entry.repository and entry.address is None]
    assert unpublished == ["flickr_boxes", "synth_csv", "synth_boxes"]


@needs_lists
@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - NOT_SHARED))
def test_hash_and_rows_are_those_of_the_published_file(name):
    entry = LISTS[name]
    assert sha256((SHARED / "metadata" / entry.file).read_bytes()) == entry.sha256
    assert len(plain_ids(entry)) == entry.rows


@needs_lists
def test_the_leaks_that_the_catalogue_names_are_in_the_files():
    tested = {"ezvsl_10k": 238, "ezvsl_144k": 3709, "ezvsl_heard": 0, "ssltie_10k": 0, "ssltie_144k": 0}
    tested |= {"ssltie_full": 4916, "ssltie_seen_144k": 3565, "ssltie_openset_70k": 2306}
    vggss = set(plain_ids(LISTS["vggss_boxes"]))
    assert {name: len(set(plain_ids(LISTS[name])) & vggss) for name in tested} == tested
    for name, count in tested.items():
        assert count < 100 or f"{count:,}" in LISTS[name].about or str(count) in LISTS[name].about


def test_the_hash_of_ids_does_not_depend_on_their_order():
    assert ids_sha256(["b", "a"]) == ids_sha256(["a", "b"]) == sha256(b"a\nb\n")
    assert ids_sha256(["a"]) != ids_sha256(["a", "b"])


def test_a_changed_list_is_refused_with_both_hashes_and_taken_on_demand(tmp_path):
    with pytest.raises(AvpipeError, match="none of the official lists"):
        find_lists(tmp_path)
    file = tmp_path / LISTS["ezvsl_10k"].file
    file.parent.mkdir()
    file.write_text("zpWuikVorYg_000032\n")
    with pytest.raises(AvpipeError) as error:
        find_lists(tmp_path)
    for part in (sha256(file.read_bytes()), LISTS["ezvsl_10k"].sha256, str(file)):
        assert part in str(error.value)
    assert find_lists(tmp_path, accept_changed=True) == {"ezvsl_10k": file}


@needs_lists
def test_all_shared_lists_are_found_as_published():
    assert set(find_lists(SHARED / "metadata")) == set(PUBLISHED) - NOT_SHARED


GOOD = b"zpWuikVorYg_000032\n"


@pytest.fixture
def three_lists(monkeypatch):
    """A catalogue of a pinned list, one without a hash, and a made one; published on a local server."""
    pinned = {"file": "a/pinned.txt", "repository": "o/r", "path": "p.txt", "sha256": sha256(GOOD)}
    free = {"file": "b/free.txt", "repository": "o/r", "path": "deep/f.txt"}
    facts = {"pinned": pinned, "free": free, "made": {"file": "made.txt"}}
    lists = {name: OfficialList(name=name, format="ids", about="", **more) for name, more in facts.items()}
    splits = {"s": SplitDefinition(name="s", list="pinned", role="test")}
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: (lists, splits))
    with serve({"/o/r/p.txt": Answer(body=GOOD), "/o/r/deep/f.txt": Answer(body=b"1234\n")}) as server:
        monkeypatch.setattr(catalogue, "RAW_ADDRESS", server.address + "/{repository}/{path}")
        yield server


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_published_lists_are_fetched_once_and_named(three_lists, tmp_path):
    planned, named = [], []
    fetch_lists(tmp_path, planned.append, named.append)
    assert files(tmp_path) == {"a/pinned.txt": GOOD, "b/free.txt": b"1234\n"}
    assert (planned, named) == ([2], ["pinned", "free"])
    fetch_lists(tmp_path)
    assert len(three_lists.asked) == 2


def test_a_list_with_a_wrong_hash_leaves_no_file(three_lists, tmp_path):
    three_lists.answers["/o/r/p.txt"] = Answer(body=GOOD + b"x")
    with pytest.raises(AvpipeError, match=sha256(GOOD + b"x")):
        fetch_lists(tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("answer", [Answer(status=404), Answer(status=500), Answer(body=GOOD[:5], withheld=20), None])
def test_a_list_that_does_not_come_whole_is_a_sentence_and_leaves_no_file(three_lists, tmp_path, answer, monkeypatch):
    if answer is None:  # no server at all
        monkeypatch.setattr(catalogue, "RAW_ADDRESS", "http://127.0.0.1:1/{repository}/{path}")
    else:
        three_lists.answers["/o/r/deep/f.txt"] = answer
    with pytest.raises(AvpipeError, match=r"could not be fetched .* --lists DIR"):
        fetch_lists(tmp_path)
    assert files(tmp_path) == ({"a/pinned.txt": GOOD} if answer else {})
