import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import log_loss, mean_absolute_error, roc_auc_score

from nightshift.metrics import Confusion, Groups, measure, read_measured, settled_rows
from nightshift.spec import METRICS, Objective, Settled, Threshold, TopEntities, TopItems, TopShare


def test_measure_agrees_with_scikit_learn_and_pairs_the_differences() -> None:
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 800)
    good = np.clip(0.5 + 0.3 * (labels - 0.5) + random.normal(0, 0.2, 800), 0.01, 0.99)
    rank = good * 100 + random.normal(0, 40, 800)
    entities = np.array([f"c{i % 200}" for i in range(800)])
    found = measure(labels, entities, {"model": good, "rank": rank}, ["model"], seed=1)
    assert (found.rows, found.entities) == (800, 200)
    assert found.scorers["model"]["auc"].value == pytest.approx(roc_auc_score(labels, good))
    assert found.scorers["model"]["log_loss"].value == pytest.approx(log_loss(labels, good))
    assert set(found.scorers["rank"]) == {
        *("auc", "average_precision", "lift_top_10", "lift_top_20", "lift_top_30")
    }
    difference = found.differences["rank"]["auc"]
    assert difference.value == pytest.approx(
        found.scorers["model"]["auc"].value - found.scorers["rank"]["auc"].value
    )
    assert 0 < difference.low < difference.value < difference.high
    assert found == measure(labels, entities, {"model": good, "rank": rank}, ["model"], seed=1)
    # A scorer against itself has no difference in any resample: the draws are paired.
    same = measure(labels, entities, {"a": good, "b": good.copy()}, [], seed=1)
    assert same.differences["b"]["auc"].low == same.differences["b"]["auc"].high == 0.0


def test_rows_of_one_entity_are_drawn_together() -> None:
    labels = np.tile([0, 1, 0, 1, 1], 20)
    scores = np.tile([0.1, 0.9, 0.6, 0.5, 0.7], 20)
    alone = measure(labels, np.arange(100), {"m": scores}, [], seed=2)
    five_entities = measure(labels, np.tile(np.arange(5), 20), {"m": scores}, [], seed=2)

    def width(found) -> float:  # type: ignore[no-untyped-def]
        return found.scorers["m"]["auc"].high - found.scorers["m"]["auc"].low

    # Repeating five entities twenty times adds rows, not evidence.
    assert width(five_entities) > 2 * width(alone)


def test_the_spec_knows_every_metric_and_what_it_reads() -> None:
    labels, scores = (
        np.array([0.0, 1, 0, 1]),
        {"m": np.array([0.2, 0.7, 0.4, 0.9]), "r": np.arange(4.0)},
    )
    cases: list[tuple[Objective, TopEntities | TopItems | None]] = [
        ("binary", TopEntities(k=1)), ("regression", None), ("ranking", TopItems(k=2))
    ]  # fmt: skip
    ends = {"m": np.column_stack((scores["m"] - 0.1, scores["m"] + 0.1))}
    for objective, point in cases:
        found = measure(
            labels, np.arange(4), scores, ["m"], 1, 5,
            objective=objective, working_point=point, items=np.arange(4),
            popularity=np.arange(4.0) if objective == "ranking" else None,
            intervals=ends if objective == "regression" else None,
        )  # fmt: skip
        declared = {name for name, rule in METRICS.items() if rule.objective == objective}
        assert set(found.scorers["m"]) == declared
        of_order = {n for n in declared if METRICS[n].reads == "order" or objective == "ranking"}
        # the highest entities are selected by the order alone
        selected = {n for n in declared if METRICS[n].reads == "working_point"}
        assert set(found.scorers["r"]) == of_order | (selected if objective == "binary" else set())


def test_the_confusion_matrix_is_of_the_first_scorer_at_the_working_point() -> None:
    labels, score = np.array([1, 0, 1, 0, 0]), np.array([0.9, 0.8, 0.3, 0.2, 0.1])
    found = measure(
        labels,
        np.arange(5),
        {"m": score, "r": -score},
        ["m"],
        1,
        5,
        working_point=TopShare(share=0.4),
    )
    assert found.confusion == Confusion(0.8, 1, 1, 1, 2)
    assert found.scorers["m"]["precision"].value == 0.5
    assert found.scorers["r"]["precision"].value == 0.0
    without = measure(labels, np.arange(5), {"m": score}, ["m"], 1, 5)
    assert (without.confusion, "precision" in without.scorers["m"]) == (None, False)


def test_a_slice_has_the_figures_of_its_rows_and_a_small_one_says_so() -> None:
    random = np.random.default_rng(3)
    labels, score = random.integers(0, 2, 90), random.random(90)
    entities = np.arange(90) // 2
    codes = np.where(np.arange(90) < 60, 0, np.where(np.arange(90) < 64, 1, 2))
    groups = Groups(("large", "small", "one class", "empty"), codes, min_entities=3)
    labels[64:] = 1
    found = measure(
        labels, entities, {"m": score}, ["m"], 1, 50,
        working_point=Threshold(score=0.5), slices={"size": groups},
    )  # fmt: skip
    large = found.slices["size"]["large"]
    assert (large.rows, large.entities, large.note) == (60, 30, "")
    assert large.estimates["auc"].value == pytest.approx(roc_auc_score(labels[:60], score[:60]))
    assert large.estimates["auc"].low < large.estimates["auc"].value < large.estimates["auc"].high
    assert large.estimates["base_rate"].value == pytest.approx(labels[:60].mean())
    small = found.slices["size"]["small"]
    assert small.estimates == {}
    assert small.note == "2 entities, too few to measure: 3 are asked"
    assert found.slices["size"]["empty"].note.startswith("0 entities")
    assert np.isnan(found.slices["size"]["one class"].estimates["auc"].value)
    assert found.scorers == measure(
        labels, entities, {"m": score}, ["m"], 1, 50, working_point=Threshold(score=0.5)
    ).scorers  # fmt: skip


def test_what_was_measured_survives_json() -> None:
    found = measure(
        np.array([0, 1, 1, 0]), np.arange(4), {"m": np.array([0.1, 0.8, 0.6, 0.3])}, ["m"], 1, 9,
        working_point=Threshold(score=0.5),
        slices={"s": Groups(("a", "b"), np.array([0, 0, 0, 1]), 2)},
    )  # fmt: skip
    assert read_measured(json.loads(json.dumps(asdict(found)))) == found
    with pytest.raises(KeyError):
        read_measured({"rows": 4})


def test_amounts_are_measured_by_the_regressions_figures() -> None:
    random = np.random.default_rng(6)
    amounts = random.gamma(1.0, 30.0, 300)
    foretold = amounts * random.normal(1.0, 0.3, 300)
    found = measure(
        amounts, np.arange(300) // 3, {"model": foretold, "rank": -foretold}, ["model"], 1,
        objective="regression",
    )  # fmt: skip
    assert found.scorers["model"]["mae"].value == pytest.approx(
        mean_absolute_error(amounts, foretold)
    )
    spearman = spearmanr(amounts, foretold).statistic
    assert found.differences["rank"]["spearman"].value == pytest.approx(2 * spearman)
    assert set(found.scorers["rank"]) == {"spearman", "gini"}


def test_a_list_is_an_entitys_rows_of_one_snapshot() -> None:
    labels, score = np.array([1, 0, 0, 1]), {"m": np.array([0.9, 0.1, 0.8, 0.2])}
    entities, items = np.array(["c", "c", "c", "c"]), np.array(["x", "y", "x", "y"])
    snapshots = pd.to_datetime(["2011-01-01"] * 2 + ["2011-01-08"] * 2).to_numpy()
    found = measure(
        labels, entities, score, ["m"], 1, 5,
        objective="ranking", working_point=TopItems(k=1), snapshots=snapshots, items=items,
    ).scorers["m"]  # fmt: skip
    # The first list has its relevant item on top, the second has not.
    assert found["ndcg_at_k"].value == found["recall_at_k"].value == found["map_at_k"].value == 0.5
    assert found["coverage_at_k"].value == 0.5


def test_the_precision_of_the_highest_entities_is_the_mean_over_nights() -> None:
    """The Handbook's card precision: by the best score of each; one that was found is left out."""
    entities = np.array(["a", "a", "b", "c", "a", "b", "c", "c"])
    nights = np.array([1, 1, 1, 1, 2, 2, 2, 2])
    labels = np.array([0.0, 1, 0, 0, 1, 0, 0, 1])
    scores = {"m": np.array([0.1, 0.9, 0.8, 0.2, 0.95, 0.6, 0.1, 0.7])}

    def at(k: int, settled: Any = None) -> float:
        found = measure(
            labels, entities, scores, ["m"], 1, 5, snapshots=nights,
            working_point=TopEntities(k=k), settled=settled,
        )  # fmt: skip
        return found.scorers["m"]["entity_precision_at_k"].value

    # night 1: a is found; night 2: without a, c comes before b
    assert at(1) == pytest.approx((1 + 1) / 2)
    assert at(2) == pytest.approx((1 / 2 + 1 / 2) / 2)
    # of three entities, and then of the two that are left
    assert at(100) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert at(1, settled=entities == "a") == pytest.approx((0 + 1) / 2)


def test_equal_scores_of_entities_are_taken_at_their_worst() -> None:
    found = measure(
        np.array([1.0, 0.0]), np.array(["a", "b"]), {"m": np.array([0.5, 0.5])}, ["m"], 1, 5,
        snapshots=np.array([1, 1]), working_point=TopEntities(k=1),
    )  # fmt: skip
    assert found.scorers["m"]["entity_precision_at_k"].value == 0
    assert found.scorers["m"]["selection_rate"].value == 1


def test_settled_rows_are_those_above() -> None:
    matrix = np.array([[0.0, 5], [2, 5], [np.nan, 5]])
    rule = Settled(feature="known")
    found = settled_rows(rule, ("known", "other"), matrix)
    assert found is not None
    assert found.tolist() == [False, True, False]
    assert settled_rows(None, ("known", "other"), matrix) is None
