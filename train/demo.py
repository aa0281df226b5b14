"""`make demo`: the entire pipeline on a synthetic corpus, each step a command that a user could type.

The clips are served on 127.0.0.1 and downloaded by yt-dlp. A second run skips finished steps.
"""

import argparse
import functools
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TRAIN, TEST, RUN = "synth_train", "synth_test", "demo"


class _SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None: ...


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_) -> None: ...  # yt-dlp reads the first bytes of a file and disconnects


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on a free port of 127.0.0.1 and yield its address."""
    server = _Server(("127.0.0.1", 0), functools.partial(_SilentHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def avpipe(*arguments: str) -> None:
    """Print and run one avpipe command; end the demo with its exit code if it fails."""
    print(f"\n$ avpipe {shlex.join(arguments)}", flush=True)
    begin = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "avpipe.train.cli", *arguments]).returncode
    if code:
        sys.exit(code)
    print(f"  ({time.monotonic() - begin:.0f} s)", flush=True)


def main() -> None:
    """Run all steps; their results go to one folder."""
    parser = argparse.ArgumentParser(description="Run the entire pipeline on a synthetic corpus.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--clips", default="500", help="number of clips, a fifth of them held out")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="changes to the recipe, key=value")
    options = parser.parse_args()
    source, os.environ["AVPIPE_ROOT"] = options.folder / "source", str(options.folder)
    begin = time.monotonic()
    avpipe("synth", str(source), "--clips", options.clips)
    avpipe("manifest", "build", "--lists", str(source / "lists"))
    with served(source / "clips") as address:
        avpipe("download", "--from", f"{address}/{{clip_id}}.mp4")
    avpipe("extract")
    for split in (TRAIN, TEST):
        avpipe("shard", "--split", split)
        avpipe("verify", str(options.folder / "shards" / split))
    changes = [word for change in options.changes for word in ("--set", change)]
    shards = str(options.folder / "shards" / TRAIN)
    avpipe("train", "--shards", shards, "--method", "lvs", "--recipe", "lvs-small", "--name", RUN, *changes)
    avpipe("eval", "--split", TEST, "--checkpoint", RUN, "--protocol", "all")
    print(f"\nall of it in {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
