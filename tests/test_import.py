"""Other people's files: clips from folders and tars, frames and sounds into the cache, and the way out and back."""

import gzip
import io
import json
import os
import random
import tarfile
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import downloaded
from PIL import Image
from test_export import cached, pcm, tree
from test_media import write_clip

from pipeline import extract as extract_stage
from pipeline.cache import Cache
from pipeline.download import download
from pipeline.errors import AvpipeError
from pipeline.exchange import import_frames as frames_module
from pipeline.exchange.export import export
from pipeline.exchange.import_clips import import_clips
from pipeline.exchange.import_frames import import_frames
from pipeline.extract import extract
from pipeline.features import SPECS
from pipeline.layout import Root
from pipeline.ledger import Ledger, Outcome
from pipeline.manifest import TABLES, Manifest
from pipeline.manifest_build import build_manifest
from pipeline.settings import ExtractSettings
from pipeline.sources import tar as tar_source
from pipeline.sources.clip_names import clip_id_of
from pipeline.sources.tar import TarSource

SETTINGS = ExtractSettings()
IDS = [f"abcdefghij{k}_{k:06d}" for k in range(4)]
CONTENT = {name: f"clip {name} ".encode() * 300 for name in IDS}


@pytest.fixture(autouse=True)
def serial(monkeypatch) -> None:
    """Parts run in this process."""
    for module in (extract_stage, frames_module):
        monkeypatch.setattr(module, "run_parts", lambda function, parts, workers: map(function, parts))


def write_tar(path: Path, members: list, mode: str = "w") -> Path:
    """A tar of (name, content) pairs and ready TarInfos."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def good_tar(path: Path, mode: str = "w") -> Path:
    return write_tar(path, [(f"a/folder/{name}.mp4", content) for name, content in CONTENT.items()], mode)


def clips_of(root: Root) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in root.clips.glob("*.mp4")}


def downloads(root: Root) -> dict[str, Outcome]:
    return Ledger(root.ledger, "download").latest()


@pytest.mark.parametrize(
    ("name", "clip_id"),
    [
        ("abc_efg-ijk_000030.mp4", "abc_efg-ijk_000030"),
        ("abc_efg-ijk_30.mp4", "abc_efg-ijk_000030"),
        ("abc_efg-ijk_0.mp4", "abc_efg-ijk_000000"),
        ("abc_efg-ijk_30000_40000.mp4", "abc_efg-ijk_000030"),
        ("ab_123456_1_000005.mp4", "ab_123456_1_000005"),
        ("-----------_0_10000.mp4", "-----------_000000"),
        ("4512345678.mp4", "4512345678"),
        ("abc_efg-ijk_30500_40500.mp4", None),  # no whole second
        ("abc_efg-ijk_40000_30000.mp4", None),
        ("abc_efg-ijk_1234567.mp4", None),
        ("abc_efg-ijk_-5.mp4", None),
        ("abc_efg-ijk_٣.mp4", None),
        ("abc_efg-ijk.mp4", None),
        ("abc_efg-ijk_000030.mkv", None),
        ("../abc_efg-ijk_000030.mp4", None),
        ("abc_efg-ijk_000030\n.mp4", None),
    ],
)
def test_names_of_clips(name, clip_id):
    assert clip_id_of(name) == clip_id


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


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tars_are_copied_and_not_again(tmp_path, mode, monkeypatch):
    suffix = "tar.gz" if mode == "w:gz" else "tar"
    tars = tmp_path / "tars"
    tars.mkdir()
    good_tar(tars / f"1.{suffix}", mode)
    write_tar(tars / f"2.{suffix}", [(f"{IDS[0]}.mp4", b"another"), ("z/abcdefghijk_7.mp4", b"more")], mode)
    root = Root(tmp_path / "root")
    plan = import_clips(root, tars)
    expected = CONTENT | {"abcdefghijk_000007": b"more"}
    assert clips_of(root) == expected
    assert {i for i, o in downloads(root).items() if o.done} == expected.keys()
    assert "is there already" in plan.skipped[0]
    root.clip_file(IDS[2]).unlink()
    seen = []
    assert import_clips(root, tars, on_outcome=seen.extend).finished == 4
    assert [o.clip_id for o in seen] == [IDS[2]]
    assert clips_of(root) == expected


@pytest.mark.parametrize("jobs", [1, 3])
def test_download_reads_from_tars_too(corpus, tmp_path, jobs):
    tar = tmp_path / "all.tar"
    with tarfile.open(tar, "w") as file:
        file.add(corpus / "clips", "clips")
    root = Root(tmp_path / "root")
    build_manifest(corpus / "lists", root.manifest)
    manifest = Manifest.open(root.manifest)
    plan = download(root, manifest.clips(manifest.ids("synth_train")), TarSource([tar]), jobs=jobs)
    assert (len(plan), plan.not_offered) == (16, 0)
    assert clips_of(root) == {path.stem: path.read_bytes() for path in (corpus / "clips").glob("*.mp4")
                              if path.stem in manifest.split_ids("synth_train")}  # fmt: skip


def hostile_members() -> list:
    def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        return info

    return [
        (f"/{IDS[0]}.mp4", b"absolute"),
        (f"../../{IDS[0]}.mp4", b"outside"),
        special(f"x/{IDS[0]}.mp4", tarfile.SYMTYPE, "/etc/passwd"),
        special(f"{IDS[0]}.mp4", tarfile.LNKTYPE, "../../secret"),
        special(f"{IDS[0]}.mp4", tarfile.CHRTYPE),
        special(f"{IDS[0]}.mp4", tarfile.FIFOTYPE),
        special(f"{IDS[0]}.mp4", tarfile.DIRTYPE),
        ("n" * 5000 + ".mp4", b"long name"),
        ("m" * 3_000_000 + f"/{IDS[0]}.mp4", b"giant name"),
        ("\udcff\x1b[31m.mp4", b"no text"),
        ("", b"no name"),
    ]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_hostile_members_are_skipped_and_named(tmp_path, mode, format, monkeypatch):
    monkeypatch.setattr(tarfile, "DEFAULT_FORMAT", format)
    monkeypatch.setattr(tar_source, "MAX_CLIP_BYTES", 10_000)
    members = [*hostile_members(), ("abcdefghijk_1.mp4", b"x" * 10_001), (f"{IDS[1]}.mp4", b"good")]
    tar = write_tar(tmp_path / "bad.tar", [*members, (f"again/{IDS[1]}.mp4", b"second")], mode)
    before = tree(tmp_path)
    plan = import_clips(Root(tmp_path / "root"), tar)
    assert clips_of(Root(tmp_path / "root")) == {IDS[1]: b"good"}
    assert len(plan.skipped) == 13  # the header with the giant name is one of them
    assert all(len(text) < 700 and text.isprintable() for text in plan.skipped)
    assert {name: content for name, content in tree(tmp_path).items() if not name.startswith("root/")} == before


def test_sparse_and_negative_sizes_are_no_clips(tmp_path):
    info = tarfile.TarInfo(f"{IDS[0]}.mp4")
    info.size = 4
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    sparse, negative = bytearray(head), bytearray(head)
    sparse[156:157] = tarfile.GNUTYPE_SPARSE
    sparse[386:410] = b"%011o\0%011o\0" % (0, 4)
    sparse[483:495] = b"%011o\0" % (1 << 30)
    negative[124:136] = tarfile.itn(-1024, 12, tarfile.GNU_FORMAT)
    for block in (sparse, negative):
        block[148:156] = b"        "
        block[148:156] = b"%06o\0 " % sum(block)
    good = tarfile.TarInfo(f"{IDS[1]}.mp4")
    good.size = 4
    first = good.tobuf(tarfile.GNU_FORMAT) + b"good".ljust(512, b"\0")
    path = tmp_path / "bad.tar"
    path.write_bytes(first + bytes(sparse) + b"hole".ljust(512, b"\0") + bytes(1024))
    assert len(import_clips(Root(tmp_path / "a"), path).skipped) == 1
    assert clips_of(Root(tmp_path / "a")) == {IDS[1]: b"good"}
    path.write_bytes(first + bytes(negative) + bytes(2048))
    with pytest.raises(AvpipeError, match="cut off or damaged"):
        import_clips(Root(tmp_path / "b"), path)
    assert clips_of(Root(tmp_path / "b")) == {IDS[1]: b"good"}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_impossible_sizes_and_endless_names_end_the_archive(tmp_path, mode):
    good = tarfile.TarInfo(f"{IDS[1]}.mp4").tobuf(tarfile.GNU_FORMAT)
    nested = tarfile.TarInfo("././@LongLink")
    nested.type, nested.size = tarfile.GNUTYPE_LONGNAME, 4
    sized = tarfile.TarInfo("pax")
    sized.type, sized.size = tarfile.XHDTYPE, 25
    for number, bad in enumerate([
        sized.tobuf(tarfile.GNU_FORMAT) + b"25 size=9999999999999999\n".ljust(512, b"\0") + good,
        (nested.tobuf(tarfile.GNU_FORMAT) + b"abc".ljust(512, b"\0")) * 2000,
    ]):  # fmt: skip
        content = good + bad + bytes(1024)
        path, root = tmp_path / f"{number}.tar", Root(tmp_path / str(number))
        path.write_bytes(gzip.compress(content) if mode == "w:gz" else content)
        with pytest.raises(AvpipeError, match="cut off or damaged behind its first 1 members"):
            import_clips(root, path)
        assert clips_of(root) == {IDS[1]: b""}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_is_cut_off_gives_what_is_complete(tmp_path, mode):
    whole = good_tar(tmp_path / "whole.tar", mode).read_bytes()
    plain = gzip.decompress(whole) if mode == "w:gz" else whole
    lengths = [512 * (1 + -(-len(content) // 512)) for content in CONTENT.values()]
    ends = np.cumsum(lengths)
    for number, cut in enumerate([700, ends[0], ends[0] + 100, ends[1] + 512 + 1000, ends[2] - 10, ends[3]]):
        content = plain[:cut]
        path = tmp_path / f"{number}.tar"
        path.write_bytes(gzip.compress(content) if mode == "w:gz" else content)
        root = Root(tmp_path / str(number))
        with pytest.raises(AvpipeError, match="cut off or damaged"):
            import_clips(root, path)
        complete = IDS[: np.searchsorted(ends, cut, "right")]
        if cut == ends[2] - 10:  # the last ten bytes are padding, but that is for nobody to know
            complete = IDS[:2]
        assert clips_of(root) == {name: CONTENT[name] for name in complete}
        assert downloads(root).keys() == set(complete)
        if complete:
            whole_path = tmp_path / "whole.tar"
            assert len(import_clips(root, whole_path)) == 4 - len(complete)
    if mode == "w:gz":
        (tmp_path / "stream.tar").write_bytes(whole[:-20])
        with pytest.raises(AvpipeError, match="cut off or damaged"):
            import_clips(Root(tmp_path / "stream"), tmp_path / "stream.tar")


def test_damage_anywhere_in_a_tar_is_a_sentence_or_skipped(tmp_path):
    random_ = random.Random(0)
    plain = write_tar(tmp_path / "t.tar", [(f"{'d' * 150}/{name}.mp4", c) for name, c in CONTENT.items()]).read_bytes()
    for number in range(60):
        content = bytearray(plain)
        for _ in range(1 + number % 4):
            content[random_.randrange(len(content))] = random_.randrange(256)
        if number % 2:
            start = random_.randrange(0, len(content), 512)
            content[start : start + 512] = random_.randbytes(512)
        packed = number % 3 == 0
        path, root = tmp_path / "damaged.tar", Root(tmp_path / f"root{number}")
        path.write_bytes(gzip.compress(content, 1) if packed else content)
        try:
            import_clips(root, path)
        except AvpipeError as error:
            assert str(path) in str(error)
        assert clips_of(root).keys() <= set(IDS)


def test_what_holds_no_clips_is_a_sentence(tmp_path, corpus):
    root = Root(tmp_path / "root")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("no tar at all" * 99)
    write_tar(tmp_path / "other.tar", [("readme.txt", b"hello")])
    for name in ("nowhere", "empty", "text.tar", "other.tar"):
        with pytest.raises(AvpipeError, match=name):
            import_clips(root, tmp_path / name)
    build_manifest(corpus / "lists", root.manifest)
    with pytest.raises(AvpipeError, match=r"none of the 4 clips .* is in the manifest"):
        import_clips(root, good_tar(tmp_path / "good.tar"))


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


def test_frames_alone_go_into_the_cache_of_the_extracted_clips(done_root, tmp_path):
    """What SSL-TIE's layout keeps is the frame and the sound; the times are lost."""
    for format in ("ssl-tie-train", "ssl-tie-test"):
        export(done_root, "synth_test", SETTINGS, format, tmp_path / format)
        root = Root(tmp_path / f"root-{format}")
        plan = import_frames(root, tmp_path / format, SETTINGS, workers=1)
        assert (len(plan), plan.manifest_adopted) == (4, False)
        for clip_id, sample in cached(root).items():
            original = cached(done_root)[clip_id]
            facts, before = (json.loads(members.pop("meta.json")) for members in (sample, original))
            assert sample == original
            assert facts.keys() == before.keys()
            assert all(facts[name] == before[name] for name in ("peak", "rms", "silent", "audio_s"))
            assert (facts["frame_time_s"], facts["duration_s"], facts["audio_start_s"]) == (None, 3.0, 0.0)
        assert len(import_frames(root, tmp_path / format, SETTINGS, workers=1)) == 0


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


def test_bad_pairs_become_rows_with_their_reason(tmp_path, monkeypatch):
    folder, root = tmp_path / "in", Root(tmp_path / "root")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 600)
    good, sound = jpeg((256, 256)), wav(3)
    playlist = b"#EXTM3U\n#EXTINF:3,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width = video.height = 64
        container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(video.encode(None))
    cases = [
        (good, sound, None),
        (b"", sound, "corrupt"),
        (good[: len(good) // 2], sound, "corrupt"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", sound, "corrupt"),
        (jpeg((700, 700)), sound, "corrupt"),
        (jpeg((900, 900), format="PNG"), sound, "corrupt"),
        (jpeg((1, 300)), sound, "corrupt"),  # would be 256 x 76,800
        (good, b"", "corrupt"),
        (good, b"RIFF" + bytes(100), "corrupt"),
        (good, playlist, "corrupt"),
        (good, wav(0), "no_audio"),
        (good, (tmp_path / "mute.mp4").read_bytes(), "no_audio"),
        (good, wav(700, 8000), "corrupt"),
    ]
    expected = {add_pair(folder, k, image, audio): reason for k, (image, audio, reason) in enumerate(cases)}
    (folder / "frames" / "abcdefghijk_000090.jpg").write_bytes(good)
    (folder / "audio" / "abcdefghijk_000091.wav").write_bytes(sound)
    (folder / "audio" / "abcdefghijk_000092.wav").mkdir()
    (folder / "frames" / "abcdefghijk_000092.jpg").write_bytes(good)
    (folder / "frames" / "nobody.jpg").write_bytes(good)
    os.mkfifo(folder / "frames" / "abcdefghijk_000093.jpg")
    seen = []
    plan = import_frames(root, folder, SETTINGS, workers=1, on_outcome=seen.extend)
    assert {o.clip_id: o.reason for o in seen} == expected
    assert all(o.detail for o in seen if not o.done)
    assert (plan.frames_alone, plan.sounds_alone, plan.skipped) == (2, 1, ["'nobody': no clip id"])
    assert list(cached(root)) == [name for name, reason in expected.items() if reason is None]
    again = import_frames(root, folder, SETTINGS, workers=1)
    assert (len(again), again.finished) == (len(cases) - 1, 1)
    assert Ledger(root.ledger, f"extract-{SETTINGS.name}").latest()["abcdefghijk_000001"].attempts == 2


@pytest.mark.parametrize(
    "change",
    [
        {"source_width": "640"}, {"silent": 0}, {"rms": 0.9}, {"duration_s": float("nan")}, {"more": 1},
        {"source_height": True}, None, "[" * 100_000, '"text"', " " * 70_000,
    ],
)  # fmt: skip
def test_facts_that_do_not_fit_are_ignored(tmp_path, done_root, change):
    export(done_root, "synth_test", SETTINGS, "folders", tmp_path / "out")
    paths = sorted((tmp_path / "out" / "meta").iterdir())
    facts = json.loads(paths[0].read_text())
    if isinstance(change, dict):
        paths[0].write_text(json.dumps(facts | change))
    elif change is None:
        paths[0].write_text(json.dumps({k: v for k, v in facts.items() if k != "peak"}))
    else:
        paths[0].write_text(change)
    seen, root = [], Root(tmp_path / "root")
    import_frames(root, tmp_path / "out", SETTINGS, workers=1, on_outcome=seen.extend)
    assert {o.clip_id for o in seen if o.done and o.detail.startswith("meta.json ignored")} == {paths[0].stem}
    assert json.loads(cached(root)[paths[0].stem]["meta.json"])["frame_time_s"] is None


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


def test_foreign_tables_are_refused(tmp_path, done_root):
    export(done_root, "synth_test", SETTINGS, "folders", tmp_path / "out")
    tables, root = tmp_path / "out" / "manifest", Root(tmp_path / "root")
    whole = {name: (tables / f"{name}.parquet").read_bytes() for name in TABLES}
    splits = pq.read_table(tables / "splits.parquet")

    def with_column(name: str, values: list[str]) -> bytes:
        column = splits.schema.get_field_index(name)
        file = io.BytesIO()
        pq.write_table(splits.set_column(column, name, pa.array(values, pa.string())), file)
        return file.getvalue()

    no_facts = io.BytesIO()
    pq.write_table(splits.replace_schema_metadata(None), no_facts)
    for content in [
        b"no parquet",
        whole["clips"],
        no_facts.getvalue(),
        with_column("split", ["../../x"] * 4),
        with_column("split", ["vggss"] * 4),
        with_column("clip_id", ["../../x"] * 4),
        with_column("clip_id", [None] * 4),
        with_column("audio_clip_id", ["/etc/passwd"] * 4),
    ]:
        (tables / "splits.parquet").write_bytes(content)
        with pytest.raises(AvpipeError):
            import_frames(root, tmp_path / "out", SETTINGS, workers=1)
        assert not root.manifest.exists()
    (tables / "splits.parquet").write_bytes(whole["splits"])
    (tmp_path / "out" / "index.parquet").write_bytes(whole["splits"])
    with pytest.raises(AvpipeError, match="is no index of an export"):
        import_frames(root, tmp_path / "out", SETTINGS, workers=1)


def test_only_listed_pairs_are_taken_and_other_layouts_refused(tmp_path, corpus):
    root = Root(tmp_path / "root")
    build_manifest(corpus / "lists", root.manifest)
    name = add_pair(tmp_path / "in", 0, jpeg((256, 256)), wav(3))
    plan = import_frames(root, tmp_path / "in", SETTINGS, workers=1)
    assert (len(plan), plan.not_listed) == (0, [name])
    with pytest.raises(AvpipeError, match="of no known layout"):
        import_frames(root, tmp_path, SETTINGS, workers=1)
