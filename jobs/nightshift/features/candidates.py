"""What is proposed to whom: the items of several generators, each pair once. Pure.

What is known of items is the same for everybody, and laid out once a snapshot; entities then come
some at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from nightshift.features import rows
from nightshift.features.together import places
from nightshift.features.windows import Bools, Floats, Ints
from nightshift.spec import (
    BoughtBefore,
    BoughtTogether,
    Candidates,
    Generator,
    NewItems,
    PopularLately,
    PopularWithin,
    Window,
    generator_name,
)


@dataclass(frozen=True)
class Answers:
    """What a group tells at a snapshot: its entities by name, and each feature of them."""

    names: pa.StringArray
    columns: Mapping[str, pa.Array]

    def numbers(self, name: str) -> Floats:
        """A feature, NaN for null."""
        return np.asarray(pc.fill_null(self.columns[name], np.nan), np.float64)


@dataclass(frozen=True)
class Proposed:
    """Pairs by entity, then by item, all arrays of length m.

    Attributes:
        entity: position among those who were asked for.
        item: position among ``Items.names``.
        columns: features that come with a candidate, NaN for null.
    """

    entity: Ints
    item: Ints
    columns: Mapping[str, Floats]


class Items:
    """What is known of all items at a snapshot.

    Args:
        wanted: the declaration.
        items: of ``wanted.items``.
        segments: generator → of its group in ``wanted.segments``.
        near: (item, other, nearness), of :mod:`together <nightshift.features.together>`.
    """

    def __init__(
        self,
        wanted: Candidates,
        items: Answers,
        segments: Mapping[str, Answers],
        near: pa.Table | None,
    ) -> None:
        self.wanted = wanted
        order = pc.sort_indices(items.names)
        self.names: pa.StringArray = items.names.take(order)
        self._told = {
            name: items.numbers(name)[order.to_numpy()]
            for name, column in items.columns.items()
            if not pa.types.is_string(column.type)
        }
        self.is_sold: Bools = self._count("event", wanted.sold_days) > 0
        if wanted.exclude is not None:
            self.is_sold &= self._told["item_excluded_count_all"] == 0
        self._lists: dict[str, tuple[Ints, Floats]] = {}
        self._segments: dict[str, tuple[pa.StringArray, sparse.csr_matrix]] = {}
        self._near: sparse.csr_matrix | None = None
        for each in wanted.generators:
            if isinstance(each, PopularLately):
                self._lists[generator_name(each)] = self._best(self._buyers(each.days), each.limit)
            elif isinstance(each, NewItems):
                age = self._told["item_event_days_since_first_all"]
                buyers = np.where(age <= each.days, self._buyers(each.days), 0)
                self._lists[generator_name(each)] = self._best(buyers, each.limit)
            elif isinstance(each, PopularWithin):
                name = generator_name(each)
                self._segments[name] = self._within(each, segments[name])
            elif isinstance(each, BoughtTogether) and near is not None:
                self._near = self._nearness(near)

    def _count(self, measure: str, days: int) -> Floats:
        return self._told[f"item_{measure}_count_{Window(days=days).suffix}"]

    def _buyers(self, days: int) -> Floats:
        return self._told[f"item_buyer_distinct_{Window(days=days).suffix}"]

    def codes(self, names: pa.Array) -> Ints:
        """Positions of items by name, −1 of those that are not known."""
        found = pc.index_in(names.cast(pa.string()), value_set=self.names)
        return np.asarray(pc.fill_null(found, -1), np.int64)

    def _best(self, scores: Floats, limit: int) -> tuple[Ints, Floats]:
        """The items of the highest scores, best first, of those that are sold and have one; and
        the score of every item that is sold, NaN without one."""
        scores = np.where(self.is_sold & (scores > 0), scores, np.nan)
        found = np.flatnonzero(~np.isnan(scores))
        order = np.lexsort((found, -scores[found]))
        return found[order[:limit]], scores

    def _within(
        self, each: PopularWithin, answers: Answers
    ) -> tuple[pa.StringArray, sparse.csr_matrix]:
        """Of each value of the column the buyers of each item."""
        (feature,) = answers.columns
        parts = rows.key_parts(answers.names, 2)
        item, buyers = self.codes(parts[0]), answers.numbers(feature)
        code, values = rows.codes(parts[1])
        some = (item >= 0) & (buyers > 0)
        some &= self.is_sold[item]
        shape = (len(values), len(self.names))
        return values, sparse.csr_matrix((buyers[some], (code[some], item[some])), shape)

    def _nearness(self, near: pa.Table) -> sparse.csr_matrix:
        one, other = (self.codes(near[name].combine_chunks()) for name in ("item", "other"))
        some = (one >= 0) & (other >= 0)
        some &= self.is_sold[other]
        shape = (len(self.names), len(self.names))
        values = near["nearness"].to_numpy()
        return sparse.csr_matrix((values[some], (one[some], other[some])), shape)

    def proposals(self, members: Ints, own: "Own", segments: Mapping[str, pa.Array]) -> Proposed:
        """The candidates of some entities.

        Args:
            members: positions of the entities in ``own``.
            own: what all the entities at hand have bought.
            segments: column → its last value of each of ``members``.
        """
        width = np.int64(max(len(self.names), 1))
        count = len(members)
        found: list[tuple[str, Ints, Ints]] = []
        scored: dict[str, _Scored] = {}
        for each in self.wanted.generators:
            name = generator_name(each)
            entity, item, score, tie = self._of(each, members, own, segments)
            ranked = np.lexsort((item, tie, -score, entity))
            entity, item, score = entity[ranked], item[ranked], score[ranked]
            place = places(entity)
            first = place < each.limit
            pair = entity * width + item
            found.append((name, pair[first], place[first] + 1))
            by_pair = np.argsort(pair, kind="stable")
            scored[name] = _Scored(pair[by_pair], score[by_pair])
        pairs = np.unique(np.concatenate([pair for _, pair, _ in found]))
        columns: dict[str, Floats] = {}
        for name, pair, rank in found:
            columns[f"candidate_{name}_rank"] = np.full(len(pairs), np.nan)
            columns[f"candidate_{name}_rank"][np.searchsorted(pairs, pair)] = rank
            columns[f"candidate_{name}_score"] = scored[name].of(pairs)
        entity, item = np.divmod(pairs, width)
        for name, (_, scores) in self._lists.items():
            columns[f"candidate_{name}_score"] = scores[item]
        assert not count or entity.max(initial=0) < count
        return Proposed(entity, item, columns)

    def _of(
        self, each: Generator, members: Ints, own: "Own", segments: Mapping[str, pa.Array]
    ) -> tuple[Ints, Ints, Floats, Floats]:
        """Of a generator: pairs of an entity (position in ``members``) and an item, each with its
        score and what orders equal scores."""
        if isinstance(each, BoughtBefore):
            bought = own.bought(each.days)[members].tocoo()
            entity, item, score = bought.row, bought.col.astype(np.int64), bought.data
            sold = self.is_sold[item]
            entity, item, score = entity[sold].astype(np.int64), item[sold], score[sold]
            return entity, item, score, own.since(members[entity], item)
        if isinstance(each, BoughtTogether):
            if self._near is None:
                return _nobody()
            bought = own.bought(each.days)[members]
            bought.data = np.ones_like(bought.data)
            return _pairs(bought @ self._near)
        if isinstance(each, PopularWithin):
            values, buyers = self._segments[generator_name(each)]
            code = pc.index_in(segments[each.column].cast(pa.string()), value_set=values)
            known = np.asarray(code.is_valid())
            chosen = buyers[np.asarray(code.drop_null(), np.int64)]
            entity, item, score, tie = _pairs(chosen)
            return np.flatnonzero(known)[entity], item, score, tie
        best, scores = self._lists[generator_name(each)]
        entity = np.repeat(np.arange(len(members)), len(best))
        item = np.tile(best, len(members))
        return entity, item, scores[item], np.zeros(len(item))


@dataclass(frozen=True)
class _Scored:
    """Scores of pairs, which ascend."""

    pair: Ints
    score: Floats

    def of(self, pairs: Ints) -> Floats:
        """The scores of pairs, NaN where there is none."""
        if not len(self.pair):
            return np.full(len(pairs), np.nan)
        at = np.minimum(np.searchsorted(self.pair, pairs), len(self.pair) - 1)
        return np.where(self.pair[at] == pairs, self.score[at], np.nan)


def _pairs(matrix: sparse.csr_matrix) -> tuple[Ints, Ints, Floats, Floats]:
    found = matrix.tocoo()
    return (
        found.row.astype(np.int64), found.col.astype(np.int64), found.data.astype(np.float64),
        np.zeros(len(found.data)),
    )  # fmt: skip


def _nobody() -> tuple[Ints, Ints, Floats, Floats]:
    none = np.zeros(0, np.int64)
    return none, none, np.zeros(0), np.zeros(0)


class Own:
    """What entities have bought, at a snapshot.

    Args:
        entities: by name, ascending.
        items: of the snapshot.
        pairs: of ``Candidates.pairs``.
    """

    def __init__(self, entities: pa.StringArray, items: Items, pairs: Answers) -> None:
        parts = rows.key_parts(pairs.names, 2)
        at = pc.index_in(parts[0], value_set=entities)
        entity = np.asarray(pc.fill_null(at, -1), np.int64)
        item = items.codes(parts[1])
        self._known = np.flatnonzero((entity >= 0) & (item >= 0))
        self._entity, self._item = entity[self._known], item[self._known]
        self._shape = (len(entities), len(items.names))
        self._pairs = pairs
        self._matrices: dict[int, sparse.csr_matrix] = {}

    def bought(self, days: int) -> sparse.csr_matrix:
        """(entities, items) how often each bought which in the last days."""
        if days not in self._matrices:
            name = f"pair_event_count_{Window(days=days).suffix}"
            counts = self._pairs.numbers(name)[self._known]
            some = counts > 0
            found = sparse.csr_matrix(
                (counts[some], (self._entity[some], self._item[some])), self._shape
            )
            found.sort_indices()  # scores are summed in this order
            self._matrices[days] = found
        return self._matrices[days]

    def since(self, entity: Ints, item: Ints) -> Floats:
        """Days since a pair's last event."""
        pair = entity * np.int64(max(self._shape[1], 1)) + item
        return self._since.of(pair)

    @cached_property
    def _since(self) -> _Scored:
        pair = self._entity * np.int64(max(self._shape[1], 1)) + self._item
        days = self._pairs.numbers("pair_event_days_since_last_all")[self._known]
        order = np.argsort(pair, kind="stable")
        return _Scored(pair[order], days[order])
