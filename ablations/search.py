"""The trials of a search: proposed by Optuna's TPE (Bergstra et al. 2011), trained as cells, and ranked by the scores
that tables show.

Each proposal is a function of (the search's seed, its number, the values of earlier trials), so a search that was
stopped continues as one that was not. A trial in Optuna has the attribute "variant", its name; one without it was
interrupted while it was created, and is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablations.plan import Changes, Range, Study, show, trial_name
from ablations.results import Result
from ablations.storage import exclusive, open_storage, retry_while_unreachable
from sagan.config import digest

_RANDOM_TRIALS = 10  # before TPE models their values: Optuna's default; half of all trials, if these are fewer
_FEWEST_RANKED = 4  # trials with a value that importances need


class Trials:
    """The trials of one search at one protocol. Several launchers may share them, on one or several hosts."""

    @retry_while_unreachable
    def __init__(self, url: str, study: Study) -> None:
        assert study.search is not None
        self._study, self._search = study, study.search
        self._url = sqlalchemy.make_url(url)
        about = [digest(study.base), self._search.seed, self._search.objective, self._search.describe_fields()]
        identity = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
        self._name = f"{study.name}/search {identity}"  # of another base config, ranges or objective: another search
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

    @retry_while_unreachable
    def propose(self, count: int) -> list[str]:
        """The variants to train now: those that are open, else up to `count` new ones; [] when the search is over."""
        with exclusive(self._url, self._name):
            if not self._open():
                proposed = len(self._newest())
                for number in range(proposed, min(proposed + count, self._search.trials)):
                    seed = np.random.SeedSequence([self._search.seed, number]).generate_state(1)[0]
                    self._optuna.sampler = TPESampler(
                        seed=int(seed),
                        n_startup_trials=min(_RANDOM_TRIALS, max(1, self._search.trials // 2)),
                        multivariate=True,
                        constant_liar=True,  # the trials of one round are proposed before any has a value
                    )
                    # The name comes last: without it the trial does not count.
                    self._optuna.ask(self._distributions).set_user_attr("variant", trial_name(number))
            return list(self._open())

    @retry_while_unreachable
    def record(self, results: Mapping[str, Result], failed: Container[str]) -> None:
        """Ends open trials with the results of their cells (by key), or as failed where the variant is in `failed`.

        A collapsed or diverged trial has no value, because a huge one would distort TPE's model of the others.
        """
        keys = {cell.variant: cell.key for cell in self.study().cells()}
        for name, trial in self._open().items():
            result = results.get(keys.get(name, ""))
            if result is None and name in keys and name not in failed:  # without a key no network can be built
                continue
            outcome = result.outcome if result is not None else "failed"
            value = result.scores.get(self._search.objective) if result and outcome == "finished" else None
            if outcome == "finished":
                outcome = "failed" if value is None else "complete"
            with contextlib.suppress(UpdateFinishedTrialError):  # another launcher has ended it, with the same result
                self._storage.set_trial_user_attr(trial._trial_id, "state", outcome)
                state = TrialState.FAIL if value is None else TrialState.COMPLETE
                self._storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])

    @retry_while_unreachable
    def retry_failed(self) -> None:
        """Opens trials again whose cell failed; collapsed and diverged ones keep their result."""
        with exclusive(self._url, self._name):
            for name, trial in self._newest().items():
                if trial.user_attrs.get("state") == "failed":
                    again = create_trial(
                        state=TrialState.RUNNING,
                        params=trial.params,
                        distributions=trial.distributions,
                        user_attrs={"variant": name},
                    )
                    self._optuna.add_trial(again)

    @retry_while_unreachable
    def names(self) -> list[str]:
        """The variants of all trials so far."""
        return list(self._newest())

    @retry_while_unreachable
    def study(self) -> Study:
        """The study with the trials so far and, when all have ended, the best of them."""
        proposed: dict[str, Changes] = {name: dict(trial.params) for name, trial in self._newest().items()}
        return self._study.proposing(proposed, self._best())

    @retry_while_unreachable
    def report(self) -> dict[str, Any]:
        """The content of search.json."""
        values = self._values()
        importances = None
        if len(values) >= _FEWEST_RANKED:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about few trials: the report says how many there are
                importances = dict(optuna.importance.get_param_importances(self._optuna))
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
            "importances": importances,
            "best": self._best(),
        }

    def _newest(self) -> dict[str, FrozenTrial]:
        """{variant: its last trial in Optuna}, in the order in which they were proposed."""
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


def _distribution(space: Range | tuple[Any, ...]) -> BaseDistribution:
    if not isinstance(space, Range):
        return CategoricalDistribution([show(choice) for choice in space])  # as texts, which `override` converts
    if isinstance(space.low, int) and isinstance(space.high, int):
        return IntDistribution(space.low, space.high, log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)
