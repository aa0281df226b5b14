"""Other people's files: clips from folders and tars, frames and sounds into the cache, and the way out and back."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import downloaded
from PIL import Image
from test_download import mp4
from test_export import cached, pcm
from test_media import write_clip

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.core.samples import encode_jpeg
from avpipe.pipeline.download.clip_names import clip_id_of
from avpipe.pipeline.exchange.export import export
from avpipe.pipeline.exchange.import_clips import import_clips
from avpipe.pipeline.exchange.import_frames import import_frames
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.extract.stage import extract
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.features.specs import SPECS
from avpipe.pipeline.manifest.build import build_manifest
from avpipe.pipeline.manifest.tables import Manifest

SETTINGS = ExtractSettings()
pytestmark = pytest.mark.usefixtures("serial")


def downloads(root: Root) -> dict[str, Outcome]:
    return Ledger(root.ledger, "download").latest()


NAMES = {
    "abc_efg-ijk_000030": ["abc_efg-ijk_000030.mp4", "abc_efg-ijk_30.mp4", "abc_efg-ijk_30000_40000.mp4",
                           "abc_efg-ijk_000030.mkv", "abc_efg-ijk_30.WebM"],
    "abc_efg-ijk_000000": ["abc_efg-ijk_0.mp4"],
    "ab_123456_1_000005": ["ab_123456_1_000005.mp4"],
    "-----------_000000": ["-----------_0_10000.mp4"],
    "4512345678": ["4512345678.mp4"],
    None: ["abc_efg-ijk_30500_40500.mp4",  # no whole second
           "abc_efg-ijk_40000_30000.mp4", "abc_efg-ijk_1234567.mp4", "abc_efg-ijk_-5.mp4", "abc_efg-ijk_٣.mp4",
           "abc_efg-ijk.mp4", "abc_efg-ijk_000030.mkv.part", "abc_efg-ijk_000030.jpg", "../abc_efg-ijk_000030.mp4",
           "abc_efg-ijk_000030\n.mp4"],
}  # fmt: skip


@pytest.mark.parametrize("clip_id", NAMES)
def test_names_of_clips(clip_id):
    assert [clip_id_of(name) for name in NAMES[clip_id]] == [clip_id] * len(NAMES[clip_id])


def test_a_folder_is_linked_with_the_ledger_of_a_download(corpus, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    paths = sorted((corpus / "clips").glob("*.mp4"))[:3]
    for path, name in zip(paths, ["{}_{}", "{}_{}000_{}900", "{}_{}"], strict=True):
        start = int(path.stem[-6:])
        os.link(path, mine / f"{name.format(path.stem[:11], start, start)}.mp4")
    (mine / "abcdefghijk_000001.mp4").write_bytes(b"not listed")
    (mine / "holiday.mp4").write_bytes(b"no clip")
    (mine / "notes.txt").write_bytes(b"no clip")
    root = Root(tmp_path / "root")
    build_manifest(corpus / "lists", root.manifest)
    gone = Outcome(clip_id=paths[0].stem, reason="removed", attempts=2)  # by YouTube, but here it is
    Ledger(root.ledger, "download").write([gone])
    seen = []
    plan = import_clips(root, mine, on_outcome=seen.extend)
    assert (plan.finished, plan.not_listed, len(plan.skipped)) == (0, ["abcdefghijk_000001"], 1)
    assert [o.clip_id for o in seen] == [path.stem for path in paths]
    assert all(root.clip_file(path.stem).samefile(path) for path in paths)
    usual = downloads(downloaded(Root(tmp_path / "usual"), corpus))
    rows = downloads(root)
    assert {i: (o.reason, o.bytes, o.sha256) for i, o in rows.items()} == {
        path.stem: (None, usual[path.stem].bytes, usual[path.stem].sha256) for path in paths
    }
    assert rows[paths[0].stem].attempts == 3
    root.clip_file(paths[1].stem).unlink()
    again = import_clips(root, mine)
    assert (again.to_do, again.finished) == (1, 2)
    root.ledger.joinpath("download").rename(tmp_path / "lost")  # as a kill before the first rows leaves it
    assert (len(import_clips(root, mine)), downloads(root).keys()) == (0, rows.keys())


@pytest.mark.parametrize("features", [("logspec",), tuple(SPECS)[:3]])
def test_the_way_out_and_back_gives_the_same_bytes(done_root, fresh_root, tmp_path, features):
    settings = ExtractSettings(features=features)
    source = done_root
    if settings != SETTINGS:
        source = fresh_root
        first, second, *_ = Manifest.open(source.manifest).split_ids("synth_test")
        for clip_id, lengths in ((first, {"seconds": 8, "sound_s": 4.5}), (second, {"seconds": 2})):
            source.clip_file(clip_id).unlink()  # a link to the corpus
            write_clip(source.clip_file(clip_id), **lengths)  # sound that is repeated for some features
        extract(source, Manifest.open(source.manifest).split_ids("synth_test"), settings, workers=1)
    export(source, "synth_test", settings, "folders", tmp_path / "out")
    back = Root(tmp_path / "back")
    seen = []
    plan = import_frames(back, tmp_path / "out", settings, workers=1, on_outcome=seen.extend)
    assert plan.manifest_adopted
    ids = Manifest.open(source.manifest).split_ids("synth_test")
    assert sorted(o.clip_id for o in seen if o.done and not o.detail) == sorted(ids)
    assert cached(back, settings) == {i: s for i, s in cached(source, settings).items() if i in ids}
    hashes = [
        {r["clip_id"]: (r["sha256"], r["source_sha256"]) for r in Cache(x.cache / settings.name).table.to_pylist()}
        for x in (source, back)
    ]
    assert hashes[1].items() <= hashes[0].items()
    manifests = Manifest.open(source.manifest), Manifest.open(back.manifest)
    assert manifests[0].rows("synth_test") == manifests[1].rows("synth_test")
    assert manifests[0].clips(ids) == manifests[1].clips(ids)
    assert manifests[0].usable_boxes(ids) == manifests[1].usable_boxes(ids)
    assert manifests[0].labels(ids) == manifests[1].labels(ids)
    assert len(import_frames(back, tmp_path / "out", settings, workers=1)) == 0
    assert len(Ledger(back.ledger, f"extract-{settings.name}").latest()) == 4


@pytest.mark.parametrize("form", ["ssl-tie-train", "ssl-tie-test"])
def test_frames_alone_go_into_the_cache_of_the_extracted_clips(done_root, tmp_path, form):
    """What SSL-TIE's layout keeps is the frame and the sound; the times are lost."""
    export(done_root, "synth_test", SETTINGS, form, tmp_path / form)
    root = Root(tmp_path / "root")
    plan = import_frames(root, tmp_path / form, SETTINGS, workers=1)
    assert (len(plan), plan.manifest_adopted) == (4, False)
    for clip_id, sample in cached(root).items():
        original = cached(done_root)[clip_id]
        facts, before = (json.loads(members.pop("meta.json")) for members in (sample, original))
        assert sample == original
        lost = {"frame_time_s": None, "duration_s": 3.0, "audio_start_s": 0.0}
        lost |= {name: facts[name] for name in before.keys() - {"peak", "rms", "silent", "audio_s", *lost}}
        assert facts == before | lost
    assert len(import_frames(root, tmp_path / form, SETTINGS, workers=1)) == 0


def jpeg(size: tuple[int, int], mode: str = "RGB", format: str = "JPEG") -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def wav(seconds: float, rate: int = 16_000, channels: int = 1, subtype: str = "PCM_16", format: str = "WAV") -> bytes:
    data = np.random.default_rng(1).uniform(-0.5, 0.5, (round(seconds * rate), channels))
    file = io.BytesIO()
    soundfile.write(file, data, rate, format=format, subtype=subtype)
    return file.getvalue()


def test_pictures_are_upright_and_of_eight_bits(tmp_path):
    folder, root = tmp_path / "in", Root(tmp_path / "root")
    red_above = np.zeros((400, 300, 3), np.uint8)
    red_above[:200, :, 0] = 200
    turned, file = Image.fromarray(np.rot90(red_above)), io.BytesIO()  # as a camera held upright stores it
    turned.save(file, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    camera = add_pair(folder, 0, file.getvalue(), wav(3))
    levels = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(256, 0)
    grey = io.BytesIO()
    Image.fromarray(levels).save(grey, "PNG")
    deep = add_pair(folder, 1, grey.getvalue(), wav(3), (".png", ".wav"))
    inks = add_pair(folder, 2, jpeg((256, 256), "CMYK"), wav(3))
    palette = add_pair(folder, 3, jpeg((256, 256), "P", "PNG"), wav(3), (".png", ".wav"))
    import_frames(root, folder, SETTINGS, workers=1)
    found = {name: np.asarray(Image.open(io.BytesIO(cached(root)[name]["frame.jpg"])), int) for name in cached(root)}
    assert found[camera].shape == (341, 256, 3)
    assert np.abs(found[camera][:150] - (200, 0, 0)).max() < 20 and found[camera][-150:].max() < 20
    assert np.abs(found[deep][..., 0] - np.linspace(0, 255, 256)).max() < 6
    given = np.asarray(Image.open(io.BytesIO(jpeg((256, 256), "CMYK"))).convert("RGB"))
    expected = np.asarray(Image.open(io.BytesIO(encode_jpeg(given, SETTINGS.jpeg_quality))), int)
    assert (found[inks] == expected).all()
    assert found[palette].shape == (256, 256, 3)


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_half_a_sound_is_corrupt(tmp_path, format):
    folder, root = tmp_path / "in", Root(tmp_path / "root")
    suffixes = (".jpg", f".{format.lower()}")
    sound = wav(6, format=format)
    for number, part in enumerate([sound, sound[: len(sound) // 2], sound[:-4000]]):
        add_pair(folder, number, jpeg((256, 256)), part, suffixes)
    piped = wav(3)
    add_pair(folder, 3, jpeg((256, 256)), piped[:40] + b"\xff" * 4 + piped[44:])
    outcomes = []
    import_frames(root, folder, SETTINGS, workers=1, on_outcome=outcomes.extend)
    assert [outcome.reason for outcome in outcomes] == [None, "corrupt", "corrupt", None]


def add_pair(folder: Path, number: int, image: bytes, audio: bytes, suffixes=(".jpg", ".wav")) -> str:
    name = f"abcdefghijk_{number:06d}"
    for kind, content, suffix in zip(("frames", "audio"), (image, audio), suffixes, strict=True):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{name}{suffix}").write_bytes(content)
    return name


def test_other_images_and_sounds_are_brought_to_form(tmp_path):
    folder, root = tmp_path / "in", Root(tmp_path / "root")
    large = add_pair(folder, 0, jpeg((640, 360), format="PNG"), wav(10.2), (".png", ".wav"))
    grey = add_pair(folder, 1, jpeg((300, 256), "L"), wav(2))
    stereo = add_pair(folder, 2, jpeg((256, 300)), wav(5, 44_100, 2, "VORBIS", "OGG"), (".jpg", ".ogg"))
    assert len(import_frames(root, folder, SETTINGS, workers=1)) == 3
    found = cached(root)
    pictures = {name: Image.open(io.BytesIO(sample["frame.jpg"])) for name, sample in found.items()}
    assert {name: (p.format, p.mode, p.size) for name, p in pictures.items()} == {
        large: ("JPEG", "RGB", (455, 256)),
        grey: ("JPEG", "RGB", (300, 256)),
        stereo: ("JPEG", "RGB", (256, 300)),
    }
    assert found[stereo]["frame.jpg"] == jpeg((256, 300))
    meta = {name: json.loads(sample["meta.json"]) for name, sample in found.items()}
    assert (meta[large]["source_width"], meta[large]["source_height"], meta[large]["audio_start_s"]) == (640, 360, 3.5)
    whole = soundfile.read(io.BytesIO(wav(10.2)), dtype="int16")[0]
    assert np.array_equal(pcm(found[large]["audio.flac"]), whole[56_000:104_000])
    assert meta[grey]["audio_repeated"]
    assert pcm(found[stereo]["audio.flac"]).shape == (48_000,)


GOOD_JPEG, GOOD_WAV = jpeg((256, 256)), wav(3)
BAD_PAIRS = {
    "empty picture": (b"", GOOD_WAV, "corrupt"),
    "half a picture": (GOOD_JPEG[: len(GOOD_JPEG) // 2], GOOD_WAV, "corrupt"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", GOOD_WAV, "corrupt"),
    "large picture": (jpeg((700, 700)), GOOD_WAV, "corrupt"),
    "huge picture": (jpeg((900, 900), format="PNG"), GOOD_WAV, "corrupt"),
    "thin picture": (jpeg((1, 300)), GOOD_WAV, "corrupt"),  # would be 256 x 76,800
    "empty sound": (GOOD_JPEG, b"", "corrupt"),
    "no RIFF": (GOOD_JPEG, b"RIFF" + bytes(100), "corrupt"),
    "playlist": (GOOD_JPEG, b"#EXTM3U\n#EXTINF:3,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "corrupt"),
    "no samples": (GOOD_JPEG, wav(0), "no_audio"),
    "mute video": (GOOD_JPEG, mp4(1, 0, ("video",)), "no_audio"),
    "long sound": (GOOD_JPEG, wav(700, 8000), "corrupt"),
}


def test_bad_pairs_become_rows_with_their_reason(tmp_path, monkeypatch):
    folder, root = tmp_path / "in", Root(tmp_path / "root")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 600)
    cases = [(GOOD_JPEG, GOOD_WAV, None), *BAD_PAIRS.values()]
    expected = {add_pair(folder, k, image, audio): reason for k, (image, audio, reason) in enumerate(cases)}
    for name in ("abcdefghijk_000090", "abcdefghijk_000092", "nobody"):
        (folder / "frames" / f"{name}.jpg").write_bytes(GOOD_JPEG)
    (folder / "audio" / "abcdefghijk_000091.wav").write_bytes(GOOD_WAV)
    (folder / "audio" / "abcdefghijk_000092.wav").mkdir()
    os.mkfifo(folder / "frames" / "abcdefghijk_000093.jpg")
    seen = []
    plan = import_frames(root, folder, SETTINGS, workers=1, on_outcome=seen.extend)
    found = {o.clip_id: o.reason for o in seen}
    assert found == expected, dict(zip(BAD_PAIRS, list(found.values())[1:], strict=True))
    assert all(o.detail for o in seen if not o.done)
    assert (plan.frames_alone, plan.sounds_alone, plan.skipped) == (2, 1, ["'nobody': no clip id"])
    assert list(cached(root)) == [name for name, reason in expected.items() if reason is None]
    again = import_frames(root, folder, SETTINGS, workers=1)
    assert (len(again), again.finished) == (len(cases) - 1, 1)
    assert Ledger(root.ledger, f"extract-{SETTINGS.name}").latest()["abcdefghijk_000001"].attempts == 2


def test_facts_that_do_not_fit_are_ignored(tmp_path, done_root):
    export(done_root, "synth_test", SETTINGS, "folders", tmp_path / "out")
    path = sorted((tmp_path / "out" / "meta").iterdir())[0]
    facts = json.loads(path.read_text())
    changes = [{"source_width": "640"}, {"silent": 0}, {"rms": 0.9}, {"duration_s": float("nan")}, {"more": 1}]
    texts = [json.dumps(facts | change) for change in [*changes, {"source_height": True}]]
    texts.append(json.dumps({name: value for name, value in facts.items() if name != "peak"}))
    for number, text in enumerate([*texts, "[" * 100_000, '"text"', " " * 70_000]):
        path.write_text(text)
        seen, root = [], Root(tmp_path / f"root-{number}")
        import_frames(root, tmp_path / "out", SETTINGS, workers=1, on_outcome=seen.extend)
        ignored = {o.clip_id for o in seen if o.done and o.detail.startswith("meta.json ignored")}
        assert ignored == {path.stem}, text[:300]
        assert json.loads(cached(root)[path.stem]["meta.json"])["frame_time_s"] is None


def test_a_changed_file_is_imported_again_under_its_own_hash(tmp_path, done_root):
    export(done_root, "synth_test", SETTINGS, "folders", tmp_path / "out")
    root = Root(tmp_path / "root")
    import_frames(root, tmp_path / "out", SETTINGS, workers=1)
    before = cached(root)
    path = sorted((tmp_path / "out" / "frames").iterdir())[0]
    path.write_bytes(jpeg((256, 256)))
    assert [job.clip_id for job in import_frames(root, tmp_path / "out", SETTINGS, workers=1).jobs] == [path.stem]
    after = cached(root)
    assert after[path.stem]["frame.jpg"] == jpeg((256, 256))
    assert {n: s for n, s in after.items() if n != path.stem} == {n: s for n, s in before.items() if n != path.stem}
    assert len(import_frames(root, tmp_path / "out", SETTINGS, workers=1)) == 0


def as_bytes(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def test_foreign_tables_are_refused(tmp_path, done_root):
    export(done_root, "synth_test", SETTINGS, "folders", tmp_path / "out")
    path, root = tmp_path / "out" / "manifest" / "splits.parquet", Root(tmp_path / "root")
    splits, whole = pq.read_table(path), path.read_bytes()
    contents = [b"no parquet", path.with_name("clips.parquet").read_bytes()]
    contents.append(as_bytes(splits.replace_schema_metadata(None)))
    for name, value in (
        *(("split", "../../x"), ("split", "vggss"), ("clip_id", "../../x"), ("clip_id", None)),
        ("audio_clip_id", "/etc/passwd"),
    ):
        column = splits.schema.get_field_index(name)
        contents.append(as_bytes(splits.set_column(column, name, pa.array([value] * 4, pa.string()))))
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(AvpipeError):
            import_frames(root, tmp_path / "out", SETTINGS, workers=1)
        assert not root.manifest.exists()
    path.write_bytes(whole)
    (tmp_path / "out" / "index.parquet").write_bytes(whole)
    with pytest.raises(AvpipeError, match="not the index of an export"):
        import_frames(root, tmp_path / "out", SETTINGS, workers=1)


def test_only_listed_pairs_are_taken_and_other_layouts_refused(tmp_path, corpus):
    root = Root(tmp_path / "root")
    build_manifest(corpus / "lists", root.manifest)
    name = add_pair(tmp_path / "in", 0, jpeg((256, 256)), wav(3))
    plan = import_frames(root, tmp_path / "in", SETTINGS, workers=1)
    assert (len(plan), plan.not_listed) == (0, [name])
    with pytest.raises(AvpipeError, match="of no known layout"):
        import_frames(root, tmp_path, SETTINGS, workers=1)
