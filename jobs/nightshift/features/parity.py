"""What a night scored against what the same night looks like now: vectors, bit for bit. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.features import rows
from nightshift.spec import Source


@dataclass(frozen=True)
class Moved:
    """A feature whose values differ.

    Attributes:
        vectors: in how many.
        size: of the largest difference; infinite where one side is null or NaN, 0 for text.
        key: of the vector with the largest difference.
        before, after: its values; None for null.
    """

    vectors: int
    size: float
    key: tuple[str, ...]
    before: float | str | None
    after: float | str | None

    def __add__(self, other: "Moved") -> "Moved":
        larger = other if other.size > self.size else self
        return Moved(
            self.vectors + other.vectors, larger.size, larger.key, larger.before, larger.after
        )


@dataclass(frozen=True)
class Comparison:
    """Two versions of the same vectors; those of several parts are added up.

    Attributes:
        vectors: in both.
        differing: of these, how many differ in some feature.
        only_before, only_after: how many one version alone has.
        moved: feature → how it differs, of the features that do.
        dropped, added: features that one version alone has.
    """

    vectors: int = 0
    differing: int = 0
    only_before: int = 0
    only_after: int = 0
    moved: Mapping[str, Moved] | None = None
    dropped: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()

    @property
    def is_same(self) -> bool:
        """Whether both versions have the same vectors, bit for bit."""
        return not (
            self.differing or self.only_before or self.only_after or self.dropped or self.added
        )

    def __add__(self, other: "Comparison") -> "Comparison":
        mine, theirs = self.moved or {}, other.moved or {}
        return Comparison(
            vectors=self.vectors + other.vectors,
            differing=self.differing + other.differing,
            only_before=self.only_before + other.only_before,
            only_after=self.only_after + other.only_after,
            moved=dict(mine)
            | {
                name: mine[name] + moved if name in mine else moved
                for name, moved in theirs.items()
            },
            dropped=self.dropped | other.dropped,
            added=self.added | other.added,
        )


def compare(before: pa.Table, after: pa.Table, key: Sequence[str]) -> Comparison:
    """Compare vectors by their key; all other columns are features, float64 or text.

    Null equals null, and nothing else; numbers are equal when their bits are.
    """
    names, others = (rows.entity_names(_columns(table, key)) for table in (before, after))
    at = pc.index_in(names, value_set=others)
    shared = np.flatnonzero(np.asarray(at.is_valid()))
    there = np.asarray(at.drop_null().to_numpy(zero_copy_only=False), np.int64)
    features = [name for name in before.column_names if name not in key]
    others_features = [name for name in after.column_names if name not in key]
    moved: dict[str, Moved] = {}
    differs = np.zeros(len(shared), bool)
    for name in (n for n in features if n in others_features):
        old = before[name].combine_chunks().take(pa.array(shared))
        new = after[name].combine_chunks().take(pa.array(there))
        found = _differs(old, new)
        if found.any():
            where = np.flatnonzero(found)
            sizes = _sizes(old.take(pa.array(where)), new.take(pa.array(where)))
            largest = int(where[np.argmax(sizes)])
            moved[name] = Moved(
                vectors=len(where),
                size=float(sizes.max()),
                key=tuple(str(before[k][int(shared[largest])]) for k in key),
                before=old[largest].as_py(),
                after=new[largest].as_py(),
            )
            differs |= found
    return Comparison(
        vectors=len(shared),
        differing=int(np.count_nonzero(differs)),
        only_before=len(names) - len(shared),
        only_after=len(others) - len(shared),
        moved=moved,
        dropped=frozenset(features) - set(others_features),
        added=frozenset(others_features) - set(features),
    )


def _columns(table: pa.Table, names: Sequence[str]) -> list[pa.Array]:
    return [table[name].combine_chunks() for name in names]


def _differs(old: pa.Array, new: pa.Array) -> npt.NDArray[np.bool_]:
    nulls = np.asarray(old.is_null()), np.asarray(new.is_null())
    if pa.types.is_floating(old.type) and pa.types.is_floating(new.type):
        bits = [np.asarray(pc.fill_null(c, 0.0)).view(np.int64) for c in (old, new)]
        unequal: npt.NDArray[np.bool_] = bits[0] != bits[1]
    else:
        texts = [pc.fill_null(column.cast(pa.string()), "") for column in (old, new)]
        unequal = np.asarray(pc.not_equal(*texts))
    either, both = nulls[0] != nulls[1], nulls[0] & nulls[1]
    return either | (unequal & ~both)


def _sizes(old: pa.Array, new: pa.Array) -> npt.NDArray[np.float64]:
    if not pa.types.is_floating(old.type) or not pa.types.is_floating(new.type):
        return np.zeros(len(old))
    values = [np.asarray(pc.fill_null(column, np.nan), np.float64) for column in (old, new)]
    with np.errstate(invalid="ignore"):
        sizes = np.abs(values[1] - values[0])
    return np.where(np.isnan(sizes), np.inf, sizes)


def late(table: pa.Table, source: Source, as_of: date) -> Counter[date]:
    """The rows that had happened before ``as_of`` and landed on it or after it, by landed day."""
    landed = table[source.landed_date]
    happened = pc.cast(table[source.event_time], pa.date32())
    is_late = pc.and_(
        pc.less(happened, pa.scalar(as_of)), pc.greater_equal(landed, pa.scalar(as_of))
    )
    return Counter(landed.filter(is_late).to_pylist())


def rebuilt(then: Mapping[str, str], now: Mapping[str, str], as_of: date) -> list[str]:
    """The landed days before ``as_of`` whose rows are not of the build that they were of then.

    Args:
        then, now: landed day, as text → name of the build that wrote its rows.
    """
    days = (then.keys() | now.keys()) if then else set[str]()
    return sorted(day for day in days if day < as_of.isoformat() and then.get(day) != now.get(day))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two manifests of a training set say that is not the same, in words."""
    found = []
    for source in sorted({*then.get("landed_days", {}), *now["landed_days"]}):
        before, after = then.get("landed_days", {}).get(source, {}), now["landed_days"][source]
        for what, days in (
            ("have landed since", after.keys() - before.keys()),
            ("are gone", before.keys() - after.keys()),
            ("were built anew", {d for d in before.keys() & after.keys() if before[d] != after[d]}),
        ):
            if days:
                listed = sorted(days)
                more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
                found.append(f"days of {source} {what}: {', '.join(listed[:3])}{more}")
    if then["rows"] != now["rows"]:
        found.append(f"{then['rows']:,} rows then, {now['rows']:,} now")
    old_parts, parts = then.get("parts", {}), now["parts"]
    other = [
        name for name in sorted({*old_parts, *parts}) if old_parts.get(name) != parts.get(name)
    ]
    if other:
        found.append(f"{len(other)} of {len(parts)} partitions differ: {', '.join(other[:3])}")
    for key, what in (
        ("code_sha256", "the code that makes features"),
        ("buckets", "the setting lake_buckets"),
    ):
        old, new = then["key"].get(key), now["key"].get(key)
        if old != new:
            found.append(f"{what} is another: {str(old)[:12]} then, {str(new)[:12]} now")
    return found


@dataclass(frozen=True)
class Report:
    """What became of the vectors of a night.

    Attributes:
        as_of: the night.
        trained: the kept vectors against those that a training makes now.
        hindsight: the latter against what they would be, had all that landed since been known.
        late: source → landed day → rows that had happened by then and were not known.
        rebuilt: source → landed days that had been known, and were built anew since.
        other_declaration, other_code: whether these are not what made the kept vectors.
        scored: whether the kept vectors are those that the scores were made of; None before.
    """

    as_of: date
    trained: Comparison
    hindsight: Comparison
    late: Mapping[str, Mapping[date, int]]
    rebuilt: Mapping[str, Sequence[str]]
    other_declaration: bool
    other_code: bool
    scored: bool | None

    @property
    def holds(self) -> bool:
        """Whether training sees what was scored. Late rows alone change neither."""
        return self.trained.is_same

    def causes(self) -> list[str]:
        """What is known to be other than when the vectors were made."""
        found = ["the declaration of the use case"] if self.other_declaration else []
        found += ["the code that makes features"] if self.other_code else []
        for source, days in self.rebuilt.items():
            if days:
                more = f" and {len(days) - 3} more" if len(days) > 3 else ""
                found.append(f"rows of {source} that landed on {', '.join(days[:3])}{more}")
        return found
