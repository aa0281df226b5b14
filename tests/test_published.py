"""Checkpoints as the four repositories save them: what loads, what is refused, and that the maps are theirs."""

import argparse
import json
import os
import shutil
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_recipes import field, from_json, load, parity_files, weights
from shared_files import PARITY
from train_fixtures import linked
from typer.testing import CliRunner

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.train.cli.main import app
from avpipe.train.evaluation.run import Request, run_eval
from avpipe.train.methods import METHODS
from avpipe.train.models.author_checkpoints import (
    FORMATS,
    flat_state,
    folder_name,
    format_of,
    load_published_checkpoint,
    read_saved,
)
from avpipe.train.models.baselines import object_prior
from avpipe.train.models.checkpoint import load_checkpoint

pytestmark = pytest.mark.heavy

TIE_DEAD = {"vision_fc1.weight", "conv3.bias", "norm3.running_var", "imgnet.conv1_flow.weight", "audnet.fc.weight"}
pytest_plugins = ["train_fixtures"]
SLOW = {"sspl": [pytest.mark.slow]}  # its checkpoints have 400 MB
# By format: the stem of its parity files, its published map and the tolerance, what it holds and never reads.
GOLDEN = {
    "lvs": ("lvs", "eval_A", 1e-5, {"audnet.conv1_flow.weight"}),
    "ez-vsl": ("ezvsl", "eval_Savl", 2e-4, set()),
    "ssl-tie": ("ssltie", "eval_A", 1e-5, TIE_DEAD),
    "sspl": ("sspl", "pcm_eval_sim_map", 1e-5, set()),
    "sspl without PCM": ("sspl", "nopcm_eval_sim_map", 1e-5, set()),
}
SSPL_FILES = {"net_frame": "frame", "net_sound": "sound", "net_pc": "pcm", "net_ssl_head": "ssl_head"}
ONE = torch.ones(1)


def parallel(state: dict) -> OrderedDict:
    """A state as DataParallel names it."""
    return OrderedDict((f"module.{name}", value) for name, value in state.items())


def save(name: str, state: dict, folder: Path) -> Path:
    """What the repository of that format writes, as torch of its day wrote it."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = {"best_miou": np.float64(0.4), "best_cIoU": np.float64(0.3), "optimizer": {"state": {0: {"step": 7}}}}
    if name == "lvs":
        path = folder / "lvs_vggss.pth.tar"
        content = {"epoch": 9, "model_state_dict": parallel(state), "args": argparse.Namespace(tri_map=True)}
        torch.save(content, path, _use_new_zipfile_serialization=False)  # torch 1.3
    elif name == "ez-vsl":
        path = folder / "best.pth"
        torch.save({"model": parallel(state), "epoch": 20} | scores, path)
    elif name == "ssl-tie":
        path = folder / "model_best_epoch7.pth.tar"
        torch.save({"epoch": 7, "state_dict": OrderedDict(state), "iteration": 5} | scores, path)
    else:
        path = folder
        for part, file in SSPL_FILES.items():
            own = {key.removeprefix(f"{part}."): v for key, v in state.items() if key.startswith(f"{part}.")}
            if own:
                torch.save(OrderedDict(own) if part == "net_frame" else parallel(own), folder / f"{file}_best.pth")
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(format)`: the checkpoint of the weight recipe, written once; skips where there are no parity files."""
    base = tmp_path_factory.mktemp("published")

    def get(name: str) -> Path:
        files = sorted(PARITY.glob(f"{GOLDEN[name][0]}_forward_s*.npz")) if PARITY else []
        if not files:
            pytest.skip("no parity files: set AVPIPE_PARITY to their folder")
        if name not in made:
            state = weights(from_json(load(files[0])["state_spec"]))
            if name == "sspl without PCM":
                state = {key: value for key, value in state.items() if not key.startswith("net_pc.")}
            made[name] = save(name.partition(" ")[0], state, base / name)
        return made[name]

    made: dict[str, Path] = {}
    yield get
    shutil.rmtree(base)  # SSPL's alone are 400 MB


@pytest.fixture(scope="module")
def root(all_features, tmp_path_factory) -> Root:
    return linked(tmp_path_factory.mktemp("root"), all_features)


def own_state(name: str, **options) -> tuple[torch.nn.Module, dict]:
    """A fresh network in evaluation mode and its state under the published names."""
    torch.manual_seed(3)
    method = METHODS[FORMATS[name].method]
    network = method.network(method.config(init="random", **options)).eval()
    state = network.state_dict()
    return network, {published: state[own] for own, published in FORMATS[name].names(state).items()}


def inputs(golden: dict, tag: str) -> tuple[torch.Tensor, torch.Tensor]:
    seed, batch = int(golden["seed"]), int(golden["B"])
    if tag == "sspl":
        image, sound = field(seed, "sspl/view1", (batch, 3, 224, 224)), field(seed, "sspl/spect", (batch, 3, 1, 96, 64))
        return torch.from_numpy(image), torch.from_numpy(sound).movedim(2, 1)
    image = field(seed, f"{tag}/image", (batch, 3, 224, 224))
    return torch.from_numpy(image), torch.from_numpy(field(seed, f"{tag}/spec", (batch, 1, 257, int(golden["T"]))))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param(name, *case.values, id=f"{name}-{case.id}", marks=[*case.marks, *SLOW.get(stem, ())])
        for name, (stem, *_) in GOLDEN.items()
        for case in parity_files(f"{stem}_forward")
    ],
)
def test_maps_are_the_published_ones(name, file, saved):
    (stem, key, tolerance, dead), golden = GOLDEN[name], load(file)
    loaded = load_published_checkpoint(saved(name), name.partition(" ")[0])
    theirs = golden[key][:, 0] if key == "eval_A" else golden[key]
    if name == "ez-vsl":  # it divides before it stores
        theirs = theirs * np.float32(loaded.network.config.temperature)
        tolerance *= loaded.network.config.temperature
    np.testing.assert_allclose(loaded.network.localize(*inputs(golden, stem)), theirs, rtol=0, atol=tolerance)
    assert not loaded.unused and dead <= set(loaded.never_read)
    assert bool(loaded.never_read) == bool(dead) or stem == "sspl"
    if stem == "sspl":
        assert (loaded.network.pcm is not None) == (name == "sspl")
    else:
        assert not loaded.missing


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", ["ez-vsl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lvs", "ssl-tie", "sspl"))]
)
def test_eval_scores_a_published_checkpoint(name, saved, root, caplog):
    caplog.set_level("INFO", logger="avpipe")
    call = ["--root", root.path, "eval", "--split", "synth_test", "--workers", 1, "--json"]
    done = CliRunner().invoke(app, [*map(str, call), "--checkpoint", str(saved(name)), "--format", name])
    result, said = json.loads(done.stdout), caplog.messages
    match, feature = result["checkpoint"], FORMATS[name].features[0]
    assert (match["format"], match["feature"], match["unused"], match["missing"]) == (name, feature, [], [])
    assert result["clips_scored"] == 4 and result["model"].startswith(f"published-{name}-")
    assert len(said) == 1 and f"{match['matched']} tensors matched" in said[0] and f"it reads {feature}" in said[0]
    metrics = root.runs / result["model"] / "eval" / "synth_test" / "metrics.json"
    assert json.loads(metrics.read_text()) == result


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["lvs", "ez-vsl", "ssl-tie"])
def test_an_own_network_under_published_names_comes_back(name, tmp_path):
    network, state = own_state(name)
    dead = {"imgnet.fc.bias": ONE}  # both LVS and SSL-TIE have it
    path = save(name, state | dead, tmp_path)
    loaded = load_published_checkpoint(path, name)
    image, spec = torch.randn(2, 3, 96, 96), torch.randn(2, 1, 257, 60)
    assert torch.equal(loaded.network.localize(image, spec), network.localize(image, spec))
    assert loaded.matched == len(state) and loaded.record().keys() >= {"format", "matched", "unused", "missing"}
    assert ("needs --format lvs" in loaded.text()) == (name == "ssl-tie")  # nothing tells it from LVS's
    if name == "lvs":
        for stored, read in ((["tie-mel", "logspec"], "logspec"), (["logspec", "logspec-10s"], "logspec-10s")):
            assert load_published_checkpoint(path, name, stored).feature == read
        assert loaded.feature == "logspec-10s"


@pytest.mark.slow
def test_sspl_in_one_file_comes_back_and_needs_all_its_networks(tmp_path):
    network, state = own_state("sspl", pcm=False)
    path = tmp_path / "whole.pth"
    torch.save(state, path)
    loaded = load_published_checkpoint(path, "sspl")
    image, patches = torch.randn(2, 3, 64, 64), torch.randn(2, 1, 3, 96, 64)
    assert torch.equal(loaded.network.localize(image, patches), network.localize(image, patches))
    part = {name.removeprefix("net_frame."): value for name, value in state.items() if name.startswith("net_frame.")}
    torch.save(part, path)
    with pytest.raises(AvpipeError, match="give the folder of frame_best"):
        load_published_checkpoint(path, "sspl")
    with pytest.raises(AvpipeError, match=r"has no frame_best\.pth"):
        (tmp_path / "empty").mkdir()
        load_published_checkpoint(tmp_path / "empty", "sspl")
    path.rename(tmp_path / "frame_best.pth")
    with pytest.raises(AvpipeError, match=r"net_sound\.features\.0\.weight is missing, .* more\)"):
        load_published_checkpoint(tmp_path, "sspl")
    shutil.copy(tmp_path / "frame_best.pth", tmp_path / "net_frame_best.pth")
    with pytest.raises(AvpipeError, match=r"several files for net_frame: frame_best\.pth, net_frame_best\.pth"):
        load_published_checkpoint(tmp_path, "sspl")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"a.b": ONE, "epoch": 3, 5: ONE}, "a.b"),
        ({"module.a.module.b": ONE}, "a.b"),
        ({"model": {"module.a": ONE}, "optimizer": {"x": ONE}}, "a"),
        (
            {"net_frame": {"module.x": ONE}, "pcm": {"y": ONE}, "ssl_head": {"z": ONE}, "best": 3},
            "net_frame.x net_pc.y net_ssl_head.z",
        ),
        ({"state_dict": {"net_sound": {"x": ONE}}}, "net_sound.x"),
        ({"net_sound.module.fc.0.bias": ONE}, "net_sound.fc.0.bias"),
    ],
)
def test_tensors_are_found_in_any_usual_wrapping(content, names):
    assert set(flat_state(content, Path("x"))) == set(names.split())


def test_numpy_numbers_of_old_files_and_settings_load(tmp_path):
    path = tmp_path / "old.pth"
    content = {"model": {"a": ONE}, "best": np.float64(0.25), "n": np.int64(2), "args": argparse.Namespace(tau=0.03)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))  # NumPy 1
    assert (read_saved(path)["best"], read_saved(path)["n"], read_saved(path)["args"].tau) == (0.25, 2, 0.03)


class Evil:
    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, exec, Path])
def test_a_file_that_could_run_code_is_refused(function, zipped, tmp_path):
    path, mark = tmp_path / "evil.pth", tmp_path / "ran"
    argument = f"touch {mark}" if function is os.system else f"open({str(mark)!r}, 'w')"
    content = {"model": {"imgnet.conv1.weight": ONE}, "best": Evil(function, argument)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    said = r"holds more than tensors and plain values \(.*could run code; not loaded"
    for read in (load_checkpoint, partial(load_published_checkpoint, format_name="ez-vsl")):
        with pytest.raises(AvpipeError, match=said) as caught:
            read(path)
        assert "\n" not in str(caught.value) and not mark.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: [state.pop(name) for name in list(state) if "layer4.0" in name],
         r"not fit ez-vsl: of 244 tensors 30 are missing .*imgnet\.layer4\.0\.conv1\.weight is missing.* and 27 more"),
        (lambda state: state.update({"aud_proj.bias": torch.ones(128)}),
         r"1 are missing or have another shape \(aud_proj\.bias has shape \(128,\), not \(512,\)\)"),
        (lambda state: state.update({"aud_proj.bias": 3}), r"aud_proj\.bias is missing"),
    ],
)  # fmt: skip
def test_what_is_missing_or_misshapen_is_named(change, sentence, tmp_path):
    state = own_state("ez-vsl")[1]
    change(state)
    with pytest.raises(AvpipeError, match=sentence):
        load_published_checkpoint(save("ez-vsl", state, tmp_path), "ez-vsl")


def test_strangers_are_reported_and_counters_may_be_absent(tmp_path):
    state = {name: value for name, value in own_state("lvs")[1].items() if "num_batches_tracked" not in name}
    state |= {"imgnet.fc.weight": ONE, "head.\x1b[2Jweight": ONE}
    loaded = load_published_checkpoint(save("lvs", state, tmp_path), "lvs")
    assert loaded.unused == ["head.\x1b[2Jweight"] and loaded.never_read == ["imgnet.fc.weight"]
    assert len(loaded.missing) == 40 and loaded.matched == 200
    assert "1 (head.?[2Jweight) unused; 1 known, never read" in loaded.text() and "40 batch norm" in loaded.text()


@pytest.mark.parametrize(
    ("theirs", "said"), [("ez-vsl", "lvs"), ("lvs", "ez-vsl"), ("ssl-tie", "lvs"), ("ez-vsl", "sspl"), ("lvs", "sspl")]
)
def test_another_format_is_named(theirs, said, tmp_path):
    state = own_state(theirs)[1] | ({"vision_fc1.bias": ONE} if theirs == "ssl-tie" else {})
    with pytest.raises(AvpipeError, match=f"is a checkpoint of {theirs}, not of {said}; use --format {theirs}"):
        load_published_checkpoint(save(theirs, state, tmp_path), said)
    assert format_of(["fc.weight"]) is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"this is no checkpoint", "is damaged or was not saved by torch"),
        (b"", "is damaged or was not saved by torch"),
        ([ONE], "holds a list, not a dictionary"),
        ({"epoch": 3}, r"holds no tensors by name \(but epoch\)"),
        ({"fc.weight": ONE}, "does not fit lvs: of 240 tensors 200 are missing"),
    ],
)
def test_what_is_no_checkpoint_is_a_sentence(content, sentence, tmp_path):
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(AvpipeError, match=sentence):
        load_published_checkpoint(path, "lvs")


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"checkpoint": "x.pth", "format_name": "avgn"}, "no format 'avgn'; there are: lvs, ez-vsl, ssl-tie, sspl"),
        ({"checkpoint": "/nowhere/x.pth", "format_name": "lvs"}, "/nowhere/x.pth does not exist"),
        ({"checkpoint": "/", "format_name": "lvs"}, "is a folder; give the checkpoint file in it"),
        ({"format_name": "lvs"}, "--format is the format of --checkpoint"),
        ({"weights": Path("x.pth")}, "--weights names the ImageNet weights of --baseline object"),
        ({"baseline": "centre", "format_name": "lvs"}, "--format is the format of"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(own_root, wanted, sentence):
    with pytest.raises(AvpipeError, match=sentence) as caught:
        run_eval(own_root, Request(split="synth_test", **wanted))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/lvs_vggss.pth.tar", "published-lvs-runs-lvs_vggss"),
        ("a/best.pth", "published-lvs-a-best"),
        ("a/..", "published-lvs-up-main"),
        ("a/.pth", "published-lvs-a-checkpoint"),
        ("a/....tar", "published-lvs-a"),
        ("a/\x1b[31m Modèle\n.pth", "published-lvs-a-31m-Mod-le"),
        ("a/" + "x" * 200, "published-lvs-a-" + "x" * 64),
    ],
)
def test_a_strangers_file_name_stays_in_the_folder_of_runs(path, name, monkeypatch, tmp_path):
    (tmp_path / "up/main").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "up/main")
    assert folder_name(Path(path), "lvs") == name
    assert (Path("runs") / folder_name(Path(path), "lvs")).resolve().parent == Path("runs").resolve()


@pytest.mark.parametrize("file", parity_files("ezvsl_forward"))
def test_the_baseline_object_is_the_published_prior(file, tmp_path):
    golden = load(file)
    torch.save(weights(from_json(golden["obj_state_spec"])), tmp_path / "resnet18-f37072fd.pth")
    ours, theirs = object_prior(tmp_path).localize(*inputs(golden, "ezvsl")), golden["obj_map"][:, 0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
