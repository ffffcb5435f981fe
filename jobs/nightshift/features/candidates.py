"""What is proposed to whom: the items of several generators, each pair once. Pure.

What is known of items is the same for everybody, and laid out once a snapshot; entities then come
some at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from nightshift.features import rows
from nightshift.features.ranks import best
from nightshift.features.windows import Bools, Floats, Ints
from nightshift.spec import (
    RANK_DAMPING,
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
        self._segments: dict[str, _Segments] = {}
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
        order, _ = best(np.zeros(len(found), np.int64), scores[found], limit, found)
        return found[order], scores

    def _within(self, each: PopularWithin, answers: Answers) -> "_Segments":
        """Of each value of the column the buyers of each item."""
        (feature,) = answers.columns
        parts = rows.key_parts(answers.names, 2)
        item, buyers = self.codes(parts[0]), answers.numbers(feature)
        code, values = rows.codes(parts[1])
        some = (item >= 0) & (buyers > 0)
        some &= self.is_sold[item]
        shape = (len(values), len(self.names))
        scores = sparse.csr_matrix((buyers[some], (code[some], item[some])), shape)
        value, item, buyers = _entries(scores)
        order, place = best(value, buyers, each.limit, item)
        until = np.cumsum(np.bincount(value[order], minlength=len(values)))
        return _Segments(values, scores, until, item[order], place)

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
        generators = self.wanted.generators
        proposed = [self._of(each, members, own, segments) for each in generators]
        pairs, places = _distinct([each.entity * width + each.item for each in proposed])
        entity, item = np.divmod(pairs, width)
        kept = np.arange(len(pairs))
        if self.wanted.keep is not None:
            fused = np.zeros(len(pairs))
            for generator, each, place in zip(generators, proposed, places, strict=True):
                fused[place] += generator.weight / (RANK_DAMPING + each.rank)
            kept = np.sort(best(entity, fused, self.wanted.keep, item)[0])
        entity, item = entity[kept], item[kept]
        columns: dict[str, Floats] = {}
        for generator, each, place in zip(generators, proposed, places, strict=True):
            rank = np.full(len(pairs), np.nan)
            rank[place] = each.rank
            columns[f"candidate_{generator_name(generator)}_rank"] = rank[kept]
            columns[f"candidate_{generator_name(generator)}_score"] = each.scores(entity, item)
        return Proposed(entity, item, columns)

    def _of(
        self, each: Generator, members: Ints, own: "Own", segments: Mapping[str, pa.Array]
    ) -> "_Proposals":
        """What a generator proposes to entities (positions in ``members``)."""
        if isinstance(each, BoughtBefore):
            bought = own.bought(each.days)[members]
            entity, item, score = _entries(bought)
            sold = self.is_sold[item]
            entity, item, score = entity[sold], item[sold], score[sold]
            chosen, rank = best(entity, score, each.limit, own.since(members[entity], item), item)
            known = sparse.csr_matrix((score, (entity, item)), bought.shape)
            return _Proposals(entity[chosen], item[chosen], rank, _of_entries(known))
        if isinstance(each, BoughtTogether):
            if self._near is None:
                none = np.zeros(0, np.int64)
                return _Proposals(none, none, none, lambda entity, _: np.full(len(entity), np.nan))
            bought = own.bought(each.days)[members]
            bought.data = np.ones_like(bought.data)
            found = bought @ self._near
            entity, item, score = _entries(found)
            chosen, rank = best(entity, score, each.limit, item)
            return _Proposals(entity[chosen], item[chosen], rank, _of_entries(found))
        if isinstance(each, PopularWithin):
            return self._segments[generator_name(each)].proposals(segments[each.column])
        listed, scores = self._lists[generator_name(each)]
        entity = np.repeat(np.arange(len(members)), len(listed))
        rank = np.tile(np.arange(1, len(listed) + 1), len(members))
        return _Proposals(entity, np.tile(listed, len(members)), rank, lambda _, item: scores[item])


@dataclass(frozen=True)
class _Proposals:
    """What a generator proposes, all arrays of length n.

    Attributes:
        entity, item, rank: of each proposal; each pair occurs once.
        scores: of pairs of an entity and an item, proposed or not; NaN where there is none.
    """

    entity: Ints
    item: Ints
    rank: Ints
    scores: Callable[[Ints, Ints], Floats]


@dataclass(frozen=True)
class _Segments:
    """What is popular among the entities of each value of a column.

    Attributes:
        values: of the column, ascending.
        scores: (values, items) with 0 for none.
        until: (values,) where in ``item`` and ``rank`` the list of each ends.
        item, rank: of the lists, one after the other.
    """

    values: pa.StringArray
    scores: sparse.csr_matrix
    until: Ints
    item: Ints
    rank: Ints

    def proposals(self, column: pa.Array) -> _Proposals:
        """To entities with these values of the column."""
        code = pc.index_in(column.cast(pa.string()), value_set=self.values)
        known = np.flatnonzero(code.is_valid())
        of_entity = np.full(len(column), -1)
        of_entity[known] = code.drop_null()
        until = self.until[of_entity[known]]
        size = np.diff(self.until, prepend=0)[of_entity[known]]
        entity = np.repeat(known, size)
        # the last of each list, less how many come after
        ends = np.cumsum(size)
        at = np.repeat(until - ends, size) + np.arange(len(entity))
        found = _of_entries(self.scores)

        def scores(entity: Ints, item: Ints) -> Floats:
            value = of_entity[entity]
            return np.where(value < 0, np.nan, found(np.maximum(value, 0), item))

        return _Proposals(entity, self.item[at], self.rank[at], scores)


def _entries(matrix: sparse.csr_matrix) -> tuple[Ints, Ints, Floats]:
    """Row, column and value of each entry, row by row."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return row, matrix.indices.astype(np.int64), matrix.data.astype(np.float64)


def _of_entries(matrix: sparse.csr_matrix) -> Callable[[Ints, Ints], Floats]:
    """The entries at rows and columns, NaN where there is none; no entry is 0."""

    def found(row: Ints, column: Ints) -> Floats:
        if not len(row):
            return np.zeros(0)
        values = np.asarray(matrix[row, column], np.float64).reshape(-1)
        return np.where(values == 0, np.nan, values)

    return found


def _distinct(parts: Sequence[Ints]) -> tuple[Ints, list[Ints]]:
    """All numbers that occur, ascending, and of each part the places of its own among them."""
    every = np.concatenate(parts)
    order = np.argsort(every)
    is_new = np.diff(every[order], prepend=-1) != 0
    places = np.empty(len(every), np.int64)
    places[order] = np.cumsum(is_new) - 1
    bounds = np.cumsum([len(part) for part in parts])[:-1]
    return every[order][is_new], np.split(places, bounds)


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
