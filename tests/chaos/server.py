"""Downloads from a server that gives hostile answers, and looks at what came of them.

    python tests/chaos/server.py --rounds 300 --seed 0

Each round asks for one clip; its answer is drawn from the kinds below. Ends with 1 at a traceback, a clip without a row
or with a row that says nothing, a file that is no clip, a leftover, a video that took too long, memory that grew, or a
request to a host that was not given.
"""

import argparse
import gzip
import os
import random
import re
import resource
import socketserver
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["no_proxy"] = "127.0.0.1,127.0.0.2"

import yt_dlp
from test_download import mp4

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import Ledger
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.download import guard, youtube
from avpipe.pipeline.download.source import UrlSource
from avpipe.pipeline.download.stage import download
from avpipe.pipeline.manifest.tables import Clip

LIMIT_S = 20.0
LIMIT_BYTES = 400_000_000
PAGE = b"<!DOCTYPE html><html><head><title>hello</title></head><body>"
PLAYLIST = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n"
OTHER = "http://127.0.0.2:{port}/victim"


class Answers:
    """The kinds of answers; each writes raw bytes through `send`, for the request of `path`, with its own `rng`."""

    def __init__(self, other: str):
        self.other = other.encode()
        self.good = mp4()
        self.packed = gzip.compress(PAGE + bytes(150_000_000), 1)

    def fine(self, send, path, rng):
        send(_head(self.good) + self.good)

    def endless_page(self, send, path, rng):
        send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + PAGE)
        while True:
            send(b"<p>and on it goes</p>" * 1000)

    def endless_video(self, send, path, rng):
        send(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n\r\n" + self.good)
        while True:
            send(rng.randbytes(1 << 16))

    def bomb(self, send, path, rng):
        kind = rng.choice([b"text/html", b"video/mp4", b"application/xml", b"application/vnd.apple.mpegurl"])
        send(_head(self.packed, kind, b"Content-Encoding: gzip\r\n") + self.packed)

    def drip(self, send, path, rng):
        start = rng.choice([b"HTTP/1.1 200 OK\r\n", _head(self.good) + self.good[:700], _head(PAGE, b"text/html")])
        send(start)
        while True:
            time.sleep(0.2)
            send(b"X")

    def hang(self, send, path, rng):
        send(rng.choice([b"", b"HTTP/1.1 200 OK\r\nContent-Le", _head(self.good), _head(self.good) + self.good[:999]]))
        time.sleep(30)

    def wrong_length(self, send, path, rng):
        length = rng.choice([0, 1, len(self.good) - 1, len(self.good) + 1, 10**12, 10**30, -5])
        send(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: %d\r\n\r\n" % length + self.good)

    def garbage(self, send, path, rng):
        send(rng.choice([b"", _head(b"x" * 5000), b"HTTP/1.1 \xff\xfe\r\n", b"\0" * 100]) + rng.randbytes(5000))

    def headers(self, send, path, rng):
        send(b"HTTP/1.1 200 OK\r\n" + b"X-%d: y\r\n" % rng.randrange(9) * rng.choice([90, 3000, 100_000]) + b"\r\n")

    def phrase(self, send, path, rng):
        status = rng.choice([200, 204, 206, 400, 401, 403, 404, 410, 416, 451, 500, 503, 999])
        phrases = [b"[/red]", b"\x1b[31m\x1b]0;title\x07", b"no space left", b"not a bot", b"has been removed", b"%s%n"]
        send(b"HTTP/1.1 %d %s\r\nContent-Length: 0\r\n\r\n" % (status, rng.choice(phrases)))

    def redirect(self, send, path, rng):
        targets = [self.other, path, b"file:///etc/passwd", b"ftp://127.0.0.2/x", b"//127.0.0.2/x", b"http://[::1]:1/x"]
        targets += [
            b"http://127.0.0.2@127.0.0.1.nip.io/",
            b"data:text/html,x",
            b"http://[",
            b"\xff",
            b"/" + b"a" * 9000,
        ]
        target = rng.choice(targets)
        send(
            b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
            % (rng.choice([301, 302, 307, 308]), target)
        )

    def page(self, send, path, rng):
        body = rng.choice([
            b'<video src="%s"></video>', b'<meta property="og:video" content="%s">', b'<iframe src="%s"></iframe>',
            b'<meta http-equiv="refresh" content="0;url=%s">', b"<script>jwplayer().setup({file:'%s.mp4'})</script>",
            b'<script type="application/ld+json">{"@type":"VideoObject","contentUrl":"%s","name":"x"}</script>',
            b'<object data="%s"></object><a href="https://www.youtube.com/embed/zpWuikVorYg">x</a>',
        ]) % rng.choice([self.other, b"file:///etc/passwd", b"rtmp://127.0.0.2/x"])  # fmt: skip
        send(_head(PAGE + body, b"text/html") + PAGE + body)

    def playlist(self, send, path, rng):
        segment = rng.choice([self.other, b"file:///etc/passwd", b"/missing.ts", b"\xff", path])
        keys = [b"", b'#EXT-X-KEY:METHOD=AES-128,URI="%s"\n' % self.other, b'#EXT-X-KEY:METHOD=SAMPLE-AES,URI="x"\n']
        entries = b"#EXTINF:5,\n%s\n" % segment * rng.choice([1, 3, 2000])
        end = rng.choice([b"", b"#EXT-X-ENDLIST\n"])
        body = PLAYLIST + rng.choice([*keys, b'#EXT-X-MAP:URI="%s"\n' % self.other]) + entries + end
        if rng.random() < 0.3:
            body = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n%s\n" % segment
        send(_head(body, b"application/vnd.apple.mpegurl") + body)

    def manifest(self, send, path, rng):
        xml = b'<?xml version="1.0"?>'
        body = rng.choice([
            xml + b'<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;">]><MPD>&b;</MPD>',
            xml + b'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic"><BaseURL>%s</BaseURL></MPD>' % self.other,
            xml + b'<rss version="2.0"><channel><item><link>%s</link></item></channel></rss>' % self.other,
            xml + b'<smil><body><video src="%s"/></body></smil>' % self.other,
            b"[playlist]\nFile1=%s\n" % self.other,
        ])  # fmt: skip
        send(_head(body, rng.choice([b"application/dash+xml", b"application/xml", b"audio/x-scpls"])) + body)

    def chunks(self, send, path, rng):
        send(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n\r\n")
        send(rng.choice([b"zz\r\n", b"-5\r\nhello", b"fffffffffffffff\r\nhello", b"5\r\nhel", b"5;" + b"x" * 99_999]))

    def names(self, send, path, rng):
        name = rng.choice([b"../../evil.mp4", b"/tmp/evil.mp4", b"evil.sh", b"%(id)s.mp4", b"a\x00b.mp4"])
        send(_head(self.good, b"video/mp4", b'Content-Disposition: attachment; filename="%s"\r\n' % name) + self.good)

    def pieces(self, send, path, rng):
        body = rng.choice([self.good[: rng.randrange(len(self.good))], self.good * 2, self.good[::-1], b"GIF89a" * 99])
        send(_head(body) + body)


KINDS = [name for name in vars(Answers) if not name.startswith("_")]


def _head(body: bytes, kind: bytes = b"video/mp4", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%sContent-Length: %d\r\n\r\n" % (kind, more, len(body))


@contextmanager
def serving(seed: int):
    """A hostile server at 127.0.0.1 and another, at 127.0.0.2, that nobody may ask: (port, requests of the other)."""
    asked: list[bytes] = []

    class Victim(socketserver.StreamRequestHandler):
        def handle(self):
            asked.append(self.rfile.readline())

    class Hostile(socketserver.StreamRequestHandler):
        def handle(self):
            with suppress(OSError):
                path = [*self.rfile.readline().split(), b"", b"/"][1]
                while self.rfile.readline().strip():
                    pass
                number = int((re.search(rb"_([0-9]{6})", path) or [b"", b"0"])[1])
                rng = random.Random(f"{seed} {number}")
                getattr(self.server.answers, KINDS[number % len(KINDS)])(self.wfile.write, path, rng)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = allow_reuse_address = True
        block_on_close = False

        def handle_error(self, *_): ...  # clients that go away are what is tried

    with Server(("127.0.0.2", 0), Victim) as victim, Server(("127.0.0.1", 0), Hostile) as hostile:
        hostile.answers = Answers(OTHER.format(port=victim.server_address[1]))
        for server in (victim, hostile):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield hostile.server_address[1], asked
        for server in (victim, hostile):
            server.shutdown()


def run(rounds: int, seed: int, first: int = 0) -> Counter:
    """Counts; keys that begin with `!` must not be there."""
    guard.SLOW_S, guard.MAX_PAGE_BYTES, youtube.SOCKET_TIMEOUT_S, youtube.RETRIES = 0.8, 4 << 20, 0.8, 1
    youtube.MAX_VIDEO_BYTES = 20_000_000
    counts = Counter(rounds=rounds)
    yt_dlp.YoutubeDL({"quiet": True}).close()  # loads its extractors, which counts for no server
    with tempfile.TemporaryDirectory() as folder, serving(seed) as (port, asked):
        root = Root(Path(folder) / "root")
        source = UrlSource(f"http://user:secret@127.0.0.1:{port}/{{clip_id}}.mp4?token=secret")
        for number in range(first, first + rounds):
            clip = Clip(clip_id=f"zpWuikVorYg_{number:06d}", youtube_id="zpWuikVorYg", start_s=0, end_s=10)
            begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            problems = _try(root, clip, source)
            took_s, grown = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
            problems += ["! slow"] if took_s > LIMIT_S else []
            problems += ["! memory"] if grown > LIMIT_BYTES else []
            outcome = Ledger(root.ledger, "download").latest().get(clip.clip_id)
            row = outcome and (outcome.reason, outcome.detail)
            problems += [f"! request to another host {asked.pop()!r}"] if asked else []
            for problem in problems:
                print(f"round {number} ({KINDS[number % len(KINDS)]}, {took_s:.1f} s): {problem}; row {row}")
            counts.update(problem.split(" (")[0][:40] for problem in problems)
            counts[f"reason {outcome.reason if outcome else '-'}"] += 1
        counts["! leftovers"] += len(set(os.listdir(root.clips)) - {f"{stem}.mp4" for stem in _done(root)} - {".lock"})
    return counts


def _done(root: Root) -> set[str]:
    return {clip_id for clip_id, outcome in Ledger(root.ledger, "download").latest().items() if outcome.done}


def _try(root: Root, clip: Clip, source: UrlSource) -> list[str]:
    """Download one clip; what is wrong with its outcome."""
    try:
        download(root, [clip], source)
    except AvpipeError as error:
        return [f"! stopped ({error})"]
    except Exception:
        traceback.print_exc()
        return ["! traceback"]
    outcome = Ledger(root.ledger, "download").latest().get(clip.clip_id)
    if outcome is None:
        return ["! no row"]
    problems = [] if outcome.done or outcome.detail else ["! row without a word"]
    problems += ["! secret in the row"] if "secret" in outcome.detail + (outcome.source or "") else []
    problems += ["! unexplained"] if outcome.reason == "unknown" else []
    return problems + (["! permanent"] if outcome.reason in ("removed", "private") else [])


def main() -> int:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    counts = run(arguments.rounds, arguments.seed, arguments.first)
    print(", ".join(f"{key} {count:,}" for key, count in sorted(counts.items())))
    return int(any(key.startswith("!") and count for key, count in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
