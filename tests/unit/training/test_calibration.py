import numpy as np
import pytest

from nightshift.training.calibration import (
    METHODS,
    choose,
    fit_isotonic,
    fit_platt,
    folds_of,
)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def _labels(true_log_odds: np.ndarray, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.random(len(true_log_odds)) < _sigmoid(true_log_odds)).astype(np.int32)


SCORES = np.random.default_rng(0).normal(size=20_000) * 1.5
ENTITIES = np.char.add("c", (np.arange(20_000) // 4).astype(str))


def test_a_line_finds_slope_and_shift() -> None:
    found = fit_platt(SCORES, _labels(0.5 * SCORES + 0.8))
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.after[0] == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("fit", METHODS.values(), ids=METHODS)
def test_the_mean_comes_true_under_another_base_rate(fit) -> None:
    labels = _labels(SCORES + 1.0)
    found = fit(SCORES, labels).probabilities(SCORES)
    assert found.mean() == pytest.approx(labels.mean(), abs=0.005)
    assert abs(_sigmoid(SCORES).mean() - labels.mean()) > 0.1


@pytest.mark.parametrize("fit", METHODS.values(), ids=METHODS)
def test_the_order_stays_and_no_two_scores_become_one(fit) -> None:
    ordered = np.sort(SCORES)
    found = fit(SCORES, _labels(np.sign(SCORES) * 3)).probabilities(ordered)
    assert (np.diff(found) > 0).all()
    assert 0 < found[0] < found[-1] < 1


def test_an_isotonic_curve_has_knots_where_its_blocks_end_and_no_certainty() -> None:
    log_odds = np.array([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0])
    labels = np.array([0, 0, 1, 0, 0, 1, 1])
    found = fit_isotonic(log_odds, labels)
    assert found.before == (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    line = fit_platt(log_odds, labels).probabilities(np.array(found.before))
    np.testing.assert_allclose(
        _sigmoid(np.array(found.after)), 0.9 * np.array([0, 0, 1 / 3, 1 / 3, 1, 1]) + 0.1 * line
    )


def test_what_a_line_can_do_is_done_by_a_line() -> None:
    rows = slice(0, 400)
    choice = choose(SCORES[rows], _labels(0.7 * SCORES - 0.4)[rows], ENTITIES[rows])
    assert choice.method == "platt"
    assert choice.losses["platt"] < min(choice.losses["isotonic"], choice.losses["none"])


def test_a_curve_does_not_win_by_rows_of_entities_that_it_was_fitted_to() -> None:
    """Many rows of few entities: folds that part an entity let the curve remember it."""
    random = np.random.default_rng(3)
    entity = np.repeat(np.arange(200), 10)
    of_entity = random.normal(size=200)
    log_odds = of_entity[entity]
    labels = (random.random(200) < _sigmoid(of_entity))[entity].astype(np.int32)
    names = np.char.add("c", entity.astype(str))
    assert choose(log_odds, labels, names).method == "platt"
    each_its_own = np.char.add("c", np.arange(len(entity)).astype(str))
    assert choose(log_odds, labels, each_its_own).method == "isotonic"


def test_what_no_line_can_do_is_done_by_a_curve() -> None:
    choice = choose(SCORES, _labels(np.where(SCORES > 0, 3.0, -0.5)), ENTITIES)
    assert choice.method == "isotonic"
    assert choice.losses["isotonic"] < choice.losses["platt"] < choice.losses["none"]


@pytest.mark.parametrize("fit", METHODS.values(), ids=METHODS)
def test_a_model_that_ranks_the_wrong_way_round_keeps_its_order(fit) -> None:
    found = fit(SCORES, _labels(-SCORES)).probabilities(np.array([-1.0, 1.0]))
    assert found[0] < found[1]


def test_separated_classes_do_not_make_certainty() -> None:
    log_odds = np.linspace(-3, 3, 50)
    found = fit_platt(log_odds, (log_odds > 0).astype(np.int32)).probabilities(log_odds)
    assert 0.5 > found[0] > 1e-3
    assert np.isfinite(found).all()


def test_folds_keep_an_entity_together_and_do_not_read_its_name() -> None:
    keys = np.array(["x", "y", "x", "z", "w", "z"])
    assert folds_of(keys, 2).tolist() == [0, 1, 0, 0, 1, 0]
    renamed = np.array(["9", "1", "9", "4", "7", "4"])
    assert folds_of(renamed, 2).tolist() == folds_of(keys, 2).tolist()
