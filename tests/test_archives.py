"""Clips out of archives: every kind, as mirrors name them; nothing wrong comes in, and damage costs what it touches."""

import bz2
import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from chaos import archives as chaos
from conftest import downloaded
from test_download import clip, clips, content, files, latest, reasons
from test_export import tree

from avpipe.pipeline.archives import packed
from avpipe.pipeline.archives.packed import zstd
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.download import archive_source
from avpipe.pipeline.download.archive_source import ArchiveSource
from avpipe.pipeline.download.source import open_local
from avpipe.pipeline.download.stage import download
from avpipe.pipeline.exchange.import_clips import import_clips
from avpipe.pipeline.manifest.tables import Manifest

FOLDER = "scratch/shared/beegfs/hchen/train_data/VGGSound_final/video"
CONTENT = {one.clip_id: content(one) for one in clips(6)}
IDS = list(CONTENT)
PACKINGS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


def tar_of(members, **options) -> bytes:
    """A tar of (name, content) pairs and ready TarInfos."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            info.size = info.size if isinstance(member, tarfile.TarInfo) else len(member[1])
            tar.addfile(info, None if isinstance(member, tarfile.TarInfo) else io.BytesIO(member[1]))
    return file.getvalue()


def named(some=CONTENT, suffix="mp4") -> list[tuple[str, bytes]]:
    return [(f"{FOLDER}/{clip_id}.{suffix}", data) for clip_id, data in some.items()]


def zip_of(members, method=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def imported(folder: Path, name: str, data: bytes):
    """(root, what the import says) of an archive of that name in a new root."""
    path, root = folder / name, Root(folder / f"root of {name}")
    path.write_bytes(data)
    return root, import_clips(root, path)


def came(root: Root) -> dict[str, bytes]:
    return {name.removesuffix(".mp4"): data for name, data in files(root).items()}


def adds_up(root: Root, result) -> bool:
    """Whether every member that was seen is done, failed or skipped."""
    return result.seen == len(latest(root)) + len(result.skipped) + len(result.not_listed)


# Kinds


@pytest.mark.parametrize(("packing", "suffix"), list(zip(PACKINGS, ["mp4", "webm"] * 2 + ["mp4"], strict=True)))
def test_tars_of_every_packing_are_read_once(tmp_path, monkeypatch, packing, suffix):
    opened = []
    open_stream = archive_source.open_stream
    monkeypatch.setattr(archive_source, "open_stream", lambda *given: opened.append(given) or open_stream(*given))
    root, result = imported(tmp_path, f"a.tar{packing}", PACKINGS[packing](tar_of(named(suffix=suffix))))
    assert came(root) == CONTENT and len(opened) == 1
    assert (result.seen, result.to_do, result.damage, result.skipped) == (6, 6, [], [])
    again = import_clips(root, tmp_path / f"a.tar{packing}")
    assert (again.to_do, again.finished) == (0, 6)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_are_read_also_without_their_directory(tmp_path, method):
    data = zip_of([(f"{FOLDER}/", b""), *named()], method)
    root, result = imported(tmp_path, "a.zip", data)
    assert came(root) == CONTENT and (result.seen, result.damage) == (6, [])
    if method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        return  # where such members begin, only the directory tells
    root, result = imported(tmp_path, "cut.zip", data[: data.index(b"PK\1\2") + 10])
    assert came(root) == CONTENT and "directory" in result.damage[0]
    flipped = bytearray(data)
    flipped[data.rindex(IDS[3].encode())] ^= 1  # a name in the directory
    root, result = imported(tmp_path, "name.zip", bytes(flipped))
    assert came(root) == CONTENT and result.damage


def test_other_kinds_are_told_which_are_read(tmp_path):
    others = {"a.rar": b"Rar!\x1a\7\0" + b"x" * 999, "a.7z": b"7z\xbc\xaf", "text.tar": b"no tar" * 99}
    for name, data in others.items():
        with pytest.raises(AvpipeError, match=rf"{name} is not an archive .* \.tar\.zst or \.zip"):
            imported(tmp_path, name, data)
    with pytest.raises(AvpipeError, match="holds no clip"):
        imported(tmp_path, "other.tar", tar_of([("readme.txt", b"hello")]))
    with pytest.raises(AvpipeError, match="no such folder"):
        open_local(tmp_path / "nowhere")


@pytest.mark.parametrize("blocks", [1, 20, 2048])
def test_several_tars_in_one_file_are_read_to_the_end(tmp_path, blocks):
    parts = [tar_of([member], bufsize=512) for member in named()]
    parts = [part.rstrip(b"\0") for part in parts]
    parts = [part + bytes(-len(part) % 512 + 1024) for part in parts]
    parts = [part + bytes(-len(part) % (512 * blocks)) for part in parts]
    if blocks == 2048:  # one tar in records of another size than usual
        parts = parts[:1]
    root, result = imported(tmp_path, "cat.tar", b"".join(parts))
    assert came(root) == dict(list(CONTENT.items())[: len(parts)]) and result.damage == []
    root, result = imported(tmp_path, "cat.tar.gz", b"".join(map(gzip.compress, parts)))
    assert len(came(root)) == len(parts) and result.damage == []


def test_a_folder_of_archives_and_the_first_good_member_of_a_clip(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    broken = dict.fromkeys(IDS[:2], b"no video")
    (folder / "1.tar").write_bytes(tar_of(named(broken)))
    (folder / "2.tar.gz").write_bytes(gzip.compress(tar_of(named())))
    (folder / "3.zip").write_bytes(zip_of(named({IDS[0]: content(clip(9))})))
    root = Root(tmp_path / "root")
    result = import_clips(root, folder)
    assert came(root) == CONTENT and reasons(root) == dict.fromkeys(IDS)
    assert len(result.skipped) == 1 and "is there already" in result.skipped[0]


def test_only_listed_clips_are_unpacked(tmp_path, corpus):
    root = downloaded(Root(tmp_path / "root"), corpus)
    ids = Manifest.open(root.manifest).split_ids("synth_train")
    for path in root.clips.glob("*.mp4"):
        path.unlink()
    data = tar_of([(path.name, path.read_bytes()) for path in sorted((corpus / "clips").glob("*.mp4"))] + named())
    (tmp_path / "all.tar.gz").write_bytes(gzip.compress(data, 1))
    source = ArchiveSource([tmp_path / "all.tar.gz"])
    plan = download(root, Manifest.open(root.manifest).clips([*ids, IDS[0]][:16]), source)
    assert (len(plan), plan.not_offered, came(root).keys()) == (16, 0, set(ids))
    result = import_clips(root, tmp_path / "all.tar.gz")
    assert (result.finished, result.to_do, sorted(result.not_listed)) == (16, 4, IDS)
    (tmp_path / "strangers.tar").write_bytes(tar_of(named()))
    with pytest.raises(AvpipeError, match=r"none of the 6 clips .* is in the manifest"):
        import_clips(root, tmp_path / "strangers.tar")


# Checksums


def test_a_wrong_gzip_checksum_distrusts_all_and_a_good_archive_replaces(tmp_path):
    good = gzip.compress(tar_of(named()))
    for place in (-5, -1):  # of the checksum, of the length
        bad = bytearray(good)
        bad[place] ^= 1
        root, result = imported(tmp_path, f"bad{place}.tar.gz", bytes(bad))
        assert came(root) == {} and reasons(root) == dict.fromkeys(IDS, "corrupt")
        assert "checksum" in result.damage[0] and "get the archive again" in latest(root)[IDS[0]].detail
        assert adds_up(root, result)
    (tmp_path / "good.tar.gz").write_bytes(good)
    import_clips(root, tmp_path / "good.tar.gz")
    assert came(root) == CONTENT and reasons(root) == dict.fromkeys(IDS)


def test_cut_off_archives_give_what_is_whole(tmp_path, monkeypatch):
    tar = tar_of(named())
    ends = [tar.index(data) + len(data) for data in CONTENT.values()]
    for number, cut in enumerate([700, ends[0], ends[0] + 100, ends[1] + 600, ends[2] - 10, ends[5] + 100]):
        whole = {clip_id: CONTENT[clip_id] for clip_id, end in zip(IDS, ends, strict=True) if end <= cut}
        for name, data in {f"{number}.tar": tar[:cut], f"{number}.tar.gz": gzip.compress(tar[:cut])}.items():
            root, result = imported(tmp_path, name, data)
            assert came(root) == whole and "cut off" in result.damage[0]
            assert adds_up(root, result)
    # A stream without its end: what lies well before it counts as right.
    monkeypatch.setattr(packed, "PACKINGS", [_with_margin(packing, 600) for packing in packed.PACKINGS])
    filling = {clip_id: b"\0\0\x10\0free" + random.Random(clip_id).randbytes(4088) for clip_id in IDS}
    noisy = {clip_id: data + filling[clip_id] for clip_id, data in CONTENT.items()}
    stream = gzip.compress(tar_of(named(noisy)))
    for tail in (b"", bytes(70_000)):  # a download into a file of the full size leaves zeros
        root, result = imported(tmp_path, f"{len(tail)}.tar.gz", stream[: len(stream) // 2] + tail)
        assert 1 <= len(came(root)) <= 3 and came(root).items() <= noisy.items() and "is missing" in result.damage[0]


def test_a_damaged_block_of_bzip2_costs_its_clips_alone(tmp_path):
    noisy = {
        one.clip_id: content(one) + (45_008).to_bytes(4) + b"free" + random.Random(one.start_s).randbytes(45_000)
        for one in clips(12)
    }
    stream = bytearray(bz2.compress(tar_of(named(noisy)), 1))  # six blocks, of two to three clips each
    for name, place, damage in (("flip", 0.5, 1), ("zeros", 0.4, 5000), ("first", 0.05, 1)):
        begin = round(len(stream) * place)
        data = stream[:begin] + bytes(byte ^ 0x10 if damage == 1 else 0 for byte in stream[begin : begin + damage])
        root, result = imported(tmp_path, f"{name}.tar.bz2", bytes(data + stream[begin + damage :]))
        lost = sorted(noisy.keys() - came(root).keys())
        assert came(root).items() <= noisy.items() and 2 <= len(lost) <= 4
        assert list(noisy)[-1] in came(root) and result.damage


def _with_margin(packing, margin: int):
    values = {name: getattr(packing, name) for name in packing.__slots__} | {"margin": margin}
    return type(packing)(**values)


# Damage in plain tars


def test_holes_in_a_tar_cost_what_they_touch_and_are_said(tmp_path):
    tar = tar_of(named())
    starts = [tar.index(data) for data in CONTENT.values()]
    for name, begin, end, lost in (
        ("header", starts[2] - 512, starts[2], {2}),
        ("half a clip and the next header", starts[2] + 2000, starts[3], {2, 3}),
        ("tail", starts[3] + 1000, len(tar), {3, 4, 5}),
        ("tail from a header on", starts[4] - 512, len(tar), {4, 5}),
    ):
        root, result = imported(tmp_path, f"{name}.tar", tar[:begin] + bytes(end - begin) + tar[end:] + bytes(1 << 16))
        assert came(root) == {clip_id: CONTENT[clip_id] for k, clip_id in enumerate(IDS) if k not in lost}
        assert "zeros" in result.damage[0] and adds_up(root, result)


@pytest.mark.parametrize("shift", [-700, -3, 1, 100, 512, 5000])
def test_bytes_put_in_or_left_out_cost_the_clip_that_they_are_in(tmp_path, shift):
    tar = tar_of(named())
    place = tar.index(CONTENT[IDS[2]]) + 1000
    data = tar[:place] + (b"\x55" * shift + tar[place:] if shift > 0 else tar[place - shift :])
    root, result = imported(tmp_path, "shifted.tar", data)
    assert came(root) == {clip_id: CONTENT[clip_id] for clip_id in IDS if clip_id != IDS[2]}
    assert reasons(root)[IDS[2]] == "corrupt" and result.damage and adds_up(root, result)


def test_what_is_no_video_is_never_done(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_source, "MAX_CLIP_BYTES", 3_000_000)
    some = {IDS[0]: b"", IDS[1]: bytes(2_500_000), IDS[2]: bytes(3_000_001), IDS[3]: CONTENT[IDS[3]][:1500]}
    for name, data in {"a.tar.gz": gzip.compress(tar_of(named(some)), 1), "a.zip": zip_of(named(some), 8)}.items():
        root, result = imported(tmp_path, name, data)
        assert came(root) == {} and adds_up(root, result)
        assert reasons(root) == {IDS[0]: "corrupt", IDS[1]: "corrupt", IDS[3]: "network"}
        assert "bytes cannot be a clip" in result.skipped[0]


@pytest.mark.heavy
def test_archives_damaged_at_random_places():
    kinds = {"tar", "cat.tar", "tar.gz", "units.tar.gz", "units.tar.bz2", "tar.zst", "units.tar.xz", "deflated.zip"}
    for suffix, counts in chaos.run(rounds=len(chaos.KINDS), seed=1, suffixes=kinds, clips=12).items():
        assert not [key for key, count in counts.items() if key.startswith("!") and count], suffix
        assert counts["rounds"] == len(chaos.KINDS)


# Untrusted members


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def hostile_members() -> list:
    kinds = (tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    return [
        (f"/{IDS[0]}.mp4", b"absolute"),
        (f"../../{IDS[0]}.mp4", b"outside"),
        special(f"x/{IDS[0]}.mp4", tarfile.SYMTYPE, "/etc/passwd"),
        special(f"{IDS[0]}.mp4", tarfile.LNKTYPE, "../../secret"),
        *(special(f"{IDS[0]}.mp4", kind) for kind in kinds),
        ("n" * 5000 + ".mp4", b"long name"),
        ("m" * 3_000_000 + f"/{IDS[0]}.mp4", b"giant name"),
        ("\udcff\x1b[31m.mp4", b"no text"),
        ("", b"no name"),
    ]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_hostile_members_are_passed_by_and_named(tmp_path, packing, form, monkeypatch):
    monkeypatch.setattr(archive_source, "MAX_CLIP_BYTES", 10_000)
    members = [*hostile_members(), (f"{IDS[2]}.mp4", b"x" * 10_001), *named({IDS[1]: CONTENT[IDS[1]]})]
    members += [(f"again/{IDS[1]}.mp4", b"second"), ("d/" * 80 + f"{IDS[3]}.mp4", CONTENT[IDS[3]])]
    path, root = tmp_path / f"bad.tar{packing}", Root(tmp_path / "root")
    path.write_bytes(PACKINGS[packing](tar_of(members, format=form)))
    before = tree(tmp_path)
    result = import_clips(root, path)
    assert came(root) == {clip_id: CONTENT[clip_id] for clip_id in (IDS[1], IDS[3])}
    assert result.damage == [] and len(result.skipped) == 12
    assert all(len(text) < 700 and text.isprintable() for text in result.skipped)
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("root/")} == before


def test_sparse_files_impossible_sizes_and_endless_names(tmp_path):
    head = bytearray(tarfile.TarInfo(f"{IDS[0]}.mp4").tobuf(tarfile.GNU_FORMAT))
    sparse, negative, sized = bytearray(head), bytearray(head), tarfile.TarInfo("pax")
    sparse[156:157] = tarfile.GNUTYPE_SPARSE
    sparse[386:410] = b"%011o\0%011o\0" % (0, 0)
    sparse[483:495] = b"%011o\0" % (1 << 30)
    negative[124:136] = tarfile.itn(-1024, 12, tarfile.GNU_FORMAT)
    for block in (sparse, negative):
        block[148:156] = b"        "
        block[148:156] = b"%06o\0 " % sum(block)
    sized.type, sized.size = tarfile.XHDTYPE, 25
    nested = tarfile.TarInfo("././@LongLink")
    nested.type, nested.size = tarfile.GNUTYPE_LONGNAME, 4
    odd = {
        "sparse": bytes(sparse),
        "negative": bytes(negative),
        "huge": sized.tobuf(tarfile.GNU_FORMAT) + b"25 size=9999999999999999\n".ljust(512, b"\0") + bytes(head),
        "names": (nested.tobuf(tarfile.GNU_FORMAT) + b"abc".ljust(512, b"\0")) * 2000,
    }
    first, last = (tar_of(named({clip_id: CONTENT[clip_id]})).rstrip(b"\0") for clip_id in IDS[1:3])
    first += bytes(-len(first) % 512)
    for name, middle in odd.items():
        tar = first + middle + last
        for packing in ("", ".gz"):
            root, result = imported(
                tmp_path, f"{name}.tar{packing}", PACKINGS[packing](tar + bytes(-len(tar) % 512 + 1024))
            )
            assert came(root).items() <= CONTENT.items() and IDS[1] in came(root) and adds_up(root, result)
            assert name == "names" or name == "huge" or IDS[2] in came(root)


def test_hostile_zips_cannot_leave_or_fill_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_source, "MAX_CLIP_BYTES", 100_000)
    outside = [(f"../{IDS[0]}.mp4", b"x"), (f"/{IDS[0]}.mp4", b"x")]
    data = zip_of([*outside, *named({IDS[1]: CONTENT[IDS[1]], IDS[2]: bytes(90_000)})], 8)
    lying = data.replace(struct.pack("<I", 90_000), struct.pack("<I", 500))  # says 500 bytes, unpacks to more
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo(f"{IDS[0]}.mp4")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr(f"{IDS[1]}.mp4", CONTENT[IDS[1]])
    for name, some in {"bomb.zip": data, "lying.zip": lying, "link.zip": file.getvalue()}.items():
        root, result = imported(tmp_path, name, some)
        assert came(root) == {IDS[1]: CONTENT[IDS[1]]} and adds_up(root, result)
        assert result.skipped and (IDS[2] not in some.decode("latin-1") or reasons(root)[IDS[2]] == "corrupt")
    encrypted = bytearray(zip_of(named({IDS[0]: CONTENT[IDS[0]]})))
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(mark) + place] |= 1
    with pytest.raises(AvpipeError, match="holds no clip"):
        imported(tmp_path, "encrypted.zip", bytes(encrypted))


def test_a_full_disk_stops_the_import_with_a_sentence(tmp_path, monkeypatch):
    path, root = tmp_path / "a.tar.gz", Root(tmp_path / "root")
    path.write_bytes(gzip.compress(tar_of(named())))
    monkeypatch.setattr("avpipe.pipeline.core.disk.free_bytes", lambda folder: 10_000)
    monkeypatch.setattr("avpipe.pipeline.download.plan.free_bytes", lambda folder: 1 << 50)
    with pytest.raises(AvpipeError, match=r"stopped \(disk\): .* free some space"):
        import_clips(root, path)
    assert files(root) == {} and latest(root) == {}


# The command line


def test_the_commands_say_what_was_damaged_and_passed_by(tmp_path, avpipe):
    def run(name: str, data: bytes) -> tuple[int, dict, str]:
        (tmp_path / name).write_bytes(data)
        code, out, err = avpipe("--root", tmp_path / f"root of {name}", "import", tmp_path / name, "--json")
        return code, json.loads(out or "{}"), err

    tar = tar_of([*named(), ("x/\x1b[31mholiday.mp4", b"x")])
    code, result, err = run("a.tar", tar)
    assert (code, result["done"], result["skipped"], result["seen"]) == (0, 6, 1, 7)
    assert "holiday.mp4': no name of a clip" in err and "\x1b" not in err
    bad = bytearray(gzip.compress(tar))
    bad[-5] ^= 1
    code, result, err = run("bad.tar.gz", bytes(bad))
    assert (code, result["done"], result["failed"]) == (1, 0, {"corrupt": 6})
    assert "is cut off or damaged" in err and "avpipe: all 6 clips failed" in err
    code, result, err = run("none.tar", tar_of(named(dict.fromkeys(IDS, b"no video"))))
    assert (code, result["failed"]) == (1, {"corrupt": 6}) and f"the first, {IDS[0]}: corrupt" in err
