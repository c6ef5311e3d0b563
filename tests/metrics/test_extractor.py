from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sagan.data import ImageDataset, embedded
from sagan.metrics import classifier, inception
from sagan.metrics.extractor import Extractor, load_extractor, main
from sagan.metrics.features import extract

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shipped() -> Extractor:
    return load_extractor("embedded-v1", device=CPU)


def pictures(n: int, resolution: int = 64, difficulty: str = "easy") -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 6
    return embedded.draw(labels, 50, resolution, difficulty), labels  # type: ignore[arg-type]


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_shipped_extractor_recognises_pictures_that_it_was_not_trained_on(shipped: Extractor, difficulty: str) -> None:
    images, labels = pictures(1200, difficulty=difficulty)
    assert shipped.labels == embedded.CLASSES
    assert classifier.accuracy(shipped.network, images, labels) >= 0.995  # type: ignore[arg-type]


def test_small_pictures_are_scaled_up(shipped: Extractor) -> None:
    small, labels = pictures(600, resolution=32)
    twice = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert all(torch.equal(a, b) for a, b in zip(shipped(small), shipped(twice), strict=True))
    assert classifier.accuracy(shipped.network, small, labels) >= 0.95  # type: ignore[arg-type]


def test_shipped_weights_are_under_a_megabyte() -> None:
    file = Path(classifier.__file__).parent / "weights" / "embedded-v1.safetensors"
    assert file.stat().st_size < 1_000_000


def test_batch_size_does_not_matter(shipped: Extractor) -> None:
    images, labels = pictures(60)
    whole = extract(shipped, [images], labels, CPU)
    parts = extract(shipped, torch.split(images, 7), labels, CPU)
    for name in ("features", "logits", "local"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_local_tokens_see_17_pixels_and_features_the_whole_picture(shipped: Extractor) -> None:
    one, _ = pictures(1)
    other = one.clone()
    other[..., 40:] = 255 - other[..., 40:]
    first, second = shipped(one), shipped(other)
    seen = (first[2] != second[2]).any(1)[0].any(0)  # by column; column c is centred on pixel 8 c
    assert seen.tolist() == [8 * column + 8 >= 40 for column in range(8)]
    assert (first[0] != second[0]).any()


def test_folding_batch_norm_keeps_the_function(rng: torch.Generator) -> None:
    images, labels = pictures(24)
    network = classifier.Classifier(6, norm=True).train()
    for _ in range(3):
        cross_entropy(network(images)[1], labels)  # moves the running statistics off their start
    network.eval()
    for conv in network.convs:
        conv.weight.data = conv.weight.data.half().float()
    with torch.no_grad():
        before, after = network(images)[0], classifier._folded(network)(images)[0]
    torch.testing.assert_close(after, before, rtol=5e-3, atol=5e-3)  # float16 weights


def test_command_trains_and_writes_weights_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "weights.safetensors"
    few = torch.arange(60) % 6
    small = ImageDataset("embedded", embedded.draw(few, 0, 64, "easy"), few, embedded.CLASSES, {}, "few")
    monkeypatch.setattr("sagan.metrics.extractor._training_images", lambda *_: small)
    assert main(["train", "--preset", "embedded", "--out", str(file), "--steps", "2"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert classifier.load(file).classes == embedded.CLASSES


def test_unknown_preset_is_refused_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--preset", "embeded", "--out", str(tmp_path / "w")]) == 2
    assert "'embeded'" in capsys.readouterr().err


def test_unknown_extractor_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"one of embedded-v1, inception, got 'inceptoin'; did you mean 'inception'\?"):
        load_extractor("inceptoin", device=CPU)


def test_inception_without_network_and_file_says_which_file_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=f"fetch {inception.OFFICIAL_FILE}.* pass --inception-weights FILE"):
        load_extractor("inception", device=CPU)


def test_missing_inception_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no file {tmp_path}/none.pth; it should be {inception.OFFICIAL_FILE}"):
        load_extractor("inception", device=CPU, inception_weights=tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x80\x02}q\x00."])
def test_file_that_is_not_inception_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="does not hold Inception's state dict"):
        load_extractor("inception", device=CPU, inception_weights=file)


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the format of the official file."""
    file = tmp_path_factory.mktemp("inception") / inception.OFFICIAL_FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        network_type = inception.FeatureExtractorInceptionV3
        patch.setattr(network_type, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        torch.save(network_type("random", ["2048"], verbose=False).state_dict(), file)
    return file


def test_inception_equals_torch_fidelity_on_the_same_weights(random_inception: Path) -> None:
    images = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    loaded = load_extractor("inception", device=CPU, inception_weights=random_inception)
    published = inception.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(random_inception))
    with torch.inference_mode():
        features, logits, local = loaded(images)
        expected = published(images)
    torch.testing.assert_close(features, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-4)
    assert features.shape == (2, 2048) and logits.shape == (2, 1008) and local.shape == (2, 256, 35, 35)
    assert loaded.labels is None and len(loaded.sha256) == 64
