"""Servers that lie, lead astray, hang or never end; addresses with secrets; lists that were a typo."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import av
import numpy as np
import pytest
from chaos import server as chaos
from rich.console import Console
from server import Answer, serve
from test_download import clip, clips, content, files, holds_exactly, latest, mp4, path_of, reasons, served, source_of

import avpipe.pipeline.core.progress
import avpipe.pipeline.download.guard
import avpipe.pipeline.download.youtube
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.core.progress import ProgressLine
from avpipe.pipeline.download.access import access_parameters, load_cookie_jar, public_template, without_address
from avpipe.pipeline.download.guard import FetchGuard, RefusedError
from avpipe.pipeline.download.pacing import ALIKE_FROM_START, Breaker
from avpipe.pipeline.download.plan import plan_download
from avpipe.pipeline.download.source import UrlSource, open_source
from avpipe.pipeline.download.stage import download
from avpipe.pipeline.download.youtube import classify

pytestmark = pytest.mark.heavy

SECRET = "geheim%40123"


@pytest.fixture
def root(tmp_path) -> Root:
    return Root(tmp_path / "root")


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch):
    monkeypatch.setattr(avpipe.pipeline.download.youtube, "SOCKET_TIMEOUT_S", 0.8)


@pytest.mark.heavy
def test_a_round_of_hostile_answers(monkeypatch):
    for module, name in [("guard", "SLOW_S"), ("guard", "MAX_PAGE_BYTES"), ("youtube", "RETRIES"),
                         ("youtube", "MAX_VIDEO_BYTES")]:  # fmt: skip
        module = getattr(avpipe.pipeline.download, module)
        monkeypatch.setattr(module, name, getattr(module, name))  # the program sets them lower; this sets them back
    counts = chaos.run(rounds=len(chaos.KINDS), seed=5)
    assert not [key for key, count in counts.items() if key.startswith("!") and count]
    assert counts["reason None"] >= 1 and counts["reason timeout"] >= 1


# Where a download may lead


def leads_to(address: str) -> dict[str, Answer]:
    page = f'<!DOCTYPE html><html><video src="{address}/a.mp4"></video></html>'.encode()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}/a.ts\n#EXT-X-ENDLIST\n".encode()
    return {
        path_of(clip(0)): Answer(status=302, headers={"Location": f"{address}/a.mp4"}),
        path_of(clip(1)): Answer(body=page, headers={"Content-Type": "text/html"}),
        path_of(clip(2)): Answer(body=playlist, headers={"Content-Type": "application/vnd.apple.mpegurl"}),
    }


def test_only_the_given_host_is_followed_unless_told_otherwise(root):
    with serve({"/a.mp4": Answer(body=mp4()), "/a.ts": Answer(body=segment(0, 10))}) as other:
        elsewhere = other.address.replace("127.0.0.1", "localhost")
        with serve(leads_to(elsewhere)) as server:
            download(root, clips(3), source_of(server))
            assert other.asked == [] and set(reasons(root).values()) == {"setup"}
            assert all("another host, localhost" in outcome.detail for outcome in latest(root).values())
            follow = open_source(server.address + "/{clip_id}.mp4", follow=True)
            download(root, clips(2), follow, retry=True)
            assert reasons(root)[clip(0).clip_id] is None and reasons(root)[clip(1).clip_id] is None
        with serve(leads_to(other.address)) as server:  # the same host
            download(root, clips(1), source_of(server))
    assert {"/a.mp4"} == set(other.asked)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1%eth0", "100.64.0.1", "0.0.0.0"]
)
def test_addresses_of_this_machine_and_network_are_never_led_to(address):
    guard = FetchGuard("https://mirror.example/a.mp4", anywhere=False, follow=True, stopped=lambda: False)
    guard.check_address("mirror.example", "93.184.215.14")
    guard.check_address("cdn.example", "93.184.215.15")
    with pytest.raises(RefusedError, match="its own network"):
        guard.check_address("evil.example", address)
    own = FetchGuard("http://mirror.lan/a.mp4", anywhere=False, follow=True, stopped=lambda: False)
    own.check_address("mirror.lan", address)
    own.check_address("other.lan", address)


# Streams in segments


def segment(start: int, seconds: int) -> bytes:
    """MPEG-TS, one picture and one second of sound a second."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts", options={"muxdelay": "0", "muxpreload": "0"}) as container:
        picture = container.add_stream("libx264", rate=5, options={"bf": "0", "g": "5"})
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        for number in range(start * 5, (start + seconds) * 5):
            frame = av.VideoFrame.from_ndarray(np.full((96, 64), number, np.uint8), format="yuv420p")
            frame.pts = number
            container.mux(picture.encode(frame))
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 3200), np.int16), format="s16", layout="mono")
            noise.rate, noise.pts = 16_000, number * 3200
            container.mux(sound.encode(noise))
        for stream in (picture, sound):
            container.mux(stream.encode(None))
    return file.getvalue()


PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXT-X-PLAYLIST-TYPE:VOD\n{key}"
ENTRIES = "".join(f"#EXTINF:4.0,\ns{number}.ts\n" for number in range(3))
END = "#EXT-X-ENDLIST\n"


def playlist_served(key: str = "", end: str = END, **other: bytes | None) -> dict[str, Answer]:
    """A playlist of three segments; `other` has other contents for some of them, None for missing ones."""
    text = (PLAYLIST.format(key=key) + ENTRIES + end).encode()
    segments = {f"s{number}": segment(4 * number, 4) for number in range(3)} | other
    answers = {f"/{name}.ts": Answer(body=body) for name, body in segments.items() if body is not None}
    return answers | {path_of(clip(0)): Answer(body=text, headers={"Content-Type": "application/vnd.apple.mpegurl"})}


@pytest.mark.parametrize("lost", [{"s0": None}, {"s1": None}, {"s2": None}, {"s2": segment(8, 1)}], ids=str)
def test_less_than_the_playlist_promises_is_a_failure_that_can_be_won(root, lost):
    with serve(playlist_served(**lost)) as server:
        download(root, clips(1), source_of(server))
        assert f"/{next(iter(lost))}.ts" in server.asked
    assert reasons(root) == {clip(0).clip_id: "network"} and files(root) == {}
    short = "of the 12.0 s that the playlist promises" in latest(root)[clip(0).clip_id].detail
    assert short or None in lost.values()


@pytest.mark.parametrize("odd", [{"end": ""}, {"key": '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="k"\n'}])
def test_live_and_encrypted_streams_are_not_handed_to_ffmpeg(root, odd, monkeypatch):
    started = []
    monkeypatch.setattr("yt_dlp.downloader.external.FFmpegFD.real_download", lambda *given: started.append(given))
    with serve(playlist_served(**odd)) as server:
        download(root, clips(1), source_of(server))
    assert started == [] and reasons(root) == {clip(0).clip_id: "setup"}


# Time


HALF_AN_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\nContent-Type: video/mp4\r\n\r\nabc"


@contextmanager
def hanging(start: bytes = b""):
    """A server that begins an answer with `start` and then says nothing; yields its port and an event: it was asked."""
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            held = []
            while True:
                try:
                    connection, _ = listener.accept()
                    connection.recv(9999)
                    connection.sendall(start)
                except OSError:
                    return
                held.append(connection)
                asked.set()

        threading.Thread(target=answer, daemon=True).start()
        yield listener.getsockname()[1], asked


DOWNLOAD = """
import sys
from avpipe.pipeline.download.stage import download
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.manifest.tables import clip_of
from avpipe.pipeline.download.source import open_source
from pathlib import Path
ids = ["zpWuikVorYg_000000", "zpWuikVorYg_000001"]
download(Root(Path(sys.argv[1])), [clip_of(i) for i in ids], open_source(sys.argv[2]), jobs=2)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("start", [pytest.param(b"", marks=pytest.mark.slow), HALF_AN_ANSWER])
def test_ctrl_c_ends_a_download_from_a_hanging_server_at_once(root, start):
    with hanging(start) as (port, asked):
        command = [sys.executable, "-c", DOWNLOAD, str(root.path), f"http://127.0.0.1:{port}/{{clip_id}}.mp4"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"no_proxy": "127.0.0.1"}) as process:
            assert asked.wait(60)
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            assert time.monotonic() - begin < 15  # of the 30 s after which it would be given up
    assert files(root) == {} and latest(root) == {}


@pytest.mark.parametrize("who", ["server", "proxy"])
def test_who_goes_on_for_ever_is_given_up(root, monkeypatch, who):
    monkeypatch.setattr(avpipe.pipeline.download.guard, "SLOW_S", 0.5)
    monkeypatch.setattr(avpipe.pipeline.download.youtube, "SOCKET_TIMEOUT_S", 30)
    begin, start = time.monotonic(), HALF_AN_ANSWER if who == "server" else b"HTTP/1.1 200 OK\r\nContent-Le"
    with hanging(start) as (port, asked):
        address = f"http://127.0.0.1:{port}"
        if who == "server":
            source = UrlSource(address + "/{clip_id}.mp4")
        else:
            source = UrlSource("http://mirror.example/{clip_id}.mp4", access_parameters(proxy=address))
        download(root, clips(1), source)
        assert asked.is_set()
    assert time.monotonic() - begin < 15
    assert reasons(root) == {clip(0).clip_id: "timeout"} and not latest(root)[clip(0).clip_id].permanent


# A typo is no loss


def test_another_address_is_asked_after_a_wrong_one(root, monkeypatch):
    with serve({f"/right{path_of(one)}": Answer(body=content(one)) for one in clips(3)}) as server:
        wrong = UrlSource(server.address + "/wrnog/{clip_id}.mp4")
        download(root, clips(3), wrong)
        assert reasons(root) == dict.fromkeys((one.clip_id for one in clips(3)), "network")
        assert len(plan_download(root, clips(3), wrong)) == 0
        assert len(plan_download(root, clips(3), wrong, retry=True)) == 3
        assert len(plan_download(root, clips(3), open_source("youtube"))) == 3
        download(root, clips(3), UrlSource(server.address + "/right/{clip_id}.mp4"))
    assert holds_exactly(root, clips(3))


def test_what_older_versions_wrote_off_is_repaired(root):
    ledger = Ledger(root.ledger, "download")
    ledger.write([Outcome(clip_id=one.clip_id, reason="removed", detail="HTTP Error 404") for one in clips(3)])
    with serve(served(clips(3))) as server:
        assert plan_download(root, clips(3), source_of(server), retry=True).failed_before == 3
        download(root, clips(3), source_of(server), retry_permanent=True)
    assert holds_exactly(root, clips(3))


def test_a_run_of_equal_failures_from_the_start_stops(root):
    breaker = Breaker(untried=True)
    with pytest.raises(AvpipeError, match=r"first 20 videos all failed alike \(removed: gone\).*--retry-permanent"):
        for _ in range(ALIKE_FROM_START):
            breaker.note(["removed"], "gone")
    for first in (None, "corrupt"):
        breaker = Breaker(untried=True)
        for reason in [first, *["removed"] * 40]:
            breaker.note([reason], "gone")
    too_short = {path_of(one): Answer(body=mp4(2)) for one in clips(30)}
    with serve(too_short) as server, pytest.raises(AvpipeError, match=r"all failed alike \(too_short"):
        download(root, clips(30), source_of(server))
    assert len(latest(root)) == ALIKE_FROM_START


def test_unexplained_answers_stop_the_run_where_they_are_alike():
    alike, different = Breaker(), Breaker()
    with pytest.raises(AvpipeError, match="5 unexplained failures in a row"):
        for number in range(9):
            alike.note(["unknown"], f"[youtube] zpWuikVor{number:02d}: Something new, {number}")
    for word in ["one", "two", "three", "four", "five", "six", "seven"]:
        different.note(["unknown"], f"[youtube] zpWuikVorYg: {word}")


def test_only_youtubes_own_words_make_a_video_lost():
    for message in ("Video unavailable", "This video has been removed by the uploader", "Private video"):
        assert classify(message) in ("removed", "private")
        assert classify(message, youtube=False) == "unknown"


# What is told


def test_secrets_of_addresses_stand_nowhere(root, tmp_path):
    page = Answer(body=b"<!DOCTYPE html><html>no</html>", headers={"Content-Type": "text/html"})
    with serve({f"/a/page?sig={SECRET}": page}) as server:
        host = server.address.removeprefix("http://")
        urls = [f"http://nutzer:{SECRET}@{host}{path}?sig={SECRET}" for path in ("/a/page", "/b.mp4", "/c.mp4?x=y.z&")]
        urls.append(f"http://nutzer:{SECRET}@127.0.0.1:1/{SECRET}/d.mp4")
        lines = [f"{one.clip_id} {url}" for one, url in zip(clips(4), urls, strict=True)]
        (tmp_path / "list.txt").write_text("\n".join(lines))
        download(root, clips(4), open_source(str(tmp_path / "list.txt")))
    rows = latest(root)
    assert {outcome.reason for outcome in rows.values()} == {"setup", "network"}
    told = " ".join(outcome.detail + (outcome.source or "") for outcome in rows.values())
    for word in ("nutzer", SECRET, "geheim"):
        assert word not in told
    template = f"http://nutzer:{SECRET}@127.0.0.1:1/x/{{clip_id}}.mp4?sig={SECRET}"
    assert public_template(template) == str(UrlSource(template)) == "http://127.0.0.1:1/x/{clip_id}.mp4?…"
    (tmp_path / "list.txt").write_text(f"{clip(0).clip_id} ftp://nutzer:{SECRET}@host/x")
    with pytest.raises(AvpipeError) as error:
        open_source(str(tmp_path / "list.txt"))
    assert SECRET not in str(error.value)
    assert without_address("see https://u:p@h.example/a/b?c=d, or not?") == "see https://h.example/… or not?"


def test_a_servers_words_are_no_markup_and_no_commands(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        avpipe.pipeline.core.progress, "Console", lambda stderr: Console(file=out, force_terminal=True, width=200)
    )
    with ProgressLine("download", 2) as line:
        line.advance(1, {"network": 1}, note="paused: HTTP Error 429: [/red]\x1b]0;title\x07\nnext")
    assert "[/red]?]0;title? next" in out.getvalue() and "\x1b]0;" not in out.getvalue()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)


def test_cookies_whose_tabs_became_blanks_are_a_sentence(tmp_path):
    file = tmp_path / "cookies.txt"
    file.write_text("# Netscape HTTP Cookie File\n.youtube.com    TRUE    /    TRUE    0    name    secret\n")
    with pytest.raises(AvpipeError, match=r"seven fields with a tab between them") as error:
        load_cookie_jar(access_parameters(cookies=str(file)))
    assert "secret" not in str(error.value)
