"""What this machine has and lacks for the work, as findings, each with its fix."""

import os
import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from avpipe.pipeline.core.disk import free_bytes
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root

LEAST_PYTHON = (3, 11)
NEEDED = ("av", "numpy", "pyarrow", "pillow", "soundfile", "yt-dlp")
OPTIONAL = {"torch": "train", "ray": "ray", "s3fs": "s3"}
# From this age on yt-dlp itself warns; YouTube changes every few weeks.
YT_DLP_OLD_DAYS = 90
# 200,000 clips with their samples and shards take some hundred GB; below a few the next part may not fit.
LEAST_FREE_BYTES, ENOUGH_FREE_BYTES = 2 * 10**9, 50 * 10**9
# A process that writes a shard opens up to a thousand parts of the cache.
ENOUGH_FILES = 2048


class Level(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    OPTIONAL = "optional"
    """Missing, but only needed for one purpose."""
    WARNING = "warning"
    MISSING = "missing"
    """Download or extract cannot work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Result of one check."""

    name: str
    level: Level
    found: str
    fix: str = ""
    """What to do, in one line; empty if nothing."""

    def record(self) -> dict:
        """Return all fields as plain values."""
        return asdict(self)


def examine(root: Root) -> list[Finding]:
    """Run all checks; a check that fails is a finding too."""
    looks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("yt-dlp's age", _yt_dlp_age),
        ("JavaScript runtime", _javascript),
        ("ffmpeg", _ffmpeg),
        ("root", lambda: _root(root.path)),
        ("disk space", lambda: _disk(root.path)),
        ("open files", _open_files),
        ("PO token provider", _po_token),
        ("GPU", _gpu),
    ]
    findings = []
    for name, look in looks:
        try:
            findings += look()
        except Exception as error:  # a broken package must not hide the others
            fix = "reinstall avpipe: make setup"
            findings.append(
                Finding(name=name, level=Level.WARNING, found=f"could not be determined: {error!r}", fix=fix)
            )
    return findings


def _python() -> list[Finding]:
    old = sys.version_info[:2] < LEAST_PYTHON
    fix = f"install Python {'.'.join(map(str, LEAST_PYTHON))} or newer" if old else ""
    level = Level.MISSING if old else Level.OK
    return [Finding(name="python", level=level, found=f"{platform.python_version()} ({sys.executable})", fix=fix)]


def _packages() -> list[Finding]:
    findings = []
    for name in NEEDED:
        found = _version(name)
        fix = "" if found else f"pip install {name}"
        level = Level.OK if found else Level.MISSING
        findings.append(Finding(name=name, level=level, found=found or "not installed", fix=fix))
    for name, extra in OPTIONAL.items():
        found = _version(name)
        fix = "" if found else f"pip install 'avpipe[{extra}]'"
        level = Level.OK if found else Level.OPTIONAL
        findings.append(Finding(name=name, level=level, found=found or "not installed", fix=fix))
    return findings


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _yt_dlp_age(today: date | None = None) -> list[Finding]:
    text = _version("yt-dlp")
    if text is None:
        return []  # reported with the packages
    year, month, day = map(int, text.split(".")[:3])
    days = ((today or date.today()) - date(year, month, day)).days
    old = days > YT_DLP_OLD_DAYS
    fix = "pip install -U 'yt-dlp[default,deno]'" if old else ""
    return [Finding(name="yt-dlp's age", level=Level.WARNING if old else Level.OK, found=f"{days} days", fix=fix)]


def _javascript() -> list[Finding]:
    from avpipe.pipeline.download.js_runtime import find_runtime

    name = "JavaScript runtime"
    try:
        runtime = find_runtime()
    except AvpipeError as error:
        return [Finding(name=name, level=Level.MISSING, found=str(error), fix="pip install -U 'yt-dlp[default,deno]'")]
    return [Finding(name=name, level=Level.OK, found=f"{runtime.name} {runtime.version} ({runtime.path})")]


def _ffmpeg() -> list[Finding]:
    from avpipe.pipeline.download.cut import ffmpeg_program

    try:
        program = ffmpeg_program()
    except Exception as error:  # imageio-ffmpeg raises various errors if its wheel has no program
        fix = "apt-get install ffmpeg, or pip install imageio-ffmpeg"
        return [Finding(name="ffmpeg", level=Level.MISSING, found=str(error), fix=fix)]
    return [Finding(name="ffmpeg", level=Level.OK, found=program)]


def _root(path: Path) -> list[Finding]:
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    found = f"{path} is writable" if there == path else f"{path} will be created"
    if writable:
        return [Finding(name="root", level=Level.OK, found=found)]
    fix = f"chmod u+rwx {there}, or choose another folder with --root"
    return [Finding(name="root", level=Level.MISSING, found=f"{there} cannot be written", fix=fix)]


def _disk(path: Path) -> list[Finding]:
    free = free_bytes(path)
    level = Level.OK if free >= ENOUGH_FREE_BYTES else Level.WARNING
    level = Level.MISSING if free < LEAST_FREE_BYTES else level
    fix = "" if level == Level.OK else "free some space, or choose another disk with --root"
    return [Finding(name="disk space", level=level, found=f"{free / 1e9:,.0f} GB free at the root", fix=fix)]


def _open_files() -> list[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < ENOUGH_FILES
    fix = f"ulimit -n {2 * ENOUGH_FILES}" if few else ""
    return [Finding(name="open files", level=Level.WARNING if few else Level.OK, found=f"{soft} a process", fix=fix)]


def _po_token() -> list[Finding]:
    """Plug-ins of yt-dlp that fetch tokens are modules `getpot_…` in its plug-in folder, anywhere on Python's path."""
    folders = (Path(entry) / "yt_dlp_plugins" / "extractor" for entry in sys.path)
    names = sorted({path.stem for folder in folders for path in folder.glob("getpot_*.py")})
    if names:
        return [Finding(name="PO token provider", level=Level.OK, found=", ".join(names))]
    fix = "only where YouTube answers with bot checks: pip install bgutil-ytdlp-pot-provider, and run its server"
    return [Finding(name="PO token provider", level=Level.OPTIONAL, found="none", fix=fix)]


def _gpu() -> list[Finding]:
    if not find_spec("torch"):
        return [Finding(name="GPU", level=Level.OPTIONAL, found="not looked for: PyTorch is not installed")]
    import torch  # 2 s; for training alone

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return [Finding(name="GPU", level=Level.OK, found=", ".join(names))]
    fix = "train on a machine with an NVIDIA GPU and its driver; all other stages need none"
    return [Finding(name="GPU", level=Level.OPTIONAL, found="none that PyTorch can use", fix=fix)]
