"""Searches that go on where a kill stopped them, in a real Postgres."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import optuna
import psycopg2

from nightshift.io import studies
from nightshift.settings import Settings, load_settings
from nightshift.spec import Search
from nightshift.training.dataset import Dataset
from nightshift.training.fit import recipe
from nightshift.training.search import Searched, direction, search, study_name
from nightshift.training.split import Split
from nightshift.use_cases.churn import CHURN

DAYS = tuple(date(2025, 1, 1) + timedelta(days=30 * n) for n in range(3))
SPLITS = (Split(DAYS[:2], DAYS[2:], ()), Split(DAYS[:1], DAYS[1:2], ()))
NAMES = ("a", "b", "c")


def rows(count: int = 900) -> Dataset:
    random = np.random.default_rng(1)
    matrix = random.normal(size=(count, len(NAMES))).astype(np.float32)
    return Dataset(
        manifest={"sha256": "d"},
        feature_names=NAMES,
        keys=np.arange(count).astype(str),
        snapshots=np.repeat(np.array(DAYS, dtype="datetime64[D]"), count // 3),
        labels=(matrix[:, 0] + random.normal(size=count) > 0).astype(np.int32),
        matrix=matrix,
        items=None,
    )


def searched(settings: Settings, budget: Search, seed: int = 3) -> Searched:
    dataset, defaults = rows(), recipe(CHURN, seed)
    name = study_name(CHURN, dataset, SPLITS, defaults)
    with studies.opened(settings, name, direction(defaults)) as study:
        return search(
            study, budget, dataset, SPLITS, defaults, lambda chosen: recipe(CHURN, seed, chosen)
        )


def states(settings: Settings) -> list[str]:
    connection = psycopg2.connect(settings.warehouse_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select to_regclass('studies.trials')")
            if cursor.fetchone() == (None,):
                return []
            cursor.execute("select state::text from studies.trials order by trial_id")
            return [state for (state,) in cursor.fetchall()]
    finally:
        connection.close()


def forget(settings: Settings) -> None:
    connection = psycopg2.connect(settings.warehouse_url)
    with connection, connection.cursor() as cursor:
        cursor.execute("drop schema studies cascade; create schema studies")
    connection.close()


def started(settings: Settings, trials: int) -> subprocess.Popen[str]:
    """A process that searches, and prints what it found."""
    return subprocess.Popen(
        [sys.executable, __file__, str(settings.state_dir), str(trials)],
        env={**os.environ, "NIGHTSHIFT_DATABASE_URL": settings.warehouse_url},
        stdout=subprocess.PIPE,
        text=True,
    )


def waiting(settings: Settings) -> int:
    """How many sessions wait for an advisory lock of this warehouse."""
    connection = psycopg2.connect(settings.warehouse_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "select count(*) from pg_locks join pg_database on pg_database.oid = database"
                " where locktype = 'advisory' and not granted and datname = current_database()"
            )
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def test_a_killed_study_goes_on_and_ends_as_one_that_was_not(warehouse: Settings) -> None:
    budget = Search(trials=5)
    whole = searched(warehouse, budget)
    assert len(whole.trials) == 5
    assert whole.trials[0].parameters["max_depth"] == recipe(CHURN, 3).parameters["max_depth"]
    best = max(trial.value for trial in whole.trials if trial.value is not None)
    assert whole.trials[whole.ranking[0]].value == best
    assert best >= (whole.trials[0].value or 0.0)

    forget(warehouse)
    killed = started(warehouse, 5)
    while killed.poll() is None and states(warehouse).count("COMPLETE") < 2:
        time.sleep(0.02)
    while killed.poll() is None and "RUNNING" not in states(warehouse):
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    before = states(warehouse)
    assert before[-1] == "RUNNING"
    assert before.count("COMPLETE") < 5

    resumed = searched(warehouse, budget)
    assert [(t.parameters, t.value) for t in resumed.trials] == [
        (t.parameters, t.value) for t in whole.trials
    ]
    assert resumed.chosen == whole.chosen
    after = states(warehouse)
    assert (after.count("FAIL"), "RUNNING" in after) == (1, False)

    # A study that has spent its budget is not repeated; a larger budget goes on from there.
    assert searched(warehouse, budget) == resumed
    assert states(warehouse) == after
    more = searched(warehouse, Search(trials=6))
    assert more.trials[:5] == resumed.trials
    assert len(more.trials) == 6


def test_of_two_searches_at_once_one_waits_and_both_find_the_same(warehouse: Settings) -> None:
    defaults = recipe(CHURN, 3)
    name = study_name(CHURN, rows(), SPLITS, defaults)
    with studies.opened(warehouse, name, direction(defaults)):
        both = [started(warehouse, 3) for _ in range(2)]
        while waiting(warehouse) < 2 and all(each.poll() is None for each in both):
            time.sleep(0.02)
        assert states(warehouse) == [], "nobody asks for a trial of a study that another holds"
    found = [each.communicate()[0] for each in both]

    assert [each.returncode for each in both] == [0, 0]
    assert found[0] == found[1]
    assert len(json.loads(found[0])["trials"]) == 3
    # whoever opens a study fails the trials that run, so one of the other's would be seen here
    assert len(states(warehouse)) == 3
    assert set(states(warehouse)) <= {"COMPLETE", "PRUNED"}


def test_minutes_are_those_of_the_trials_and_another_seed_is_another_study(
    warehouse: Settings,
) -> None:
    spent = searched(warehouse, Search(trials=2, minutes=1e-6))
    assert len(spent.trials) == 1
    assert len(searched(warehouse, Search(trials=2, minutes=1000)).trials) == 2
    assert len(searched(warehouse, Search(trials=1), seed=4).trials) == 1
    assert states(warehouse) == ["COMPLETE"] * 3


def test_a_trial_that_is_worse_than_most_is_given_up(warehouse: Settings) -> None:
    found = searched(warehouse, Search(trials=14))
    assert any(trial.value is None for trial in found.trials)
    given_up = [i for i, trial in enumerate(found.trials) if trial.value is None]
    assert not set(given_up) & set(found.ranking)
    assert len(found.ranking) == 14 - len(given_up)


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    state, budget = Path(sys.argv[1]), Search(trials=int(sys.argv[2]))
    found = searched(load_settings(_env_file=None, state_dir=state), budget)
    sys.stdout.write(
        json.dumps(
            {"chosen": found.chosen, "trials": [(t.parameters, t.value) for t in found.trials]}
        )
    )
