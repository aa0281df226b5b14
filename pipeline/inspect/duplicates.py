"""Finds recordings that are in the corpus under two ids (re-uploads) by their audio fingerprints.

The scheme is that of Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System", ISMIR 2002: every 11.6 ms a
32-bit word, each bit the sign of a difference of band energies in time and frequency. Two clips are candidates if they
share exact words at one time offset, and duplicates if few bits differ over the overlap.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import video_of
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.features.audio_window import SILENT_RMS
from avpipe.pipeline.work.base import announced, chunks
from avpipe.pipeline.work.run import FailedItem, run_parts

SAMPLE_RATE_HZ = 16_000
# The bands end at 2 kHz, so a third of the rate keeps them and makes the transforms three times shorter.
DECIMATION = 3
# At 5,333 Hz: 0.384 s and 11.6 ms; the paper has 0.37 s and 11.6 ms. The long window forgives a shift of half a hop.
WINDOW, HOP = 2048, 62
HOP_S = HOP * DECIMATION / SAMPLE_RATE_HZ
# 33 bands, equal on a logarithmic scale, as in the paper.
BAND_EDGES_HZ = np.geomspace(300, 2000, 34)
# The word of a window that the extraction, too, would call silent.
VOID = 0
# A word that stands in more places (steady hum, test tones) tells no recordings apart, and pairs grow as its square.
MOST_PLACES = 64
# Words that two clips must share at one offset before their bits are compared; chance seldom gives two.
LEAST_SHARED = 2
# Seconds of words that are compared at least.
LEAST_OVERLAP_S = 1.0
# Part of the bits that may differ. The paper allows 0.35 over 3 s; here a second must do. Twelve real clips, each
# against the others at every offset with a second of overlap (57,079 comparisons): 0.43 at least. MP3 copies: 0.14.
MOST_BIT_ERRORS = 0.25
# Entries worked on at a time: each takes up to 100 bytes in temporary arrays, so about 400 MB.
BLOCK = 4_000_000
CLIPS_PER_PART = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicate:
    """Two clips of different videos that hold the same recording."""

    clip_a: str
    clip_b: str
    offset_s: float
    """Seconds into clip_a at which clip_b begins; negative where clip_b began earlier. Known to half a hop, 6 ms."""
    bit_error_rate: float
    """Part of the compared bits that differ: 0 for equal, about 0.5 for unrelated recordings."""
    overlap_s: float
    """Seconds that were compared: in both clips and not silent."""


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Words of all clips, one clip after the other in the order of their ids."""

    clip_ids: list[str]
    words: np.ndarray
    """(N,) uint32."""
    starts: np.ndarray
    """(clips + 1,) int64: clip i has the words from starts[i] to starts[i + 1]."""

    @classmethod
    def join(cls, by_clip: dict[str, np.ndarray]) -> "Fingerprints":
        """From the words of each clip."""
        clip_ids = sorted(by_clip)
        lengths = [len(by_clip[clip_id]) for clip_id in clip_ids]
        words = np.concatenate([np.empty(0, np.uint32), *(by_clip[clip_id] for clip_id in clip_ids)])
        return cls(clip_ids, words, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def find_duplicates(cache: Cache, workers: int) -> dict:
    """Compare all extracted clips; plain values for JSON: clips, silent (left out), duplicates (list of dicts)."""
    prints, silent = read_fingerprints(cache, workers)
    duplicates = [asdict(duplicate) for duplicate in match(prints)]
    return {"clips": len(prints.clip_ids) + silent, "silent": silent, "duplicates": duplicates}


def read_fingerprints(cache: Cache, workers: int) -> tuple[Fingerprints, int]:
    """Fingerprints of the clips in the cache, and how many were left out for lack of a second of sound.

    Raises AvpipeError when nothing is extracted, or for damaged audio.
    """
    rows = cache.table.sort_by([("part", "ascending"), (f"{samples.AUDIO}.offset", "ascending")]).to_pylist()
    by_clip: dict[str, np.ndarray] = {}
    tasks = [[(cache.folder, row) for row in part] for part in chunks(rows, CLIPS_PER_PART)]
    for result in run_parts(fingerprint_part, tasks, workers):
        if isinstance(result, FailedItem):
            raise AvpipeError(f"{result.item[1]['clip_id']}: its audio could not be read: {result.detail}")
        by_clip.update(result)
    return Fingerprints.join(by_clip), len(rows) - len(by_clip)


def fingerprint_part(tasks: list[tuple[Path, dict]]) -> dict[str, np.ndarray]:
    """Run in a worker: the words of each of these cache rows that has a second of sound."""
    rows = [row for _, row in tasks]
    members = [name.removesuffix(".offset") for name in rows[0] if name.endswith(".offset")]  # all: the hash wants them
    found = {}
    for row, sample in announced(zip(rows, Cache(tasks[0][0]).read(rows, members), strict=True)):
        words = fingerprint(samples.decode_flac(sample[samples.AUDIO]))
        if np.count_nonzero(words != VOID) * HOP_S >= LEAST_OVERLAP_S:
            found[row["clip_id"]] = words
    return found


def _band_bins() -> np.ndarray:
    """(34,) the bin of a WINDOW-long transform at which each band begins; the last one ends."""
    return np.round(BAND_EDGES_HZ * WINDOW * DECIMATION / SAMPLE_RATE_HZ).astype(int)


def fingerprint(pcm_i16: np.ndarray) -> np.ndarray:
    """(N,) int16 at 16 kHz to (words,) uint32, one every HOP_S seconds; VOID where there is silence.

    Bit m of word n is 1 where E(n, m) - E(n, m+1) exceeds E(n-1, m) - E(n-1, m+1), E being the energy of band m.
    """
    whole = len(pcm_i16) // (2 * DECIMATION) * 2
    if whole < WINDOW + HOP:
        return np.empty(0, np.uint32)
    spectrum = np.fft.rfft(pcm_i16[: whole * DECIMATION].astype(np.float32) / 32768)
    low = np.fft.irfft(spectrum[: whole // 2 + 1], whole) / DECIMATION
    frames_TW = np.lib.stride_tricks.sliding_window_view(low, WINDOW)[::HOP]
    bins = _band_bins()
    spectra_TF = np.fft.rfft(frames_TW * np.hanning(WINDOW).astype(np.float32))[:, bins[0] : bins[-1]]
    power_TF = np.square(spectra_TF.real) + np.square(spectra_TF.imag)
    energy_TB = np.add.reduceat(power_TF, bins[:-1] - bins[0], axis=1)
    slope_TB = energy_TB[:, :-1] - energy_TB[:, 1:]
    bits_T32 = np.diff(slope_TB, axis=0) > 0
    words = np.packbits(bits_T32, axis=1).view(">u4")[:, 0].astype(np.uint32)
    silent = np.square(frames_TW[1:]).mean(axis=1) < SILENT_RMS**2
    words[silent] = VOID
    return words


def match(prints: Fingerprints) -> list[Duplicate]:
    """All pairs of clips of different videos that hold the same recording, sorted by their ids.

    Memory: 20 bytes a word beside the words (0.9 GB for 200,000 clips of 3 s), and about 400 MB for the block at work.
    """
    videos = [video_of(clip_id) for clip_id in prints.clip_ids]
    video_numbers = np.unique(videos, return_inverse=True)[1].astype(np.int32)
    best: dict[tuple[int, int], tuple] = {}
    for a, b, offset in _candidates(prints, video_numbers):
        errors, compared = _compare(prints, a, b, offset)
        kept = (compared * HOP_S >= LEAST_OVERLAP_S) & (errors <= MOST_BIT_ERRORS * 32 * compared)
        facts = (a[kept], b[kept], errors[kept] / (32 * compared[kept]), -compared[kept], offset[kept])
        for one, other, *rank in zip(*(column.tolist() for column in facts), strict=True):
            pair = (one, other)
            best[pair] = min(best.get(pair, tuple(rank)), tuple(rank))
    return [
        Duplicate(
            clip_a=prints.clip_ids[a],
            clip_b=prints.clip_ids[b],
            offset_s=round(offset * HOP_S, 3),
            bit_error_rate=round(rate, 4),
            overlap_s=round(-compared * HOP_S, 3),
        )
        for (a, b), (rate, compared, offset) in sorted(best.items())
    ]


def _shared_words(prints: Fingerprints) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places whose word stands in other places too, but in no more than MOST_PLACES.

    Returns (places (n,) sorted by word, then place; row (m,) of a place, in the order of places; later (m,), how many
    places after that row have the same word), all int64; rows that have none after them are left out.
    """
    keys = prints.words.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    words = (keys >> np.uint64(32)).astype(np.uint32)
    like_next = np.zeros(len(words), bool)
    like_next[:-1] = words[1:] == words[:-1]
    repeated = like_next | np.roll(like_next, 1)  # the last is never like its next, so the first takes no harm
    keys, words = keys[repeated], words[repeated]  # most words stand in one place only: what is left is small
    _, first, sizes = np.unique(words, return_index=True, return_counts=True)
    usable = (sizes <= MOST_PLACES) & (words[first] != VOID)
    first, sizes = first[usable], sizes[usable]
    places = (keys[_ranges(first, sizes)] & np.uint64(2**32 - 1)).astype(np.int64)
    ends = np.repeat(np.cumsum(sizes), sizes)
    later = ends - np.arange(len(places)) - 1
    row = np.flatnonzero(later)
    row = row[np.argsort(places[row])]
    return places, row, later[row]


def _ranges(first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers first[i], first[i] + 1, … of which there are sizes[i], for all i in a row."""
    return np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def _candidates(prints: Fingerprints, video_of: np.ndarray):
    """Yield blocks of (clip a, clip b, offset in hops): those that share enough words; every a is in one block only."""
    places, row, later = _shared_words(prints)
    clip_of_row = np.searchsorted(prints.starts, places[row], "right") - 1
    span = 2 * int(np.diff(prints.starts).max(initial=0)) + 1
    before = np.cumsum(later) - later
    begin = 0
    while begin < len(row):
        end = int(np.searchsorted(before, before[begin] + BLOCK))
        if end < len(row):  # cut between clips, and never before the first one
            cut = int(np.searchsorted(clip_of_row, clip_of_row[end]))
            end = cut if cut > begin else int(np.searchsorted(clip_of_row, clip_of_row[end], "right"))
        block = slice(begin, end)
        a = np.repeat(clip_of_row[block], later[block])
        place_a = np.repeat(places[row[block]], later[block])
        place_b = places[_ranges(row[block] + 1, later[block])]
        b = np.searchsorted(prints.starts, place_b, "right") - 1
        apart = video_of[a] != video_of[b]
        offset = (place_a - prints.starts[a]) - (place_b - prints.starts[b])
        key = ((a * len(video_of) + b) * span + offset + span // 2)[apart]
        key, shared = np.unique(key, return_counts=True)
        pair, offset = np.divmod(key[shared >= LEAST_SHARED], span)
        yield *np.divmod(pair, len(video_of)), offset - span // 2
        begin = end


def _compare(prints: Fingerprints, a: np.ndarray, b: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(differing bits, compared words) of each candidate; words that are VOID in either clip do not count."""
    lengths = np.diff(prints.starts)
    first = np.maximum(offset, 0)  # in clip a
    sizes = np.minimum(lengths[a], lengths[b] + offset) - first
    errors, compared = np.zeros(len(a), np.int64), np.zeros(len(a), np.int64)
    step = max(1, BLOCK // max(1, int(lengths.max(initial=1))))
    for begin in range(0, len(a), step):
        part = slice(begin, begin + step)
        of_a = prints.words[_ranges((prints.starts[a] + first)[part], sizes[part])]
        of_b = prints.words[_ranges((prints.starts[b] + first - offset)[part], sizes[part])]
        counts = (of_a != VOID) & (of_b != VOID)
        heads = np.cumsum(sizes[part]) - sizes[part]
        errors[part] = np.add.reduceat(np.where(counts, np.bitwise_count(of_a ^ of_b), 0), heads, dtype=np.int64)
        compared[part] = np.add.reduceat(counts, heads, dtype=np.int64)
    return errors, compared
