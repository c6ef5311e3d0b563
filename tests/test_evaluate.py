"""`python -m sagan.evaluate`: one set of images has one score, whatever form it comes in."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sagan import journal
from sagan.config import Config, diff, override
from sagan.data import embedded
from sagan.evaluate import main
from sagan.generator_file import load_generator, save_generator
from sagan.networks import Generator
from sagan.presets import PRESETS
from sagan.sampling import Sampler
from sagan.train import main as train

SEED, N = 3, 80
AT_32 = ("--preset=embedded", "--set=data.resolution=32")
Score = Callable[..., dict[str, Any]]
Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images [N, 32, 32, 3]


@pytest.fixture(scope="module")
def config(tiny: Config) -> Config:
    return override(tiny, {"optim.steps": 4, "eval.every": 4, "eval.num_samples": N})


@pytest.fixture(scope="module")
def run(config: Config, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    changed = diff(PRESETS["embedded"], config)
    changes = [f"--set={name}={json.dumps(value)}" for name, (_, value) in changed.items()]
    assert train([str(folder), "--preset=embedded", *changes, f"--seed={SEED}", f"--cache-dir={cache_dir}"]) == 0
    return folder


@pytest.fixture(scope="module")
def own_samples(run: Path, config: Config) -> Labelled:
    """What the run's last evaluation scored."""
    generator, _ = load_generator(run / "generator.safetensors")
    sampler = Sampler(config, 2, SEED, torch.device("cpu"))
    images = torch.cat(list(sampler.images(generator)))
    return images.permute(0, 2, 3, 1).numpy(), sampler.labels.numpy()


def write_folders(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], names: tuple[str, ...]) -> None:
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / names[label] / f"{row:04d}.png")


@pytest.fixture(scope="module")
def score(cache_dir: Path) -> Score:
    def score(samples: Path, *options: str) -> dict[str, Any]:
        with redirect_stdout(io.StringIO()) as out:
            assert main([str(samples), *options, f"--cache-dir={cache_dir}", "--json"]) == 0
        return dict(json.loads(out.getvalue()))

    return score


@pytest.fixture(scope="module")
def own(run: Path, score: Score) -> dict[str, Any]:
    return score(run, f"--seed={SEED}")


def near(found: dict[str, float], wanted: dict[str, float]) -> bool:
    """Equal but for the last bits of linear algebra, which hang on where in memory its arrays lie."""
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True)
    return True


def test_a_generator_scores_as_in_the_last_evaluation_of_its_run(run: Path, own: dict[str, Any], score: Score) -> None:
    last = journal.read(run / journal.NAME)[0][-1].metrics
    about = json.loads((run / "protocol.json").read_text())
    for found in (own, score(run / "generator.safetensors", f"--seed={SEED}")):
        assert near(found["metrics"], {name: last[name] for name in found["metrics"]})
        assert {"fid", "relation_error", "intra_fid", "kid", "is_mean", "sample_diversity"} <= found["metrics"].keys()
        assert found["fingerprint"] == about["metric_fingerprint"]
    assert score(run, "--seed=4")["metrics"] != own["metrics"], "other samples have other scores"


@pytest.mark.parametrize("form", ["folders by name", "folders by number", "guided-diffusion", "BigGAN"])
def test_the_same_images_score_the_same_in_every_form(
    form: str, own: dict[str, Any], own_samples: Labelled, tmp_path: Path, score: Score
) -> None:
    images, labels = own_samples
    path = tmp_path / "samples.npz"
    if form == "guided-diffusion":
        np.savez(path, images, labels)
    elif form == "BigGAN":
        np.savez(path, x=images.transpose(0, 3, 1, 2), y=labels)
    else:
        path = tmp_path / "samples"
        write_folders(path, images, labels, embedded.CLASSES if form == "folders by name" else ("0", "01"))
    found = score(path, *AT_32)
    assert near(found["metrics"], own["metrics"])
    assert "80 of" in found["images"] and "32 x 32 px as they are" in found["images"]
    assert f"{N} samples" in found["fingerprint"] and "images as they were given" in found["fingerprint"]


def test_without_labels_images_are_scored_without_the_metrics_by_class(
    own_samples: Labelled, tmp_path: Path, score: Score
) -> None:
    images, labels = own_samples
    np.savez(tmp_path / "labelled.npz", images, labels)
    np.savez(tmp_path / "bare.npz", images)
    write_folders(tmp_path / "flat", images, np.zeros_like(labels), (".",))
    labelled, bare, flat = (score(tmp_path / name, *AT_32) for name in ("labelled.npz", "bare.npz", "flat"))
    assert near(bare["metrics"], flat["metrics"])
    assert "scored without labels" in flat["images"] and flat["fingerprint"] != labelled["fingerprint"]
    known, unknown = labelled["metrics"], bare["metrics"]
    assert not any("class" in name and "/" in name or name == "intra_fid" for name in unknown)
    assert unknown["fid"] == pytest.approx(known["fid"], rel=1e-6), "which looks at no label"


def test_real_images_score_their_own_distance_as_nothing(tmp_path: Path, score: Score) -> None:
    labels = np.arange(6000) % 2
    images = embedded.draw(torch.from_numpy(labels), seed=0, resolution=32).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "real.npz", images, labels)
    metrics = score(tmp_path / "real.npz", *AT_32)["metrics"]
    assert abs(metrics["fid"]) < metrics["real_floor"] / 10
    assert metrics["relation_error"] == pytest.approx(0, abs=1e-4)
    assert metrics["class_diversity"] == pytest.approx(1)
    assert metrics["precision"] == metrics["recall"] == 1


def test_images_of_another_size_are_resized_as_the_data_sets_own_are(tmp_path: Path, score: Score) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", images)
    # The definition: the central square, then Pillow's bicubic filter, which is antialiased.
    small = [Image.fromarray(image[:, 8:56]).resize((32, 32), Image.Resampling.BICUBIC) for image in images]
    np.savez(tmp_path / "small.npz", np.stack([np.asarray(image) for image in small]))
    large, wanted = (score(tmp_path / f"{name}.npz", *AT_32) for name in ("large", "small"))
    assert near(large["metrics"], wanted["metrics"])
    assert "64 x 48 px, cut to the central square and resized to 32 px" in large["images"]


def test_lines_for_people_say_what_the_object_says(
    run: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str], own: dict[str, Any]
) -> None:
    assert main([str(run), f"--seed={SEED}", f"--cache-dir={cache_dir}"]) == 0
    said = capsys.readouterr().out
    assert f"fingerprint: {own['fingerprint']}\n" in said
    assert "note: the extractor is not Inception" in said
    lines = dict(line.split() for line in said.splitlines() if ":" not in line)
    assert {name: float(value) for name, value in lines.items()} == pytest.approx(own["metrics"], rel=1e-5)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing there": (["nowhere"], "SAMPLES: must be a generator file, a folder or an .npz, got 'nowhere'"),
    "another file": (["notes.txt"], "a file must end in .safetensors or .npz, got 'notes.txt'"),
    "no preset": (["few.npz"], "--preset: must say what images are compared with"),
    "too few images": (["few.npz", *AT_32], "SAMPLES: must be 32 images or more, got 5"),
    "too few pictures": (["few", *AT_32], "SAMPLES: must be 32 images or more, got 5"),
    "a single array": (["single.npz", *AT_32], r"got single\.npz: it is no zip archive"),
    "floats": (["float.npz", *AT_32], r"got float\.npz: arr_0 is float64 \[40, 8, 8, 3\]"),
    "other arrays": (["other.npz", *AT_32], r"got other\.npz: it holds z, and neither arr_0 nor x"),
    "labels that are none": (["label.npz", *AT_32], "arr_1 holds labels from 0 to 7 for 2 classes"),
    "objects": (["object.npz", *AT_32], r"got object\.npz: Object arrays cannot be loaded"),
    "a damaged npz": (["damaged.npz", *AT_32], r"got damaged\.npz: "),
    "a damaged generator": (["damaged.safetensors"], "damaged or something else"),
    "a class that is none": (["folders", *AT_32], r"must be those of the data set \(grain, twins\).* got 'cat'"),
    "a folder without images": (["empty", *AT_32], "SAMPLES: empty holds no images"),
    "a field of training": (["few.npz", *AT_32, "--set=optim.steps=3"], "must be one of data.name, .* got optim.steps"),
    "another resolution": (["RUN", "--set=data.resolution=64"], "data.resolution: must be the generator's, 32, got 64"),
    "other classes": (["cats", *AT_32], "must be those of embedded, got cat, dog for grain, twins"),
}  # fmt: skip


@pytest.fixture(scope="module")
def wrong(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of MISTAKES."""
    folder = tmp_path_factory.mktemp("wrong")
    images = np.zeros((40, 8, 8, 3), np.uint8)
    with chdir(folder):
        np.savez("few.npz", images[:5])
        write_folders(Path("few"), images[:5], np.zeros(5, np.int64), ("grain",))
        np.save("single", images)
        Path("single.npy").rename("single.npz")
        np.savez("float.npz", images.astype(float))
        np.savez("other.npz", z=images)
        np.savez("label.npz", images, np.arange(40) % 8)
        np.savez("object.npz", np.array([{}]))
        for name in ("damaged.npz", "damaged.safetensors", "notes.txt"):
            Path(name).write_bytes(b"PK\x03\x04 damaged")
        Path("empty").mkdir()
        write_folders(Path("folders"), images, np.arange(40) % 2, ("cat", "twins"))
        Path("cats").mkdir()
        generator = Generator(config.model, 32, 2)
        save_generator(Path("cats", "generator.safetensors"), generator, config, ("cat", "dog"))
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(
    mistake: str,
    run: Path,
    wrong: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(wrong)
    words, message = MISTAKES[mistake]
    arguments = [str(run) if word == "RUN" else word for word in words]
    assert main([*arguments, f"--cache-dir={cache_dir}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert re.search(message, said)
