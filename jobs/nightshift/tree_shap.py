"""Exact SHAP values of shallow trees by looking them up.

What a tree of k splits contributes to a row depends on nothing but which of the k conditions the
row meets: 2ᵏ cases, whose Shapley values (Lundberg et al. 2018, path-dependent TreeSHAP) are
computed once, from their definition. A row then costs k comparisons, and a look-up a feature of the
tree.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from nightshift.xgboost_core import xgb

MOST_SPLITS = 7
"""Of a tree of depth 3. A table has 2ᵏ entries a feature, each made of 2ᵏ sets of features."""


@dataclass(frozen=True)
class Tree:
    """One tree's conditions, and what each case of them contributes.

    Attributes:
        features, below, null_is_below: (k,) of each split: a row goes left where its feature is
            smaller than ``below``.
        used: (m,) the features of the tree.
        values: (m, 2ᵏ) by case: bit i is set where condition i is met.
    """

    features: npt.NDArray[np.intp]
    below: npt.NDArray[np.float32]
    null_is_below: npt.NDArray[np.bool_]
    used: npt.NDArray[np.intp]
    values: npt.NDArray[np.float64]


_tabulated: WeakKeyDictionary[xgb.Booster, tuple[Tree, ...] | None] = WeakKeyDictionary()


def trees_of(booster: xgb.Booster) -> tuple[Tree, ...] | None:
    """The tables of a booster, made once; None where one of its trees is too large, or of another
    kind: of several classes, of categories, weighted."""
    if booster not in _tabulated:
        _tabulated[booster] = _tabulate(booster)
    return _tabulated[booster]


def shap_values(trees: Sequence[Tree], matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(rows, features) float64, without the bias; a row's bits depend on no other row.

    Args:
        matrix: (rows, features); NaN is null.
    """
    columns = np.ascontiguousarray(matrix.T)
    is_null = np.isnan(columns)
    found = np.zeros(columns.shape)
    for tree in trees:
        case = np.zeros(len(matrix), dtype=np.uint8)
        for bit, feature in enumerate(tree.features):
            is_met = columns[feature] < tree.below[bit]  # which null is not
            if tree.null_is_below[bit]:
                is_met |= is_null[feature]
            case |= is_met.view(np.uint8) << np.uint8(bit)
        for feature, values in zip(tree.used, tree.values, strict=True):
            found[feature] += values[case]
    return np.ascontiguousarray(found.T)


def _tabulate(booster: xgb.Booster) -> tuple[Tree, ...] | None:
    learner = json.loads(booster.save_raw("json"))["learner"]
    if learner["gradient_booster"]["name"] != "gbtree":
        return None
    model = learner["gradient_booster"]["model"]
    is_weighted = any(weight != 1 for weight in model.get("weight_drop", []))
    if is_weighted or any(model["tree_info"]):
        return None
    found = []
    for tree in model["trees"]:
        left = np.array(tree["left_children"])
        cover = np.array(tree["sum_hessian"], dtype=np.float64)
        splits = np.flatnonzero(left >= 0)
        if len(splits) > MOST_SPLITS or any(tree["split_type"]) or not np.all(cover[splits] > 0):
            return None
        features = np.array(tree["split_indices"], dtype=np.intp)[splits]
        thresholds = np.array(tree["split_conditions"], dtype=np.float32)
        used = np.unique(features)
        found.append(
            Tree(
                features=features,
                below=thresholds[splits],
                null_is_below=np.array(tree["default_left"], dtype=np.bool_)[splits],
                used=used,
                values=_shapley_values(
                    left, np.array(tree["right_children"]), thresholds, cover,
                    splits, np.searchsorted(used, features), len(used),
                ),
            )
        )  # fmt: skip
    return tuple(found)


def _shapley_values(
    left: npt.NDArray[np.intp],
    right: npt.NDArray[np.intp],
    leaf_values: npt.NDArray[np.float32],
    cover: npt.NDArray[np.float64],
    splits: npt.NDArray[np.intp],
    players: npt.NDArray[np.intp],
    count: int,
) -> npt.NDArray[np.float64]:
    """(count, 2ᵏ): of each feature in each case, its mean addition over all orders of features.

    Args:
        players: (k,) which of the tree's ``count`` features each split asks.
    """
    cases = np.arange(2 ** len(splits))[:, None]
    known = np.arange(2**count)
    bits = {int(node): bit for bit, node in enumerate(splits)}

    def value(node: int) -> npt.NDArray[np.float64]:
        """(cases, sets of known features): what a row of that case is expected to get here."""
        if node not in bits:
            return np.full((1, 1), leaf_values[node], dtype=np.float64)
        below, above = value(int(left[node])), value(int(right[node]))
        share = cover[left[node]] / (cover[left[node]] + cover[right[node]])
        is_met = (cases >> bits[node]) & 1 == 1
        is_known = (known >> players[bits[node]]) & 1 == 1
        return np.where(
            is_known, np.where(is_met, below, above), share * below + (1 - share) * above
        )

    expected = np.broadcast_to(value(0), (len(cases), len(known)))
    found = np.zeros((count, len(cases)))
    for player in range(count):
        for others in known[(known >> player) & 1 == 0].tolist():
            size = others.bit_count()
            share = factorial(size) * factorial(count - size - 1) / factorial(count)
            # one by one: a product of matrices has other bits on another machine
            found[player] += share * (expected[:, others | 1 << player] - expected[:, others])
    return found
