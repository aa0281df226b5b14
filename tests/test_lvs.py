"""LVS without golden files: its loss against a slow reading of the paper, its promises as a module, its errors."""

import math
import urllib.error

import pytest
import torch

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.methods.lvs import LVS, LVSConfig, lvs_loss, similarity_maps
from avpipe.train.networks.resnet import audio_trunk, image_trunk

RANDOM = LVSConfig(init="random")


def features(batch: int, channels: int, size: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose matching pairs have cosines on both sides of the two thresholds, of both signs and any length."""
    generator = torch.Generator().manual_seed(0)
    audio_BC = torch.randn(batch, channels, generator=generator, dtype=dtype)
    noise_BCHW = torch.randn(batch, channels, size, size, generator=generator, dtype=dtype)
    return 3 * (audio_BC[:, :, None, None] + 1.2 * noise_BCHW), audio_BC


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_loss(image: list, audio: list) -> float:
    """The released objective with the published constants, one number at a time: image[i][c][y][x], audio[j][c]."""
    batch, channels, size = len(image), len(audio[0]), len(image[0][0])

    def cosine(i: int, j: int, y: int, x: int) -> float:
        v, a = [image[i][c][y][x] for c in range(channels)], audio[j]
        return sum(p * q for p, q in zip(v, a, strict=True)) / (math.hypot(*v) * math.hypot(*a))

    def pooled(i: int, j: int, weight) -> float:
        cosines = [cosine(i, j, y, x) for y in range(size) for x in range(size)]
        return sum(weight(s) * s for s in cosines) / sum(weight(s) for s in cosines)

    def sounding(s: float) -> float:
        return sigmoid((s - 0.65) / 0.03)

    def background(s: float) -> float:
        return 1 - sigmoid((s - 0.4) / 0.03)

    total = 0.0
    for i in range(batch):
        positive = pooled(i, i, sounding)
        negatives = [pooled(i, j, sounding) * (-99 if i == j else 1) for j in range(batch)]
        logits = [s / 0.07 for s in (positive, *negatives, pooled(i, i, background))]
        total -= logits[0] - math.log(sum(math.exp(logit) for logit in logits))
    return total / batch


def small_batch(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 64, 64, generator=generator), torch.randn(batch, 1, 257, 40, generator=generator)


@pytest.fixture(scope="module")
def model() -> LVS:
    torch.manual_seed(0)
    return LVS(RANDOM)


@pytest.mark.parametrize("batch", [1, 3])
def test_loss_equals_the_slow_reading_and_its_parts_are_mean_cosines(batch):
    image, audio = features(batch, channels=5, size=4)
    loss, parts = lvs_loss(image.requires_grad_(), audio, RANDOM)
    assert loss.item() == pytest.approx(slow_loss(image.tolist(), audio.tolist()), rel=1e-12)
    assert all(part.ndim == 0 and not part.requires_grad for part in parts.values())
    assert 1 >= parts["positive"] > RANDOM.epsilon_p > parts["hard"] >= -1 and (parts["easy"] == 0) == (batch == 1)


def test_perfect_match_everywhere_keeps_loss_and_gradient_finite():
    audio = torch.eye(3, 8)
    image = audio[:, :, None, None].expand(-1, -1, 4, 4).clone().requires_grad_()
    loss, _ = lvs_loss(image, audio, RANDOM)
    loss.backward()
    assert loss.isfinite()
    assert image.grad.isfinite().all()


def test_similarity_keeps_float32_under_autocast():
    image, audio = features(3, channels=64, size=4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = similarity_maps(image, audio)
    torch.testing.assert_close(mixed, similarity_maps(image, audio), rtol=0, atol=0)


def test_map_depends_on_its_own_pair_only_and_the_mode_is_restored(model):
    image, spec = small_batch()
    model.train()
    model.audio_trunk.eval()
    together = model.localize(image, spec)
    assert together.shape == (3, 4, 4)
    assert together.abs().max() <= 1
    assert not together.requires_grad
    torch.testing.assert_close(model.localize(image[1:2], spec[1:2])[0], together[1], rtol=0, atol=1e-5)
    assert (model.training, model.image_trunk.training, model.audio_trunk.training) == (True, True, False)


def test_embeddings_are_unit_vectors_whose_product_follows_the_mean_of_the_map(model):
    image, spec = small_batch()
    visual, audio = model.embed(image, spec)
    for vectors in (visual, audio):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    ratio = (visual * audio).sum(dim=1) / model.localize(image, spec).mean(dim=(1, 2))
    other = model.localize(image, spec.flip(0)).mean(dim=(1, 2))
    torch.testing.assert_close((visual * audio.flip(0)).sum(dim=1) / other, ratio)


def test_spectrogram_pooling_halves_what_the_trunk_sees(model):
    _, spec = small_batch()
    pooled = LVS(LVSConfig(init="random", spec_pool=2))
    pooled.load_state_dict(model.state_dict())
    halved = torch.nn.functional.avg_pool2d(spec, 2)
    with torch.no_grad():
        torch.testing.assert_close(pooled.eval().audio_features(spec), model.eval().audio_features(halved))


@pytest.mark.parametrize(("stride14", "image_size", "audio_size"), [(True, 14, (17, 13)), (False, 7, (9, 7))])
def test_map_sizes_are_the_published_ones(stride14, image_size, audio_size):
    with torch.device("meta"):
        image = image_trunk("random", stride14=stride14)(torch.empty(1, 3, 224, 224))
        audio = audio_trunk(stride14=stride14)(torch.empty(1, 1, 257, 200))
    assert image.shape == (1, 512, image_size, image_size)
    assert audio.shape == (1, 512, *audio_size)


def test_fresh_weights_have_the_published_spread(model):
    last = model.audio_trunk.layer4[1]
    assert last.conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.01)
    assert last.bn2.weight.mean().item() == pytest.approx(1, abs=0.01)
    assert last.bn2.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not last.bn2.bias.any()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"init": "places"}, 'init must be "imagenet" or "random"'),
        ({"objective": "other"}, 'objective must be "released"'),
        ({"epsilon_p": 0.3}, "epsilon_n <= epsilon_p"),
        ({"mask_temperature": 0.0}, "mask_temperature must be above 0"),
        ({"logit_temperature": -0.07}, "logit_temperature must be above 0"),
        ({"spec_pool": 0}, "spec_pool must be an integer"),
        ({"spec_pool": 1.5}, "spec_pool must be an integer"),
    ],
)
def test_wrong_settings_are_named(setting, words):
    with pytest.raises(AvpipeError, match=words):
        LVSConfig(**setting)


def test_missing_imagenet_weights_say_what_to_do(monkeypatch, tmp_path):
    def unreachable(*_args, **_kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(AvpipeError) as caught:
        LVS(LVSConfig())
    name, sentence = "resnet18-f37072fd.pth", str(caught.value)
    for words in (f"{tmp_path}/hub/checkpoints/{name}", f"https://download.pytorch.org/models/{name}", "--init random"):
        assert words in sentence
    assert "\n" not in sentence


def test_imagenet_weights_from_a_file(tmp_path):
    trunk = image_trunk("random", stride14=False)
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(trunk.state_dict() | classifier, tmp_path / "resnet18.pth")
    loaded = image_trunk("imagenet", stride14=True, weights_file=tmp_path / "resnet18.pth")
    torch.testing.assert_close(loaded.state_dict(), trunk.state_dict())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"other\.pth could not be read"),
        (b"no weights at all", r"other\.pth could not be read"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, r"ImageNet weights of ResNet-18.*pytorch\.org"),
        ([torch.zeros(3)], r"ImageNet weights of ResNet-18.*pytorch\.org"),
    ],
)
def test_weights_that_are_none_or_of_another_network_are_refused(content, sentence, tmp_path):
    file = tmp_path / "other.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(AvpipeError, match=sentence):
        image_trunk("imagenet", stride14=True, weights_file=file)
