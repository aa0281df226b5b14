"""The download against a hostile server: every fault has its reason, and nothing is asked for that cannot be won."""

import json
import os
import threading
from collections import Counter
from itertools import pairwise

import pytest
from server import Answer, serve
from test_download import clip, clips, content, holds_exactly, latest, mp4, path_of, reasons, served, source_of

import avpipe.pipeline.core.disk
import avpipe.pipeline.download.youtube
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.download.pacing import NO_PACE, PAUSE_S, YOUTUBE_PACE, Breaker, Clock, Pacer, StoppedError
from avpipe.pipeline.download.plan import plan_download
from avpipe.pipeline.download.source import UrlSource, open_source
from avpipe.pipeline.download.stage import download

pytestmark = pytest.mark.heavy

GOOD = mp4()
PAGE = b"<!DOCTYPE html><html><title>Welcome to our hotel</title><body>Room number?</body></html>"
HTML = {"Content-Type": "text/html"}
UNKNOWN_LENGTH = {"Content-Length": None}
PAGE_ANSWER = Answer(body=PAGE, headers=HTML)
RESET = Answer(body=GOOD, sends=1000, then="reset")
# fault → (answers, reason of the outcome, GET requests of one run). A good clip takes two: a look, and the download.
FAULTS = {
    "good": (Answer(body=GOOD), None, 2),
    "length unknown": (Answer(body=GOOD, headers=UNKNOWN_LENGTH), None, 2),
    "slow": (Answer(body=GOOD, delay_s=0.1), None, 2),
    "longer than the clip": (Answer(body=mp4(12)), None, 2),
    "half the clip": (Answer(body=mp4(5)), None, 2),
    "two bodies break off": ([Answer(body=GOOD, sends=1000)] * 3 + [Answer(body=GOOD)], None, 4),
    "two resets": ([Answer(body=GOOD), *[RESET] * 2, Answer(body=GOOD)], None, 4),
    "a stall": ([Answer(body=GOOD), Answer(body=GOOD, sends=1000, then="stall"), Answer(body=GOOD)], None, 3),
    "an error on the way": ([Answer(body=GOOD), Answer(status=503), Answer(body=GOOD)], None, 3),
    "not found": (Answer(status=404), "network", 1),
    "gone": (Answer(status=410), "network", 1),
    "gone after the look": ([Answer(body=GOOD), Answer(status=410)], "network", 2),
    "forbidden": (Answer(status=403), "network", 1),
    "forbidden after the look": ([Answer(body=GOOD), Answer(status=403)], "network", 2),
    "server error": (Answer(status=500), "network", 1),
    "unavailable": (Answer(status=503), "network", 1),
    "bad gateway": (Answer(status=502), "network", 1),
    "breaks off always": (Answer(body=GOOD, sends=50), "network", 5),
    "resets always": (Answer(body=GOOD, sends=0, then="reset"), "network", 5),
    "stalls always": (Answer(body=GOOD, sends=50, then="stall"), "network", 5),
    "nothing comes": (Answer(body=b"", withheld=5000), "network", 5),
    "cut off unseen": (Answer(body=GOOD[:-500], headers=UNKNOWN_LENGTH), "network", 2),
    "cut off in the index": (Answer(body=GOOD[:40], headers=UNKNOWN_LENGTH), "network", 2),
    "web page": (PAGE_ANSWER, "setup", 1),
    "web page called a video": (Answer(body=PAGE), "setup", 2),
    "no media": (Answer(body=b"no video at all " * 400), "corrupt", 2),
    "a list of other files": (Answer(body=b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n"), "corrupt", 2),
    "begins late, but before its centre": (Answer(body=mp4(10, 3)), None, 2),
    "too short": (Answer(body=mp4(2)), "too_short", 2),
    "silent film": (Answer(body=mp4(10, 0, ("video",))), "no_audio", 2),
    "sound alone": (Answer(body=mp4(10, 0, ("audio",))), "no_video", 2),
}
RETRYABLE = {"network", "setup"}


class FakeClock(Clock):
    """Waits in no time, and remembers for how long."""

    def __init__(self):
        self.time_s, self.waited = 0.0, []

    def now(self) -> float:
        return self.time_s

    def wait(self, stop, seconds) -> None:
        self.waited.append(seconds)
        self.time_s += seconds


@pytest.fixture
def root(tmp_path) -> Root:
    return Root(tmp_path / "root")


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch):
    monkeypatch.setattr(avpipe.pipeline.download.youtube, "SOCKET_TIMEOUT_S", 0.8)


@pytest.mark.heavy
def test_the_outcomes_are_the_script_of_faults_and_only_what_can_be_won_is_asked_for_again(root):
    wanted = clips(len(FAULTS))
    script = list(zip(wanted, FAULTS.values(), strict=True))
    expected = {one.clip_id: reason for one, (_, reason, _) in script}
    with serve({path_of(one): list(a) if isinstance(a, list) else a for one, (a, _, _) in script}) as server:
        download(root, wanted, source_of(server), jobs=3)
        assert reasons(root) == expected
        assert Counter(server.asked) == {path_of(one): requests for one, (_, _, requests) in script}
        assert {path.stem for path in root.clips.glob("*.mp4")} == {c for c, reason in expected.items() if not reason}
        assert all(outcome.detail for outcome in latest(root).values() if not outcome.done)

        server.asked.clear()
        plan = download(root, wanted, source_of(server))
        assert (server.asked, len(plan)) == ([], 0)

        server.answers.update(served(wanted))
        download(root, wanted, source_of(server), retry=True)
        won = {clip_id for clip_id, reason in expected.items() if reason in RETRYABLE}
        assert Counter(server.asked) == {f"/{clip_id}.mp4": 2 for clip_id in won}
        assert reasons(root) == {clip_id: None if clip_id in won else reason for clip_id, reason in expected.items()}
        assert {latest(root)[clip_id].attempts for clip_id in won} == {2}


# Pauses


def limited(retry_after: str | None = None, **others) -> Answer:
    return Answer(status=429, headers={"Retry-After": retry_after} if retry_after else {}, **others)


@pytest.mark.parametrize(
    ("retry_after", "pause_s"),
    [("120", 120), ("0", 1), (None, PAUSE_S), ("soon", PAUSE_S), ("-5", PAUSE_S), ("9" * 12, 86_400)],
)
def test_a_session_limit_pauses_the_run_and_costs_no_clip(root, retry_after, pause_s):
    clock, notes = FakeClock(), []
    good = Answer(body=content(clip(1)))
    script = served(clips(3)) | {path_of(clip(1)): [limited(retry_after), good]}
    with serve(script) as server:
        download(root, clips(3), source_of(server), clock=clock, on_note=notes.append)
        assert [path for path in server.asked if path == path_of(clip(1))] == [path_of(clip(1))] * 3
    assert holds_exactly(root, clips(3))
    assert latest(root)[clip(1).clip_id].attempts == 1
    assert sum(clock.waited) == pytest.approx(pause_s)
    assert len(notes) == len(clock.waited) and "429" in notes[0] and "paused for" in notes[0]


@pytest.mark.parametrize("between", [[], [limited("60")]], ids=["broken", "paused"])
def test_half_a_video_is_kept_over_a_break_and_a_pause(root, between):
    broken = Answer(body=GOOD, sends=1500)
    script = [Answer(body=GOOD), broken, *(between or [broken]), Answer(body=GOOD)]
    with serve({path_of(clip(0)): script}) as server:
        download(root, clips(1), source_of(server), clock=FakeClock())
        # yt-dlp keeps whole blocks of a connection that broke
        assert set(server.ranges) == ({1024} if between else {1024, 2048})
    assert root.clip_file(clip(0).clip_id).read_bytes() == GOOD


@pytest.mark.parametrize("jobs", [1, 3])
def test_after_two_pauses_in_vain_the_run_stops_and_no_clip_has_failed(root, jobs):
    clock = FakeClock()
    script = served(clips(2)) | {path_of(one): limited() for one in clips(9)[2:]}
    with serve(script) as server:
        with pytest.raises(AvpipeError, match=r"2 pauses in a row did not help \(rate_limited: .*429.*same command"):
            download(root, clips(9), source_of(server), jobs=jobs, clock=clock)
        if jobs == 1:
            assert Counter(server.asked)[path_of(clip(2))] == 3
            assert sum(clock.waited) == 2 * PAUSE_S
        assert not set(server.asked) & {path_of(one) for one in clips(9)[5:]}
        fetched = {one.clip_id: None for one in clips(2)}
        # Of several threads one may be in the middle of a good clip when the run stops: that is no failure of the clip.
        assert reasons(root) == fetched if jobs == 1 else reasons(root).items() <= fetched.items()
        server.answers.update(served(clips(9)))
        download(root, clips(9), source_of(server))
    assert holds_exactly(root, clips(9))


def test_an_answer_between_two_pauses_shows_that_waiting_helps(root):
    script = {path_of(one): [limited(), Answer(body=content(one))] for one in clips(6)}
    with serve(script) as server:
        download(root, clips(6), source_of(server), clock=FakeClock())
    assert holds_exactly(root, clips(6))


def test_videos_of_youtube_start_ten_to_twenty_seconds_apart_whatever_the_threads():
    clock, starts = FakeClock(), []
    pacer = Pacer(YOUTUBE_PACE, clock, print)
    lock = threading.Lock()

    def work():
        for _ in range(5):
            with lock:
                pacer.next_video()
                starts.append(clock.now())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert len(gaps) == 19 and all(10 <= gap <= 20 for gap in gaps)
    assert len(set(gaps)) > 10


def test_an_interrupted_pause_ends_at_once():
    paused = threading.Event()
    pacer = Pacer(NO_PACE, Clock(), lambda note: paused.set())
    pacer.limited(pacer.next_video(), "429", None)
    outcome = []

    def work():
        try:
            pacer.next_video()
        except StoppedError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert paused.wait(10)
    pacer.stop()
    thread.join(10)
    assert len(outcome) == 1


# The breaker


def test_five_blocks_in_a_row_stop_the_download_and_keep_what_was_fetched(root):
    with serve(served(clips(12)) | {path_of(one): PAGE_ANSWER for one in clips(12)[2:]}) as server:
        with pytest.raises(AvpipeError, match=r"5 blocks in a row \(setup: a web page came .* --retry"):
            download(root, clips(12), source_of(server))
        assert not set(server.asked) & {path_of(one) for one in clips(12)[7:]}
    assert reasons(root) == {one.clip_id: None if one in clips(2) else "setup" for one in clips(7)}
    assert holds_exactly(root, clips(2))


@pytest.mark.parametrize(
    ("reasons_in_a_row", "stops_at"),
    [
        (["bot_check"] * 9, 5),
        (["bot_check", "setup", "disk", "bot_check", "setup"], 5),
        (["setup"] * 4 + [None] + ["setup"] * 4, None),
        (["removed", "corrupt", "unknown"] * 20, None),
        (["unknown"] * 9, 5),
        ([None] + ["removed"] * 30, None),
        (["network"] * 30, 20),
        (["network"] * 19 + ["removed"] + ["network"] * 19, None),
    ],
)
def test_the_breaker(reasons_in_a_row, stops_at):
    breaker, count = Breaker(), 0
    try:
        for reason in reasons_in_a_row:
            count += 1
            breaker.note([reason], "why")
    except AvpipeError:
        assert count == stops_at
    else:
        assert stops_at is None


def test_a_stopped_download_has_ended_before_it_says_so(root):
    """With several jobs some are still at work when the fifth block comes; none may outlive the lock."""
    slow = {path_of(one): Answer(body=content(one), delay_s=0.3) for one in clips(9)[7:]}
    before = set(threading.enumerate())
    with serve({path_of(one): PAGE_ANSWER for one in clips(7)} | slow) as server:
        with pytest.raises(AvpipeError, match="blocks in a row"):
            download(root, clips(9), source_of(server), jobs=3)
        working = [thread for thread in set(threading.enumerate()) - before if "ThreadPool" in thread.name]
        assert working == []
    assert ".incoming" not in os.listdir(root.clips)


# The disk


def test_what_does_not_fit_is_refused_before_the_first_request(root, monkeypatch):
    monkeypatch.setattr("avpipe.pipeline.download.plan.free_bytes", lambda folder: 1_010_000_000)
    plans = []
    with serve(served(clips(9))) as server:
        with pytest.raises(AvpipeError, match=r"1\.0 GB free, but about 0\.0 GB and a reserve of 1\.0 GB"):
            download(root, clips(9), source_of(server), on_plan=plans.append)
        assert server.asked == []
    assert (plans[0].needed_bytes, plans[0].free_bytes) == (18_000_000, 1_010_000_000)


def test_the_need_is_judged_by_what_is_there(root):
    with serve(served(clips(21))) as server:
        download(root, clips(20), source_of(server))
        size = sum(len(content(one)) for one in clips(20)) // 20
        assert plan_download(root, clips(30), source_of(server)).needed_bytes == 10 * size


def test_a_disk_that_fills_up_stops_the_run_and_no_clip_has_failed(root, monkeypatch):
    def fill(outcomes):
        monkeypatch.setattr(avpipe.pipeline.core.disk, "free_bytes", lambda folder: 10_000)

    with serve(served(clips(3))) as server, pytest.raises(AvpipeError, match=r"stopped \(disk\): .* only 0.0 GB free"):
        download(root, clips(3), source_of(server), on_outcome=fill)
    assert holds_exactly(root, clips(1))
    assert reasons(root) == {clip(0).clip_id: None}


# Plans and lists


def test_the_plan_says_how_long_it_takes(root, monkeypatch):
    monkeypatch.setattr("avpipe.pipeline.download.plan.free_bytes", lambda folder: 500_000_000_000)
    videos = [f"{number:011d}" for number in range(20_000)]
    wanted = [clip(start, video) for video in videos for start in (0, 30)]
    text = str(plan_download(root, wanted, UrlSource("https://www.youtube.com/watch?v={youtube_id}")))
    plan, need = text.split("; ")
    assert plan == "40,000 clips, 20,000 videos to fetch, about 3.5 days at this pace"
    assert need == "needs about 80.0 GB, 500.0 GB free"
    text = str(plan_download(root, wanted[:480], open_source("youtube")))
    assert "480 clips, 240 videos to fetch, about 1.0 hours" in text
    assert "at this pace" not in str(plan_download(root, wanted, UrlSource("http://127.0.0.1/{youtube_id}")))


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.tsv"])
def test_clips_come_from_a_list_of_addresses(root, tmp_path, name):
    with serve({f"/{n}?a=1,2": Answer(body=content(clip(n))) for n in range(3)}) as server:
        lines = [f"{clip(n).clip_id}{mark}{server.address}/{n}?a=1,2" for n, mark in enumerate(["\t", ", ", " "])]
        (tmp_path / name).write_text("# mine\n\n" + "\r\n".join(lines), encoding="utf-8")
        plan = download(root, clips(5), open_source(str(tmp_path / name)))
    assert (len(plan), plan.not_offered) == (3, 2)
    assert holds_exactly(root, clips(3))


GOOD_LINE = f"{clip(0).clip_id} http://127.0.0.1/a"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([GOOD_LINE, "../etc/pass_000000 http://127.0.0.1/a"], "list.txt:2: '../etc/pass_000000' is not a clip id"),
        ([GOOD_LINE, f"{clip(1).clip_id} file:///etc/passwd"], "list.txt:2: 'file:///…' is not an http"),
        ([GOOD_LINE, f"{clip(1).clip_id} http://[x/a"], "list.txt:2: 'http://[x/…' is not an http"),
        ([GOOD_LINE, f"{clip(1).clip_id} http:///a"], "list.txt:2: 'http:///…' is not an http"),
        ([GOOD_LINE, clip(1).clip_id], "list.txt:2: 'zpWuikVorYg_000001' is not `<clip id> <address>`"),
        ([f"{GOOD_LINE} more"], "list.txt:1: "),
        ([GOOD_LINE, "", GOOD_LINE], "list.txt:3: zpWuikVorYg_000000 is in the list already"),
        (["# nothing"], "names no clip"),
        (["\udcff"], "not UTF-8 text"),
    ],
)
def test_a_list_that_is_wrong_is_a_sentence_with_file_and_line(tmp_path, lines, sentence):
    (tmp_path / "list.txt").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    with pytest.raises(AvpipeError) as error:
        open_source(str(tmp_path / "list.txt"))
    assert sentence in str(error.value)


# The command line


def test_the_command_tells_its_plan_and_passes_options_through(tmp_path, corpus, avpipe):
    root = ("--root", tmp_path / "r")
    assert avpipe(*root, "manifest", "build", "--lists", corpus / "lists")[0] == 0
    clips_of_corpus = {f"/{path.name}": Answer(body=path.read_bytes()) for path in (corpus / "clips").iterdir()}
    with serve(clips_of_corpus) as server:
        command = (*root, "download", "--from", server.address + "/{clip_id}.mp4")
        code, out, err = avpipe(*command, "--limit-rate", "50M", "--split", "synth_test", "--json")
        result = json.loads(out)
        assert (code, result["done"], result["videos"], result["failed"]) == (0, 4, 4, {})
        assert "download: 4 clips, 4 videos to fetch; needs about" in err
        code, out, err = avpipe(*command, "--proxy", "http://user:secret@127.0.0.1:1")
        assert (code, out) == (1, "") and "5 blocks in a row (setup" in err and "secret" not in err
        code, out, err = avpipe(*command, "--limit-rate", "much")
        assert (code, out) == (1, "") and err.startswith("avpipe: ") and "--limit-rate" in err
