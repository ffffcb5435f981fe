import numpy as np

from nightshift.training.fit import fit_early_stopped, fit_trees, model_bytes


def _rows(seed: int, rows: int = 600) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(rows, 4)).astype(np.float32)
    labels = (matrix[:, 0] + random.normal(size=rows) > 0).astype(np.int32)
    return matrix, labels


def test_the_same_rows_give_the_same_bytes_and_another_seed_gives_others() -> None:
    names = ["a", "b", "c", "d"]
    once, twice, other = (
        model_bytes(fit_early_stopped(_rows(1), _rows(2), names, seed)) for seed in (5, 5, 6)
    )
    assert once == twice
    assert once != other


def test_early_stopping_keeps_the_best_tree_count_and_the_refit_repeats_it() -> None:
    names = ["a", "b", "c", "d"]
    booster = fit_early_stopped(_rows(1), _rows(2), names, 5)
    trees = booster.num_boosted_rounds()
    assert 1 < trees < 1000
    assert fit_trees(*_rows(3), names, trees, 5).num_boosted_rounds() == trees
    assert booster.feature_names == names
