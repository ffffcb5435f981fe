import math

import numpy as np
import pytest
from scipy.special import chdtri

from nightshift.distribution import (
    BINS,
    CHANCE,
    CHI_SQUARED,
    Distribution,
    by_chance,
    count,
    distribution,
    stability_index,
)


def test_deciles_hold_a_tenth_of_the_rows_each() -> None:
    found = distribution(np.arange(1000) / 1000)

    assert found.edges == (0.099, 0.199, 0.299, 0.399, 0.499, 0.599, 0.699, 0.799, 0.899)
    assert found.counts == (99, *[100] * 8, 101)
    assert found.rows == 1000


def test_rows_that_share_a_score_share_a_bin() -> None:
    found = distribution(np.array([0.2] * 95 + [0.9] * 5))

    assert found == Distribution(edges=(0.2,), counts=(0, 100))


def test_an_edge_belongs_to_the_bin_above_it() -> None:
    assert count(np.array([0.1, 0.5, 0.6, 0.9, 2.0]), (0.5, 0.9)) == (1, 2, 2)


def test_nothing_has_no_distribution_to_speak_of() -> None:
    assert distribution(np.array([])) == Distribution(edges=(), counts=(0,))
    assert math.isnan(stability_index(Distribution(edges=(), counts=(0,)), (3,)))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((50, 50), 0.0),
        ((5, 5), 0.0),
        ((60, 40), 0.1 * math.log(1.2) - 0.1 * math.log(0.8)),
        ((40, 60), 0.1 * math.log(1.2) - 0.1 * math.log(0.8)),
        ((100, 0), 0.5 * math.log(2) + (0.005 - 0.5) * math.log(0.01)),
    ],
)
def test_the_index_is_the_divergence_of_the_shares(
    counts: tuple[int, ...], expected: float
) -> None:
    reference = Distribution(edges=(0.5,), counts=(500, 500))

    assert stability_index(reference, counts) == pytest.approx(expected, abs=1e-12)


def test_chance_alone_exceeds_its_bound_about_once_in_a_thousand() -> None:
    random = np.random.default_rng(3)
    exceeded = 0
    for _ in range(2000):
        reference = distribution(random.random(500))
        counts = count(random.random(400), reference.edges)
        exceeded += stability_index(reference, counts) > by_chance(reference, 400)

    assert exceeded <= 8


def test_the_table_is_the_chi_squared_distributions() -> None:
    np.testing.assert_allclose(CHI_SQUARED, chdtri(np.arange(1, BINS), CHANCE), atol=5e-7)
