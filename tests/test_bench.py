"""`avpipe bench`: what it measures, what it makes of it, and what it refuses."""

import json
import sys
from dataclasses import fields, replace

import pytest
from thin import thin_networks  # noqa: F401
from train_fixtures import SMALL

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.cli.main import main
from avpipe.train.models.recipes import get_recipe
from avpipe.train.run.bench import Figures, bench, judge, table, thread_counts

pytest_plugins = ["train_fixtures"]
# A GPU that is always busy: 4 threads load more than it takes.
BUSY = Figures(
    device="some GPU",
    cores=8,
    batch_size=128,
    read=20_000.0,
    read_mb_per_s=2500.0,
    loaded={1: 1000.0, 2: 2000.0, 4: 4000.0, 8: 7000.0},
    step=3000.0,
    peak_device_mb=9000.0,
    threads=7,
    together=2950.0,
    data_wait=0.01,
    epoch_samples=143_872,
    epochs=20,
)


@pytest.mark.heavy
def test_the_command_measures_everything_and_asks_for_no_weights(shards, capsys, monkeypatch):
    words = [word for change in [*SMALL, "init=imagenet"] for word in ("--set", change)]
    command = ["bench", "--shards", str(shards.folder), "--recipe", "lvs-small", *words, "--seconds", "0.1", "--json"]
    monkeypatch.setattr(sys, "argv", ["avpipe", *command])
    monkeypatch.setattr("avpipe.train.networks.resnet.load_published", None)
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert not ended.value.code and "method=lvs" in captured.err
    assert {field.name for field in fields(Figures)} <= set(found) and found["recipe"]["image_px"] == 32
    rates = [found[name] for name in ("read", "read_mb_per_s", "step", "together")] + list(found["loaded"].values())
    assert min(rates) > 0 and 0 <= found["data_wait"] <= 1
    assert list(map(int, found["loaded"])) == thread_counts(found["cores"])
    assert (found["epoch_samples"], found["epochs"], found["batch_size"]) == (16, 4, 4)
    verdict = found["verdict"]
    assert verdict["limit"] in ("disk", "threads", "step")
    assert verdict["epoch_s"] == pytest.approx(16 / found["together"])
    assert verdict["training_s"] == pytest.approx(4 * verdict["epoch_s"])


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])]
)
def test_threads_are_doubled_up_to_the_cores(cores, counts):
    assert thread_counts(cores) == counts


def test_a_step_that_waits_for_nothing_is_the_limit():
    verdict = judge(BUSY)
    assert (verdict.limit, verdict.enough_threads) == ("step", 4)
    assert verdict.epoch_s == pytest.approx(143_872 / 2950)
    assert verdict.training_s == pytest.approx(20 * verdict.epoch_s)
    assert verdict.text == (
        "The training step is the bottleneck: with 7 threads loading it waits 1.0% of its time for data; "
        "--workers 4 would be enough. "
        "An epoch of 143,872 samples takes 48.8 s, all 20 epochs of the recipe 16 min."
    )
    for words in ("20,000", "2,500 MB/s", "loading, 8 threads", "7,000", "9,000 MB", "2,950.0", "1.0%"):
        assert words in table(BUSY, verdict)


def test_a_disk_that_cannot_feed_the_step_is_the_limit():
    slow = replace(BUSY, read=900.0, read_mb_per_s=110.0, loaded=dict.fromkeys((1, 2, 4, 8), 850.0), data_wait=0.7)
    verdict = judge(slow)
    assert (verdict.limit, verdict.enough_threads) == ("disk", None)
    assert "it reads 900 samples/s (110 MB/s), the step could take 3,000" in verdict.text


@pytest.mark.parametrize(
    ("changes", "enough", "words"),
    [
        ({"cores": 4, "threads": 3, "step": 3500.0}, 4, "4 would be enough (--workers 4)"),
        ({"step": 14_000.0}, 16, "about 16 cores would be needed, this machine has 8"),
        ({"step": 2900.0}, 4, "they share 8 cores with the step"),
    ],
)
def test_too_few_threads_are_the_limit(changes, enough, words):
    verdict = judge(replace(BUSY, data_wait=0.2, **changes))
    assert (verdict.limit, verdict.enough_threads) == ("threads", enough)
    assert words in verdict.text


def test_shards_that_do_not_fit_get_the_sentences_of_a_training(shards):
    with pytest.raises(AvpipeError, match="16 samples do not fill one batch of 64"):
        bench(get_recipe("lvs-small", [*SMALL, "batch_size=64"]), shards, seconds=0.1)
    with pytest.raises(AvpipeError, match=r"holds no vggish\.npy; it has: .*logspec\.npy"):
        bench(get_recipe("lvs-small", [*SMALL, "feature=vggish"]), shards, seconds=0.1)
