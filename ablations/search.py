"""The trials of a search: proposed by Optuna's TPE (Bergstra et al. 2011), run as cells, answered from the store.

Each proposal is a function of (the search's seed, its number, the answers before it), so a search that was stopped
goes on as one that was not. Trials keep the variant's name; one that lacks it died while it was made, and is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablations.plan import Changes, Range, Study, show, trial_name
from ablations.storage import exclusive, open_storage
from ablations.tracking import Result
from sagan.config import digest

_RANDOM_TRIALS = 10  # before TPE learns from their answers: Optuna's default; half of the trials where they are few
_FEWEST_RANKED = 4  # trials with a value, before importances mean anything


class Trials:
    """The trials of one search at one protocol. Several launchers may share them."""

    def __init__(self, url: str, study: Study) -> None:
        assert study.search is not None
        self._study, self._search = study, study.search
        self._url = sqlalchemy.make_url(url)
        self._name = f"{study.name}/search {_identity(study)}"
        self._distributions = {name: _distribution(space) for name, space in self._search.fields.items()}
        with exclusive(self._url, "tables"):
            self._storage = open_storage(self._url)
            self._optuna = optuna.create_study(
                storage=self._storage, study_name=self._name, direction="minimize", load_if_exists=True
            )

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_error: object) -> None:
        self._storage.engine.dispose()

    def propose(self, count: int) -> list[str]:
        """The variants to run now: those without an answer, else up to `count` new ones; [] when the search is over."""
        with self._exclusive():
            if not self._open():
                for _ in range(min(count, self._search.trials - len(self._newest()))):
                    self._ask()
            return list(self._open())

    def record(self, results: Mapping[str, Result], failed: Container[str]) -> None:
        """Answers what is open from the results of its cells (by key), and from the names of variants that failed.

        A collapsed or diverged trial has no value: a huge one would bend the model of all the others.
        """
        keys = {cell.variant: cell.key for cell in self.study().cells()}
        for name, trial in self._open().items():
            result = results.get(keys.get(name, ""))
            if result is not None:
                value = result.metrics.get(self._search.objective) if result.outcome == "finished" else None
                state = "failed" if result.outcome == "finished" else result.outcome
                self._tell(trial, "complete" if value is not None else state, value)
            elif name in failed or name not in keys:  # or a combination that no network can be built of
                self._tell(trial, "failed", None)

    def retry_failed(self) -> None:
        """Opens trials again whose cell failed; collapsed and diverged ones have a result."""
        with self._exclusive():
            for name, trial in self._newest().items():
                if trial.user_attrs.get("state") == "failed":
                    again = create_trial(
                        state=TrialState.RUNNING,
                        params=trial.params,
                        distributions=trial.distributions,
                        user_attrs={"variant": name},
                    )
                    self._optuna.add_trial(again)

    def names(self) -> list[str]:
        """The variants of all trials so far."""
        return list(self._newest())

    def study(self) -> Study:
        """The study with the trials so far and, when all have an answer, the best."""
        proposed: dict[str, Changes] = {name: dict(trial.params) for name, trial in self._newest().items()}
        return self._study.proposing(proposed, self._best())

    def report(self) -> dict[str, Any]:
        """search.json."""
        values = self._values()
        changes = {variant.name: variant.changes for variant in self.study().variants()}
        trials = [
            {
                "number": number,
                "variant": name,
                "params": changes[name],
                "value": values.get(name),
                "state": trial.user_attrs.get("state", "running"),
            }
            for number, (name, trial) in enumerate(self._newest().items())
        ]
        return {
            "objective": self._search.objective,
            "direction": "minimize",
            "seed": self._search.seed,
            "fields": self._search.describe_fields(),
            "trials": trials,
            "importances": self._importances(),
            "best": self._best(),
        }

    def _ask(self) -> None:
        """A trial counts from the moment it has its variant's name, which comes last."""
        seed = np.random.SeedSequence([self._search.seed, len(self._newest())]).generate_state(1)[0]
        self._optuna.sampler = TPESampler(
            seed=int(seed),
            n_startup_trials=min(_RANDOM_TRIALS, max(1, self._search.trials // 2)),
            multivariate=True,
            constant_liar=True,  # trials of one round are asked for before any is answered
        )
        name = trial_name(len(self._newest()))
        self._optuna.ask(self._distributions).set_user_attr("variant", name)

    def _tell(self, trial: FrozenTrial, state: str, value: float | None) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):  # another launcher was first, with the same answer
            self._storage.set_trial_user_attr(trial._trial_id, "state", state)
            if value is None:
                self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            else:
                self._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [value])

    def _newest(self) -> dict[str, FrozenTrial]:
        """{variant: its last attempt}, in the order in which they were proposed."""
        trials = self._optuna.get_trials(deepcopy=False)
        return {trial.user_attrs["variant"]: trial for trial in trials if "variant" in trial.user_attrs}

    def _open(self) -> dict[str, FrozenTrial]:
        return {name: trial for name, trial in self._newest().items() if trial.state == TrialState.RUNNING}

    def _values(self) -> dict[str, float]:
        trials = self._newest().items()
        return {name: trial.values[0] for name, trial in trials if trial.state == TrialState.COMPLETE}

    def _best(self) -> str | None:
        values = self._values()
        if not values or self._open() or len(self._newest()) < self._search.trials:
            return None
        return min(values, key=lambda name: values[name])

    def _importances(self) -> dict[str, float] | None:
        if len(self._values()) < _FEWEST_RANKED:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few trials tell little: the report says how many there are
            return dict(optuna.importance.get_param_importances(self._optuna))

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with exclusive(self._url, self._name):
            yield


def _identity(study: Study) -> str:
    """8 hexadecimal digits: trials of one search must not inform another, at other sizes or over other ranges."""
    assert study.search is not None
    search = study.search
    text = json.dumps([digest(study.base), search.seed, search.objective, search.describe_fields()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _distribution(space: Range | tuple[Any, ...]) -> BaseDistribution:
    if not isinstance(space, Range):
        return CategoricalDistribution([show(choice) for choice in space])  # texts, which a config field reads back
    if isinstance(space.low, int) and isinstance(space.high, int):
        return IntDistribution(space.low, space.high, log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)
