"""The download: from folders and addresses, every clip with its outcome, nothing fetched twice, nothing half."""

import io
import os
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from server import Answer, serve

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import file_sha256
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.download.cut import cut_clip
from avpipe.pipeline.download.plan import plan_download
from avpipe.pipeline.download.source import FolderSource, UrlSource, open_source
from avpipe.pipeline.download.stage import download
from avpipe.pipeline.manifest.tables import Clip
from avpipe.pipeline.media import MediaError

pytestmark = pytest.mark.heavy


def clip(number: int, youtube_id: str = "zpWuikVorYg") -> Clip:
    return Clip(clip_id=f"{youtube_id}_{number:06d}", youtube_id=youtube_id, start_s=number, end_s=number + 10)


def clips(count: int) -> list[Clip]:
    return [clip(number) for number in range(count)]


@cache
def mp4(seconds: float = 10, start_s: float = 0, kinds: tuple[str, ...] = ("video", "audio")) -> bytes:
    """A small file of one picture a second, the first at `start_s`, and silence."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        streams = {
            "video": container.add_stream("libx264", rate=1, options={"bf": "0"}) if "video" in kinds else None,
            "audio": container.add_stream("aac", rate=16_000, layout="mono") if "audio" in kinds else None,
        }
        for second in range(round(seconds)):
            if picture := streams["video"]:
                frame = av.VideoFrame.from_ndarray(np.full((96, 64), 16 + 20 * second, np.uint8), format="yuv420p")
                frame.pts = second + round(start_s)
                container.mux(picture.encode(frame))
            if sound := streams["audio"]:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16", layout="mono")
                frame.rate, frame.pts = 16_000, second * 16_000
                container.mux(sound.encode(frame))
        for stream in filter(None, streams.values()):
            container.mux(stream.encode(None))
    return file.getvalue()


def content(one: Clip) -> bytes:
    """A clip's file; each has its id in a box that no player looks into."""
    name = one.clip_id.encode()
    return mp4() + (8 + len(name)).to_bytes(4, "big") + b"free" + name


def path_of(one: Clip) -> str:
    return f"/{one.clip_id}.mp4"


def served(many: list[Clip]) -> dict[str, Answer]:
    return {path_of(one): Answer(body=content(one)) for one in many}


def source_of(server) -> UrlSource:
    return UrlSource(server.address + "/{clip_id}.mp4")


def latest(root: Root) -> dict[str, Outcome]:
    return Ledger(root.ledger, "download").latest()


def reasons(root: Root) -> dict[str, str | None]:
    return {clip_id: outcome.reason for clip_id, outcome in latest(root).items()}


def files(root: Root) -> dict[str, bytes]:
    """What lies below `clips`, besides the lock."""
    found = {
        str(p.relative_to(root.clips)): p for p in root.clips.rglob("*") if not p.is_dir() or p.name == ".incoming"
    }
    return {name: path.read_bytes() for name, path in found.items() if name != ".lock"}


def holds_exactly(root: Root, many: list[Clip]) -> bool:
    return files(root) == {f"{one.clip_id}.mp4": content(one) for one in many}


@pytest.fixture
def root(tmp_path) -> Root:
    return Root(tmp_path / "root")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the first three clips."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for one in clips(3):
        (folder / f"{one.clip_id}.mp4").write_bytes(content(one))
    return folder


# From a folder


def test_clips_of_a_folder_are_linked_with_hash_and_size_in_the_ledger(root, folder):
    (folder / "kept").mkdir()
    elsewhere = (folder / f"{clip(2).clip_id}.mp4").rename(folder / "kept" / "elsewhere.mp4")
    (folder / f"{clip(2).clip_id}.mp4").symlink_to(elsewhere)
    download(root, clips(3), FolderSource(folder))
    assert holds_exactly(root, clips(3))
    for one in clips(3):
        path, outcome = root.clip_file(one.clip_id), latest(root)[one.clip_id]
        assert path.samefile(folder / f"{one.clip_id}.mp4") and not path.is_symlink()
        assert (outcome.done, outcome.attempts, outcome.bytes) == (True, 1, len(content(one)))
        assert outcome.sha256 == file_sha256(path)


def test_clips_are_copied_where_no_link_can_be(root, folder, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    download(root, clips(3), FolderSource(folder))
    assert holds_exactly(root, clips(3))
    assert not root.clip_file(clips(1)[0].clip_id).samefile(folder / f"{clips(1)[0].clip_id}.mp4")


def test_what_is_no_plain_file_of_the_folder_is_never_opened(root, folder, tmp_path):
    (tmp_path / "outside.mp4").write_bytes(content(clip(4)))
    os.mkfifo(folder / f"{clip(3).clip_id}.mp4")
    for number, target in enumerate(["/dev/zero", folder / "nowhere", f"{clip(3).clip_id}.mp4"], 5):
        (folder / f"{clip(number).clip_id}.mp4").symlink_to(target)
    (folder / f"{clip(4).clip_id}.mp4").symlink_to(tmp_path / "outside.mp4")
    with open(folder / f"{clip(8).clip_id}.mp4", "wb") as huge:
        huge.truncate((1 << 30) + 1)
    source = FolderSource(folder)
    plan = download(root, clips(9), source)
    assert holds_exactly(root, clips(3)) and plan.not_offered == 6
    reasons_ = [
        *("not a regular file", "out of the folder", "not a regular file", "No such file"),
        *("not a regular file", "cannot be a clip"),
    ]
    assert len(source.skipped) == 6
    assert all(reason in text for reason, text in zip(reasons_, source.skipped, strict=True))


def test_a_folder_as_yt_dlp_leaves_it_is_taken_in(root, folder):
    for number, suffix in enumerate(["webm", "mkv", "MP4"], 3):
        (folder / f"{clip(number).clip_id}.{suffix}").write_bytes(content(clip(number)))
    for name in (f"{clip(6).clip_id}.f137.mp4", "holiday.webm", f"{clip(2).clip_id}.avi", "x.info.json"):
        (folder / name).write_bytes(b"x")
    source = FolderSource(folder)
    download(root, clips(7), source)
    assert holds_exactly(root, clips(6))
    twice = f"{clip(2).clip_id} is there already"
    assert [text.split(": ")[1] for text in source.skipped] == ["no name of a clip", twice, "no name of a clip"]


def test_clips_that_the_folder_lacks_are_left_open(root, folder):
    plan = plan_download(root, clips(5), FolderSource(folder))
    assert (plan.clips, plan.not_offered, root.path.exists()) == (clips(3), 2, False)
    plan = download(root, clips(5), FolderSource(folder))
    assert (len(plan.clips), plan.not_offered, plan.failed_before) == (3, 2, 0)
    assert set(latest(root)) == {one.clip_id for one in clips(3)}
    with serve(served(clips(5))) as server:
        download(root, clips(5), source_of(server))
        assert not set(server.asked) & {path_of(one) for one in clips(3)}
    assert holds_exactly(root, clips(5))


def test_a_second_run_fetches_only_what_was_deleted(root, folder):
    download(root, clips(3), FolderSource(folder))
    ledger_before = sorted(os.listdir(root.ledger / "download"))
    outcomes = []
    plan = download(root, clips(3), FolderSource(folder), on_outcome=outcomes.append)
    assert (plan.clips, plan.finished, outcomes) == ([], 3, [])
    assert sorted(os.listdir(root.ledger / "download")) == ledger_before
    root.clip_file(clip(1).clip_id).unlink()
    plan = download(root, clips(3), FolderSource(folder))
    assert (plan.clips, plan.finished) == ([clip(1)], 2)
    assert holds_exactly(root, clips(3))


def test_a_clip_put_there_by_hand_is_adopted_and_what_is_none_is_replaced(root, folder):
    root.clips.mkdir(parents=True)
    root.clip_file(clip(0).clip_id).write_bytes(content(clip(0)))
    root.clip_file(clip(2).clip_id).write_bytes(b"no video")
    with serve({}) as server:
        plan = download(root, [clip(0)], source_of(server))
        assert (server.asked, plan.clips, plan.finished) == ([], [], 1)
        assert latest(root)[clip(0).clip_id].sha256 == file_sha256(root.clip_file(clip(0).clip_id))
        download(root, [clip(1)], source_of(server))
        assert reasons(root) == {clip(0).clip_id: None, clip(1).clip_id: "network"}
        root.clip_file(clip(1).clip_id).write_bytes(content(clip(1)))
        download(root, [clip(1)], source_of(server))
    download(root, clips(3), FolderSource(folder))
    assert reasons(root) == {one.clip_id: None for one in clips(3)} and holds_exactly(root, clips(3))


def test_a_killed_run_keeps_what_it_had_and_leaves_nothing_half(root, folder):
    def kill(outcomes):
        if outcomes[0].clip_id == clip(1).clip_id:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(root, clips(3), FolderSource(folder), on_outcome=kill)
    assert {clip(0).clip_id, clip(1).clip_id} <= set(latest(root))
    (root.clips / ".incoming" / "0").mkdir(parents=True, exist_ok=True)
    (root.clips / ".incoming" / "0" / "half.mp4").write_bytes(b"half")
    assert download(root, clips(3), FolderSource(folder)).finished >= 2
    assert holds_exactly(root, clips(3))


def test_a_bad_file_is_a_failure_of_that_clip_only(root, folder):
    (folder / f"{clip(1).clip_id}.mp4").write_bytes(b"")
    (folder / f"{clip(2).clip_id}.mp4").write_bytes(bytes(100_000))
    (folder / f"{clip(3).clip_id}.mp4").write_bytes(b"x")
    source = FolderSource(folder)
    (folder / f"{clip(3).clip_id}.mp4").unlink()
    download(root, clips(4), source)
    expected = [None, "corrupt", "corrupt", "disk"]
    assert reasons(root) == {one.clip_id: reason for one, reason in zip(clips(4), expected, strict=True)}
    assert holds_exactly(root, clips(1))


def test_a_folder_that_another_process_fills_is_refused(root, folder):
    with stage_lock(root.clips, "the download"), pytest.raises(AvpipeError, match="another process"):
        download(root, clips(3), FolderSource(folder))
    assert files(root) == {}


# Addresses of clips


@pytest.mark.parametrize("jobs", [1, 3])
def test_clips_are_fetched_byte_for_byte(root, jobs):
    with serve(served(clips(5))) as server:
        download(root, clips(5), source_of(server), jobs=jobs)
    assert holds_exactly(root, clips(5))
    for one in clips(5):
        outcome = latest(root)[one.clip_id]
        assert (outcome.reason, outcome.bytes) == (None, len(content(one)))
        assert outcome.sha256 == file_sha256(root.clip_file(one.clip_id))


def test_outcomes_are_told_as_they_come(root):
    told, plans = [], []
    with serve(served(clips(2))) as server:
        download(root, clips(3), source_of(server), on_outcome=told.extend, on_plan=plans.append)
    expected = [(one.clip_id, reason) for one, reason in zip(clips(3), (None, None, "network"), strict=True)]
    assert [(outcome.clip_id, outcome.reason) for outcome in told] == expected
    assert [plan.clips for plan in plans] == [clips(3)]
    download(root, [clip(3)], UrlSource("http://127.0.0.1:1/{clip_id}.mp4"))  # nobody answers there
    assert reasons(root)[clip(3).clip_id] == "network"


def test_a_hostile_file_name_cannot_leave_the_folder(tmp_path, root):
    names = ("../../../evil.mp4", "/tmp/evil.mp4", "..\\..\\evil.mp4", "evil.sh", "evil.desktop", "%(id)s/../evil.mp4")
    headers = [{"Content-Disposition": f'attachment; filename="{name}"'} for name in names]
    many = list(zip(clips(len(names)), headers, strict=True))
    with serve({path_of(one): Answer(body=content(one), headers=header) for one, header in many}) as server:
        download(root, [one for one, _ in many], source_of(server))
    assert sorted(os.listdir(tmp_path)) == ["root"]
    assert sorted(os.listdir(root.path)) == ["clips", "ledger"]
    assert not Path("/tmp/evil.mp4").exists()
    done = {f"{clip_id}.mp4" for clip_id, reason in reasons(root).items() if reason is None}
    assert set(files(root)) == done


def test_a_root_of_any_name_works(tmp_path):
    with serve(served(clips(1))) as server:
        for name in ("100% sure", "%(id)s", "two words", "ünï"):
            download(Root(tmp_path / name), clips(1), source_of(server))
            assert holds_exactly(Root(tmp_path / name), clips(1))


def test_a_template_without_a_known_placeholder_is_refused():
    texts = "{} {0} {other} plain.mp4 {clip_id}/{other} {clip_id.__class__} {clip_id.x} {clip_id[0]}"
    for template in [*texts.split(), *["{clip_id:{x}}", "{", "{clip_id", "}", "{clip_id!x}", "{clip_id:d}"]]:
        with pytest.raises(AvpipeError, match=r"needs \{clip_id\}"):
            open_source("http://127.0.0.1/" + template)


def test_a_source_is_recognised_by_its_form(folder, tmp_path):
    assert isinstance(open_source(str(folder)), FolderSource)
    assert not open_source("https://example.org/{clip_id}.mp4").whole_videos
    assert open_source("https://example.org/{youtube_id}.mp4").whole_videos
    assert not open_source("https://example.org/{youtube_id}/{clip_id}.mp4").whole_videos
    assert open_source("youtube").whole_videos
    for text in (str(tmp_path / "nowhere"), "ftp://127.0.0.1/{clip_id}", "file:///etc/{clip_id}"):
        with pytest.raises(AvpipeError, match="neither 'youtube', nor a folder"):
            open_source(text)
    with pytest.raises(AvpipeError, match="holds no clip"):
        FolderSource(tmp_path)


# Whole videos

VIDEO, OTHER = "zpWuikVorYg", "-aB3_xyzXYZ"
VIDEO_S, RATE = 30, 10


def level(second: int) -> int:
    """Luma of all pixels in one second of the video."""
    return 20 + 7 * second


def write_video(path: Path) -> None:
    """Thirty seconds, each of its own grey, with a key frame only at the start: a copied cut would be wrong."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(
            "libx264", rate=RATE, options={"g": "1000", "sc_threshold": "0", "preset": "veryfast"}
        )
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        for number in range(VIDEO_S * RATE):
            planes = np.full((96, 64), 128, np.uint8)
            planes[:64] = level(number // RATE)
            container.mux(video.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
            noise = np.random.default_rng(number).integers(-3000, 3000, (1, 16_000 // RATE)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.rate, frame.pts = 16_000, number * 16_000 // RATE
            container.mux(sound.encode(frame))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))


@pytest.fixture(scope="session")
def video(once) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir()
        write_video(folder / "video.mp4")

    return once("grey_video", make) / "video.mp4"


def greys(path: Path) -> list[tuple[float, int]]:
    """Time and nearest second's number of every frame."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="gray8").mean()) for frame in container.decode(video=0)]
    # gray8 is of full range, the file of video range
    return [(time, round((16 + value * 219 / 255 - 20) / 7)) for time, value in frames]


def duration_s(path: Path) -> tuple[float, float, float]:
    """Seconds of the container, its picture and its sound."""
    with av.open(str(path)) as container:
        streams = (container.streams.video[0], container.streams.audio[0])
        return (container.duration / av.time_base, *(float(s.duration * s.time_base) for s in streams))


def test_the_clips_of_a_video_are_cut_exactly_and_the_video_is_fetched_once(root, video):
    with av.open(str(video)) as container:  # what is copied and not encoded anew would begin elsewhere
        assert sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size) == 1
    wanted = [clip(3), clip(7, OTHER), clip(15), clip(0, OTHER)]
    with serve({f"/{name}.mp4": Answer(body=video.read_bytes()) for name in (VIDEO, OTHER)}) as server:
        source = UrlSource(server.address + "/{youtube_id}.mp4")
        download(root, [clip(20)], source)
        first, requests_of_one_clip = root.clip_file(clip(20).clip_id).stat(), len(server.asked)
        server.asked.clear()
        assert download(root, [*wanted, clip(20)], source).clips == wanted
        asked = {name: server.asked.count(f"/{name}.mp4") for name in (VIDEO, OTHER)}
    assert asked == {VIDEO: requests_of_one_clip, OTHER: requests_of_one_clip}
    assert set(reasons(root).values()) == {None}
    assert root.clip_file(clip(20).clip_id).stat().st_ino == first.st_ino
    for one in wanted:
        path = root.clip_file(one.clip_id)
        shown, start = greys(path), int(one.start_s)
        assert [second for time, second in shown if time <= 5.001][-1] == start + 5
        assert [second for time, second in shown if time <= 4.95][-1] == start + 4
        assert [second for _, second in shown] == [start + number // RATE for number in range(10 * RATE)]
        assert duration_s(path) == pytest.approx((10, 10, 10), abs=0.1)
    assert set(files(root)) == {f"{one.clip_id}.mp4" for one in [*wanted, clip(20)]}


def test_what_a_video_does_not_hold_costs_its_own_clips_alone(root, video):
    noise = "noise______"
    answers = {
        f"/{VIDEO}.mp4": Answer(body=video.read_bytes()),
        f"/{noise}.mp4": Answer(body=b"no video at all " * 400),
    }
    expected = {clip(3): None, clip(30): "too_short", clip(40): "too_short", clip(15): None}
    expected |= {clip(3, OTHER): "network", clip(15, OTHER): "network", clip(3, noise): "corrupt"}
    with serve(answers) as server:
        download(root, list(expected), UrlSource(server.address + "/{youtube_id}.mp4"))
    assert reasons(root) == {one.clip_id: reason for one, reason in expected.items()}
    assert latest(root)[clip(40).clip_id].permanent
    assert set(files(root)) == {f"{one.clip_id}.mp4" for one in (clip(3), clip(15))}


@pytest.mark.parametrize("name", ["-y.mp4", "100%.mp4", "a b'c.mp4", "x:y.mp4", "%03d.mp4"])
def test_file_names_are_never_options_or_patterns_of_ffmpeg(video, tmp_path, name):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / name
    source.hardlink_to(video)
    cut_clip(source, 27, 31, tmp_path / name)  # of which the video has three seconds
    assert [second for _, second in greys(tmp_path / name)] == [27 + number // RATE for number in range(3 * RATE)]
    with pytest.raises(MediaError) as error:
        cut_clip(tmp_path / "nowhere.mp4", 0, 10, tmp_path / "out.mp4")
    assert error.value.reason == "disk"  # and no fault of the clip


def test_a_folder_with_none_of_the_clips_is_a_sentence(tmp_path):
    stranger = tmp_path / "other"
    stranger.mkdir()
    (stranger / "zzzzzzzzzzz_000000.mp4").write_bytes(b"x")
    with pytest.raises(AvpipeError, match=r"none of the 20 listed clips is in .*other; name another --from"):
        download(Root(tmp_path / "root"), clips(20), FolderSource(stranger))
