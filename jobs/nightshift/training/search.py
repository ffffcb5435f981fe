"""A search for better parameters: trials judged by validations that no test overlaps."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import optuna
import xgboost as xgb
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from nightshift.errors import NightshiftError
from nightshift.io.lake import digest
from nightshift.spec import Search, UseCase
from nightshift.training.dataset import Dataset
from nightshift.training.fit import MAX_TREES, VALIDATION, Recipe, fit_early_stopped
from nightshift.training.split import Split

log = logging.getLogger(__name__)

RANDOM_TRIALS = 8
REPORTED_EVERY = 25
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Trial:
    """One set of parameters. ``value`` is its mean over the validations; None where it was given
    up: worse than the median of the trials before it, or not converging."""

    parameters: dict[str, Any]
    value: float | None
    seconds: float


@dataclass(frozen=True)
class Searched:
    """A study that has spent its budget.

    Attributes:
        study: its name in the schema ``studies``.
        metric: of which ``Trial.value`` is.
        validations: newest first.
        trials: in their order; the first has the default parameters.
        ranking: positions in ``trials`` of those with a value, the best first.
    """

    study: str
    metric: str
    validations: tuple[Split, ...]
    trials: tuple[Trial, ...]
    ranking: tuple[int, ...]

    @property
    def chosen(self) -> dict[str, Any]:
        """The parameters of the best trial."""
        return self.trials[self.ranking[0]].parameters


def study_name(
    use_case: UseCase, dataset: Dataset, splits: Sequence[Split], defaults: Recipe
) -> str:
    """Names what a trial's value depends on: the same name has the same trials.

    The budget is not part of it, so that a larger one goes on where a smaller one ended.
    """
    what = [
        dataset.manifest.get("sha256"),
        dataset.feature_names,
        defaults.parameters,
        defaults.half_life_days,
        defaults.label_cap,
        repr(defaults.exposure),
        *(["non-negative"] if defaults.non_negative else []),
        {name: repr(each) for name, each in _space(defaults).items()},
        [[split.train, split.validation] for split in splits],
        [optuna.__version__, xgb.__version__],
    ]
    return f"{use_case.name} {digest(what)[:16]}"


def direction(defaults: Recipe) -> Literal["minimize", "maximize"]:
    """Whether a higher value of the metric is better, or a lower one."""
    return "maximize" if _metric(defaults).startswith(("auc", "ndcg")) else "minimize"


def search(
    study: optuna.Study,
    budget: Search,
    dataset: Dataset,
    splits: Sequence[Split],
    defaults: Recipe,
    with_chosen: Callable[[Mapping[str, Any]], Recipe],
) -> Searched:
    """Ask and tell until the budget is spent, counting what earlier runs of the study have spent.

    What a trial tries follows from the seed and from the trials that ended before it, not from the
    process that it runs in: an interrupted study ends as one that was not.

    Args:
        study: held by this process alone.
        budget: in trials, in minutes of trials, or both.
        dataset: of which the splits are.
        splits: train and validation each.
        defaults: the first trial, and what the others change.
        with_chosen: a recipe with some parameters replaced.

    Raises:
        NightshiftError: when the default parameters do not converge.
    """
    seed = int(defaults.parameters["seed"])
    study.pruner = MedianPruner(
        n_startup_trials=5, n_warmup_steps=2 * REPORTED_EVERY, interval_steps=REPORTED_EVERY
    )
    while not _is_spent(budget, ended := study.get_trials(deepcopy=False, states=ENDED)):
        if not ended and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial({name: defaults.parameters[name] for name in _space(defaults)})
        study.sampler = TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed + len(ended))
        trial = study.ask(_space(defaults))
        try:
            value = _mean_value(dataset, splits, with_chosen(trial.params), trial)
        except (optuna.TrialPruned, NightshiftError) as ending:
            if isinstance(ending, NightshiftError) and not ended:
                raise
            study.tell(trial, state=TrialState.PRUNED)
            log.info("trial %d of %s: given up", len(ended) + 1, study.study_name)
        else:
            study.tell(trial, value)
            log.info("trial %d of %s: %.5f", len(ended) + 1, study.study_name, value)
    trials = tuple(
        Trial(each.params, each.value if each.state == TrialState.COMPLETE else None, _s(each))
        for each in ended
    )
    sign = 1 if direction(defaults) == "minimize" else -1
    found = {i: sign * each.value for i, each in enumerate(trials) if each.value is not None}
    ranking = tuple(sorted(found, key=lambda i: (found[i], i)))
    return Searched(study.study_name, _metric(defaults), tuple(splits), trials, ranking)


def _space(defaults: Recipe) -> dict[str, BaseDistribution]:
    least = defaults.parameters["min_child_weight"]
    return {
        "max_depth": IntDistribution(2, 7),
        "min_child_weight": FloatDistribution(least / 10, least * 10, log=True),
        "lambda": FloatDistribution(0.5, 200.0, log=True),
        "colsample_bytree": FloatDistribution(0.2, 1.0),
        "subsample": FloatDistribution(0.5, 1.0),
    }


def _metric(defaults: Recipe) -> str:
    metric = str(defaults.parameters["eval_metric"])
    # Log loss is of the level too, which the base rate of each validation shifts.
    return "auc" if metric == "logloss" else metric


def _is_spent(budget: Search, ended: Sequence[FrozenTrial]) -> bool:
    if not any(each.state == TrialState.COMPLETE for each in ended):
        return False
    by_trials = budget.trials is not None and len(ended) >= budget.trials
    minutes = sum(map(_s, ended)) / 60
    return by_trials or (budget.minutes is not None and minutes >= budget.minutes)


def _s(trial: FrozenTrial) -> float:
    return 0.0 if trial.duration is None else trial.duration.total_seconds()


def _mean_value(
    dataset: Dataset, splits: Sequence[Split], made: Recipe, trial: optuna.Trial
) -> float:
    metric, stops = _metric(made), made.parameters["eval_metric"]
    metrics = [stops] if metric == stops else [metric, stops]
    made = replace(made, parameters={**made.parameters, "eval_metric": metrics})
    values: list[float] = []
    for parts in splits:
        watch = _Pruning(trial, metric, values)
        booster = fit_early_stopped(dataset, parts, made, [watch])
        values.append(watch.series[booster.num_boosted_rounds() - 1])
    return float(np.mean(values))


class _Pruning(xgb.callback.TrainingCallback):
    """Reports the mean over the validations so far, and stops a trial that the pruner gives up."""

    def __init__(self, trial: optuna.Trial, metric: str, before: Sequence[float]) -> None:
        super().__init__()
        self.trial, self.metric, self.before = trial, metric, tuple(before)
        self.series: list[float] = []

    def after_iteration(
        self, model: xgb.Booster, epoch: int, evals_log: xgb.callback.TrainingCallback.EvalsLog
    ) -> bool:
        self.series = cast(list[float], evals_log[VALIDATION][self.metric])
        if (epoch + 1) % REPORTED_EVERY == 0:
            step = len(self.before) * MAX_TREES + epoch + 1
            self.trial.report(float(np.mean([*self.before, self.series[-1]])), step)
            if self.trial.should_prune():
                raise optuna.TrialPruned
        return False
