"""avpipe as others install it: one wheel, without the repository, next to files of other people."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
SITE = Path(sysconfig.get_path("purelib"))
pytestmark = pytest.mark.heavy


@pytest.fixture(scope="session")
def wheel(once) -> Path:
    def build(folder: Path) -> None:
        for name in ("pipeline", "train", "manifests"):
            shutil.copytree(REPOSITORY / name, folder / "source" / name)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPOSITORY / name, folder / "source")
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True)

    (path,) = once("wheel", build).glob("*.whl")
    return path


def dependencies(name: str, extra: str = "", found: dict | None = None) -> dict:
    """The distributions that `pip install name` would bring, by name."""
    found = {} if found is None else found
    try:
        here = distribution(name)
    except PackageNotFoundError:  # of another platform
        return found
    if (name, extra) in found:
        return found
    found[name, extra] = here
    for requirement in map(Requirement, here.requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for wanted in ("", *requirement.extras):
                dependencies(requirement.name, wanted, found)
    return found


@pytest.fixture(scope="session")
def clean_avpipe(wheel, once) -> Path:
    """`avpipe` in an environment that has the wheel and what it depends on without extras, and nothing else."""

    def install(folder: Path) -> None:
        venv.create(folder, symlinks=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        for here in {id(d): d for (name, _), d in dependencies("avpipe").items() if name != "avpipe"}.values():
            for top in {file.parts[0] for file in here.files if file.parts[0] not in ("..", "__pycache__")}:
                if not (site / top).exists():
                    (site / top).symlink_to(SITE / top)
        command = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet"]
        subprocess.run([*command, "--no-deps", "--no-index", wheel], check=True)

    return once("clean", install) / "bin/avpipe"


def run(*command, folder: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def test_the_wheel_has_one_root(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {re.sub(r"-.*dist-info", ".dist-info", name.split("/")[0]) for name in names} == {
        "avpipe",
        "avpipe.dist-info",
    }
    assert {"avpipe/manifests/catalogue.toml", "avpipe/train/reports/html/report.css"} <= set(names)


def test_the_wheel_works_alone_and_without_torch(clean_avpipe, tmp_path):
    assert "eval" in run(clean_avpipe, "--help", folder=tmp_path).stdout
    run(clean_avpipe, "synth", "source", "--clips", 4, "--workers", 1, folder=tmp_path)
    run(clean_avpipe, "manifest", "build", "--lists", "source/lists", folder=tmp_path)
    run(clean_avpipe, "download", "--from", "source/clips", folder=tmp_path)
    assert "4 extracted" in run(clean_avpipe, "extract", "--workers", 1, folder=tmp_path).stdout
    run(clean_avpipe, "shard", "--split", "synth_test", "--workers", 1, folder=tmp_path)
    missing = subprocess.run(
        [clean_avpipe, "eval", "--split", "synth_test"], cwd=tmp_path, capture_output=True, text=True
    )
    assert missing.returncode == 1 and "avpipe[train]" in missing.stderr and "Traceback" not in missing.stderr
    python = clean_avpipe.with_name("python")
    assert (
        run(python, "-c", "import importlib.util as u; print(u.find_spec('torch'))", folder=tmp_path).stdout == "None\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "avpipe.train.cli"],
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "-m", "avpipe.train.cli"],
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--no-python", "avpipe"],
    ],
    ids=["python", "torchrun-module", "torchrun-program"],
)
def test_another_train_py_is_left_alone(command, tmp_path):
    for name in ("train", "pipeline", "manifests"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the research code was run')\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*command, "train", "--help"], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0 and "--shards" in done.stdout, done.stderr
