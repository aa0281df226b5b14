"""The JavaScript runtime that yt-dlp needs for YouTube: the first supported one on this machine."""

import shutil
from dataclasses import dataclass
from importlib.util import find_spec

import yt_dlp  # registers the runtimes
from yt_dlp.globals import supported_js_runtimes

from avpipe.pipeline.core.errors import AvpipeError

# Deno first: it is one of avpipe's dependencies, and yt-dlp runs it without access to files and network.
NAMES = ("deno", "node", "bun", "quickjs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """A runtime that this yt-dlp supports."""

    name: str
    """yt-dlp's key for it, one of NAMES."""
    version: str
    path: str

    def __str__(self) -> str:
        return f"JavaScript runtime: {self.name} {self.version} ({self.path}), yt-dlp {yt_dlp.version.__version__}"

    def options(self) -> dict:
        """Return the YoutubeDL options that select only this runtime."""
        return {"js_runtimes": {self.name: {"path": self.path}}}


def find_runtime() -> Runtime:
    """Return the first supported runtime; yt-dlp itself checks versions. Raises AvpipeError if there is none."""
    if find_spec("yt_dlp_ejs") is None:
        raise AvpipeError("yt-dlp lacks its scripts for YouTube (set-up); run `pip install -U 'yt-dlp[default,deno]'`")
    refused = []
    for name in NAMES:
        info = supported_js_runtimes.value[name](path=_deno_of_pypi() if name == "deno" else None).info
        if info and info.supported:
            return Runtime(name=name, version=info.version, path=shutil.which(info.path) or info.path)
        if info:
            refused.append(f"{name} {info.version} is too old")
    found = ", ".join(refused) or "none was found"
    raise AvpipeError(
        f"YouTube needs a JavaScript runtime that yt-dlp supports (set-up: {found}); run `pip install deno` or install "
        + ", ".join(f"{name} {_minimum(name)}" for name in NAMES[1:])
        + " or later"
    )


def _minimum(name: str) -> str:
    return ".".join(map(str, supported_js_runtimes.value[name].MIN_SUPPORTED_VERSION))


def _deno_of_pypi() -> str | None:
    """Path of the `deno` package's binary; None leaves the search to yt-dlp."""
    try:
        import deno

        return str(deno.find_deno_bin())
    except (ImportError, OSError):
        return None
