"""The manifest: schemas as agreed, labels by precedence, defects kept but not served, splits in the order of lists."""

import csv
import hashlib
import json
import math
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_files import SHARED

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import file_sha256
from avpipe.pipeline.exchange.export_lists import export_list, export_lists
from avpipe.pipeline.manifest.build import build_manifest
from avpipe.pipeline.manifest.catalogue import load_catalogue
from avpipe.pipeline.manifest.list_parsers import parse_list
from avpipe.pipeline.manifest.tables import Clip, Manifest

pytestmark = pytest.mark.heavy

TABLES = ("clips.parquet", "boxes.parquet", "splits.parquet")
A, B, C, D = "-aB3_xyzXYZ_000030", "_0123456789_000000", "zpWuikVorYg_000032", "zpWuikVorYg_123456"
GOOD_BOX, OTHER_BOX, FLAT_BOX = [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 0.9], [0.1, 0.2, 0.1, 0.4]
NAN_BOX, WILD_BOX = [math.nan, 0, 1, 1], [-2.9e16, 0.1, 0.2, 0.3]
BOXES = [
    {"file": D, "class": "from boxes", "bbox": [GOOD_BOX, FLAT_BOX, OTHER_BOX]},
    {"file": C, "class": "from boxes", "bbox": [WILD_BOX, NAN_BOX]},
]
SMALL = {
    "vggsound_csv": '-aB3_xyzXYZ,30,"dog, barking",train\nzpWuikVorYg,32,from vggsound,test\n',
    "vggsound_test_csv": f"{C}.mp4,from test.csv\n{B}.mp4,from test.csv\n",
    "vggss_boxes": json.dumps(BOXES),
    "ezvsl_10k": f"{D}\n{A}\n{B}\n",
}


def write_lists(folder: Path, contents: dict[str, str]) -> Path:
    lists, _ = load_catalogue()
    for name, content in contents.items():
        (folder / lists[name].file).parent.mkdir(parents=True, exist_ok=True)
        (folder / lists[name].file).write_text(content)
    return folder


def build(folder: Path, contents: dict[str, str]) -> tuple[Manifest, dict]:
    lists = write_lists(folder / "lists", contents)
    counts = build_manifest(lists, folder / "manifest", accept_changed=True)
    return Manifest.open(folder / "manifest"), counts


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Manifest, dict]:
    return build(tmp_path_factory.mktemp("manifest"), SMALL)


def rows(manifest: Manifest, table: str) -> list[dict]:
    return pq.read_table(manifest.folder / table).to_pylist()


def test_schemas_are_those_of_the_contract(small):
    text, number = pa.string(), pa.float64()
    boxes = {"clip_id": text, "annotator": pa.int32()} | dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), number)
    expected = {
        "clips.parquet": {"clip_id": text, "dataset": text, "youtube_id": text, "start_s": number, "end_s": number}
        | {"label": text, "official_split": text},
        "boxes.parquet": boxes | {"defect": text},
        "splits.parquet": {"split": text, "clip_id": text, "position": pa.int64(), "audio_clip_id": text, "line": text},
    }
    for name, columns in expected.items():
        schema = pq.read_schema(small[0].folder / name)
        assert list(zip(schema.names, schema.types, strict=True)) == list(columns.items())


def test_every_clip_stands_once_with_label_and_split_of_the_first_list_that_knows_them(small):
    """Labels come from vggsound.csv, then test.csv, then the boxes."""
    rest = [
        (A, "vggsound", "-aB3_xyzXYZ", 30.0, 40.0, "dog, barking", "train"),
        (B, "vggsound", "_0123456789", 0.0, 10.0, "from test.csv", "test"),
        (C, "vggsound", "zpWuikVorYg", 32.0, 42.0, "from vggsound", "test"),
        (D, "vggsound", "zpWuikVorYg", 123456.0, 123466.0, "from boxes", None),
    ]
    assert [tuple(row.values()) for row in rows(small[0], "clips.parquet")] == rest
    assert small[0].labels([D, A]) == {D: "from boxes", A: "dog, barking"}
    assert sorted(small[0].ids(None)) == [A, B, C, D]
    assert small[0].clips([D, A]) == [
        Clip(clip_id=D, youtube_id="zpWuikVorYg", start_s=123456, end_s=123466),
        Clip(clip_id=A, youtube_id="-aB3_xyzXYZ", start_s=30, end_s=40),
    ]
    assert small[0].clips([]) == []


def test_all_boxes_are_kept_with_their_defect_and_used_without(small):
    table = rows(small[0], "boxes.parquet")
    defects = [(D, None), (D, "zero_area"), (D, None), (C, "out_of_range"), (C, "not_a_number")]
    assert [(row["clip_id"], row["defect"]) for row in table] == defects
    assert table[3]["xmin"] == -2.9e16 and math.isnan(table[4]["xmin"])
    corners = ("xmin", "ymin", "xmax", "ymax")
    expected = [{"annotator": 0, **dict(zip(corners, box, strict=True))} for box in (GOOD_BOX, OTHER_BOX)]
    assert small[0].usable_boxes([A, C, D]) == {D: expected}
    assert small[0].usable_boxes([A]) == {}


def test_counts_say_what_was_written_and_which_lists_were_absent(small):
    _, counts = small
    assert (counts["clips"], counts["boxes"], counts["boxes_unusable"]) == (4, 5, 3)
    sizes = {"vggsound": 2, "vggsound_train": 1, "vggsound_test": 2, "vggss": 2, "ezvsl_10k": 3}
    assert counts["splits"] == small[0].split_sizes() == sizes
    published = [name for name, entry in load_catalogue()[0].items() if entry.repository]
    assert counts["lists_missing"] == [name for name in published if name not in SMALL]


def test_a_split_has_the_order_of_its_list(small):
    assert small[0].split_ids("ezvsl_10k") == small[0].ids("ezvsl_10k") == [D, A, B]
    assert small[0].rows("ezvsl_10k")["clip_id"].to_pylist() == [D, A, B]
    assert [small[0].split_ids(name) for name in ("vggss", "vggsound_train", "vggsound")] == [[D, C], [A], [A, C]]
    positions = [row["position"] for row in rows(small[0], "splits.parquet") if row["split"] == "ezvsl_10k"]
    assert positions == [0, 1, 2]


FLICKR = {
    "ssltie_flickr_10k": "videos/1/10000130166.mp4\nvideos2/1/2/7.mp4",
    "lvs_flickr_test": "10000130166,202\r\n9,0\r\n",
    "flickr_extended": "video,audio,label\r\n10000130166,9,non-sounding\r\n9,8,non-sounding",
}
ANNOTATION = "<a><one><bbox><l/><x>0</x><y>64</y><X>128</X><Y>256</Y></bbox></one><two/></a>"


@pytest.fixture(scope="module")
def flickr(tmp_path_factory) -> Manifest:
    folder = tmp_path_factory.mktemp("flickr")
    annotations = folder / "lists/flickr/annotations"
    annotations.mkdir(parents=True)
    (annotations / "9.xml").write_text(ANNOTATION)
    return build(folder, FLICKR | SMALL)[0]


def test_flickr_clips_are_whole_files_and_pairs_need_the_clips_of_their_sounds_too(flickr):
    table = [row for row in rows(flickr, "clips.parquet") if row["dataset"] == "flickr"]
    assert [row["clip_id"] for row in table] == ["10000130166", "7", "8", "9"]
    assert {(row["youtube_id"], row["start_s"], row["end_s"]) for row in table} == {(None, 0.0, None)}
    assert flickr.usable_boxes(["9"])["9"] == [{"annotator": 0, "xmin": 0.0, "ymin": 0.25, "xmax": 0.5, "ymax": 1.0}]
    assert flickr.rows("flickr_extended")["audio_clip_id"].to_pylist() == ["9", "8"]
    assert flickr.split_ids("flickr_extended") == ["10000130166", "9", "8"]
    assert flickr.split_facts("flickr_extended")["listed"] == 2


def test_lists_written_again_are_the_same_and_give_the_same_tables(flickr, tmp_path):
    written = export_lists(flickr, tmp_path / "again")
    lists, _ = load_catalogue()
    expected = FLICKR | SMALL
    files = {name: tmp_path / "again" / lists[name].file for name in expected}
    assert set(files.values()) < set(written)
    for name, path in files.items():
        assert path.read_bytes().decode() == expected[name]
    build_manifest(tmp_path / "again", tmp_path / "manifest", accept_changed=True)
    for name in TABLES:
        again = pq.read_table(tmp_path / "manifest" / name)
        assert repr(again.to_pylist()) == repr(pq.read_table(flickr.folder / name).to_pylist())  # nan is not itself


def test_one_split_as_text_or_csv(small, tmp_path):
    for split, form, text in (
        ("ezvsl_10k", "txt", SMALL["ezvsl_10k"]),
        ("vggsound_test", "csv", SMALL["vggsound_test_csv"]),
        ("vggsound_train", "csv", SMALL["vggsound_csv"].split("\n")[0] + "\n"),
        ("vggss", "txt", f"{D}\n{C}\n"),
    ):
        assert export_list(small[0], split, form, tmp_path).read_text() == text


def test_categories_that_a_training_list_never_shows_are_the_retrieval_split(tmp_path):
    unseen = "_0123456789,0,never shown,train\nzpWuikVorYg,32,never shown,test\n"
    shown = '-aB3_xyzXYZ,30,"dog, barking",train\nzpWuikVorYg,1,"dog, barking",test\n'
    manifest, counts = build(tmp_path / "all", {"vggsound_csv": shown + unseen, "ssltie_seen_144k": f"{A}\n"})
    assert manifest.split_ids("retrieval") == [B, C]
    assert counts["splits_incomplete"] == {}
    half = {"vggsound_test_csv": SMALL["vggsound_test_csv"], "ssltie_seen_144k": f"{C}\n"}
    manifest, counts = build(tmp_path / "half", half)
    assert counts["splits"]["retrieval"] == 0  # one label, and it is seen
    assert manifest.split_ids("retrieval") == []
    assert counts["splits_incomplete"] == {"retrieval": 21253}


def test_a_list_without_a_pinned_hash_is_the_one_that_was_read_first(tmp_path, monkeypatch):
    monkeypatch.setattr("avpipe.pipeline.manifest.build._check_counts", lambda *_: None)
    monkeypatch.setattr("avpipe.pipeline.manifest.build._check_splits", lambda *_: None)
    lists = write_lists(tmp_path / "lists", {"vggsound_csv": SMALL["vggsound_csv"]})
    for _ in range(2):
        build_manifest(lists, tmp_path / "manifest")
    before = file_sha256(lists / "vggsound/vggsound.csv")
    write_lists(lists, {"vggsound_csv": SMALL["vggsound_csv"] + "_0123456789,5,cat,test\n"})
    with pytest.raises(AvpipeError, match=f"{file_sha256(lists / 'vggsound/vggsound.csv')}, recorded {before}"):
        build_manifest(lists, tmp_path / "manifest")
    build_manifest(lists, tmp_path / "manifest", accept_changed=True)
    build_manifest(lists, tmp_path / "manifest")


def test_what_is_no_manifest_of_this_version_is_refused(small, tmp_path):
    with pytest.raises(AvpipeError, match="avpipe manifest build"):
        Manifest.open(tmp_path)
    table = pq.read_table(small[0].folder / "splits.parquet")
    pq.write_table(table.replace_schema_metadata({b"avpipe": b'{"format": 1}'}), tmp_path / "splits.parquet")
    with pytest.raises(AvpipeError, match="another version"):
        Manifest.open(tmp_path)
    (tmp_path / "splits.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(AvpipeError, match="is damaged"):
        Manifest.open(tmp_path)


def test_an_unknown_split_is_refused_with_the_names_that_exist(small):
    names = "ezvsl_10k, vggsound, vggsound_test, vggsound_train, vggss"
    for split in ("nonsense", "../../x", ""):
        with pytest.raises(AvpipeError, match=f"there are: {names}$"):
            small[0].split_ids(split)
    with pytest.raises(AvpipeError, match="needs the list ssltie_test, which was not there"):
        small[0].split_ids("vggss_ssltie")


def test_a_published_list_of_another_size_is_refused(tmp_path):
    lists = write_lists(tmp_path / "lists", {"vggsound_csv": SMALL["vggsound_csv"]})
    with pytest.raises(AvpipeError, match=r"vggsound\.csv has 2 rows where 199176 were expected"):
        build_manifest(lists, tmp_path / "manifest")
    assert not list((tmp_path / "manifest").glob("*.parquet"))


def test_a_bad_line_is_named_and_the_tables_stay_as_they_were(tmp_path):
    bad = {"ezvsl_10k": f"{A}\n../../x\n"}
    with pytest.raises(AvpipeError, match=r"vggss_10k\.txt, line 2: '\.\./\.\./x' is not a clip id"):
        build(tmp_path, SMALL | bad)
    assert not list((tmp_path / "manifest").glob("*.parquet"))
    manifest, _ = build(tmp_path, SMALL)
    before = [(manifest.folder / name).read_bytes() for name in TABLES]
    with pytest.raises(AvpipeError):
        build(tmp_path, bad)
    assert [(manifest.folder / name).read_bytes() for name in TABLES] == before


def test_the_same_lists_give_the_same_bytes_and_stand_in_every_table(small, tmp_path):
    again, _ = build(tmp_path / "else" / "where", dict(reversed(SMALL.items())))
    lists, _ = load_catalogue()
    folder = small[0].folder.parent / "lists"
    sizes = {"vggsound_csv": 2, "vggsound_test_csv": 2, "vggss_boxes": 2, "ezvsl_10k": 3}
    expected = {name: {"sha256": file_sha256(folder / lists[name].file), "rows": n} for name, n in sizes.items()}
    for name in TABLES:
        assert (again.folder / name).read_bytes() == (small[0].folder / name).read_bytes()
        metadata = json.loads(pq.read_schema(small[0].folder / name).metadata[b"avpipe"])
        found = {list_: {key: facts[key] for key in ("sha256", "rows")} for list_, facts in metadata["lists"].items()}
        assert (metadata["format"], found) == (2, expected)


def test_made_up_lists_give_a_manifest_of_their_own(tmp_path):
    contents = {"synth_csv": SMALL["vggsound_csv"], "synth_boxes": json.dumps([BOXES[1]])}
    lists = write_lists(tmp_path / "lists", contents)
    counts = build_manifest(lists, tmp_path / "manifest")
    assert counts["splits"] == {"synth_train": 1, "synth_test": 1}
    assert counts["lists_missing"] == []
    assert {row["dataset"] for row in rows(Manifest.open(tmp_path / "manifest"), "clips.parquet")} == {"synth"}


def test_the_official_lists_give_the_known_numbers(official):
    counts = json.loads((official.folder / "counts.json").read_text())
    assert (counts["boxes"], counts["boxes_unusable"]) == (5941, 18)
    assert counts["lists_missing"] == ["vggsound_csv"]
    assert counts["splits_incomplete"] == {"retrieval": 21253}


OFFICIAL_SPLITS = {name: split for name, split in load_catalogue()[1].items() if split.ids_sha256}


@pytest.mark.parametrize("name", OFFICIAL_SPLITS)
def test_an_official_split_has_the_clips_of_its_file(official, name):
    """Read here by other means than the package's parsers."""
    split = OFFICIAL_SPLITS[name]
    path = SHARED / "metadata" / load_catalogue()[0][split.list].file
    if path.suffix == ".json":
        ids = re.findall(r'"file": "([^"]+)"', path.read_text())
    else:
        fields = [line.split(",")[0] for line in path.read_text().split("\n") if line.strip()]
        ids = [Path(field.strip()).stem for field in fields if field != "video"]
    assert official.rows(name)["clip_id"].to_pylist() == ids
    pinned = hashlib.sha256("".join(f"{clip_id}\n" for clip_id in sorted(ids)).encode()).hexdigest()
    facts = official.split_facts(name)
    assert (len(ids), pinned) == (split.clips, split.ids_sha256) == (facts["listed"], facts["sha256"])


@pytest.mark.heavy
def test_every_official_list_is_written_again_byte_for_byte(official, tmp_path):
    for path in export_lists(official, tmp_path / "lists"):
        assert path.read_bytes() == (SHARED / "metadata" / path.relative_to(tmp_path / "lists")).read_bytes()
    assert (
        not {e.file for e in load_catalogue()[0].values() if e.sha256}
        - {str(path.relative_to(tmp_path / "lists")) for path in (tmp_path / "lists").rglob("*.*")}
        - {"lvs/vggss_test.csv", "ssltie/test_flickr_250.txt"}
    )


def test_clips_of_vggss_have_one_of_its_classes_and_almost_all_a_usable_box(official):
    ids = official.split_ids("vggss")
    boxes = official.usable_boxes(ids)
    assert (len(ids), len(boxes), sum(map(len, boxes.values()))) == (5158, 5156, 5941 - 18)
    assert all(max(map(abs, (b["xmin"], b["ymin"], b["xmax"], b["ymax"]))) < 2 for many in boxes.values() for b in many)
    assert max(map(len, boxes.values())) == 7
    labels = official.labels(ids)
    assert len(set(labels.values())) == 221 and None not in labels.values()


def test_official_splits_that_are_made_of_several_lists(official):
    """The test lists of LVS and SSL-TIE repeat another; retrieval has what seen_144k never shows."""
    for list_name, split in (("lvs_test", "vggss"), ("ssltie_flickr_test", "flickr_test")):
        entry = load_catalogue()[0][list_name]
        ids = [row.clip_id for row in parse_list(SHARED / "metadata" / entry.file, entry.format)]
        assert sorted(ids) == sorted(official.split_ids(split))
    with open(SHARED / "metadata/vggsound/test.csv", newline="") as file:
        label = {name.removesuffix(".mp4"): text for name, text in csv.reader(file)}
    seen = {label.get(clip_id) for clip_id in official.split_ids("ssltie_seen_144k")}
    ids = official.split_ids("retrieval")
    assert ids == [clip_id for clip_id in label if label[clip_id] not in seen]
    assert len({label[clip_id] for clip_id in ids}) == 35


README = Path(__file__).parents[1] / "manifests/README.md"


def test_the_queries_of_the_readme_give_the_numbers_beside_them(official, monkeypatch):
    """DuckDB and pandas know nothing of avpipe."""
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(official.folder)
    text = README.read_text()
    queries = [q for q in re.search(r"```sql\n(.*?)```", text, re.DOTALL)[1].split(";") if q.strip()]
    answers = [duckdb.sql(query).fetchall() for query in queries]
    assert answers[1:3] == [[(3709,)], [(3655,)]]
    assert dict(answers[3])["ssltie_full"] == 4916
    assert dict(answers[4]) == {None: 5923, "zero_area": 6, "out_of_range": 12}
    assert answers[5:7] == [[(0,)], [(35,)]]
    assert sum(count for _, count in answers[7]) == 5158
    names = {"pd": pd}
    exec(re.search(r"```python\n(.*?)\nlen\(", text, re.DOTALL)[1], names)
    assert len(names["of"]("ezvsl_144k") & names["of"]("vggss")) == 3709


ODD = ["", " ", "../../x", "/etc/passwd", "a" * 400, "video000001_-00001", "video000001_1e5", "\x00", "NaN", "ünïcödé"]
ODD += ['"', "'; DROP", "-5", "99999999999"]
GOOD_IDS = [*(f"video{v:06d}_{30 * v:06d}" for v in range(40)), "10000130166", "7"]
SOME_IDS = st.lists(st.sampled_from(GOOD_IDS), min_size=1, max_size=5, unique=True)
CORNER = st.floats() | st.integers(-(10**30), 10**30)


def fuzzed_list(form: str, ids: list[str], odd: list[str], boxes: list) -> str:
    """A list of `ids`, with an odd text in the place of some of them."""
    names = [*ids, *odd]
    if form == "vggss_boxes":
        return json.dumps([{"file": name, "class": "x", "bbox": boxes} for name in names])
    if form == "flickr_extended":
        return "\n".join(["video,audio,label", *(f"{name},{names[0]},non-sounding" for name in names)])
    if form == "vggsound_csv":
        return "\n".join(f"{name[:11]},{name[12:] or 7},label,train" for name in names)
    return "\n".join(names)


@pytest.mark.parametrize("form", ["ezvsl_10k", "vggsound_csv", "flickr_extended", "vggss_boxes"])
@settings(max_examples=20, deadline=None)
@given(
    ids=SOME_IDS,
    odd=st.lists(st.sampled_from([*ODD, GOOD_IDS[0]]), max_size=2),
    boxes=st.lists(st.lists(CORNER, min_size=4, max_size=4) | st.lists(CORNER, max_size=5), max_size=3),
    encoding=st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"]),
    newline=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_fuzzed_lists_give_whole_tables_or_one_sentence(tmp_path_factory, form, ids, odd, boxes, encoding, newline):
    folder = tmp_path_factory.mktemp("fuzz")
    text = fuzzed_list(form, ids, odd, boxes)
    path = folder / "lists" / load_catalogue()[0][form].file
    path.parent.mkdir(parents=True)
    path.write_bytes(text.replace("\n", newline).encode(encoding, "replace"))
    try:
        counts = build_manifest(folder / "lists", folder / "manifest", accept_changed=True)
    except AvpipeError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert odd or encoding == "utf-16" or form in ("vggss_boxes", "vggsound_csv")  # ids alone are never refused
        assert not list((folder / "manifest").glob("*.parquet"))
        return
    rows_wanted = len(ids) + sum(1 for name in odd if name.strip() or form not in ("ezvsl_10k",))
    assert next(iter(counts["splits"].values())) == rows_wanted
    assert counts["boxes"] == (rows_wanted * len(boxes) if form == "vggss_boxes" else 0)
