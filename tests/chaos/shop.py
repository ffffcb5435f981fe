"""A shop so small that its nights take seconds: rows in the mart, and models trained on noise.

It has two use cases, which are published at once.
"""

import sys
from datetime import date
from pathlib import Path

import numpy as np
import xgboost as xgb

from chaos.worlds import execute
from nightshift.features.extract_run import extract
from nightshift.io import model_store
from nightshift.io.registry import GATES, opened
from nightshift.settings import Settings
from nightshift.spec import UseCase
from nightshift.use_cases.churn import CHURN

LAPSE = CHURN.model_copy(update={"name": "lapse"})
USE_CASES = (CHURN, LAPSE)
FIRST, LAST = date(2011, 6, 1), date(2011, 6, 4)
MART = """
create schema marts;
create table marts.fct_order_lines (
    order_line_id text primary key, invoice_id text, is_cancellation boolean, product_id text,
    is_product boolean, description text, quantity integer, unit_price numeric(14, 4),
    line_amount numeric(18, 4), invoiced_at timestamp, invoiced_date date, customer_id text,
    country text, landed_date date);
create table marts.fct_landed_days (
    source text, landed_date date, rows_kept bigint, build_id text)
"""
LINES = """
insert into marts.fct_order_lines
select c || ':' || landed, 'I' || c || landed, false, 'P' || c % 3, true, 'MUG', 1 + c % 5, 2.55,
    5.1, landed + time '10:00', landed, 'c' || c, 'France', landed
from generate_series(1, 40) as c,
    lateral (select date '2010-06-01' + c + (9 + c) * n as landed from generate_series(0, 30) as n)
where landed < '2011-06-04';
insert into marts.fct_landed_days
select 'order_lines', landed_date, count(*), 'first' from marts.fct_order_lines group by 2
"""


def fill(settings: Settings) -> None:
    """A year of 40 customers' lines in the empty mart, and in the lake."""
    execute(settings.warehouse_url, LINES)
    extract(settings, USE_CASES, LAST)


def register(
    settings: Settings, use_case: UseCase, root: Path, seed: int
) -> model_store.ModelVersion:
    """A model of its own, trained on noise, as a version of the registry."""
    names = use_case.feature_names
    generator = np.random.default_rng(seed)
    matrix = generator.uniform(0, 100, (200, len(names))).astype(np.float32)
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "seed": 1},
        xgb.DMatrix(matrix, generator.integers(0, 2, 200), feature_names=list(names)),
        num_boost_round=5,
    )
    signature = {"features": list(names)}
    model_store.write_model(root / str(seed), bytes(booster.save_raw("ubj")), signature)
    mlflow = model_store.client(settings)
    run = mlflow.create_run(model_store.experiment_id(settings, use_case.name))
    mlflow.log_artifacts(run.info.run_id, str(root / str(seed)), model_store.MODEL)
    return model_store.register(settings, use_case.name, run.info.run_id, "2011-05-01")


def promote(settings: Settings, use_case: UseCase, version: model_store.ModelVersion) -> None:
    """Make a version champion."""
    with opened(settings, use_case.name) as registry:
        registry.decide("promotion", GATES, version, [], "better")


_COMMAND = """
import sys
from datetime import date, timedelta
import typer
from nightshift.cli import refusals
from nightshift.use_cases.churn import CHURN
use_cases = [CHURN, CHURN.model_copy(update={"name": "lapse"})]
first, last = (date.fromisoformat(day) for day in sys.argv[1:3])
nights = {first + timedelta(days=n): use_cases for n in range((last - first).days + 1)}
try:
    with refusals() as settings:
        for statement in sys.argv[3:]:
            exec(statement)
except typer.Exit as refused:
    sys.exit(refused.exit_code)
"""
BUILD = "from nightshift.features import run; run.build_features_of_nights(settings, nights)"
SCORE = """from nightshift.scoring import run
[run.score(settings, use_case, as_of) for as_of in nights for use_case in use_cases]"""
PUBLISH = "from nightshift.publishing import run; run.publish_nights(settings, nights)"


def command(*statements: str, first: date = FIRST, last: date = LAST) -> tuple[str, ...]:
    """A process that does some stages of ``nights``, and refuses as the command line does."""
    return (sys.executable, "-c", _COMMAND, str(first), str(last), *statements)
