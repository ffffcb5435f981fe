"""Which items are bought together: of whole orders, the nearest items of each item. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from nightshift.features import kernel, rows
from nightshift.features.ranks import best
from nightshift.features.windows import Bools, Floats, Ints
from nightshift.spec import BoughtTogether, Candidates

SCHEMA = pa.schema(
    [("item", pa.string()), ("other", pa.string()), pa.field("nearness", pa.float64())]
)


@dataclass(frozen=True)
class Lines:
    """Lines of orders, all arrays of length n.

    Attributes:
        order, item: codes.
        time_us, landed_day: when they happened and landed.
        items: by code, ascending.
    """

    order: Ints
    item: Ints
    time_us: Ints
    landed_day: Ints
    items: pa.StringArray


def columns_read(wanted: Candidates, generator: BoughtTogether) -> list[str]:
    """The columns that :func:`lines` needs."""
    source = wanted.source
    named = (generator.order, wanted.key[1], source.event_time, source.landed_date)
    return list(dict.fromkeys((*named, *rows.named_in(source, wanted.where))))


def lines(tables: Iterable[pa.Table], wanted: Candidates, generator: BoughtTogether) -> Lines:
    """The lines that count, of rows of the source in any parts, which are read one at a time."""
    source = wanted.source
    names = [generator.order, wanted.key[1], source.event_time, source.landed_date]
    parts = [_counting(table, wanted, names) for table in tables]
    found = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    order, item, time, landed = (found[name].combine_chunks() for name in names)
    item_code, items = rows.codes(item)
    return Lines(
        order=rows.codes(order)[0],
        item=item_code,
        time_us=rows.as_numbers(time, "timestamp"),
        landed_day=rows.as_numbers(landed, "date"),
        items=items,
    )


def _counting(table: pa.Table, wanted: Candidates, names: Sequence[str]) -> pa.Table:
    """Some columns, order and item first, of the rows that count."""
    order, item, *_ = names
    counts = pc.and_(table[order].is_valid(), table[item].is_valid())
    if wanted.where is not None:
        holds = rows.evaluated(table, [wanted.where])[wanted.where]
        counts = pc.and_(counts, pc.fill_null(holds, False))
    return table.select(list(dict.fromkeys(names))).filter(counts)


def first_landing(generator: BoughtTogether, as_of: date) -> int:
    """The first landed day, since 1970-01-01, of the orders that count at a snapshot."""
    return (as_of - kernel.EPOCH).days - generator.days


@dataclass(frozen=True)
class Orders:
    """The orders that count at a snapshot.

    Attributes:
        bought: (orders, items) 1 where an order has the item.
        of_item: (items,) in how many orders each is.
        items: by code, ascending.
    """

    bought: sparse.csr_matrix
    of_item: Floats
    items: pa.StringArray

    @cached_property
    def bought_of(self) -> sparse.csr_matrix:
        """``bought`` by item."""
        return self.bought.T.tocsr()


def orders(found: Lines, generator: BoughtTogether, as_of: date, known_day: int) -> Orders:
    """The orders of a snapshot.

    Args:
        known_day: what landed before it is known, days since 1970-01-01.
    """
    cut = (as_of - kernel.EPOCH).days
    first = first_landing(generator, as_of)
    counts = (found.time_us < cut * kernel.DAY_US) & (found.time_us >= first * kernel.DAY_US)
    counts &= (found.landed_day < known_day) & (found.landed_day >= first)
    width = max(len(found.items), 1)
    pairs = np.sort(found.order[counts] * width + found.item[counts])
    order, item = np.divmod(pairs[np.diff(pairs, prepend=-1) != 0], width)
    sizes = np.bincount(order) if len(order) else np.zeros(0, np.int64)
    few = sizes[order] <= generator.most_items
    order, item = order[few], item[few]
    shape = (int(order.max()) + 1 if len(order) else 0, len(found.items))
    return Orders(
        sparse.csr_matrix((np.ones(len(order), np.int32), (order, item)), shape),
        np.bincount(item, minlength=len(found.items)).astype(np.float64),
        found.items,
    )


def neighbours(found: Orders, generator: BoughtTogether, own: Bools) -> pa.Table:
    """The nearest items of some items, nearest first; see :class:`BoughtTogether`.

    All that is added up are whole numbers, so that the order of rows does not matter.

    Args:
        own: (items,) of which items.
    """
    chosen = np.flatnonzero(own)
    common = (found.bought_of[chosen] @ found.bought).tocoo()
    one, other = chosen[common.row], common.col.astype(np.int64)
    apart = one != other
    one, other = one[apart], other[apart]
    both = np.sqrt(found.of_item[one] * found.of_item[other])
    near = common.data[apart] / (both + generator.shrinkage)
    nearest, _ = best(one, near, generator.neighbours, other)
    return pa.table(
        [
            found.items.take(pa.array(one[nearest])),
            found.items.take(pa.array(other[nearest])),
            pa.array(near[nearest], pa.float64()),
        ],
        schema=SCHEMA,
    )
