"""Exports against independent readings: Pillow, soundfile, json, Parquet and h5py."""

import csv
import io
import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import copied
from PIL import Image
from shared_files import PARITY

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.exchange import export_hdf5
from avpipe.pipeline.exchange.export import FORMATS, export
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.extract.stage import extract
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.manifest.tables import TABLES, Manifest, write_table

SETTINGS = ExtractSettings()


def cached(root: Root, settings: ExtractSettings = SETTINGS) -> dict[str, dict[str, bytes]]:
    """All samples of the cache, {clip id: {member: bytes}}."""
    cache = Cache(root.cache / settings.name)
    rows = cache.table.to_pylist()
    found = cache.read(rows, samples.index_members(cache.table.schema))
    return {row["clip_id"]: sample for row, sample in zip(rows, found, strict=True)}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pcm(flac: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(flac), dtype="int16")[0]


@pytest.fixture
def partial_root(fresh_root, serial) -> Root:
    """A root in which two of the four test clips are extracted; of the others one has failed, one was never tried."""
    ids = Manifest.open(fresh_root.manifest).split_ids("synth_test")
    extract(fresh_root, [ids[2], ids[0]], SETTINGS, workers=1)
    Ledger(fresh_root.ledger, f"extract-{SETTINGS.name}").write([Outcome(clip_id=ids[1], reason="no_audio")])
    return fresh_root


def test_folders_hold_frames_sounds_facts_and_tables(done_root, tmp_path):
    out = tmp_path / "out"
    summary = export(done_root, "synth_train", SETTINGS, "folders", out)
    ids = Manifest.open(done_root.manifest).split_ids("synth_train")
    assert (summary.listed, summary.exported, summary.missing) == (16, 16, 0)
    all_samples = cached(done_root)
    names = {"missing.csv", "index.parquet", *(f"manifest/{name}.parquet" for name in TABLES)}
    for clip_id in ids:
        sample = all_samples[clip_id]
        assert (out / "frames" / f"{clip_id}.jpg").read_bytes() == sample["frame.jpg"]
        assert (out / "meta" / f"{clip_id}.json").read_bytes() == sample["meta.json"]
        info = soundfile.info(out / "audio" / f"{clip_id}.wav")
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_16", 16_000, 1)
        wave = soundfile.read(out / "audio" / f"{clip_id}.wav", dtype="int16")[0]
        assert np.array_equal(wave, pcm(sample["audio.flac"]))
        names |= {f"frames/{clip_id}.jpg", f"audio/{clip_id}.wav", f"meta/{clip_id}.json"}
    assert tree(out).keys() == names
    for name in TABLES:
        whole, part = (pq.read_table(folder / f"{name}.parquet") for folder in (done_root.manifest, out / "manifest"))
        wanted = [row for row in whole.to_pylist() if row["clip_id"] in ids]
        assert part.to_pylist() == [row for row in wanted if row.get("split", "synth_train") == "synth_train"]
        assert part.schema.equals(whole.schema)
    assert Manifest.open(out / "manifest").split_sizes() == {"synth_train": 16}


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_split_gives_the_same_bytes(done_root, tmp_path, format):
    ticks, planned = [], []
    for name in "ab":
        heard = {"on_plan": planned.append, "on_sample": lambda: ticks.append(1)}
        export(done_root, "synth_test", SETTINGS, format, tmp_path / name, **heard)
    assert tree(tmp_path / "a") == tree(tmp_path / "b") != {}
    assert (len(ticks), planned) == (8, [4, 4])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("format", ["ssl-tie-train", "ssl-tie-test"])
def test_ssl_tie_layouts(done_root, tmp_path, format):
    frame, audio = {
        "ssl-tie-train": ("total_video_frames/{}/125.jpg", "total_video_3s_audio/{}.wav"),
        "ssl-tie-test": ("frame/{}.jpg", "audio/{}.wav"),
    }[format]
    export(done_root, "synth_test", SETTINGS, format, tmp_path / "out")
    files = tree(tmp_path / "out")
    ids, all_samples = Manifest.open(done_root.manifest).split_ids("synth_test"), cached(done_root)
    assert files.keys() == {"missing.csv", *(f.format(i) for f in (frame, audio) for i in ids)}
    for clip_id in ids:
        assert files[frame.format(clip_id)] == all_samples[clip_id]["frame.jpg"]
        assert np.array_equal(pcm(files[audio.format(clip_id)]), pcm(all_samples[clip_id]["audio.flac"]))


def test_missing_clips_are_named_with_their_reason(partial_root, tmp_path):
    ids = Manifest.open(partial_root.manifest).split_ids("synth_test")
    summary = export(partial_root, "synth_test", SETTINGS, "ssl-tie-test", tmp_path / "out")
    assert (summary.listed, summary.exported, summary.missing) == (4, 2, 2)
    rows = list(csv.reader((tmp_path / "out" / "missing.csv").open()))
    assert rows == [["clip_id", "stage", "reason"], [ids[1], "extract", "no_audio"], [ids[3], "", ""]]


def test_coco_boxes_are_pixels_of_the_exported_frames(partial_root, tmp_path):
    manifest = Manifest.open(partial_root.manifest)
    path, ids = partial_root.manifest / "boxes.parquet", manifest.split_ids("synth_test")
    old, of_first = pq.read_table(path), {"clip_id": ids[0], "annotator": 1}
    added = [
        of_first | {"xmin": 0.5, "ymin": -0.1, "xmax": 1.2, "ymax": 0.5, "defect": None},
        of_first | {"xmin": 0.5, "ymin": 0.5, "xmax": 0.5, "ymax": 1, "defect": "zero_area"},
    ]
    boxes = pa.concat_tables([old, pa.Table.from_pylist(added, TABLES["boxes"])])
    write_table(boxes, path, manifest.facts())
    summary = export(partial_root, "synth_test", SETTINGS, "coco", tmp_path / "out")
    coco = json.loads((tmp_path / "out" / "synth_test.json").read_text())

    image_of = {image["id"]: image for image in coco["images"]}
    assert [image["clip_id"] for image in coco["images"]] == [ids[0], ids[2]]
    for image in coco["images"]:
        assert Image.open(tmp_path / "out" / image["file_name"]).size == (image["width"], image["height"])
    labels = manifest.labels([ids[0], ids[2]])
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert list(names.values()) == sorted(set(labels.values()))
    usable = [row for row in boxes.to_pylist() if row["clip_id"] in labels and not row["defect"]]
    assert summary.counts == {"annotations": len(usable), "unusable_boxes": 1}
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])
    found = []
    for annotation in coco["annotations"]:
        image, (x, y, w, h) = image_of[annotation["image_id"]], annotation["bbox"]
        corners = [x / image["width"], y / image["height"], (x + w) / image["width"], (y + h) / image["height"]]
        found.append((image["clip_id"], annotation["annotator"], *corners))
        assert annotation["area"] == pytest.approx(w * h, abs=1e-2) and annotation["iscrowd"] == 0
        assert names[annotation["category_id"]] == labels[image["clip_id"]]
    sides = ("xmin", "ymin", "xmax", "ymax")
    given = [(row["clip_id"], row["annotator"], *np.clip([row[side] for side in sides], 0, 1)) for row in usable]
    for one, other in zip(sorted(found), sorted(given), strict=True):
        assert one[:2] == other[:2] and one[2:] == pytest.approx(other[2:], abs=1e-4)


def test_hdf5_holds_what_sspl_reads(done_root, tmp_path):
    export(done_root, "synth_test", SETTINGS, "hdf5", tmp_path / "out")
    ids = (tmp_path / "out" / "synth_test.csv").read_text().splitlines()
    assert ids == Manifest.open(done_root.manifest).split_ids("synth_test")
    data = {}
    for kind in ("frames", "audios", "spects"):
        with h5py.File(tmp_path / "out" / f"h5py_test_{kind}.h5") as file:
            assert list(file) == [f"test_{kind}"]
            assert file[f"test_{kind}"].chunks == (1, *file[f"test_{kind}"].shape[1:])
            data[kind] = file[f"test_{kind}"][:]
    assert {kind: (a.shape, a.dtype.name) for kind, a in data.items()} == {
        "frames": ((4, 256, 256, 3), "float32"),
        "audios": ((4, 48_000), "float32"),
        "spects": ((4, 3, 96, 64), "float32"),
    }
    all_samples = cached(done_root)
    for row, clip_id in enumerate(ids):
        image = Image.open(io.BytesIO(all_samples[clip_id]["frame.jpg"])).resize((256, 256), Image.BICUBIC)
        assert np.array_equal(data["frames"][row], np.asarray(image))
        wave = pcm(all_samples[clip_id]["audio.flac"]).astype(np.float64) / 32768
        scaled = (wave - wave.min()) / (np.ptp(wave) + 1e-3)
        assert data["audios"][row] == pytest.approx((scaled - 0.5) * 2, abs=1e-6)


@pytest.mark.skipif(PARITY is None, reason="no golden numbers")
def test_hdf5_arrays_are_those_of_the_published_code():
    golden = np.load(PARITY / "audio_sspl_s1.npz")
    jpeg = samples.encode_jpeg(np.zeros((256, 256, 3), np.uint8), 90)
    flac = samples.encode_flac(golden["wave_i16"][:48_000], 16_000)
    repeated = samples.encode_flac(np.resize(golden["wave_i16"][:48_000], 160_000), 16_000)
    meta = samples.encode_json({"audio_own_s": 3.0, "audio_start_s": 0.0, "duration_s": 3.0})
    for kept in (flac, repeated):
        sample = {"frame.jpg": jpeg, "audio.flac": kept, "meta.json": meta}
        arrays = export_hdf5.sspl_arrays(sample, SETTINGS)
        assert arrays["audios"][:64] == pytest.approx(golden["c3_norm_head"], abs=1e-6)
        assert np.abs(arrays["spects"] - golden["c3_examples"]).max() < 1e-3


def test_hdf5_files_of_the_large_list_come_in_blocks(done_root, tmp_path, monkeypatch):
    monkeypatch.setattr(export_hdf5, "LARGE_LIST", 16)
    monkeypatch.setattr(export_hdf5, "ROWS_A_FILE", 6)
    ids = Manifest.open(done_root.manifest).split_ids("synth_train")
    export(done_root, "synth_train", SETTINGS, "hdf5", tmp_path / "out")
    rows = []
    for block, size in ((1, 6), (2, 6), (3, 4)):
        with h5py.File(tmp_path / "out" / f"h5py_train_frames_144k_{block}.h5") as file:
            assert len(file["train_frames"]) == size
            rows.extend(file["train_frames"][:])
    last = Image.open(io.BytesIO(cached(done_root)[ids[-1]]["frame.jpg"])).resize((256, 256), Image.BICUBIC)
    assert np.array_equal(rows[15], np.asarray(last))


@pytest.mark.parametrize(("listed", "name"), [(10_000, "_10k"), (16, "_16")])
def test_hdf5_names_of_other_training_lists(done_root, tmp_path, monkeypatch, listed, name):
    monkeypatch.setattr(export_hdf5, "SUFFIXES", {16: "_10k"} if listed == 10_000 else {})
    export(done_root, "synth_train", SETTINGS, "hdf5", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.h5")) == [
        f"h5py_train_{kind}{name}.h5" for kind in ("audios", "frames", "spects")
    ]


def test_a_folder_in_use_is_not_touched(done_root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(AvpipeError, match="not an empty folder"):
        export(done_root, "synth_test", SETTINGS, "coco", out)
    assert list(tree(tmp_path)) == ["out/mine.txt"]
    (out / "mine.txt").unlink()
    with stage_lock(tmp_path / ".out.partial", "x"), pytest.raises(AvpipeError, match="another process"):
        export(done_root, "synth_test", SETTINGS, "coco", out)
    (tmp_path / ".out.partial" / "frames").mkdir()  # a killed export
    (tmp_path / ".out.partial" / "old.json").write_text("{}")
    export(done_root, "synth_test", SETTINGS, "coco", out)
    assert sorted(path.name for path in out.iterdir()) == ["frames", "missing.csv", "synth_test.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_exported_is_a_sentence(done_root, fresh_root, tmp_path):
    out, damaged = tmp_path / "out", copied(done_root, tmp_path / "damaged", "manifest", "cache")
    (tar,) = damaged.cache.glob("*/part-*.tar")
    tar.write_bytes(b"\0" * tar.stat().st_size)
    for root, split, format, sentence in (
        (done_root, "synth_test", "zip", "no format 'zip'"),
        (done_root, "nothing", "coco", "no split 'nothing'"),
        (fresh_root, "synth_test", "coco", "nothing is extracted"),
        (damaged, "synth_test", "folders", "is damaged"),
    ):
        with pytest.raises(AvpipeError, match=sentence):
            export(root, split, SETTINGS, format, out)
    assert not out.exists()
    assert not (tmp_path / ".out.partial").exists()
