from __future__ import annotations

import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from sagan.config import EvalConfig
from sagan.data import ImageDataset, embedded
from sagan.metrics import classifier, inception
from sagan.metrics.evaluation import Evaluator
from sagan.metrics.extractor import Extractor, load_extractor, main
from sagan.metrics.features import extract
from sagan.metrics.relations import measure

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shipped() -> Extractor:
    return load_extractor("embedded-v2", device=CPU)


def pictures(n: int, resolution: int = 64) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % len(embedded.CLASSES)
    return embedded.draw(labels, 50, resolution), labels


def accuracy(extractor: Extractor, images: Tensor, labels: Tensor) -> float:
    return classifier.accuracy(extractor.network, torch.split(images, 256), labels, CPU)


def test_shipped_extractor_recognises_pictures_that_it_was_not_trained_on(shipped: Extractor) -> None:
    images, labels = pictures(1200)
    assert shipped.labels is not None and shipped.labels[: len(embedded.CLASSES)] == embedded.CLASSES
    assert accuracy(shipped, images, labels) >= 0.995


def test_small_pictures_are_scaled_up(shipped: Extractor) -> None:
    small, labels = pictures(600, resolution=32)
    twice = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert all(torch.equal(a, b) for a, b in zip(shipped(small), shipped(twice), strict=True))
    with torch.inference_mode():
        found = shipped(small)[1][:, : len(embedded.CLASSES)].argmax(1)  # as metrics of classes look at it
    assert (found == labels).float().mean() >= 0.95


def test_shipped_weights_are_under_a_megabyte_and_never_change(shipped: Extractor) -> None:
    file = Path(classifier.__file__).parent / "weights" / "embedded-v2.safetensors"
    assert file.stat().st_size < 1_000_000
    assert shipped.sha256.startswith("f354731fa69fe7b1")


def test_batch_size_does_not_matter(shipped: Extractor) -> None:
    images, labels = pictures(60)
    whole = extract(shipped, [images], labels, CPU, measure=measure)
    parts = extract(shipped, torch.split(images, 7), labels, CPU, measure=measure)
    torch.testing.assert_close(vars(parts), vars(whole), rtol=1e-5, atol=1e-5)


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
    few = torch.arange(60) % len(embedded.CLASSES)
    small = ImageDataset("embedded", embedded.draw(few, 0, 64), few, embedded.CLASSES, {}, "few")
    monkeypatch.setattr("sagan.metrics.extractor._training_images", lambda *_: small)
    assert main(["train", "--preset", "embedded", "--out", str(file), "--steps", "2"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert classifier.load(file)[1] == embedded.CLASSES


class RowsOfAFile:
    """Images that lie in a file: they are had by rows, a batch at a time, and in no other way."""

    def __init__(self, images: Tensor):
        self._images = images

    def __getitem__(self, rows: Tensor) -> Tensor:
        assert rows.dtype == torch.int64 and rows.ndim == 1 and len(rows) <= 256
        return self._images[rows]


def photographs(classes: tuple[str, ...] = ("dark", "light")) -> ImageDataset:
    labels = torch.arange(160) % len(classes)
    noise = torch.randint(100, (160, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = (noise + 150 * labels[:, None, None, None]).to(torch.uint8)
    return ImageDataset("imagenette", RowsOfAFile(images), labels, classes, {}, "photographs")  # type: ignore[arg-type]


def train_command(dataset: ImageDataset, folder: Path, *options: str) -> int:
    """Runs `train` on `dataset` as a user in `folder` would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sagan.metrics.extractor.open_dataset", lambda *_: dataset)
        return main(["train", "--set", "data.name=imagenette", "--steps", "2", *options])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extractor that was registered in the cache of a folder, `file.parents[1]`."""
    folder = tmp_path_factory.mktemp("registered")
    assert train_command(photographs(), folder) == 0
    (file,) = (folder / "runs/cache/extractors").iterdir()
    return file


def test_registered_extractor_is_found_by_the_name_that_its_training_printed_with_the_hash_of_its_seed(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for seed in ("0", "1"):
        assert train_command(photographs(), tmp_path, "--seed", seed) == 0
        said = capsys.readouterr().out
        names.append(said.split("--set eval.extractor=")[1].strip())
        loaded = load_extractor(names[-1], device=CPU, cache_dir=tmp_path / "runs" / "cache")
        assert names[-1] == f"imagenette-{loaded.sha256[:8]}" == loaded.name
        assert "on held-out images" in said
    assert {path.stem for path in (tmp_path / "runs/cache/extractors").iterdir()} == set(names)
    assert file.stem == names[0] != names[1]


def test_metrics_of_a_registered_extractor_name_the_classes_of_its_data(file: Path) -> None:
    dataset = photographs()
    config = EvalConfig(num_samples=160, extractor=file.stem)
    evaluator = Evaluator(dataset, config, device=CPU, cache_dir=file.parents[1])
    found = evaluator([dataset.images[torch.arange(160)]], dataset.labels)
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert {"class_consistency", "is", "fid_class/dark"} <= found.keys()
    assert evaluator.fingerprint.startswith(f"{file.stem}@{file.stem[-8:]}; ")


def test_photographs_get_a_wider_network_and_batch_size_does_not_matter_to_it(file: Path) -> None:
    extractor = load_extractor(file.stem, device=CPU, cache_dir=file.parents[1])
    images = torch.randint(256, (10, 3, 128, 128), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    features, logits, local = extractor(images)
    assert features.shape == (10, 256) and logits.shape == (10, 2) and local.shape == (10, 192, 8, 8)
    torch.testing.assert_close(extractor(images[3:5])[0], features[3:5], rtol=1e-5, atol=1e-5)


def test_exchanged_weights_are_refused_and_the_message_says_what_to_do(file: Path, tmp_path: Path) -> None:
    exchanged = tmp_path / "extractors" / file.name
    exchanged.parent.mkdir()
    exchanged.write_bytes(file.read_bytes()[:-1] + b"x")
    message = f"{exchanged} was damaged or exchanged.*copy it again.*or delete it and train"
    with pytest.raises(ValueError, match=message):
        load_extractor(file.stem, device=CPU, cache_dir=tmp_path)


def test_unregistered_name_is_answered_with_the_registered_ones_and_the_command(file: Path) -> None:
    expected = (
        f"one of embedded-v2, inception, {file.stem}, got 'imagenette'; did you mean '{file.stem}'[?]"
        f".*sagan.metrics.extractor train --preset .*belongs in {file.parent}"
    )
    with pytest.raises(ValueError, match=expected):
        load_extractor("imagenette", device=CPU, cache_dir=file.parents[1])


def test_images_without_labels_are_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(classifier, "train", None)
    assert train_command(photographs(classes=("all",)), tmp_path) == 2
    assert "needs 2 classes or more, got 1; train on labelled images" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_photographs_are_shifted_and_mirrored_and_otherwise_left_as_they_are() -> None:
    images = torch.randint(256, (24, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    padded = pad(images.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    windows = padded.unfold(2, 16, 1).unfold(3, 16, 1).flatten(2, 3).transpose(1, 2)  # [24, 25, 3, 16, 16]
    windows = torch.cat([windows, windows.flip(-1)], 1)
    moved = classifier._shifted(images, torch.Generator().manual_seed(0))
    same = (windows == moved[:, None]).flatten(2).all(2)
    assert same.any(1).all()
    assert len(same.int().argmax(1).unique()) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "embeded"], "--preset: must be one of embedded, .*, got 'embeded'"),
        (["--set", "data.resolutoin=64"], "did you mean 'data.resolution'"),
        (["--device", "gpu"], "--device: must be one that torch has here, got 'gpu'"),
        (["--steps", "0"], "--steps: must be 1 or more, got 0"),
    ],
)
def test_bad_options_are_refused_with_status_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command(photographs(), tmp_path, *options) == 2
    assert re.search(message, capsys.readouterr().err)


def test_inception_without_network_and_file_says_which_file_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=f"fetch {inception.OFFICIAL_FILE}.* pass --inception-weights FILE"):
        load_extractor("inception", device=CPU)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x80\x02}q\x00."])
def test_file_that_is_missing_or_not_inception_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="does not hold Inception's state dict"):
        load_extractor("inception", device=CPU, inception_weights=file)
    file.unlink()
    with pytest.raises(ValueError, match=f"no file {file}; it should be {inception.OFFICIAL_FILE}"):
        load_extractor("inception", device=CPU, inception_weights=file)


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
