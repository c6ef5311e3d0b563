"""What scoring generated images takes against torch-fidelity on the same extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch_fidelity
from benchmarks.measure import medians_in_turn, thread_counts, torch_threads
from benchmarks.results import Results
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from sagan.data import embedded, open_dataset
from sagan.metrics.evaluation import Evaluator
from sagan.metrics.extractor import load_extractor
from sagan.metrics.frechet import fit, frechet_distance, rooted
from sagan.presets import PRESETS

NUM_GENERATED = 5000
NAME = "embedded-v2"
CPU = torch.device("cpu")


class Registered(FeatureExtractorBase):  # type: ignore[misc]
    """The built-in extractor as torch-fidelity wants it: named columns in the order asked for."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        self.extractor = load_extractor(NAME, device=CPU)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, logits, _ = self.extractor(images)
        found = {"features": features, "logits": logits}
        return tuple(found[name] for name in self.features_list)


class Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)


def test_metrics_against_torch_fidelity(results: Results, tmp_path: Path) -> None:
    preset = PRESETS["embedded"]
    real = open_dataset(preset.data)
    labels = torch.arange(NUM_GENERATED) % len(real.classes)
    generated = embedded.draw(labels, seed=1, resolution=preset.data.resolution)
    torch_fidelity.register_feature_extractor(NAME, Registered)
    asked: dict[str, Any] = dict(
        input1=Images(generated),
        input2=Images(real.images),
        feature_extractor=NAME,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        cuda=False,
        batch_size=50,  # as many as ours passes through the network at a time on a CPU
        verbose=False,
    )
    # Its best form for us to beat: the real side cached, as ours is, and no processes to load what is in memory.
    best = asked | {"input2_cache_name": "real", "cache_root": str(tmp_path), "save_cpu_ram": True}
    evaluator = Evaluator(real, preset.eval, device=CPU, cache_dir=tmp_path)
    for threads in thread_counts():
        with torch_threads(threads):
            ours, default, cached = medians_in_turn(
                lambda: evaluator(torch.split(generated, 100), labels),
                lambda: torch_fidelity.calculate_metrics(**asked),
                lambda: torch_fidelity.calculate_metrics(**best),
                rounds=3,
            )
        for form, seconds in (("defaults", default), ("real side cached, no loader processes", cached)):
            results.add(
                "metrics of 5,000 images",
                "64 px, embedded extractor; FID, IS, KID, precision, recall; ours also density, coverage, FID by "
                f"class, by group and of local features, its error; threads: {threads}",
                f"{ours:.2f} s",
                f"torch_fidelity.calculate_metrics, {form} {seconds:.2f} s",
                f"{seconds / ours:.1f}x",
                "5x",
                seconds >= 5 * ours,
            )


def test_frechet_distance_of_wide_features(results: Results) -> None:
    threads = thread_counts()[:2][-1]
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(2048, 2048, generator=draw)
    with torch_threads(threads):
        real = rooted(fit(torch.randn(8192, 2048, generator=draw)))
        seconds, both = medians_in_turn(
            lambda: frechet_distance(real, fit(features)),
            lambda: frechet_distance(rooted(fit(features)), fit(features)),
            rounds=3,
        )
    results.add(
        "FID of 2,048 features",
        f"2,048 images, real side cached; threads: {threads}",
        f"{seconds:.2f} s",
        f"with the real side's root {both:.2f} s",
        f"{seconds:.2f} s",
        "< 1 s",
        seconds < 1,
    )
