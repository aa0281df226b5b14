"""Parsers of the official lists: good rows survive whole, and what is wrong is named with file and line."""

import json
import math
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.manifest.list_parsers import PARSERS, Row, box_defect, parse_list, text_framing

FLICKR_ONLY = {"flickr_paths", "box_xml"}
FORMS = sorted(PARSERS.keys() - FLICKR_ONLY)
TEXT_FORMS = ["ids", "label_csv", "number_csv", "pair_csv", "vggsound_csv"]
HEADER = "video,audio,label\n"
A, B = "-aB3_xyzXYZ_000030", "_0123456789_000000"
HOSTILE = "../../x"


def parse(folder: Path, form: str, content: str | bytes) -> list[Row]:
    path = folder / "list.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return parse_list(path, form)


def refused(folder: Path, form: str, content: str | bytes) -> str:
    """The sentence with which a list is refused; always one line that names the file."""
    with pytest.raises(AvpipeError) as error:
        parse(folder, form, content)
    sentence = str(error.value)
    assert sentence.startswith(str(folder / "list.txt"))
    assert "\n" not in sentence
    assert len(sentence) < len(str(folder)) + 400
    return sentence


def entry(clip_id: str = A, boxes=((0.1, 0.2, 0.3, 0.4),), label: str = "dog") -> dict:
    return {"file": clip_id, "class": label, "bbox": boxes}


def one_row(form: str, clip_id: str) -> str:
    """A list with one clip in any of the forms."""
    youtube_id, _, start = clip_id.rpartition("_")
    return {
        "vggsound_csv": f"{youtube_id or clip_id},{start if start.isdigit() else 0},dog,test\n",
        "label_csv": f"{clip_id}.mp4,dog\n",
        "number_csv": f"{clip_id},202\n",
        "pair_csv": f"{clip_id},{B},non-sounding\n",
        "ids": f"{clip_id}\n",
        "box_json": json.dumps([entry(clip_id)]),
    }[form]


def content_of(form: str, *clip_ids: str) -> str:
    """A list of several clips; `pair_csv` has a header."""
    return (HEADER if form == "pair_csv" else "") + "".join(one_row(form, clip_id) for clip_id in clip_ids)


def said(rows: list[Row]) -> list[tuple]:
    return [(row.clip_id, row.label, row.part) for row in rows]


@pytest.mark.parametrize("form", FORMS)
def test_ids_of_any_beginning_survive_and_what_is_none_is_refused(tmp_path, form):
    for clip_id in (A, B, "---g-f_I2yQ_000001", "zpWuikVorYg_999999"):
        assert [row.clip_id for row in parse(tmp_path, form, content_of(form, clip_id))] == [clip_id]
    for clip_id in (HOSTILE, "/etc/passwd", "zpWuikVorY_000030", "zpWuikVorY/_000030", "a b"):
        sentence = refused(tmp_path, form, content_of(form, clip_id))
        assert {"box_json": "entry 1: ", "pair_csv": "line 2: "}.get(form, "line 1: ") in sentence
        assert "is not a clip id" in sentence


def test_vggsound_csv_gives_id_label_and_part(tmp_path):
    text = '-aB3_xyzXYZ,30,"dog ""Rex"", barking",train\n_0123456789,0,people sneezing,test\n'
    rows = parse(tmp_path, "vggsound_csv", text)
    assert said(rows) == [(A, 'dog "Rex", barking', "train"), (B, "people sneezing", "test")]
    assert [row.line for row in rows] == text.splitlines()
    text = "zpWuikVorYg,7,a,test\nzpWuikVorYg,000012,a,test\nzpWuikVorYg,123456,a,test\n"
    rows = parse(tmp_path, "vggsound_csv", text)
    assert [row.clip_id[-7:] for row in rows] == ["_000007", "_000012", "_123456"]


def test_label_csv_loses_only_the_ending(tmp_path):
    rows = parse(tmp_path, "label_csv", f'{A}.mp4,"cat, purring"\n{B},bird\n')
    assert said(rows) == [(A, "cat, purring", None), (B, "bird", None)]


def test_ids_lose_the_endings_of_files(tmp_path):
    rows = parse(tmp_path, "ids", f"{A}.jpg\n{B}.mp4\n2615133000.mp4\n10000130166")
    assert said(rows) == [(i, None, None) for i in (A, B, "2615133000", "10000130166")]
    assert [row.line for row in rows] == [f"{A}.jpg", f"{B}.mp4", "2615133000.mp4", None]


def test_flickr_paths_give_the_number_and_keep_the_path(tmp_path):
    paths = ["videos/0/0/0/2615133000.mp4", "videos2/9/9/9/9/9/0/4/4/15299999044.mp4"]
    rows = parse(tmp_path, "flickr_paths", "\n".join(paths))
    assert [(row.clip_id, row.line) for row in rows] == [("2615133000", paths[0]), ("15299999044", paths[1])]


def test_pairs_name_the_other_clip_only(tmp_path):
    rows = parse(tmp_path, "pair_csv", f"{HEADER}{A},{B},non-sounding\r\n{B},{B},non-sounding")
    assert [(row.clip_id, row.audio_clip_id) for row in rows] == [(A, B), (B, None)]


def annotation(folder: Path, text: str, name: str = "10000130166.xml") -> Path:
    folder = folder / "xml"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def bbox(*corners) -> str:
    return "<bbox><label>x</label>" + "".join(f"<c>{corner}</c>" for corner in corners) + "</bbox>"


def test_flickr_annotations_give_the_boxes_of_each_annotator(tmp_path):
    text = f"<a><one>{bbox(0, 64, 128, 256)}</one><two>{bbox(1, 2, 3, 4)}{bbox(5, 6, 7, 8)}</two><three/></a>"
    (row,) = parse_list(annotation(tmp_path, text), "box_xml")
    expected = [(0, (0.0, 0.25, 0.5, 1.0)), *((1, tuple(c / 256 for c in box)) for box in ((1, 2, 3, 4), (5, 6, 7, 8)))]
    assert (row.clip_id, row.boxes) == ("10000130166", expected)


def test_annotations_of_another_form_are_refused_by_file(tmp_path):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><a><one>&b;</one></a>'
    boxes = [f"<a><o>{bbox(1, 2, 3)}</o></a>", f"<a><o>{bbox(*'wxyz')}</o></a>"]
    for text in ("", "<a>", "\x00", bomb, "<a><one><bbox/></one></a>", *boxes):
        with pytest.raises(AvpipeError, match=r"10000130166\.xml: not an annotation of Flickr"):
            parse_list(annotation(tmp_path, text), "box_xml")
    (tmp_path / "xml/10000130166.xml").unlink()
    with pytest.raises(AvpipeError, match="'x y' is not a clip id"):
        parse_list(annotation(tmp_path, f"<a><one>{bbox(1, 2, 3, 4)}</one></a>", "x y.xml"), "box_xml")


def test_box_json_gives_label_and_all_boxes(tmp_path):
    boxes = [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]]
    rows = parse(tmp_path, "box_json", json.dumps([entry(A, boxes, "dog, barking"), entry(B, [])]))
    assert said(rows) == [(A, "dog, barking", None), (B, "dog", None)]
    assert [row.boxes for row in rows] == [[(0, (0.1, 0.2, 0.3, 0.4)), (0, (0.0, 0.0, 1.0, 1.0))], []]


@pytest.mark.parametrize("form", FORMS)
def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path, form):
    content = one_row(form, A) if form == "box_json" else content_of(form, A, B)
    rows = parse(tmp_path, form, content)
    assert parse(tmp_path, form, content.replace("\n", "\r\n")) == rows
    assert parse(tmp_path, form, b"\xef\xbb\xbf" + content.encode()) == rows
    if form == "pair_csv":
        assert text_framing(tmp_path / "list.txt")["header"] == HEADER.strip()


@pytest.mark.parametrize("form", TEXT_FORMS)
def test_blank_lines_are_skipped_but_counted(tmp_path, form):
    assert len(parse(tmp_path, form, "\n" + content_of(form, A) + "\n\n")) == 1
    sentence = refused(tmp_path, form, content_of(form, A) + "\n" + one_row(form, HOSTILE))
    assert f"line {4 if form == 'pair_csv' else 3}: " in sentence


BAD_BOXES = [[[0.1, 0.2, 0.3]], [[0, 0, 1, 1, 1]], [[]], [["a", 0, 0, 0]], [None], 3, None, [[0, 0, 1, None]], [3]]
NO_BOX_LISTS = ["nothing", '{"a": 1}', "3", "null", '"text"', "[3]", "[[]]", "[{}]", '[{"file":', "[]"]
NO_BOX_LISTS += [text for depth in (100, 100_000) for text in ("[" * depth, "[" * depth + "]" * depth)]
LINES = ("vggsound_csv", "label_csv", "ids")
# kind of fault → (form, good rows before, the bad text, what the sentence says beside the file)
REFUSED = {
    "path": [
        ("flickr_paths", "videos/0/1.mp4\n", path, "line 2: ")
        for path in ("../../2615133000.mp4", "videos/0/../1.mp4", "/videos/0/1.mp4", "videos/0/a.mp4", A)
    ],
    "pair": [
        ("pair_csv", "", f"{A},{B},non-sounding\n", ""),
        ("pair_csv", HEADER, f"{A},{B},sounding\n", "line 2: "),
        ("pair_csv", HEADER, f"{A},../x,non-sounding\n", "line 2: "),
        ("pair_csv", HEADER, "", ""),
    ],
    "columns": [
        ("vggsound_csv", A, "zpWuikVorYg,30,dog, barking,test", "line 2: 5 columns where 4"),
        ("vggsound_csv", A, "zpWuikVorYg,30,dog", "line 2: 3 columns where 4"),
        ("label_csv", A, "zpWuikVorYg_000030.mp4", "line 2: 1 columns where 2"),
        ("label_csv", A, "zpWuikVorYg_000030.mp4,dog,barking", "line 2: 3 columns where 2"),
        ("number_csv", A, "10000130166", "line 2: 1 columns where 2"),
        ("number_csv", A, "10000130166,two", "line 2: 'two' is not a whole number"),
    ],
    "second": [
        ("vggsound_csv", A, f"zpWuikVorYg,{start},dog,test\n", "line 2: start second ")
        for start in ("", "-1", "3.5", "1e2", " 30", "thirty", "1000000", "３０", "²")
    ],
    "part": [
        ("vggsound_csv", "", f"zpWuikVorYg,30,dog,{part}\n", f"line 1: {part!r} is neither")
        for part in ("", "val", "TEST", "train ")
    ],
    "bad id": [(form, A, one_row(form, HOSTILE), "list.txt, line 2: ") for form in LINES],
    "repeated id": [
        (form, A, one_row(form, B) + one_row(form, A), rf"line 3: {A} .*first in line 1\)")
        for form in LINES
    ],
    "quotes": [
        (form, A, one_row(form, B).replace("dog", label), "list.txt, line 2: ")
        for form in ("vggsound_csv", "label_csv")
        for label in ('"dog', '"dog"x')
    ],
    "empty": [("ids", "", "\n \n", ""), *((form, "", "", "") for form in FORMS)],
    "boxes": [
        *(("box_json", "", text, "") for text in NO_BOX_LISTS),
        *(("box_json", "", json.dumps([entry(A), entry(B, boxes)]), "entry 2: ") for boxes in BAD_BOXES),
        *(("box_json", "", json.dumps([entry(A), {k: v for k, v in entry(B).items() if k != name}]), "entry 2: ")
          for name in ("file", "class", "bbox")),
        ("box_json", "", json.dumps([entry(A), entry(HOSTILE)]), "list.txt, entry 2: "),
        ("box_json", "", json.dumps([entry(A), entry(B), entry(A)]), rf"entry 3: {A} .*first in entry 1\)"),
        ("box_json", "", json.dumps([entry(A, [[0, 0, 1, 10**400]])]), ""),
        ("box_json", "", json.dumps([entry(A, label="\ud800")]), ""),
        ("box_json", "", json.dumps([entry(A, label=None)]), ""),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_refused_with_its_place(tmp_path, kind):
    for form, before, text, words in REFUSED[kind]:
        before = one_row(form, A) if before == A else before
        assert re.search(words, refused(tmp_path, form, before + text)), text


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_utf8_is_refused(tmp_path, form):
    refused(tmp_path, form, content_of(form, A).replace("dog", "dég").encode("latin-1") + b"\xff\n" * 500)


@pytest.mark.parametrize("value", [math.nan, math.inf, -2.9e16])
def test_published_nonsense_in_a_box_is_kept_for_the_manifest_to_mark(tmp_path, value):
    (row,) = parse(tmp_path, "box_json", json.dumps([entry(A, [[0.1, value, 0.3, 0.4]])]))
    assert box_defect(row.boxes[0][1])


def rows_or_refusal(form: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = parse(Path(folder), form, content)
        except AvpipeError as error:
            assert str(error).startswith(folder)
        else:
            assert rows
            assert all("/" not in row.clip_id and "." not in row.clip_id for row in rows)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_give_rows_or_a_refusal(form, content):
    rows_or_refusal(form, content)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_list_gives_rows_or_a_refusal(form, data):
    content = bytearray(content_of(form, *([A] if form == "box_json" else [A, B])).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    rows_or_refusal(form, bytes(content))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(A),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["file", "class", "bbox"]), inner),
    max_leaves=15,
)


@settings(max_examples=80, deadline=None)
@given(
    value=json_values | st.lists(st.fixed_dictionaries({"file": st.just(A), "class": json_values, "bbox": json_values}))
)
def test_any_json_gives_rows_or_a_refusal(value):
    rows_or_refusal("box_json", json.dumps(value).encode())


@pytest.mark.parametrize(
    ("defect", "boxes"),
    {
        None: [(0.1, 0.2, 0.3, 0.4), (0.0, 0.0, 1.0, 1.0), (-0.01, 0.0, 1.01, 1.0)],
        "not_a_number": [(math.nan, 0.2, 0.3, 0.4), (0.1, 0.2, math.inf, 0.4)],
        "out_of_range": [(0.1, -2.9e16, 0.3, 0.4), (0.1, 0.2, 0.3, 640.0)],
        "inverted": [(0.3, 0.2, 0.1, 0.4), (0.1, 0.4, 0.3, 0.2)],
        "zero_area": [(0.1, 0.2, 0.1, 0.4), (0.1, 0.2, 0.3, 0.2)],
        "outside": [(1.0, 0.2, 1.3, 0.4), (-0.3, 0.2, 0.0, 0.4), (0.1, 1.0, 0.3, 1.4), (0.1, -0.4, 0.3, 0.0)],
    }.items(),
)
def test_each_defect_of_a_box_has_its_name(defect, boxes):
    assert [box_defect(box) for box in boxes] == [defect] * len(boxes)


@given(box=st.tuples(*[st.floats()] * 4))
def test_a_box_without_a_defect_shows_some_of_the_frame(box):
    if box_defect(box) is None:
        width, height = (min(box[i + 2], 1) - max(box[i], 0) for i in (0, 1))
        assert width > 0
        assert height > 0
