"""Re-uploads are found through noise, gain, shift and MP3, unrelated sounds are not; matching against plain loops."""

import io
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.files import atomic_write
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.inspect import duplicates
from avpipe.pipeline.inspect.duplicates import HOP_S, Fingerprints, find_duplicates, fingerprint, match

RATE_HZ = 16_000


def sound(seed: int, seconds: float = 6.0) -> np.ndarray:
    """(N,) float of full scale: chirping partials that come and go, over a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    wave = rng.normal(size=len(t)) * 0.01
    for _ in range(40):
        begin, hertz, glide = rng.uniform(0, seconds - 0.3), rng.uniform(200, 2500), rng.uniform(-300, 300)
        since = t - begin
        wave += 0.1 * (since > 0) * np.exp(-3 * since.clip(0)) * np.sin(2 * np.pi * (hertz + glide * since) * since)
    return 0.5 * wave / np.abs(wave).max()


def pcm(wave: np.ndarray) -> np.ndarray:
    return np.round(wave * 32767).astype(np.int16)


def noisy(wave: np.ndarray) -> np.ndarray:
    """20 dB of signal over noise."""
    return wave + np.random.default_rng(9).normal(size=len(wave)) * np.sqrt(np.mean(wave**2)) / 10


def through_mp3(wave: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    sf.write(file, wave, RATE_HZ, format="MP3")
    return sf.read(io.BytesIO(file.getvalue()))[0]


def clip(number: int) -> str:
    return f"video{number:06d}_000000"


def pairs(*waves: np.ndarray) -> list[tuple]:
    prints = Fingerprints.join({clip(i): fingerprint(pcm(wave)) for i, wave in enumerate(waves)})
    return [(found.clip_a, found.clip_b, found.offset_s) for found in match(prints)]


def test_words_follow_the_definition_of_the_paper():
    wave = sound(0, 1.0)[: 3 * 5332]
    low = np.fft.irfft(np.fft.rfft(wave)[: 5332 // 2 + 1], 5332) / 3
    edges = np.round(np.geomspace(300, 2000, 34) * 2048 / (RATE_HZ / 3)).astype(int)
    energies = []
    for begin in range(0, len(low) - 2048 + 1, 62):
        power = np.abs(np.fft.rfft(low[begin : begin + 2048] * np.hanning(2048))) ** 2
        energies.append([power[first:last].sum() for first, last in pairwise(edges)])
    expected = []
    for before, now in pairwise(energies):
        signs = [now[m] - now[m + 1] > before[m] - before[m + 1] for m in range(32)]
        expected.append(int("".join("01"[int(sign)] for sign in signs), 2))
    words = fingerprint(pcm(wave))
    assert len(words) == len(expected)
    assert np.bitwise_count(words ^ np.array(expected, np.uint32)).sum() <= 2  # float32 against float64


CHANGES = {"none": np.copy, "noise": noisy, "gain": lambda wave: wave * 0.5, "MP3": through_mp3}


@pytest.mark.parametrize(("change", "shift_s"), [*((name, 1.3) for name in CHANGES), ("noise", 0.0)])
def test_a_changed_copy_is_found_at_its_offset(change, shift_s):
    whole = sound(1)
    begin = RATE_HZ + int(shift_s * RATE_HZ)
    first, second = whole[RATE_HZ : 4 * RATE_HZ], CHANGES[change](whole[begin : begin + 3 * RATE_HZ])
    ((_, _, offset_s),), ((_, _, back_s),) = pairs(first, second), pairs(second, first)
    assert abs(offset_s - shift_s) < 1.5 * HOP_S and abs(back_s + shift_s) < 1.5 * HOP_S


def test_unrelated_sounds_are_far_from_the_threshold():
    prints = Fingerprints.join({clip(i): fingerprint(pcm(sound(i, 3.0))) for i in range(12)})
    assert match(prints) == []
    words = np.stack(np.split(prints.words, 12))
    rates = [np.bitwise_count(words[a] ^ words[b]).mean() / 32 for a in range(12) for b in range(a)]
    assert min(rates) > duplicates.MOST_BIT_ERRORS + 0.1


def test_clips_of_one_video_are_no_duplicates():
    words = fingerprint(pcm(sound(1)))
    assert match(Fingerprints.join({"sameVideo01_000000": words, "sameVideo01_000003": words})) == []
    assert [(d.clip_a, d.clip_b) for d in match(Fingerprints.join({"200": words, "100": words}))] == [("100", "200")]


def test_shared_silence_and_hum_are_no_match():
    quiet = np.concatenate([sound(1, 1.5), np.zeros(3 * RATE_HZ)])
    other = np.concatenate([sound(2, 1.5), np.zeros(3 * RATE_HZ)])
    assert pairs(quiet, other) == []
    assert not fingerprint(np.zeros(3 * RATE_HZ, np.int16)).any()
    assert len(fingerprint(np.zeros(100, np.int16))) == 0
    hum = np.full(duplicates.MOST_PLACES, 77, np.uint32)
    assert match(Fingerprints.join({clip(0): hum, clip(1): hum})) == []
    assert match(Fingerprints.join({})) == []


def plain_match(by_clip: dict[str, np.ndarray]) -> dict[tuple, tuple]:
    """{(a, b): (bit error rate, overlap, offset)}, by loops over all clips and offsets."""
    found = {}
    for a in sorted(by_clip):
        for b in (b for b in by_clip if b > a and b[:11] != a[:11]):
            for offset in range(-len(by_clip[b]) + 1, len(by_clip[a])):
                size = min(len(by_clip[a]) - max(offset, 0), len(by_clip[b]) - max(-offset, 0))
                one, other = by_clip[a][max(offset, 0) :][:size], by_clip[b][max(-offset, 0) :][:size]
                heard = (one != 0) & (other != 0)
                if (one == other)[heard].sum() >= 2 and heard.sum() * HOP_S >= 1:
                    rate = np.bitwise_count(one ^ other)[heard].mean() / 32
                    if rate <= 0.25:
                        found[a, b] = min(found.get((a, b), (1,)), (rate, -heard.sum(), offset))
    return found


@pytest.mark.parametrize("block", [1, 50, duplicates.BLOCK])
def test_matching_agrees_with_plain_loops_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(duplicates, "BLOCK", block)
    rng = np.random.default_rng(4)
    by_clip = {clip(i): rng.integers(1, 2**32, rng.integers(90, 160), dtype=np.uint32) for i in range(12)}
    for target, source in ((3, 7), (1, 2), (9, 2), (10, 0)):
        copy = by_clip[clip(source)][rng.integers(0, 20) :].copy()
        copy[rng.random(len(copy)) < 0.3] ^= np.uint32(0x00F0F00F)
        copy[rng.random(len(copy)) < 0.1] = 0
        by_clip[clip(target)] = np.concatenate([by_clip[clip(target)][:15], copy])
    expected = plain_match(by_clip)
    found = {
        (d.clip_a, d.clip_b): (d.bit_error_rate, d.overlap_s, d.offset_s) for d in match(Fingerprints.join(by_clip))
    }
    assert list(found) == sorted(expected)
    assert len(expected) >= 4
    for pair, (rate, compared, offset) in expected.items():
        assert found[pair] == pytest.approx((rate, -compared * HOP_S, offset * HOP_S), abs=1e-3)


def test_planted_pairs_among_twenty_thousand_clips_are_found_and_nothing_else():
    rng = np.random.default_rng(5)
    words = rng.integers(1, 2**32, (20_000, 225), dtype=np.uint32)
    planted = [(2 * i, 2 * i + 1, i % 100) for i in range(50)]
    for a, b, offset in planted:
        words[b, : 225 - offset] = words[a, offset:]
        words[b, ::2] ^= 5
    prints = Fingerprints([clip(i) for i in range(20_000)], words.reshape(-1), np.arange(20_001) * 225)
    found = [(d.clip_a, d.clip_b, round(d.offset_s / HOP_S)) for d in match(prints)]
    assert found == [(clip(a), clip(b), offset) for a, b, offset in planted]


def test_a_cache_is_read_and_silent_clips_are_left_out(tmp_path, serial):
    whole = sound(1)
    waves = [whole[: 3 * RATE_HZ], sound(2, 3.0), np.zeros(3 * RATE_HZ), whole[RATE_HZ : 4 * RATE_HZ] * 0.7]
    with atomic_write(tmp_path / "part-000000-a.tar") as temporary, samples.TarWriter(temporary) as writer:
        for number, wave in enumerate(waves):
            writer.add(clip(number), {samples.AUDIO: samples.encode_flac(pcm(wave), RATE_HZ)})
    schema = samples.index_schema([samples.AUDIO], [pa.field("source_sha256", pa.string())])
    rows = [row | {"source_sha256": ""} for row in writer.rows]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "part-000000-a.parquet")
    report = find_duplicates(Cache(tmp_path), workers=1)
    assert (report["clips"], report["silent"]) == (4, 1)
    (pair,) = report["duplicates"]
    assert (pair["clip_a"], pair["clip_b"]) == (clip(0), clip(3))
    assert pair["offset_s"] == pytest.approx(1.0, abs=HOP_S)
    assert pair["bit_error_rate"] < 0.1
    assert pair["overlap_s"] == pytest.approx(1.6, abs=0.05)
