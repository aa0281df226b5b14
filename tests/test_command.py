"""The command line on closed, full and old terminals; errors as sentences; Ctrl-C; faults that say where they go."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from avpipe.pipeline.cli.command import printable, run
from avpipe.pipeline.core.errors import AvpipeError, named, user_message

pytestmark = pytest.mark.heavy
TESTS = Path(__file__).parent
COMMAND = [sys.executable, "-m", "avpipe.train.cli"]
FAILING = "import sys, test_command; test_command.fail_as_told(sys.argv[-1])"
# what is raised → the exit code and the sentence
FAULTS = {
    "read-only": (OSError(30, "x", "/data/a"), 1, "/data/a: the file system is read-only; make it writable"),
    "quota": (OSError(122, "x", "/data/a"), 1, "/data/a: your quota on this disk is used up; free some space"),
    "permission": (PermissionError(13, "x", b"/data/\xff"), 1, "permission is denied"),
    "disk": (OSError(5, "x"), 1, "the disk fails"),
    "files": (OSError(24, "x", "a"), 1, "a: too many files are open; raise the limit"),
    "room": (OSError("Can't write (errno = 28, error message = 'x')"), 1, "no space is left on the disk"),
    "pipe": (BrokenPipeError(32, "x"), 1, "the reader of this output has ended"),
    "name": (UnicodeEncodeError("utf-8", "/data/\udcff", 6, 7, "surrogates not allowed"), 1, "is no UTF-8"),
    "memory": (MemoryError(), 1, "out of memory"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "stopped; finished work is kept"),
    "parameter": (typer.BadParameter("that is no number"), 2, "that is no number"),
    "exit": (typer.Exit(3), 3, ""),
    "a key": (KeyError("x"), 70, "please report it"),
    "no number": (OSError("no number"), 70, "please report it"),
}


def fail_as_told(name: str) -> None:
    """Run in a process of its own: a command line of one command, which raises that fault or sleeps."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command()
    def fail(name: str):
        print("begun", file=sys.stderr)
        if name in FAULTS:
            raise FAULTS[name][0]
        time.sleep(60)

    run(app)


def failing(name: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    command = [sys.executable, "-c", FAILING, name]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def shell(line: str, root: Path, **environment) -> subprocess.CompletedProcess:
    """A shell line in which $avpipe is the command line with the root."""
    line = line.replace("$avpipe", " ".join([*COMMAND, "--root", str(root)]))
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture
def full() -> str:
    """A device that is always full."""
    path = Path("/dev/full")
    if not (path.exists() and stat.S_ISCHR(path.stat().st_mode)):
        pytest.skip("this machine has no /dev/full")
    return str(path)


ASCII, C = {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ("manifest show synth_train", ASCII),
        ("train --help", C),
        ("status", C),
        *(pytest.param(command, ASCII, marks=pytest.mark.slow) for command in ("reproduce", "doctor")),
    ],
)
def test_a_terminal_that_lacks_signs_shows_others(done_root, command, environment):
    done = shell(f"$avpipe {command}", done_root.path, **environment)
    assert "Traceback" not in done.stderr and done.returncode == (0 if command != "doctor" else done.returncode)
    assert len(done.stdout) > 100
    assert done.stdout.isascii() or "--help" in command  # Typer writes help as UTF-8 where ASCII is asked for


def test_without_standard_error_the_work_is_done(done_root, full):
    for line in ("$avpipe manifest show 2>&-", f"$avpipe manifest show 2>{full}"):
        done = shell(line, done_root.path)
        assert done.returncode == 0 and "synth_train" in done.stdout and done.stderr == ""


def test_a_file_never_becomes_standard_error(done_root, tmp_path):
    """The first file that is opened takes the number of a closed stream, and with it all messages."""
    out = tmp_path / "out"
    done = shell(f"$avpipe export --split synth_test --format folders {out} 2>&- </dev/null", done_root.path)
    assert done.returncode == 0 and len(list((out / "frames").iterdir())) == 4


def test_a_full_standard_output_is_one_sentence(done_root, full):
    for command in ("manifest export synth_train", "train --help", "status --json"):
        done = shell(f"$avpipe {command} >{full}", done_root.path)
        assert done.returncode == 1, command
        sentence = "standard output: no space is left on the disk; free some space and rerun the command"
        assert done.stderr == f"avpipe: {sentence}\n"


def test_a_reader_that_ends_early_is_one_sentence(done_root):
    done = shell("set -o pipefail; $avpipe manifest show | true", done_root.path)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr and done.stderr.count("\n") <= 1


def test_what_a_user_can_mend_is_a_sentence():
    for error, code, sentence in FAULTS.values():
        said = user_message(error) if isinstance(error, Exception) else None
        assert sentence in said if code == 1 else said is None, error


@pytest.mark.parametrize("name", ["read-only", "name", "Ctrl-C", "parameter", "exit", "a key"])
def test_a_command_ends_with_its_code_and_a_fault_of_avpipe_shows_its_place(name):
    process, (_, code, sentence) = failing(name), FAULTS[name]
    _, errors = process.communicate()
    assert process.returncode == code and errors.startswith("begun\n") and sentence in errors.splitlines()[-1]
    assert ("Traceback" in errors) == (code == 70)


@pytest.mark.parametrize(
    "command",
    ["manifest show synth_test", pytest.param("shard --split synth_test --workers 1", marks=pytest.mark.slow)],
)
def test_a_root_whose_name_is_no_utf8_works(done_root, tmp_path, command):
    root = os.fsencode(tmp_path) + b"/r\xff\xfe"
    shutil.copytree(os.fsencode(done_root.path), root)
    done = subprocess.run([*COMMAND, "--root", root, *command.split()], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_sentence_commands_no_terminal():
    assert printable("a\x1b[2J\x07 é 漢 \udcff\n") == "a\\x1b[2J\\x07 é 漢 \\udcff\n"


def test_an_error_without_a_name_gets_one(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(OSError) as caught, named(path):
        raise OSError(errno.ENOSPC, "x")
    assert user_message(caught.value).startswith(f"{path}: no space")
    with pytest.raises(OSError) as caught, named(path):
        raise OSError(errno.EACCES, "x", "another")
    assert user_message(caught.value).startswith("another: permission")
    assert user_message(AvpipeError("b")) == "b" and user_message(ValueError("c")) is None


@pytest.mark.timeout(60)
def test_ctrl_c_is_one_line():
    """The signal goes to the whole group, as from a terminal."""
    process = failing("nothing")
    assert process.stderr.readline() == "begun\n"
    time.sleep(0.3)  # a signal in the middle of a write makes Python write the line again
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors.startswith("avpipe: stopped") and errors.count("\n") == 1
