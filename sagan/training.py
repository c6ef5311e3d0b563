"""The training loop: `Trainer.run` yields events, which the caller logs; nothing here depends on a tracker.

Everything random is a function of (config, seed, step), so a run that was stopped and resumed from its checkpoint
ends with the same bits as one that was not, on one machine's CPU.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from collections.abc import Generator as Events
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sagan import diagnostics
from sagan.augmentation import NUM_DRAWS
from sagan.checkpoint import load_checkpoint, save_checkpoint
from sagan.config import EXTENDABLE_FIELDS, Config, flatten
from sagan.cost import count
from sagan.data import open_dataset
from sagan.device import Replay, autocast
from sagan.distributed import World, for_first_process
from sagan.generator_file import save_generator
from sagan.metrics.evaluation import Evaluator
from sagan.networks import Discriminator, Generator
from sagan.passes import compiled_passes, discriminator_pass, generator_pass, pays_to_compile
from sagan.run_folder import GENERATOR
from sagan.sampling import Sampler
from sagan.scoring import Scorer, Stopped
from sagan.streams import Batches, noise, seed_of_streams, stream, to_device

Outcome = Literal["finished", "collapsed", "diverged"]

log = logging.getLogger(__name__)

_STATEFUL = ("generator", "discriminator", "average", "scorer", "optimizer_g", "optimizer_d")
_LOGGED = ("loss_g", "loss_d", "logit_real", "logit_fake")  # the adversarial losses alone


@dataclass(frozen=True)
class Event:
    """Metrics and images by name at `step`. The last event of a run has an `outcome`."""

    step: int
    metrics: dict[str, float]
    images: dict[str, NDArray[Any]] = field(default_factory=dict)
    outcome: Outcome | None = None


class Trainer:
    """One run of one config and seed in `directory`, which holds its checkpoints; it resumes from the newest one.

    `compile_backend`: the backend of torch.compile for both passes of a step, or None for no compilation. By default
    this is inductor on CUDA, where that takes less time than it saves (`pays_to_compile`). On CUDA a run of one process
    records a step as a CUDA graph and replays it (sagan/device.py).

    Where processes have joined (sagan/distributed.py), each builds and runs this. `optim.batch_size` is the total over
    all of them, results equal those of one process to rounding, and only the first writes files and yields events.

    The checkpoint may be of a shorter run that differs in optim.steps (and eval.endpoint) alone: this run continues
    from there and ends with the same bits as if it had been trained from step 0 with as many steps. (On a GPU equal to
    rounding: whether a run is compiled depends on its length.) Raises ValueError for a config that cannot be built and
    for a checkpoint of another config, naming the fields.
    """

    def __init__(
        self,
        config: Config,
        seed: int,
        directory: Path,
        *,
        device: str | torch.device = "cpu",
        data_root: Path | None = None,
        cache_dir: Path | None = None,
        inception_weights: Path | None = None,
        checkpoint_every: int = 500,
        compile_backend: str | None = "auto",
    ) -> None:
        config.check_buildable()
        torch.set_flush_denormal(True)  # denormals slow a CPU tenfold
        torch.backends.cudnn.allow_tf32 = False  # by default a GPU computes fp32 convolutions in TF32
        self.config, self.seed, self.directory = config, seed, directory
        self._stream_seed = stream_seed = seed_of_streams(seed, config.optim.streams)
        self.device = torch.device(device)
        self.world = World.here()
        config.check_shared(self.world.size)
        self.shard = self.world.shard(config.optim.batch_size)
        process_group = self.world.process_group(config.model.bn_groups)
        self.checkpoint_every = checkpoint_every
        cache_dir = cache_dir or directory / "cache"
        dataset = open_dataset(config.data, data_root, cache_dir).conditioned(config.model.conditioning)
        self.classes, self.groups, self.data_fingerprint = dataset.classes, dataset.groups, dataset.fingerprint
        size, h_flip = config.optim.batch_size, config.data.h_flip
        self.batches = Batches(dataset, size, stream_seed, h_flip, self.device, self.shard)

        resolution, num_classes = config.data.resolution, len(dataset.classes)
        self.generator = Generator(config.model, resolution, num_classes, seed=stream_seed).to(self.device)
        self.discriminator = Discriminator(config.model, resolution, num_classes, seed=stream_seed).to(self.device)
        # The moving average of G; a plain copy of it, taken at each evaluation, when ema_decay is 0.
        self.average = Generator(config.model, resolution, num_classes, seed=stream_seed).to(self.device)
        self.average.requires_grad_(False)
        own_groups = max(1, config.model.bn_groups // self.world.size)
        for network in (self.generator, self.average):
            network.split_batch_norm(own_groups, process_group)
        # Statistics of complete groups are known to one process only, until they are averaged.
        self.local_statistics = self.generator.running_statistics() if config.model.bn_groups > 1 else []
        lr_g, lr_d = config.optim.rates
        self.optimizer_g = self._adam(self.generator, lr_g)
        self.optimizer_d = self._adam(self.discriminator, lr_d)
        if compile_backend == "auto":
            pays = self.device.type == "cuda" and pays_to_compile(config, num_classes)
            compile_backend = "inductor" if pays else None
        self.discriminator_pass, self.generator_pass = discriminator_pass, generator_pass
        if compile_backend is not None:
            self.discriminator_pass, self.generator_pass = compiled_passes(compile_backend)
        # Several processes communicate within a step, which is therefore not recorded.
        self.replay = Replay() if self.device.type == "cuda" and self.world.size == 1 else None

        weights: Literal["raw", "ema"] = "ema" if config.optim.ema_decay else "raw"
        evaluator = Evaluator(
            dataset, config.eval, self.device, cache_dir=cache_dir, inception_weights=inception_weights, weights=weights
        )
        self.metric_fingerprint = evaluator.fingerprint
        self.scorer = Scorer(evaluator, Sampler(config, num_classes, stream_seed, self.device, self.world), dataset)

        optional = {"loss_class": self.discriminator.classifier is not None, "r1": config.optim.r1_gamma > 0}
        self.logged = (*_LOGGED, *(name for name, is_used in optional.items() if is_used))
        self.step = 0
        # Sums of logged values over the `since` to `step` steps that no event has reported yet.
        self.sums, self.since = torch.zeros(len(self.logged), device=self.device), 0
        saved = self.world.broadcast(load_checkpoint(directory) if self.world.rank == 0 else None)
        if saved:
            self._restore(saved)

    def run(self, stop: Callable[[], bool] = lambda: False) -> Events[Event]:
        """Events from the current step to the last.

        `stop` is called after every step and between the batches of an evaluation. When it returns True, or the caller
        closes the generator, a checkpoint is saved; after an error, also one that `stop` raises, none is.
        With several processes all loop over it; the first one's `stop` decides, and it alone gets the events.
        """
        self.scorer.stop = stop
        return for_first_process(self.world, self._train()) if self.world.size > 1 else self._train()

    def _train(self) -> Events[Event]:
        # Independent of optim.steps, so that an extended run has events at the same steps as the shorter run had.
        log_every = min(100, max(1, self.config.eval.every // 6))
        diagnostics.reset_peak_memory(self.device)
        if self.step == 0:
            cost = count(self.config, len(self.classes))
            counted = ("num_params_g", "num_params_d", "flops_per_image")
            yield Event(0, {name: float(getattr(cost, name)) for name in counted})
        try:
            started, started_at = time.perf_counter(), self.step
            while True:
                if self.since < self.step and (self.step % log_every == 0 or self._is_scored):
                    images_shown = (self.step - started_at) * self.config.optim.batch_size * self.config.optim.d_steps
                    event = self._report(images_shown / (time.perf_counter() - started))
                    if event.outcome is not None:
                        # A run that is resumed before its caller has recorded the last event computes it again.
                        yield event
                        return
                    self.sums.zero_()  # in place: a recorded step adds to this very tensor
                    self.since = self.step
                    yield event
                    started, started_at = time.perf_counter(), self.step
                self._train_step()
                if self.world.broadcast(self.scorer.stop()):
                    raise Stopped
                if self.step % self.checkpoint_every == 0 or self._is_scored:
                    self._save()
        except (GeneratorExit, Stopped):  # raised between two steps, so the state is consistent
            self._save()

    @property
    def _is_scored(self) -> bool:
        return self.step % self.config.eval.every == 0 or self.step == self.config.optim.steps

    def _report(self, images_per_sec: float) -> Event:
        """The event of this step: means of the losses since the last event, and scores where an evaluation is due."""
        metrics = dict(zip(self.logged, (self.sums / (self.step - self.since)).tolist(), strict=True))
        if images_per_sec:
            metrics["images_per_sec"] = images_per_sec
        if not all(math.isfinite(value) for value in metrics.values()):
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            return Event(self.step, finite, outcome="diverged")
        if not self._is_scored:
            return Event(self.step, metrics)
        images = self._evaluate(metrics)
        is_last = self.step == self.config.optim.steps
        has_collapsed = self.scorer.has_collapsed(metrics, is_last)
        if is_last and self.world.rank == 0:
            save_generator(self.directory / GENERATOR, self.average, self.config, self.classes)
        if not has_collapsed and not is_last:
            return Event(self.step, metrics, images)
        generator = Generator(self.config.model, self.config.data.resolution, len(self.classes)).to(self.device)
        metrics |= self.scorer.best_of_run(generator)
        return Event(self.step, metrics, images, "collapsed" if has_collapsed else "finished")

    def _train_step(self) -> None:
        """One update of G after `d_steps` updates of D; nothing here waits for the device."""
        given: list[Tensor] = []
        for turn in range(self.step * self.config.optim.d_steps, (self.step + 1) * self.config.optim.d_steps):
            given += [*self.batches(turn), *self._noise("noise_d", turn), *self._draws("augment_d", turn, 2)]
        given += [*self._noise("noise_g", self.step), *self._draws("augment_g", self.step, 1)]
        if self.replay is None:
            self._update(*given)
        else:
            self.replay(self._update, *given)
        self._average_weights()
        self.step += 1

    def _update(self, *given: Tensor) -> None:
        """`given`: images, labels, z and labels of z for each update of D, then z and its labels for that of G; each
        followed by the draws of `data.augment`, where it is used."""
        optim = self.config.optim
        size = 5 if self.config.data.augment else 4
        for turn in range(optim.d_steps):
            batch = given[size * turn : size * (turn + 1)]
            with autocast(self.device, optim.precision):
                objective_d, logged_d = self.discriminator_pass(self.config, self.generator, self.discriminator, *batch)
            self.optimizer_d.zero_grad()
            objective_d.backward()
            self.world.average([*_gradients(self.discriminator), logged_d])
            self.optimizer_d.step()

        self.discriminator.requires_grad_(False)
        with autocast(self.device, optim.precision):
            batch = given[size * optim.d_steps :]
            objective_g, loss_g = self.generator_pass(self.config, self.generator, self.discriminator, *batch)
        self.discriminator.requires_grad_(True)
        self.optimizer_g.zero_grad()
        objective_g.backward()
        self.world.average([*_gradients(self.generator), loss_g, *self.local_statistics])
        self.optimizer_g.step()
        self.sums += torch.cat([loss_g[None], logged_d])

    def _noise(self, purpose: str, turn: int) -> tuple[Tensor, Tensor]:
        size = self.config.optim.batch_size, self.config.model.z_dim, len(self.classes)
        z, labels = noise(stream(self._stream_seed, purpose, turn), *size)
        return to_device(z[self.shard], self.device), to_device(labels[self.shard], self.device)

    def _draws(self, purpose: str, turn: int, batches: int) -> list[Tensor]:
        """The random numbers of `data.augment` for so many batches, (batches * B, 7); none where it is not used."""
        if not self.config.data.augment:
            return []
        generator = stream(self._stream_seed, purpose, turn)
        draws = torch.rand(batches, self.config.optim.batch_size, NUM_DRAWS, generator=generator)
        return [to_device(draws[:, self.shard].flatten(0, 1), self.device)]

    def _average_weights(self) -> None:
        decay = self.config.optim.ema_decay
        if not decay:
            return
        targets = [parameter.data for parameter in self.average.parameters()]
        sources = [parameter.data for parameter in self.generator.parameters()]
        if self.step < self.config.optim.ema_start:
            torch._foreach_copy_(targets, sources)
        else:
            torch._foreach_lerp_(targets, sources, 1 - decay)

    def _evaluate(self, metrics: dict[str, float]) -> dict[str, NDArray[Any]]:
        """Score the averaged generator, adding to `metrics`; returns its sample grid and attention maps."""
        if self.config.optim.ema_decay:
            for target, source in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                target.copy_(source)
        else:
            self.average.load_state_dict(self.generator.state_dict())
        metrics.update(self.scorer.score(self.step, self.average))
        metrics.update(diagnostics.gammas(self.generator, self.discriminator))
        maps = self.scorer.sampler.attention_maps(self.average)
        metrics.update(diagnostics.attention_statistics(maps))
        for letter, network in (("g", self.generator), ("d", self.discriminator)):
            metrics[f"sigma_max/{letter}"] = diagnostics.largest_singular_value(network)
        metrics["peak_memory_mib"] = diagnostics.peak_memory_mib(self.device)
        return self.scorer.sampler.pictures(self.average, maps)

    def _adam(self, network: Generator | Discriminator, lr: float) -> torch.optim.Adam:
        optim = self.config.optim
        return torch.optim.Adam(
            network.parameters(),
            lr=lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.adam_eps,
            fused=True,
            capturable=self.device.type == "cuda",  # in a recorded step
        )

    def _save(self) -> None:
        if self.world.rank > 0:
            return
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        state |= {"config": flatten(self.config), "seed": self.seed, "images": self.data_fingerprint}
        state |= {"processes": self.world.size, "step": self.step, "since": self.since, "sums": self.sums}
        save_checkpoint(self.directory, state)

    def _restore(self, saved: dict[str, Any]) -> None:
        ours = {**flatten(self.config), "seed": self.seed, "images": self.data_fingerprint}
        theirs = {**saved["config"], "seed": saved["seed"], "images": saved["images"]}
        if theirs["optim.steps"] < self.config.optim.steps:  # its last evaluation is not in its last checkpoint
            theirs |= {name: ours[name] for name in EXTENDABLE_FIELDS}
        differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if differing:
            changes = "; ".join(f"{name} is {theirs.get(name)} there, {ours.get(name)} here" for name in differing)
            raise ValueError(
                f"{self.directory} holds a checkpoint of another run: {changes}. Use another folder, or remove it."
            )
        before, now = saved["processes"], self.world.size
        if before != now and self.world.rank == 0:
            changed = f"the checkpoint is of {before} processes and is resumed with {now}"
            log.warning("%s: %s: equal to rounding, not to the bit", self.directory, changed)
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(saved[name])
        for optimizer in (self.optimizer_g, self.optimizer_d):
            for group in optimizer.param_groups:
                group["capturable"] = self.device.type == "cuda"  # the checkpoint has the value of its own device
        self.step, self.since = saved["step"], saved["since"]
        self.sums = saved["sums"].to(self.device)


def _gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
