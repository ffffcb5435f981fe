"""What ordered lists of items are worth to those who are shown their first ``k``.

A query is a list: the items of one entity at one ``as_of``. Each query has one figure, and counts
for as much as any other; one without a relevant item tells nothing of the order and is left out.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from nightshift.metrics.bootstrap import Array, Statistic, Vector, ratio_of


def statistics(
    labels: Vector,
    scores: Vector,
    queries: Array,
    items: Array,
    k: int,
    missed: Array | None = None,
    popularity: Vector | None = None,
) -> Mapping[str, Statistic]:
    """Each metric of a scorer.

    A relevant item that a list lacks is missed by every order of it: it counts in the ideal, in
    what is to be recalled, and in the precision that could have been.

    Args:
        labels: (rows,) relevance, 0 for none.
        scores: (rows,) higher comes first.
        queries: (rows,) to whose list a row belongs; all rows of a query are of one entity.
        items: (rows,) what is listed.
        k: how many items of a list are shown.
        missed: (rows,) how many relevant items (of relevance 1) the row's list lacks; None for 0.
        popularity: (rows,) of each item, for the novelty; without it there is none.
    """
    codes = pd.factorize(queries)[0]
    lacking = np.zeros(len(labels), np.int64) if missed is None else np.asarray(missed, np.int64)
    found = _per_query(labels, scores, codes, k, lacking)
    is_asked = found.pop("is_asked")
    statistics_of = {
        **{name: ratio_of(values * is_asked, is_asked) for name, values in found.items()},
        "coverage_at_k": coverage(scores, queries, items, k),
    }
    if popularity is not None and len(popularity):
        shown = shown_rows(scores, codes, k)
        statistics_of["novelty_at_k"] = ratio_of(novelty(popularity) * shown, shown)
    return statistics_of


def shown_rows(scores: Vector, queries: Array, k: int) -> Vector:
    """(rows,) 1.0 where a list shows the row, else 0.0."""
    order = np.lexsort((-scores, queries))
    shown = np.zeros(len(scores))
    shown[order[_positions(queries[order]) < k]] = 1.0
    return shown


def novelty(popularity: Vector) -> Vector:
    """In bits, how much less popular each item is than the most popular one: 1 for half as many
    buyers, 2 for a quarter. An item without any counts as with one."""
    known = np.maximum(np.nan_to_num(popularity), 1.0)
    return np.asarray(np.log2(known.max() / known))


def coverage(scores: Vector, queries: Array, items: Array, k: int) -> Statistic:
    """The share of all items that some list shows."""
    order = np.lexsort((-scores, pd.factorize(queries)[0]))
    shown = order[_positions(pd.factorize(queries)[0][order]) < k]
    codes = pd.factorize(items)[0]
    count = int(codes.max()) + 1

    def statistic(weights: Vector) -> Vector:
        return np.array([len(np.unique(codes[shown[row[shown] > 0]])) / count for row in weights])

    return statistic


def _per_query(
    labels: Vector, scores: Vector, queries: Array, k: int, missed: Array
) -> dict[str, Vector]:
    """Figures of each query at its first row, 0 elsewhere; ``is_asked`` where there is one.

    Equal scores count as in random order (the expectation, as scikit-learn's ndcg_score), but for
    the mean average precision, in which the relevant ones come last.
    """
    order = np.lexsort((labels, -scores, queries))
    q, y, s = queries[order], labels[order], scores[order]
    position = _positions(q)
    starts = np.flatnonzero(position == 0)
    sizes = np.diff(starts, append=len(q))

    def total(values: Vector) -> Vector:
        return np.add.reduceat(values, starts)

    discount = np.where(position < k, 1 / np.log2(position + 2.0), 0.0)
    is_shown = (position < k).astype(np.float64)
    tie_starts = np.flatnonzero(np.concatenate(([True], (q[1:] != q[:-1]) | (s[1:] != s[:-1]))))
    tie_sizes = np.diff(tie_starts, append=len(q))

    def mean_of_ties(values: Vector) -> Vector:
        return np.repeat(np.add.reduceat(values, tie_starts) / tie_sizes, tie_sizes)

    best = y[np.lexsort((-y, q))]
    is_relevant = (y > 0).astype(np.float64)
    listed = total(is_relevant)
    relevant = listed + missed[order[starts]]
    is_asked = relevant > 0
    # the ideal goes on with what the list lacks, behind what it has
    discounts = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(k) + 2.0))))
    ideal = total(best * discount)
    until, since = (np.minimum(n, k).astype(np.int64) for n in (relevant, listed))
    ideal += discounts[until] - discounts[since]
    hits = np.cumsum(is_relevant)
    hits -= np.repeat(hits[starts] - is_relevant[starts], sizes)
    precision = hits / (position + 1) * is_relevant * is_shown
    figures = {
        "ndcg_at_k": (total(y * mean_of_ties(discount)), ideal),
        "recall_at_k": (total(is_relevant * mean_of_ties(is_shown)), relevant),
        "map_at_k": (total(precision), np.minimum(relevant, k)),
        "is_asked": (is_asked.astype(np.float64), np.ones(len(starts))),
    }
    found: dict[str, Vector] = {}
    for name, (numerator, denominator) in figures.items():
        found[name] = np.zeros(len(q))
        found[name][order[starts[is_asked]]] = (numerator[is_asked]) / denominator[is_asked]
    return found


def _positions(queries: Array) -> Array:
    """(rows,) 0, 1, … within each run of equal queries."""
    starts = np.flatnonzero(np.concatenate(([True], queries[1:] != queries[:-1])))
    return np.arange(len(queries)) - np.repeat(starts, np.diff(starts, append=len(queries)))
