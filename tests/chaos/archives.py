"""Damages archives of clips at random places, imports them, and compares what comes out with what went in.

    python tests/chaos/archives.py --rounds 100 --seed 0

Every kind of archive is damaged so often: bits flipped, zeros in place of bytes, bytes put in or left out, the end cut
off. Ends with 1 when a wrong byte came in that the archive's checksums could have told, when a clip that no damage
touched did not come out, when the counts do not add up, or at a traceback.
"""

import argparse
import bz2
import gzip
import io
import lzma
import random
import sys
import tarfile
import tempfile
import traceback
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test_download import mp4

from avpipe.pipeline.archives.packed import zstd
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import Ledger
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.exchange.import_clips import import_clips

CLIPS = 40
FOLDER = "scratch/shared/beegfs/hchen/train_data/VGGSound_final/video"
Span = tuple[int, int]


@dataclass(kw_only=True)
class Archive:
    """An archive as it was made."""

    suffix: str
    data: bytes
    touched: dict[str, Span]
    """Bytes of the file on which each clip depends: damage elsewhere must not cost it."""
    inside: dict[str, Span]
    """Bytes whose damage nothing but a look at the video can tell: a clip's data in a plain tar."""


def made_clips(seed: int, count: int = CLIPS) -> dict[str, bytes]:
    """Small videos of different sizes, each with random bytes behind that no player looks at, under mirrors' names."""
    rng = random.Random(seed)
    clips = {}
    for number in range(count):
        filling = rng.randbytes(rng.randrange(100, 60_000))
        box = (8 + len(filling)).to_bytes(4, "big") + b"free" + filling
        suffix = "webm" if number % 7 == 3 else "mp4"
        clips[f"{rng.randbytes(8).hex()[:11]}_{number * 10:06d}.{suffix}"] = mp4() + box
    return clips


def tar_of(clips: dict[str, bytes]) -> tuple[bytes, dict[str, Span], dict[str, Span]]:
    """A tar, and where in it each clip has its header and data, and its data alone."""
    file, touched, inside = io.BytesIO(), {}, {}
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in clips.items():
            info = tarfile.TarInfo(f"{FOLDER}/{name}")
            info.size, begin = len(content), tar.offset
            tar.addfile(info, io.BytesIO(content))
            data = tar.offset - len(content) - (-len(content) % 512)
            touched[clip_id(name)] = begin, tar.offset
            inside[clip_id(name)] = data, data + len(content)
    return file.getvalue(), touched, inside


def clip_id(name: str) -> str:
    return name.split(".")[0]


def in_units(tar: bytes, spans: dict[str, Span], pack, size: int) -> tuple[bytes, dict[str, Span]]:
    """The tar packed in units of so many bytes each, and the units' bytes on which each clip depends."""
    units, places = [pack(tar[start : start + size]) for start in range(0, len(tar), size)], [0]
    for unit in units:
        places.append(places[-1] + len(unit))
    depends = {name: (places[a // size], places[(b - 1) // size + 1]) for name, (a, b) in spans.items()}
    return b"".join(units), depends


def zip_of(clips: dict[str, bytes], method: int) -> tuple[bytes, dict[str, Span]]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in clips.items():
            archive.writestr(f"{FOLDER}/{name}", content)
        starts = [info.header_offset for info in archive.infolist()] + [archive.start_dir]
    return file.getvalue(), {clip_id(n): (starts[k], starts[k + 1]) for k, n in enumerate(clips)}


def archives(clips: dict[str, bytes]) -> list[Archive]:
    """The clips in archives of every kind."""
    tar, touched, inside = tar_of(clips)
    half = dict(list(clips.items())[: len(clips) // 2]), dict(list(clips.items())[len(clips) // 2 :])
    first, second = map(tar_of, half)
    behind, inside_behind = (
        {name: (a + len(first[0]), b + len(first[0])) for name, (a, b) in spans.items()} for spans in second[1:]
    )
    found = [Archive(suffix="tar", data=tar, touched=touched, inside=inside)]
    both = {"touched": first[1] | behind, "inside": first[2] | inside_behind}
    found.append(Archive(suffix="cat.tar", data=first[0] + second[0], **both))
    packings = {"gz": lambda data: gzip.compress(data, 6), "bz2": bz2.compress, "xz": lzma.compress}
    packings["zst"] = lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})
    for suffix, pack in packings.items():
        for name, size in ((f"tar.{suffix}", len(tar)), (f"units.tar.{suffix}", 100_000)):
            data, depends = in_units(tar, touched, pack, size)
            found.append(Archive(suffix=name, data=data, touched=depends, inside={}))
    for name, method in (("zip", zipfile.ZIP_STORED), ("deflated.zip", zipfile.ZIP_DEFLATED)):
        data, depends = zip_of(clips, method)
        found.append(Archive(suffix=name, data=data, touched=depends, inside={}))
    return found


KINDS = ("flip", "zeros", "noise", "insert", "remove", "cut", "zero tail")


def damage(data: bytes, kind: str, rng: random.Random) -> tuple[bytes, Span]:
    """The damaged bytes, and which of the given bytes were touched."""
    place = rng.randrange(len(data))
    length = min(rng.choice((1, 30, 512, 1000, 20_000)), len(data) - place)
    before, behind, end = data[:place], data[place + length :], (place, place + length)
    if kind == "flip":
        return before + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :], (place, place + 1)
    if kind == "zeros":
        return before + bytes(length) + behind, end
    if kind == "noise":
        return before + rng.randbytes(length) + behind, end
    if kind == "insert":
        return before + rng.randbytes(length) + data[place:], (place, place + 1)
    if kind == "remove":
        return before + behind, end
    return before + (bytes(len(data) - place) if kind == "zero tail" else b""), (place, len(data))


def try_one(archive: Archive, clips: dict[str, bytes], kind: str, rng: random.Random, folder: Path) -> Counter:
    """Damage the archive once, import it, and count; keys that begin with `!` must not be there."""
    data, (begin, end) = damage(archive.data, kind, rng)
    path, root = folder / f"damaged.{archive.suffix}", Root(folder / "root")
    path.write_bytes(data)
    counts = Counter(rounds=1)
    try:
        result = import_clips(root, path)
    except AvpipeError as error:
        counts["sentences"] += 1
        counts["! nothing was read"] += any(b <= begin or a >= end for a, b in archive.touched.values())
        if not str(error):
            counts["! empty sentence"] += 1
    except Exception:
        traceback.print_exc()
        counts["! traceback"] += 1
    else:
        rows = Ledger(root.ledger, "download").latest()
        done, failed = sum(o.done for o in rows.values()), sum(not o.done for o in rows.values())
        counts["! counts"] += result.seen != done + failed + len(result.skipped)
        counts["said"] += bool(result.damage)
        counts["failed rows"] += failed
        counts["! silent"] += data != archive.data and done < len(clips) and not (result.damage or failed)
    came = {path.stem: path.read_bytes() for path in root.clips.glob("*.mp4")}
    counts["clips that came"] += len(came)
    counts["! leftovers"] += (root.clips / ".incoming").exists()
    for name, content in clips.items():
        key = clip_id(name)
        a, b = archive.touched[key]
        untouched = b <= begin or a >= end
        if key not in came:
            # Bytes put in or left out before a header look the same as if they were missing before it.
            before = untouched and kind in ("insert", "remove", "noise", "zeros") and 0 <= begin - b < 512
            counts["neighbours lost" if before else "! lost behind the damage" if untouched else "touched"] += 1
        elif came[key] != content:
            a, b = archive.inside.get(key, (0, 0))
            in_place = kind not in ("insert", "remove", "cut") and begin < b and end > a
            counts["wrong, untold by a plain tar" if in_place else "! wrong bytes"] += 1
    return counts


def run(rounds: int, seed: int, suffixes: set[str] | None = None, clips: int = CLIPS) -> dict[str, Counter]:
    """Counts by kind of archive."""
    made, totals = made_clips(seed, clips), {}
    for archive in archives(made):
        if suffixes and archive.suffix not in suffixes:
            continue
        rng, total = random.Random(f"{seed} {archive.suffix}"), Counter()
        for number in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                counts = try_one(archive, made, KINDS[number % len(KINDS)], rng, Path(folder))
            for key in (key for key, count in counts.items() if key.startswith("!") and count):
                print(f"{archive.suffix}, round {number} ({KINDS[number % len(KINDS)]}): {key} {counts[key]}")
            total += counts
        totals[archive.suffix] = total
    return totals


def main() -> int:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    totals = run(arguments.rounds, arguments.seed, set(arguments.only or ()))
    for suffix, total in totals.items():
        print(f"{suffix}: " + ", ".join(f"{key} {count:,}" for key, count in sorted(total.items())))
    return int(any(key.startswith("!") and count for total in totals.values() for key, count in total.items()))


if __name__ == "__main__":
    sys.exit(main())
