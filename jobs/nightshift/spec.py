"""The words a use case is declared in: entities, feature groups, labels, gates, outputs.

Declarations are frozen and checked where they are written: a nonsense fails at import, with the
place and the remedy. This module imports nothing but the validation library, so that a DAG file
loads in milliseconds.

Time: a snapshot for ``as_of`` = D sees events that happened before D 00:00 and landed in a folder
dated before D. A window of n days is ``[D − n days, D)``; a label with horizon h is taken over
``[D, D + h days)``. Where each event is scored, its own instant takes the place of D 00:00, and it
still knows what landed before D, the day after it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    model_validator,
)

from nightshift.identifiers import identifier, qualified

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=48)]
Identifier = Annotated[Name, AfterValidator(identifier)]
"""A name that statements hold as it is: of a table or a column."""
Key = Identifier | tuple[Identifier, ...]
"""A column that identifies an entity, or several: customer × product."""
Days = Annotated[int, Field(gt=0, le=3660)]
Limit = Annotated[int, Field(ge=1, le=1000)]
"""How many items are proposed to an entity, or kept for it."""
Weight = Annotated[float, Field(gt=0, le=1000)]
"""How much a generator's proposals count where only some are kept."""
Share = Annotated[float, Field(ge=0, le=1)]
Category = Annotated[str, Field(pattern=r"^[^\\]*$", min_length=1)] | StrictBool | StrictInt

ColumnType = Literal["string", "boolean", "integer", "decimal", "double", "timestamp", "date"]
Aggregation = Literal[
    "count", "sum", "mean", "min", "max", "std", "distinct", "last",
    "days_since_last", "days_since_first", "gap_mean", "gap_std", "gap_last",
    "share", "entropy", "slope", "rate",
]  # fmt: skip

_NUMBERS: frozenset[ColumnType] = frozenset({"integer", "decimal", "double"})
_CATEGORIES: frozenset[ColumnType] = frozenset({"string", "boolean", "integer", "date"})
_ANY: frozenset[ColumnType] = _NUMBERS | _CATEGORIES | {"timestamp"}


@dataclass(frozen=True)
class AggregationRule:
    """What an aggregation means.

    Attributes:
        types: of the measures that it can be taken of.
        empty: what it is over no events: 0, or None for null.
        meaning: in words; ``{}`` stands for the measure.
        null: when else it is null.
    """

    types: frozenset[ColumnType]
    empty: Literal[0] | None
    meaning: str
    null: str = ""


AGGREGATIONS: dict[Aggregation, AggregationRule] = {
    "count": AggregationRule(_ANY, 0, "number of {}"),
    "sum": AggregationRule(_NUMBERS, 0, "sum of {}"),
    "mean": AggregationRule(_NUMBERS, None, "mean of {}"),
    "min": AggregationRule(_NUMBERS, None, "least of {}"),
    "max": AggregationRule(_NUMBERS, None, "greatest of {}"),
    "std": AggregationRule(
        _NUMBERS, None, "sample standard deviation (n − 1) of {}", "of fewer than two"
    ),
    "distinct": AggregationRule(_ANY - {"double"}, 0, "number of different {}"),
    "last": AggregationRule(
        _NUMBERS | {"string", "boolean"}, None,
        "last of {}; of several at one instant the last landed, then the greatest",
    ),
    "days_since_last": AggregationRule(_ANY, None, "days since the last of {}"),
    "days_since_first": AggregationRule(_ANY, None, "days since the first of {}"),
    "gap_mean": AggregationRule(
        _ANY, None, "mean days between consecutive days with {}", "with fewer than two such days"
    ),
    "gap_std": AggregationRule(
        _ANY, None, "sample standard deviation of the days between consecutive days with {}",
        "with fewer than three such days",
    ),
    "gap_last": AggregationRule(
        _ANY, None, "days between the last two days with {}", "with fewer than two such days"
    ),
    "share": AggregationRule(_CATEGORIES, None, "share of {category} in {}"),
    "entropy": AggregationRule(_CATEGORIES, None, "entropy (natural logarithm) of {}"),
    "slope": AggregationRule(
        _NUMBERS, 0, "slope a day (least squares) of the daily totals of {}, 0 on days without"
    ),
    "rate": AggregationRule(frozenset({"boolean"}), None, "share of true in {}"),
}  # fmt: skip
"""Every aggregation: an event counts where the measure's ``where`` holds and its value is known,
which is neither null nor, of a double, NaN."""

_SQL_WORDS = """
    and or not is null in between like rlike escape case when then else end true false cast as
    date timestamp interval bigint int double decimal string boolean distinct from div
    year years month months day days hour hours minute minutes
"""


def key_columns(key: Key) -> tuple[str, ...]:
    """The columns that identify an entity."""
    return key if isinstance(key, tuple) else (key,)


def _columns_read(sql: str) -> set[str]:
    """The names in a condition or expression that can only be columns."""
    bare = re.sub(r"'(?:[^']|'')*'", "''", sql)
    found = re.findall(r"(?<![\w.'])[A-Za-z_]\w*(?!\w|\s*\()", bare)
    return {name for name in found if name.lower() not in _SQL_WORDS.split()}


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Declaration):
    """A mart that events are read from, or attributes that hold from an instant on.

    ``relation`` is the mart's table, as ``marts.fct_failures``. ``event_time`` is the column with
    the instant at which a row happened, or from which it holds; ``landed_date`` the one with the
    date of the folder in which it landed. Both cut what an ``as_of`` may know. An event mart may
    hold several entities' keys: the machine's, and that of the plant in which it stood.

    ``columns`` maps each column that a declaration may use to its type in the lake; a decimal
    has four places. ``row_id`` names the mart's key. ``landed_days`` is the mart's name in
    ``marts.fct_landed_days``, which tells the extract on which landed days it has changed; without
    it the whole mart is read for that. ``landed_from`` names the sources of the landing zone that
    the mart is made of, by default the one of its own name: what is wrong with one of them holds
    the use cases that read the mart.
    """

    name: Name
    relation: Annotated[str, AfterValidator(qualified)]
    landed_days: Name | None = None
    landed_from: tuple[Name, ...] = ()
    row_id: Identifier
    event_time: Identifier
    landed_date: Identifier
    columns: dict[Identifier, ColumnType]

    @model_validator(mode="after")
    def _times_are_columns(self) -> Self:
        for column in (self.event_time, self.landed_date):
            if column not in self.columns:
                raise ValueError(f"source {self.name}: {column!r} is not among its columns")
        return self

    def lacks(self, sql: str | None) -> list[str]:
        """The names in a condition or expression that are not columns of this source."""
        return sorted(_columns_read(sql or "") - set(self.columns))


class Window(_Declaration):
    """``[instant − (days + lag), instant − lag)``; ``days`` None is all time up to ``lag`` ago.

    A negative lag would end after the instant, and leak what is to be predicted: it is refused.
    ``season_last_year(90)`` is the window of the 90 days that follow the same date a year ago.
    ``Window.model_construct`` does not check, which is how a test plants a leak.
    """

    days: Days | None
    lag: Annotated[int, Field(ge=0, le=3660)] = 0

    @property
    def suffix(self) -> str:
        """How names end: ``30d``, ``all``, ``30d_lag7d``."""
        return ("all" if self.days is None else f"{self.days}d") + (
            f"_lag{self.lag}d" if self.lag else ""
        )

    @property
    def words(self) -> str:
        """As a description says it."""
        if self.days is None:
            return f"up to {self.lag} days before" if self.lag else "over all time"
        if self.lag:
            return f"from {self.days + self.lag} to {self.lag} days before"
        return f"in the {self.days} days before"


def season_last_year(days: Days) -> Window:
    """The ``days`` that follow the same date a year (365 days) ago: what this season brought."""
    return Window(days=days, lag=365 - days)


AnyWindow = Days | Window | None
"""Days before the instant, all time (None), or a window with a lag."""


def _window(window: AnyWindow) -> Window:
    return window if isinstance(window, Window) else Window(days=window)


class Measure(_Declaration):
    """What is aggregated, over the rows where ``where`` holds and the value is not null.

    To count events, or to tell how long ago the last was, take the event time as the column.

    Attributes:
        name: as features are named after it.
        column: of the source; or
        expression: SQL (of DuckDB) over the source's columns, of the stated ``type``.
        where: a condition in SQL (of DuckDB) over the source's columns; None means every row.
        known: a date column: a row counts only at requests after that date too (and after it
            landed), and never where it is null. So a report that comes weeks after its event.
        category: what a ``share`` is the share of.
        description: for the catalogue, as ``purchases``; else it is made of the name.
    """

    name: Name
    column: Name | None = None
    expression: str | None = None
    type: ColumnType | None = None
    where: str | None = None
    known: Name | None = None
    category: Category | None = None
    description: str = ""

    @model_validator(mode="after")
    def _has_one_value(self) -> Self:
        if (self.column is None) == (self.expression is None):
            raise ValueError(f"measure {self.name!r}: give either a column or an expression")
        if (self.expression is None) != (self.type is None):
            raise ValueError(
                f"measure {self.name!r}: an expression states its type, a column has its own; "
                "give `type` with `expression` only"
            )
        return self

    @property
    def value(self) -> str:
        """The column or expression."""
        return self.column or self.expression or ""

    @property
    def category_condition(self) -> str | None:
        """The SQL condition that the value is the category."""
        if self.category is None:
            return None
        quoted = str(self.category).replace("'", "''")
        literal = f"'{quoted}'" if isinstance(self.category, str) else str(self.category).lower()
        return f"({self.value}) = {literal}"


class Through(Measure):
    """A measure whose value is a feature of another entity, which each event touches.

    Its value for an event is ``feature`` of the entity that ``column`` names, as that entity is
    seen at the request: the return rate of the products a customer bought. Of ``mean``, ``sum``,
    ``min`` and ``max``, events whose entity has none (null) do not count.

    ``last`` is the relation as it is now: ``feature`` of the entity that the last event names, and
    null where that one has none. Over the history of a machine's attributes, that is the failures
    of the plant in which the machine stands at the request, and no longer of those where it stood.
    An event that names no entity (null) changes nothing. For an older relation, give the window a
    lag; the other entity is seen at the request all the same.

    One step is all there is: an event has to name both entities. For a relation over several
    tables, join them in a mart of your own.

    Attributes:
        group: the other entity's features; its key is ``column``.
        feature: one of them, by name; a number.
    """

    group: "FeatureGroup"
    feature: str

    @model_validator(mode="after")
    def _refers_to_a_number(self) -> Self:
        where = f"measure {self.name!r} through {self.column!r}"
        if self.group.key_columns != (self.column,):
            raise ValueError(
                f"{where}: the key of {self.group.name} is {self.group.key_columns}; "
                "name the column that holds it"
            )
        numbers = [d.name for d in self.group.catalogue if d.type == "double"]
        if self.feature not in numbers:
            raise ValueError(f"{where}: {self.group.name} has no number {self.feature!r}")
        if self.known is not None or self.category is not None:
            raise ValueError(f"{where}: takes neither `known` nor `category`")
        if any(isinstance(measure, Through) for measure in self.group.measures):
            raise ValueError(
                f"{where}: {self.group.name} itself goes through other entities; "
                "one step is all there is"
            )
        return self


THROUGH_AGGREGATIONS: frozenset[Aggregation] = frozenset({"mean", "sum", "min", "max", "last"})
"""What can be taken of a :class:`Through` measure."""


class Aggregate(_Declaration):
    """``measure`` × ``aggregations`` × ``windows``: a feature for each.

    ``measure`` is one of the group's, by name. A window is a number of days before the instant,
    None for all time, or a :class:`Window` with a lag.
    """

    measure: Name
    aggregations: tuple[Aggregation, ...] = Field(min_length=1)
    windows: tuple[AnyWindow, ...] = Field(default=(None,), min_length=1)


class Ratio(_Declaration):
    """``numerator / denominator``, two features of the group; null where the denominator is 0.

    ``name`` is the feature's whole name, as ``customer_returns_per_order``.
    """

    name: Name
    numerator: Name
    denominator: Name
    description: str = ""


class Trend(_Declaration):
    """An aggregate over ``window`` divided by the same over ``baseline``.

    Named ``<entity>_<measure>_<aggregation>_trend_<window>_<baseline>``; both aggregates are
    features of the group.
    """

    measure: Name
    aggregation: Aggregation
    window: AnyWindow
    baseline: AnyWindow


class Feature(_Declaration):
    """One aggregated column of a feature vector, as the compiler makes it of an :class:`Aggregate`;
    nobody declares one.

    Attributes:
        name: ``<entity>_<measure>_<aggregation>_<window>``.
        measure: by name.
        aggregation: one of :data:`AGGREGATIONS`.
        window: days; None is all time.
        lag: days between the window's end and the instant.
        type: ``double``, or ``string`` for the last value of text.
        null: what it is over no events, and when else it is null.
        description: in words.
    """

    name: str
    measure: Name
    aggregation: Aggregation
    window: int | None
    lag: int = 0
    type: Literal["double", "string"] = "double"
    null: str = ""
    description: str = ""

    @property
    def is_text(self) -> bool:
        """Whether its values are text."""
        return self.type == "string"


@dataclass(frozen=True)
class Described:
    """A column of the vector for the catalogue: name, type, null semantics, description."""

    name: str
    type: str
    null: str
    description: str


def ratio_described(ratio: Ratio) -> Described:
    """A ratio for the catalogue."""
    return Described(
        ratio.name, "double", "null where a part is null or the denominator is 0",
        ratio.description or f"{ratio.numerator} / {ratio.denominator}",
    )  # fmt: skip


class FeatureGroup(_Declaration):
    """Features of one entity from one source, named ``<entity>_<measure>_<aggregation>_<window>``.

    A use case takes as many groups as it likes, of any sources that hold its key: events in
    several tables are a group each. The ``last`` of a history of attributes is the attribute as it
    was at the instant. A group of another entity is reached by a :class:`Through`; where each event
    is scored, or pairs are, it is a group of the use case, by the key that the event or pair names.

    Attributes:
        name: unique among the groups of a use case.
        source: whose rows are aggregated.
        entity: what the features are of, as their names begin.
        key: the source's column, or columns, that name the entity.
        measures: what is aggregated; each is used by an aggregate.
        aggregates: how, and over which windows.
        ratios: of two features, or of features and ratios before.
        trends: of one aggregate over two windows.
    """

    name: Name
    source: Source
    entity: Name
    key: Key
    measures: tuple[Through | Measure, ...]
    aggregates: tuple[Aggregate, ...]
    ratios: tuple[Ratio, ...] = ()
    trends: tuple[Trend, ...] = ()

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> Self:
        where = f"feature group {self.name}"
        columns = self.source.columns
        for key in self.key_columns:
            if key not in columns:
                raise ValueError(f"{where}: key {key!r} is not a column of {self.source.name}")
        if len({measure.name for measure in self.measures}) != len(self.measures):
            raise ValueError(f"{where}: two measures share a name; rename one")
        for measure in self.measures:
            self._check_measure(measure)
        for aggregate in self.aggregates:
            self._check_aggregate(aggregate)
        names = [*(feature.name for feature in self.features), *(q.name for q in self.quotients)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{where}: declared twice: {', '.join(repeated)}")
        known = {feature.name for feature in self.features}
        for ratio in self.quotients:
            for part in (ratio.numerator, ratio.denominator):
                if part not in known:
                    raise ValueError(
                        f"{where}: ratio {ratio.name!r}: no feature {part!r} is declared before "
                        "it; add its aggregate"
                    )
            known.add(ratio.name)
        used = {aggregate.measure for aggregate in self.aggregates}
        unused = [measure.name for measure in self.measures if measure.name not in used]
        if unused:
            raise ValueError(
                f"{where}: no aggregate uses the measures {', '.join(unused)}; "
                "aggregate them or remove them"
            )
        return self

    def _check_measure(self, measure: Measure) -> None:
        where = f"feature group {self.name}: measure {measure.name!r}"
        columns = self.source.columns
        has = f"a column of {self.source.name}; it has {sorted(columns)}"
        if measure.column is not None and measure.column not in columns:
            raise ValueError(f"{where} reads {measure.column!r}, which is not {has}")
        if isinstance(measure, Through) and columns[str(measure.column)] != "string":
            raise ValueError(f"{where} goes through {measure.column!r}, which is not text")
        for sql in (measure.expression, measure.where):
            for name in self.source.lacks(sql):
                raise ValueError(f"{where}: {sql!r} reads {name!r}, which is not {has}")
        if measure.known is not None and columns.get(measure.known) != "date":
            raise ValueError(f"{where}: known {measure.known!r} is not a date column; {has}")

    def _check_aggregate(self, aggregate: Aggregate) -> None:
        where = f"feature group {self.name}"
        measures = {measure.name: measure for measure in self.measures}
        if aggregate.measure not in measures:
            raise ValueError(
                f"{where}: no measure {aggregate.measure!r}; there are {sorted(measures)}"
            )
        measure = measures[aggregate.measure]
        kind = self.type_of(measure)
        for aggregation in aggregate.aggregations:
            if isinstance(measure, Through) and aggregation not in THROUGH_AGGREGATIONS:
                raise ValueError(
                    f"{where}: {aggregation} of {aggregate.measure!r}: a measure through another "
                    f"entity has {', '.join(sorted(THROUGH_AGGREGATIONS))}"
                )
            allowed = AGGREGATIONS[aggregation].types
            if kind not in allowed:
                needs = "a number" if allowed == _NUMBERS else f"one of {sorted(allowed)}"
                raise ValueError(
                    f"{where}: {aggregation} of {aggregate.measure!r} needs {needs}, "
                    f"{measure.value!r} is of type {kind}"
                )
            if (aggregation == "share") != (measure.category is not None):
                raise ValueError(
                    f"{where}: {aggregation} of {aggregate.measure!r}: a share, and nothing else, "
                    "is of a measure with a category; "
                    + ("give it one" if aggregation == "share" else "declare another measure")
                )
            if aggregation == "slope" and any(
                (_window(w).days or 0) < 2 for w in aggregate.windows
            ):
                raise ValueError(
                    f"{where}: slope of {aggregate.measure!r} needs windows of at least 2 days"
                )

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that identify the entity."""
        return key_columns(self.key)

    def type_of(self, measure: Measure) -> ColumnType:
        """The type of a measure's value."""
        if isinstance(measure, Through):
            return "double"
        if measure.column is not None:
            return self.source.columns[measure.column]
        assert measure.type is not None  # held by Measure
        return measure.type

    def measure(self, name: str) -> Measure:
        """The measure of that name."""
        return next(measure for measure in self.measures if measure.name == name)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Each SQL condition that the kernel needs a flag for, once."""
        found = (c for m in self.measures for c in (m.where, m.category_condition))
        return tuple(dict.fromkeys(c for c in found if c is not None))

    @property
    def measured(self) -> dict[str, ColumnType]:
        """Each column or expression that the kernel reads, with its type."""
        known: dict[str, ColumnType] = {m.known: "date" for m in self.measures if m.known}
        found = {m.value: self.source.columns.get(m.value, self.type_of(m)) for m in self.measures}
        return found | known

    @property
    def features(self) -> tuple[Feature, ...]:
        """Each aggregation of each measure over each window, in declared order.

        Named ``<entity>_<measure>_<aggregation>_<window>``.
        """
        return tuple(self._features())

    def _features(self) -> Iterator[Feature]:
        for aggregate in self.aggregates:
            measure = self.measure(aggregate.measure)
            words = measure.description or measure.name.replace("_", " ")
            is_text = self.type_of(measure) == "string"
            for aggregation in aggregate.aggregations:
                rule = AGGREGATIONS[aggregation]
                over_none = "0 without events" if rule.empty == 0 else "null without events"
                meaning = rule.meaning.format(words, category=repr(measure.category))
                for window in map(_window, aggregate.windows):
                    yield Feature.model_construct(
                        name=self._name(aggregate.measure, aggregation, window.suffix),
                        measure=aggregate.measure,
                        aggregation=aggregation,
                        window=window.days,
                        lag=window.lag,
                        type="string" if aggregation == "last" and is_text else "double",
                        null=over_none + (f", null {rule.null}" if rule.null else ""),
                        description=f"{meaning}, {window.words}",
                    )

    def _name(self, measure: str, aggregation: str, suffix: str) -> str:
        return f"{self.entity}_{measure}_{aggregation}_{suffix}"

    @property
    def quotients(self) -> tuple[Ratio, ...]:
        """The ratios, then the trends as ratios."""
        return self.ratios + tuple(self._ratio(trend) for trend in self.trends)

    def _ratio(self, trend: Trend) -> Ratio:
        short, long = _window(trend.window).suffix, _window(trend.baseline).suffix
        numerator, denominator = (
            self._name(trend.measure, trend.aggregation, suffix) for suffix in (short, long)
        )
        return Ratio.model_construct(
            name=self._name(trend.measure, trend.aggregation, f"trend_{short}_{long}"),
            numerator=numerator,
            denominator=denominator,
            description="",
        )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """All columns of the group: aggregates, then ratios, then trends."""
        return tuple(f.name for f in self.features) + tuple(q.name for q in self.quotients)

    @property
    def catalogue(self) -> tuple[Described, ...]:
        """Every column with its type, null semantics and description, in order."""
        aggregated = (Described(f.name, f.type, f.null, f.description) for f in self.features)
        return (*aggregated, *map(ratio_described, self.quotients))


Through.model_rebuild()


class Population(_Declaration):
    """Who is scored: entities with an event, where ``where`` holds, in the ``active_days`` before
    ``as_of``, whichever source is taken for that."""

    source: Source
    key: Identifier
    where: str | None = None
    active_days: Days

    @property
    def group(self) -> FeatureGroup:
        """The same as one feature, the count of such events, for the kernel."""
        return _count_of(
            "population", self.source, self.key, self.where, Window(days=self.active_days)
        )

    @property
    def groups(self) -> tuple[FeatureGroup, ...]:
        """What is asked of the entity's own rows."""
        return (self.group,)


class BoughtBefore(_Declaration):
    """What the entity itself bought in the last ``days``: the most often first, then the latest."""

    kind: Literal["bought_before"] = "bought_before"
    days: Days
    limit: Limit
    weight: Weight = 1.0


class BoughtTogether(_Declaration):
    """What is bought in one order with what the entity bought in the last ``days``.

    Two items are as near as ``c / (sqrt(a * b) + shrinkage)`` says, with c orders of both, a of the
    one and b of the other, among the orders of the last ``days`` that landed in that time; so few
    common orders make nothing near. An item has ``neighbours`` nearest ones. An item's score is
    the sum of its nearness to all that the entity bought.

    Attributes:
        order: the column that names an order.
        most_items: orders of more different items are left out; a wholesaler's tells little of what
            goes with what, and much of the work.
    """

    kind: Literal["bought_together"] = "bought_together"
    order: Name
    days: Days
    limit: Limit
    weight: Weight = 1.0
    neighbours: Annotated[int, Field(ge=1, le=1000)] = 50
    shrinkage: Annotated[float, Field(ge=0)] = 10.0
    most_items: Annotated[int, Field(ge=2, le=10_000)] = 300


class PopularLately(_Declaration):
    """What the most entities bought in the last ``days``."""

    kind: Literal["popular_lately"] = "popular_lately"
    days: Days
    limit: Limit
    weight: Weight = 1.0


class PopularWithin(_Declaration):
    """What the most entities of the same ``column`` (by its last value) bought in the last
    ``days``."""

    kind: Literal["popular_within"] = "popular_within"
    column: Name
    days: Days
    limit: Limit
    weight: Weight = 1.0


class NewItems(_Declaration):
    """What was bought for the first time ever in the last ``days``, by the most entities first."""

    kind: Literal["new_items"] = "new_items"
    days: Days
    limit: Limit
    weight: Weight = 1.0


Generator = Annotated[
    BoughtBefore | BoughtTogether | PopularLately | PopularWithin | NewItems,
    Field(discriminator="kind"),
]


RANK_DAMPING = 60
"""What is added to a rank before its reciprocal is taken, so that the first few differ little."""


def generator_name(generator: Generator) -> str:
    """As features and the published column name it: the kind, then what tells it apart."""
    column = getattr(generator, "column", None)
    return generator.kind + (f"_{column}" if column else "")


class Candidates(_Declaration):
    """What is scored: for each entity with an event in the last ``active_days`` the items that some
    generator proposes, each pair once.

    An event counts where ``where`` holds. An item that has no event in the last ``sold_days`` is
    sold no more, and one of which any known row satisfies ``exclude`` is never proposed. Of each
    generator the features ``candidate_<generator>_rank`` (1 is its first proposal; null where it
    does not propose the item) and ``candidate_<generator>_score`` are part of the vector.

    Of each entity's proposals the ``keep`` are candidates of which the sum of ``weight / (60 +
    rank)``, over the generators that propose them, is the greatest (weighted reciprocal rank
    fusion, Cormack et al. 2009); of equal sums the first by name. Without ``keep`` all are. So
    generators may propose much, and features are made of little.

    Where labels are known, entities without a relevant item are left out: a list of them teaches
    and measures nothing. Relevant items that are no candidates, proposed or not, are counted beside
    each list, and count as missed in every metric.
    """

    source: Source
    key: tuple[Identifier, Identifier]
    where: str | None = None
    exclude: str | None = None
    active_days: Days
    sold_days: Days
    generators: tuple[Generator, ...] = Field(min_length=1)
    keep: Limit | None = None

    @model_validator(mode="after")
    def _refers_to_columns(self) -> Self:
        for sql in (self.where, self.exclude):
            _require_columns("candidates", self.source, sql)
        named = [("order", g.order) for g in self.generators if isinstance(g, BoughtTogether)]
        named += [("column", g.column) for g in self.generators if isinstance(g, PopularWithin)]
        named += [("key", name) for name in self.key]
        for what, name in named:
            if self.source.columns.get(name) != "string":
                raise ValueError(
                    f"candidates: {what} {name!r} is not a column of text of {self.source.name}"
                )
        names = [generator_name(each) for each in self.generators]
        if len(set(names)) != len(names):
            raise ValueError(f"candidates: two generators of one name: {names}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The generators by name, in order."""
        return tuple(generator_name(each) for each in self.generators)

    @property
    def catalogue(self) -> tuple[Described, ...]:
        """The features that come with a candidate: of each generator its rank, then its score."""
        return tuple(
            described
            for name in self.names
            for words in [name.replace("_", " ")]
            for described in (
                Described(
                    f"candidate_{name}_rank", "double", "null where it does not propose the item",
                    f"place among the proposals of {words}",
                ),
                Described(
                    f"candidate_{name}_score", "double", "null where it knows nothing of the item",
                    f"what the proposals of {words} are ordered by",
                ),
            )
        )  # fmt: skip

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns that come with a candidate, in order."""
        return tuple(each.name for each in self.catalogue)

    @property
    def segment_columns(self) -> tuple[str, ...]:
        """The columns within which something is popular."""
        return tuple(each.column for each in self.generators if isinstance(each, PopularWithin))

    @property
    def members(self) -> FeatureGroup:
        """Of each entity: its events in ``active_days``, and the last value of each column within
        which something is popular."""
        columns = self.segment_columns
        return FeatureGroup(
            name="candidate_members",
            source=self.source,
            entity="member",
            key=self.key[0],
            measures=(
                self._event,
                *(Measure(name=name, column=name, where=self.where) for name in columns),
            ),
            aggregates=(
                Aggregate(measure="event", aggregations=("count",), windows=(self.active_days,)),
                *(Aggregate(measure=name, aggregations=("last",)) for name in columns),
            ),
        )

    @property
    def pairs(self) -> FeatureGroup:
        """Of each pair: its events in the days of the generators, and days since the last."""
        windows = [g.days for g in self.generators if isinstance(g, BoughtBefore | BoughtTogether)]
        return FeatureGroup(
            name="candidate_pairs",
            source=self.source,
            entity="pair",
            key=self.key,
            measures=(self._event,),
            aggregates=(
                Aggregate(measure="event", aggregations=("days_since_last",)),
                Aggregate(
                    measure="event",
                    aggregations=("count",),
                    windows=tuple(dict.fromkeys(windows)),
                ),
            ),
        )

    @property
    def items(self) -> FeatureGroup:
        """Of each item: how many entities bought it, in the days of the generators; whether it is
        sold, new or excluded."""
        windows = [g.days for g in self.generators if isinstance(g, PopularLately | NewItems)]
        excluded = Measure(name="excluded", column=self.source.event_time, where=self.exclude)
        is_any = self.exclude is not None
        return FeatureGroup(
            name="candidate_items",
            source=self.source,
            entity="item",
            key=self.key[1],
            measures=(self._event, self._buyer, *((excluded,) if is_any else ())),
            aggregates=(
                Aggregate(measure="event", aggregations=("days_since_first",)),
                Aggregate(measure="event", aggregations=("count",), windows=(self.sold_days,)),
                Aggregate(
                    measure="buyer",
                    aggregations=("distinct",),
                    windows=tuple(dict.fromkeys(windows)) or (self.sold_days,),
                ),
                *((Aggregate(measure="excluded", aggregations=("count",)),) if is_any else ()),
            ),
        )

    @property
    def segments(self) -> dict[str, FeatureGroup]:
        """Generator → of each item and value of its column, how many entities bought it."""
        return {
            generator_name(each): FeatureGroup(
                name=f"candidate_items_{each.column}",
                source=self.source,
                entity="item",
                key=(self.key[1], each.column),
                measures=(self._buyer,),
                aggregates=(
                    Aggregate(measure="buyer", aggregations=("distinct",), windows=(each.days,)),
                ),
            )
            for each in self.generators
            if isinstance(each, PopularWithin)
        }

    @property
    def groups(self) -> tuple[FeatureGroup, ...]:
        """What is asked of the entity's own rows."""
        return (self.members, self.pairs)

    @property
    def item_groups(self) -> tuple[FeatureGroup, ...]:
        """What is asked of the rows of items, whoever bought them."""
        return (self.items, *self.segments.values())

    @property
    def together(self) -> BoughtTogether | None:
        """The generator that looks at whole orders, where there is one."""
        found = [each for each in self.generators if isinstance(each, BoughtTogether)]
        return found[0] if found else None

    @property
    def _event(self) -> Measure:
        return Measure(name="event", column=self.source.event_time, where=self.where)

    @property
    def _buyer(self) -> Measure:
        return Measure(name="buyer", column=self.key[0], where=self.where)


class EveryEvent(_Declaration):
    """What is scored: each event, where ``where`` holds, that happened and landed on the day before
    ``as_of``, at its own instant.

    Its features see neither itself nor what happened at its instant or later; but for ``own``,
    which are columns of the event itself, or expressions of them, and features by the measure's
    name: a number, or true and false as 1 and 0.
    """

    source: Source
    where: str | None = None
    own: tuple[Measure, ...] = ()

    @model_validator(mode="after")
    def _has_numbers_of_its_own(self) -> Self:
        for measure in self.own:
            where = f"population: own {measure.name!r}"
            _require_columns(where, self.source, measure.value)
            if measure.where or measure.known or measure.category is not None:
                raise ValueError(
                    f"{where}: is of one event, and takes neither `where`, `known` nor `category`"
                )
            kind = self.source.columns.get(measure.value, measure.type)
            if kind not in _NUMBERS | {"boolean"}:
                raise ValueError(f"{where} is of type {kind}, and models take numbers")
        return self

    @model_validator(mode="after")
    def _reads_columns(self) -> Self:
        _require_columns("population", self.source, self.where)
        if self.source.row_id not in self.source.columns:
            raise ValueError(
                f"population: {self.source.name} names each event by {self.source.row_id!r}, "
                "which is not among its columns; add it"
            )
        return self


def _count_of(
    name: str, source: Source, key: Key, where: str | None, window: Window
) -> FeatureGroup:
    return FeatureGroup(
        name=name,
        source=source,
        entity=name,
        key=key,
        measures=(Measure(name="event", column=source.event_time, where=where),),
        aggregates=(Aggregate(measure="event", aggregations=("count",), windows=(window,)),),
    )


def _require_columns(what: str, source: Source, where: str | None) -> None:
    for name in source.lacks(where):
        raise ValueError(
            f"{what}: {where!r} reads {name!r}, which is not a column of "
            f"{source.name}; it has {sorted(source.columns)}"
        )


class _WindowLabel(_Declaration):
    """``source`` is any that holds the ``key`` of what is scored: it need not be the population's.
    ``horizon_days`` are counted from ``as_of``, its own day included. The label is known, and a
    training may learn it, once they have landed, and ``reporting_delay_days`` for what lands late.
    """

    source: Source
    key: Key
    where: str | None = None
    horizon_days: Days
    reporting_delay_days: Annotated[int, Field(ge=0, le=366)] = 0

    @model_validator(mode="after")
    def _reads_columns(self) -> Self:
        _require_columns("label", self.source, self.where)
        return self

    @property
    def maturity_days(self) -> int:
        """Days after ``as_of`` at which the label is known."""
        return self.horizon_days + self.reporting_delay_days

    @property
    def _window(self) -> Window:
        # The one window that lies after its instant.
        return Window.model_construct(days=self.horizon_days, lag=-self.horizon_days)

    @property
    def group(self) -> FeatureGroup:
        """The label as one feature whose window lies after the instant, for the kernel."""
        return _count_of("label", self.source, self.key, self.where, self._window)


class NoEvent(_WindowLabel):
    """1 where no event that satisfies ``where`` happens in ``[as_of, as_of + horizon)``, else 0."""

    kind: Literal["no_event"] = "no_event"


class AnyEvent(_WindowLabel):
    """1 where an event that satisfies ``where`` happens in ``[as_of, as_of + horizon)``, else 0."""

    kind: Literal["any_event"] = "any_event"


class Count(_WindowLabel):
    """How many events that satisfy ``where`` happen in ``[as_of, as_of + horizon)``.

    No number is foretold below 0.
    """

    kind: Literal["count"] = "count"


class Sum(_WindowLabel):
    """The sum of ``column`` over the events in ``[as_of, as_of + horizon)``; 0 without events.

    ``non_negative``: no sum is below 0, so no amount and no end of an interval is foretold below
    it; a training refuses labels that are. Leave it out where something is taken back, as by
    cancellations: then what is to come may well add up to less than 0.
    """

    kind: Literal["sum"] = "sum"
    column: Name
    non_negative: bool = False

    @model_validator(mode="after")
    def _sums_a_number(self) -> Self:
        _ = self.group  # refuses what cannot be summed
        return self

    @property
    def group(self) -> FeatureGroup:
        """The label as one feature whose window lies after the instant, for the kernel."""
        return FeatureGroup(
            name="label",
            source=self.source,
            entity="label",
            key=self.key,
            measures=(Measure(name="event", column=self.column, where=self.where),),
            aggregates=(
                Aggregate(measure="event", aggregations=("sum",), windows=(self._window,)),
            ),
        )


class Reported(_Declaration):
    """Of each event: 1 where ``where`` holds and was known, by the date column ``known``, else 0.

    Mature ``reporting_delay_days`` after the event's night. An event that is reported later, or
    whose ``known`` is null, counts as 0 until then.
    """

    kind: Literal["reported"] = "reported"
    source: Source
    where: str
    known: Name
    reporting_delay_days: Annotated[int, Field(ge=0, le=366)]

    @model_validator(mode="after")
    def _reads_columns(self) -> Self:
        if self.source.columns.get(self.known) != "date":
            raise ValueError(
                f"label: known {self.known!r} is not a date column of {self.source.name}"
            )
        _require_columns("label", self.source, self.where)
        return self

    @property
    def horizon_days(self) -> int:
        """0: the label is of the event itself, not of what follows."""
        return 0

    @property
    def maturity_days(self) -> int:
        """Days after the event's night at which the label is known."""
        return self.reporting_delay_days


Label = Annotated[NoEvent | AnyEvent | Count | Sum | Reported, Field(discriminator="kind")]


class Heuristic(_Declaration):
    """A baseline without a model: rank by one feature; a low value first if ``descending``.

    What has the same value is ordered by ``ties``, another feature, where that is given.

    With ``scale`` the feature times it is a foretold amount, in the label's unit: of the past
    year's total ``90 / 365`` foretells 90 days. Without, only the order tells something, and gates
    cannot compare an error with it. A null takes the median.
    """

    name: Name
    feature: str
    descending: bool = False
    ties: str | None = None
    scale: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _has_one_direction(self) -> Self:
        if self.descending and self.scale is not None:
            raise ValueError(
                f"heuristic {self.name!r}: amounts do not fall with the feature that foretells "
                "them; leave out descending, or scale"
            )
        if self.ties is not None and self.scale is not None:
            raise ValueError(
                f"heuristic {self.name!r}: amounts have no ties to part; leave out ties, or scale"
            )
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """What it reads: the feature, and what parts ties."""
        return (self.feature,) if self.ties is None else (self.feature, self.ties)


class Factorisation(_Declaration):
    """A baseline of rankings: alternating least squares on implicit feedback (Hu, Koren and
    Volinsky 2008), of Spark ML, fitted to how often each entity bought which item in the active
    days before the snapshot. It orders the same candidates.

    It is fitted to the test snapshots, and to those whose matured quality is measured.
    """

    name: Name
    rank: Annotated[int, Field(ge=1, le=500)] = 32
    iterations: Annotated[int, Field(ge=1, le=50)] = 10
    regularisation: Annotated[float, Field(ge=0)] = 0.1
    alpha: Annotated[float, Field(gt=0)] = 10.0


class Snapshots(_Declaration):
    """How training sets are laid through history.

    Snapshots stand every ``stride_days`` back from the newest mature one, at most ``count`` of
    them, none before ``min_history_days`` of landings. The newest ``test`` snapshots are the
    out-of-time test, the ``validation`` ones before them choose the number of trees; between two
    parts lies an embargo of one horizon, so that no label window reaches into the next part.

    ``origins`` cut-offs are evaluated, each split in the same way and its test just before that of
    the next, as far as history reaches; the gates judge the newest. ``staleness_weeks`` are the
    ages of models that are measured on the newest test beside the fresh one.

    So a ``count`` of 26 at a stride of 14 days reaches back a year from the newest mature one. A
    training without enough landings says so, and from which ``as_of`` on there are. The stride is
    not that of the nights (:class:`Nights`).
    """

    stride_days: Days
    count: Annotated[int, Field(ge=3, le=400)]
    min_history_days: Days
    test: Annotated[int, Field(ge=1)] = 1
    validation: Annotated[int, Field(ge=1)] = 1
    origins: Annotated[int, Field(ge=1, le=52)] = 1
    staleness_weeks: tuple[Annotated[int, Field(ge=1, le=520)], ...] = ()


class Studies(_Declaration):
    """What a training finds out beside the model, on its validation snapshots, for the model card.

    ``learning_curve``: shares of the entities to train on, beside all of them. ``ablation``: what
    each part of the features is worth. None of either switches it off. Both take at most
    ``max_rows`` rows, those of some entities, so that their time is bounded.
    """

    learning_curve: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.125, 0.25, 0.5)
    ablation: bool = True
    max_rows: Annotated[int, Field(ge=1_000)] = 50_000


Objective = Literal["binary", "regression", "ranking"]
CalibrationMethod = Literal["platt", "isotonic"]
Loss = Literal["logistic", "squared_error", "absolute_error", "tweedie", "ndcg", "pairwise"]
LOSSES: dict[Objective, tuple[Loss, ...]] = {
    "binary": ("logistic",),
    "regression": ("squared_error", "absolute_error", "tweedie"),
    "ranking": ("ndcg", "pairwise"),
}
"""What a model of each objective may minimise; the first one unless the spec says otherwise."""
Parameter = Literal[
    "eta", "max_depth", "min_child_weight", "lambda", "colsample_bytree", "subsample"
]
Metric = Literal[
    "auc", "average_precision", "log_loss", "brier", "calibration_error",
    "precision", "recall", "f1", "selection_rate", "entity_precision_at_k",
    "lift_top_10", "lift_top_20", "lift_top_30",
    "mae", "rmse", "r2", "total_bias", "spearman", "gini", "interval_coverage", "interval_width",
    "ndcg_at_k", "recall_at_k", "map_at_k", "coverage_at_k", "novelty_at_k",
]  # fmt: skip


@dataclass(frozen=True)
class MetricRule:
    """What a metric is of.

    Attributes:
        objective: whose figure it is.
        better: which figures are better; None where neither are.
        reads: ``order`` of the scores, their ``scale`` (probabilities, amounts), what lies beyond
            the use case's ``working_point``, or its ``interval``.
    """

    objective: Objective
    better: Literal["higher", "lower"] | None = "higher"
    reads: Literal["order", "scale", "working_point", "interval"] = "order"


METRICS: dict[Metric, MetricRule] = {
    "auc": MetricRule("binary"),
    "average_precision": MetricRule("binary"),
    "lift_top_10": MetricRule("binary"),
    "lift_top_20": MetricRule("binary"),
    "lift_top_30": MetricRule("binary"),
    "log_loss": MetricRule("binary", "lower", "scale"),
    "brier": MetricRule("binary", "lower", "scale"),
    "calibration_error": MetricRule("binary", "lower", "scale"),
    "precision": MetricRule("binary", reads="working_point"),
    "recall": MetricRule("binary", reads="working_point"),
    "f1": MetricRule("binary", reads="working_point"),
    "selection_rate": MetricRule("binary", None, "working_point"),
    "entity_precision_at_k": MetricRule("binary", reads="working_point"),
    "spearman": MetricRule("regression"),
    "gini": MetricRule("regression"),
    "mae": MetricRule("regression", "lower", "scale"),
    "rmse": MetricRule("regression", "lower", "scale"),
    "r2": MetricRule("regression", reads="scale"),
    "total_bias": MetricRule("regression", None, "scale"),
    "interval_coverage": MetricRule("regression", None, "interval"),
    "interval_width": MetricRule("regression", "lower", "interval"),
    "ndcg_at_k": MetricRule("ranking", reads="working_point"),
    "recall_at_k": MetricRule("ranking", reads="working_point"),
    "map_at_k": MetricRule("ranking", reads="working_point"),
    "coverage_at_k": MetricRule("ranking", None, "working_point"),
    "novelty_at_k": MetricRule("ranking", None, "working_point"),
}
"""How each metric is computed is told in ``nightshift.metrics``."""

MEANINGS: dict[str, str] = {
    "auc": "area under the ROC curve: how often a 1 scores higher than a 0, ties by halves",
    "average_precision": "precision summed over the steps of recall",
    "lift_top_10": "rate of 1 among the highest tenth of the scores, over the rate among all",
    "lift_top_20": "the same of the highest fifth",
    "lift_top_30": "the same of the highest three tenths",
    "log_loss": "mean negative logarithm of the probability that was given to what happened",
    "brier": "mean squared error of the probabilities",
    "calibration_error": "mean distance of probability and rate, over 10 equally large bins",
    "precision": "share of 1 among the selected",
    "recall": "share of the selected among all 1",
    "f1": "harmonic mean of precision and recall",
    "selection_rate": "share of the selected among all",
    "entity_precision_at_k": "share with a 1 among the k entities of the highest scores of a night",
    "spearman": "correlation of the ranks of amounts and scores",
    "gini": "Gini coefficient in the order of the scores, over that in the true order",
    "mae": "mean absolute error, in the label's unit",
    "rmse": "root of the mean squared error, in the label's unit",
    "r2": "1 less the squared error over that of the mean label",
    "total_bias": "sum of the scores over that of the labels, less 1: 0.1 foretells 10 % too much",
    "interval_coverage": "share of the labels within their interval",
    "interval_width": "width of the intervals, in the label's unit",
    "ndcg_at_k": "discounted gain of the first k items of a list, over that of the best order",
    "recall_at_k": "share of a list's relevant items among its first k",
    "map_at_k": "mean average precision of the first k items",
    "coverage_at_k": "share of all items that some list shows among its first k",
    "novelty_at_k": "in bits, how much less popular than the most popular item what is shown is",
}
"""What each metric means, in words."""


class Search(_Declaration):
    """A search for better parameters than the defaults, until ``trials`` have ended or ``minutes``
    have passed, whichever is first.

    A trial is judged by its mean over the last ``validations`` stretches of snapshots whose labels
    were known before the oldest origin's test.
    """

    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    minutes: Annotated[float, Field(gt=0, le=10_000)] | None = None
    validations: Annotated[int, Field(ge=1, le=20)] = 3

    @model_validator(mode="after")
    def _has_a_budget(self) -> Self:
        if self.trials is None and self.minutes is None:
            raise ValueError("search: give a budget, of trials or of minutes")
        return self


class Exposure(_Declaration):
    """What an amount is foretold as a multiple of, as an offset does (Tweedie with a log link).

    The trees learn the label over ``feature`` times ``scale``, at least ``floor``, rows counting by
    the square root of that; a score is their multiple of it. So customers of any size, the largest
    too, are of one scale, and trees need not tell them apart by size.
    """

    feature: str
    scale: Annotated[float, Field(gt=0)]
    floor: Annotated[float, Field(gt=0)]


class Model(_Declaration):
    """How the boosted trees of a use case are fitted.

    Attributes:
        loss: what they minimise; None for the first that ``LOSSES`` gives the objective.
        monotone: feature → 1 where the score may only rise with it, -1 where it may only fall.
        half_life_days: how much older a snapshot is whose rows count half as much; None for rows
            that count the same.
        label_cap: of amounts: labels above this quantile of those that are learned are learned as
            it, so that a few very large ones do not shape all trees. What that takes off the total
            is made up by one factor, which is fitted to labels as they are. With an ``exposure``
            it is a quantile of the multiples.
        exposure: of amounts; None to foretell them as they are.
        parameters: of XGBoost, instead of the defaults: what a search has found, for instance.
        search: None for no search.
    """

    loss: Loss | None = None
    monotone: dict[str, Literal[-1, 1]] = {}
    half_life_days: Days | None = None
    label_cap: Annotated[float, Field(gt=0.5, lt=1)] | None = None
    exposure: Exposure | None = None
    parameters: dict[Parameter, Annotated[float, Field(ge=0)]] = {}
    search: Search | None = None


class Interval(_Declaration):
    """Beside each amount the quantiles that hold the middle ``share`` of what may happen.

    Of 0.8 one label in ten is below the interval, and one in ten above, at most: two quantiles are
    boosted, and moved apart until that holds for entities that they have not learned from
    (conformalised quantile regression, Romano, Patterson and Candès 2019). It is published in the
    columns ``<score_column>_low`` and ``<score_column>_high``, and always holds the score: amounts
    and quantiles are of other trees, and where an amount lies beyond, the interval is widened.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.8


class Threshold(_Declaration):
    """Whoever scores at least ``score`` is selected."""

    kind: Literal["threshold"] = "threshold"
    score: Share


class TopShare(_Declaration):
    """The highest ``share`` of the scored rows is selected."""

    kind: Literal["top_share"] = "top_share"
    share: Annotated[float, Field(gt=0, lt=1)]


class TopItems(_Declaration):
    """Each entity is shown its ``k`` items of the highest score.

    ``popularity``: a feature, how many buy the item; the novelty of what is shown is told by it.
    """

    kind: Literal["top_items"] = "top_items"
    k: Annotated[int, Field(ge=1, le=1000)]
    popularity: str | None = None


class TopEntities(_Declaration):
    """Each night the ``k`` entities of the highest score are looked into: an entity's score is that
    of its highest row. Selected are all rows that score at least as high as the last of them."""

    kind: Literal["top_entities"] = "top_entities"
    k: Annotated[int, Field(ge=1, le=100_000)]


WorkingPoint = Annotated[Threshold | TopShare | TopItems | TopEntities, Field(discriminator="kind")]


class Settled(_Declaration):
    """Rows that need no model, for their ``feature`` is above ``above``: a card that is known to be
    stolen. They are scored and published, and no metric is of them."""

    feature: str
    above: float = 0.0


class Slice(_Declaration):
    """Test rows told apart by a feature, each group measured by itself.

    ``cuts`` are edges: of (30, 90) the groups are ``below 30``, ``30 to 90`` (90 excluded) and
    ``from 90``. ``bands`` are that many groups of equally many training rows, ``band 1`` the
    lowest. Rows whose feature is null are the group ``null``. A group of fewer than
    ``min_entities`` has no figures. Of a ``protected`` slice the report also compares how the
    groups fare at the working point.
    """

    name: Name
    feature: str
    cuts: tuple[float, ...] = ()
    bands: Annotated[int, Field(ge=2, le=20)] | None = None
    min_entities: Annotated[int, Field(ge=2)] = 100
    protected: bool = False

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        if bool(self.cuts) == (self.bands is not None):
            raise ValueError(f"slice {self.name}: declare cuts, or a number of bands; not both")
        if list(self.cuts) != sorted(set(self.cuts)):
            raise ValueError(f"slice {self.name}: cuts must rise; got {self.cuts}")
        return self


class AtLeast(_Declaration):
    """The candidate's ``metric`` on the test snapshots is at least ``value``."""

    kind: Literal["at_least"] = "at_least"
    metric: Metric
    value: float


class AtMost(_Declaration):
    """``metric`` on the test snapshots is at most ``value``: an error that is bearable, or a figure
    that is not too good to be true. A feature that knows the label makes one."""

    kind: Literal["at_most"] = "at_most"
    metric: Metric
    value: float


class BeatsBaseline(_Declaration):
    """``metric`` is better than the baseline's by at least ``by``; the whole paired bootstrap
    interval of the difference is on the better side."""

    kind: Literal["beats_baseline"] = "beats_baseline"
    metric: Metric
    baseline: Name
    by: Annotated[float, Field(ge=0)]


class BeatsChampion(_Declaration):
    """``metric`` on the same test rows is better than the reigning champion's by at least ``by``,
    and the paired bootstrap interval excludes that it is worse by more than ``tolerance``. Passes
    when there is no champion yet, and says so."""

    kind: Literal["beats_champion"] = "beats_champion"
    metric: Metric
    by: float = 0.0
    tolerance: Annotated[float, Field(ge=0)]


class SliceAtLeast(_Declaration):
    """``metric`` is at least ``value`` in each group of the slice that is large enough; a slice
    without such a group fails."""

    kind: Literal["slice_at_least"] = "slice_at_least"
    slice: Name
    metric: Metric
    value: float


class CalibrationWithin(_Declaration):
    """The error of the level is at most ``value``: of probabilities the expected calibration error
    (10 equal-mass bins), of amounts the total bias, whichever its sign."""

    kind: Literal["calibration_within"] = "calibration_within"
    value: Share


class ParityWithin(_Declaration):
    """No two groups of the slice differ by more than ``value`` in ``metric`` at the working point:
    the rate of selection (demographic parity), or recall, which is the true positive rate (equal
    opportunity). Fewer than two groups that are large enough fail."""

    kind: Literal["parity_within"] = "parity_within"
    slice: Name
    metric: Literal["selection_rate", "recall"]
    value: Share


class GainShareAtMost(_Declaration):
    """No feature has more than this share of the model's total gain: one that has knows the label,
    or stands for everything else."""

    kind: Literal["gain_share_at_most"] = "gain_share_at_most"
    share: Annotated[float, Field(gt=0, lt=1)]


class Reproducible(_Declaration):
    """A fresh process makes the same bytes of the same dataset and seed."""

    kind: Literal["reproducible"] = "reproducible"


class LoadsAndScores(_Declaration):
    """A fresh process loads the logged model and scores the test sample to the same bytes."""

    kind: Literal["loads_and_scores"] = "loads_and_scores"


Gate = Annotated[
    AtLeast
    | AtMost
    | BeatsBaseline
    | BeatsChampion
    | SliceAtLeast
    | CalibrationWithin
    | ParityWithin
    | GainShareAtMost
    | Reproducible
    | LoadsAndScores,
    Field(discriminator="kind"),
]


def gate_name(gate: Gate) -> str:
    """A gate's name in reports and in ``ops.gate_results``: kind, then what tells it apart."""
    parts = (getattr(gate, field, None) for field in ("kind", "slice", "metric", "baseline"))
    return "_".join(part for part in parts if part is not None)


class Band(_Declaration):
    """Scores of at least ``from_score`` (up to the next band): a probability, or an amount. The
    first band starts at 0, and has the amounts below it too. Scores of a ranking say nothing but
    an order: its bands are of places in the list, from ``from_rank`` on, and the first from 1.

    ``reasons``: how its rows are explained. ``exact`` is SHAP, of some thousand rows a second;
    ``approximate`` follows each row's path through the trees (Saabas), some twenty times as fast;
    with ``none`` the column is an empty list.
    """

    name: Name
    from_score: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    from_rank: Annotated[int, Field(ge=1)] | None = None
    reasons: Literal["exact", "approximate", "none"] = "exact"


class RowsAsInPopulation(_Declaration):
    """Of the rows of features at least the share ``at_least`` is scored, and no other row is."""

    kind: Literal["rows_as_in_population"] = "rows_as_in_population"
    at_least: Annotated[float, Field(gt=0, le=1)] = 1.0


class KeyKnown(_Declaration):
    """Every key is one of the features that were scored."""

    kind: Literal["key_known"] = "key_known"


class ScoreInRange(_Declaration):
    """Every score is a number in ``[low, high]``; neither null nor NaN."""

    kind: Literal["score_in_range"] = "score_in_range"
    low: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    high: Annotated[float, Field(allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"score_in_range: low {self.low:g} is not below high {self.high:g}")
        return self


class ReasonsPresent(_Declaration):
    """Every row has as many reasons as its band asks for."""

    kind: Literal["reasons_present"] = "reasons_present"


class ListsFull(_Declaration):
    """Of the entities of a ranking at least the share ``at_least`` is shown as many items as the
    working point says."""

    kind: Literal["lists_full"] = "lists_full"
    at_least: Annotated[float, Field(gt=0, le=1)]


class BandShare(_Declaration):
    """The share of the rows that are in ``band`` is between ``at_least`` and ``at_most``."""

    kind: Literal["band_share"] = "band_share"
    band: Name
    at_least: Share = 0.0
    at_most: Share = 1.0

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.at_least < self.at_most:
            raise ValueError(
                f"band_share of {self.band}: at_least {self.at_least:g} is not below at_most "
                f"{self.at_most:g}"
            )
        return self


class StableSincePrevious(_Declaration):
    """The population stability index of the scores against the publication before, of the same
    model and at most ``within_days`` older, is at most ``psi``."""

    kind: Literal["stable_since_previous"] = "stable_since_previous"
    psi: Annotated[float, Field(gt=0)] = 0.25
    within_days: Days = 31


class StableSinceTraining(_Declaration):
    """The population stability index of the scores against those that the model gave the newest
    snapshots of its training is at most ``psi``."""

    kind: Literal["stable_since_training"] = "stable_since_training"
    psi: Annotated[float, Field(gt=0)] = 0.25


Audit = Annotated[
    RowsAsInPopulation
    | KeyKnown
    | ScoreInRange
    | ReasonsPresent
    | ListsFull
    | BandShare
    | StableSincePrevious
    | StableSinceTraining,
    Field(discriminator="kind"),
]


def audit_name(audit: Audit) -> str:
    """An audit's name in errors and in ``ops.audit_results``."""
    return f"{audit.kind}_{audit.band}" if isinstance(audit, BandShare) else audit.kind


Action = Literal["review", "block"]
DECISIONS: tuple[str, ...] = ("pass", "review", "block")
"""What is decided of a row, the gravest last."""


class Rule(_Declaration):
    """What somebody knows beside the model: rows where ``where`` holds are hit.

    ``where`` is a condition in SQL (of DuckDB) over the features, an event's own among them; a row
    for which it is null is not hit. Of what is hit the decision is at least ``action``. Each night
    the hits are published with the row, and once labels have matured its precision and recall are
    kept in ``monitoring.rule_quality``.
    """

    name: Name
    where: Annotated[str, Field(min_length=1)]
    description: Annotated[str, Field(min_length=1)]
    action: Action = "review"

    @model_validator(mode="after")
    def _is_a_condition(self) -> Self:
        bare = re.sub(r"'(?:[^']|'')*'", "", self.where)
        depth = 0
        for letter in bare:
            depth += {"(": 1, ")": -1}.get(letter, 0)
            if depth < 0:
                break
        if depth or "'" in bare or ";" in bare or "--" in bare:
            raise ValueError(
                f"rule {self.name!r}: {self.where!r} is not one condition: look at its brackets "
                "and quotes"
            )
        if not re.search(r"[<>=]|\b(?:is|in|between|like)\b", bare.lower()):
            raise ValueError(
                f"rule {self.name!r}: {self.where!r} compares nothing, so that it is no condition"
            )
        if not _columns_read(self.where):
            raise ValueError(
                f"rule {self.name!r}: {self.where!r} reads no feature: it hits every row, or none"
            )
        return self


class AlertBudget(_Declaration):
    """So many entities a night are to be alerted of, on average."""

    kind: Literal["alert_budget"] = "alert_budget"
    entities: Annotated[int, Field(ge=1)]


class TargetPrecision(_Declaration):
    """At least this share of the entities that are alerted of are to have a label 1 that night."""

    kind: Literal["target_precision"] = "target_precision"
    value: Annotated[float, Field(gt=0, lt=1)]


class Alerts(_Declaration):
    """From which score on a row is alerted of: its decision is at least ``review``.

    The threshold is chosen each night: the one with which the ``nights`` newest nights whose labels
    are known would have met the target. Of fewer than ``min_nights`` published ones the test scores
    of the model's training stand in. It moves by at most ``step`` a night, and stays within ``low``
    and ``high``. Each choice is a row of ``ops.thresholds`` with its reason; a night that is run
    again keeps it.

    Attributes:
        target: how many alerts, or how good.
        initial: where nothing is known.
    """

    target: Annotated[AlertBudget | TargetPrecision, Field(discriminator="kind")]
    low: Share
    high: Share
    step: Annotated[float, Field(gt=0, le=1)]
    initial: Share
    nights: Annotated[int, Field(ge=1, le=366)] = 14
    min_nights: Annotated[int, Field(ge=1, le=366)] = 3

    @model_validator(mode="after")
    def _has_guard_rails(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"alerts: low {self.low:g} is not below high {self.high:g}")
        if not self.low <= self.initial <= self.high:
            raise ValueError(
                f"alerts: initial {self.initial:g} is not between {self.low:g} and {self.high:g}"
            )
        if self.min_nights > self.nights:
            raise ValueError(
                f"alerts: min_nights {self.min_nights} is more than nights {self.nights}"
            )
        return self


class Retention(_Declaration):
    """How long a publication is kept once readers see another one for its date: while it is one of
    the ``versions`` newest of the date, or was published in the last ``days``. What an audit has
    refused, and what a killed run has left, is kept for ``days`` too."""

    versions: Annotated[int, Field(ge=1, le=1000)] = 3
    days: Annotated[int, Field(ge=0, le=36500)] = 30


class Nights(_Declaration):
    """On which nights a use case is scored: every ``every_days``, counted from ``since``.

    Every night (1), every Monday (7, since any Monday), every 30 days. On the nights between it is
    not due: nothing of it is computed or published, readers keep the newest night, and a backfill
    leaves these dates out. Landings are loaded and checked every night all the same. How far apart
    the snapshots are that a training learns from is told by :class:`Snapshots`, whatever this is.
    """

    every_days: Days = 1
    since: date = date(2024, 1, 1)

    def is_due(self, as_of: date) -> bool:
        """Whether it is scored for ``as_of``."""
        return (as_of - self.since).days % self.every_days == 0

    def next_after(self, as_of: date) -> date:
        """The first night after ``as_of`` on which it is."""
        return as_of + timedelta(days=self.every_days - (as_of - self.since).days % self.every_days)

    @property
    def words(self) -> str:
        """As people are told it."""
        return "every night" if self.every_days == 1 else f"every {self.every_days} nights"


class UseCase(_Declaration):
    """One prediction task. All else (DAG ids, tables, registered model) follows from its name.

    Population and label tell what kind it is. Of an entity, ``AnyEvent`` and ``NoEvent`` are yes or
    no (binary), ``Count`` and ``Sum`` amounts (regression). A population of pairs makes candidates
    that are ranked. ``EveryEvent`` with ``Reported`` scores single events. Losses, metrics, working
    points and gates are those of its objective; others are refused.

    ``unit``: of amounts, as people are told it. ``interval``: None for amounts without one.

    ``linear_margin``: by how much the model has to be better than the linear one, in the first
    metric that a gate asks for, lest the model card says that it is not.

    With ``approval="manual"`` a model that has passed its gates waits until a person has approved
    it in Airflow; otherwise it is champion at once.

    ``audits``: what scores must meet before a reader sees them, beside what every publication must:
    keys that are there and unique, bands that fit the scores, the manifest's rows and model.

    Attributes:
        name: of the DAG ``train__<name>``, the view ``predictions.<name>``, the registered model.
        title: as people read it; ``description``: what a score says, in a sentence.
        owner: the team that answers for it.
        entity: what is predicted; ``key``: the column that names it, in every source.
        population: who is scored; for single events ``EveryEvent``.
        label: what is predicted, over which days, and when it is known.
        feature_groups: what the model sees, of the key or of another column of what is scored.
        nights: on which of them it is scored; every night unless it says otherwise.
        ratios: of two features of any groups, such as an amount by what is usual.
        snapshots: the training set, through history.
        model: how it is fitted.
        heuristics: what one would do without a model; a gate can ask to beat each.
        factorisation: of candidates another baseline, fitted to who bought what.
        score_column: of the published table.
        bands: named ranges of the score, published beside it.
        reasons: features that are published with each row, those that move its score most.
        rules: what is known beside the model; their hits are published with each row.
        alerts: how the threshold follows outcomes from which on a row is alerted of.
        working_point: which rows somebody acts on, for metrics that depend on it.
        settled: which rows no metric is of; None for none.
        slices: groups of rows that are measured by themselves.
        studies: what the model card tells beside the model.
        gates: what a model must meet to become champion.
        retention: how long publications are kept.
    """

    name: Identifier
    title: str
    description: str
    owner: str
    entity: Name
    key: Identifier
    population: Population | Candidates | EveryEvent
    label: Label
    feature_groups: tuple[FeatureGroup, ...] = Field(min_length=1)
    nights: Nights = Nights()
    ratios: tuple[Ratio, ...] = ()
    snapshots: Snapshots
    model: Model = Model()
    heuristics: tuple[Heuristic, ...]
    factorisation: Factorisation | None = None
    score_column: Identifier
    unit: str = ""
    interval: Interval | None = None
    bands: tuple[Band, ...] = Field(min_length=1)
    reasons: Annotated[int, Field(ge=1, le=10)] = 3
    rules: tuple[Rule, ...] = ()
    alerts: Alerts | None = None
    working_point: WorkingPoint | None = None
    settled: Settled | None = None
    slices: tuple[Slice, ...] = ()
    linear_margin: Annotated[float, Field(ge=0)] = 0.0
    studies: Studies = Studies()
    gates: tuple[Gate, ...] = Field(min_length=1)
    approval: Literal["automatic", "manual"] = "automatic"
    audits: tuple[Audit, ...] = (
        RowsAsInPopulation(),
        KeyKnown(),
        ScoreInRange(),
        ReasonsPresent(),
        StableSincePrevious(),
        StableSinceTraining(),
    )
    retention: Retention = Retention()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = self.feature_names
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"use case {self.name}: two groups declare {', '.join(repeated)}")
        for position, ratio in enumerate(self.ratios, len(names) - len(self.ratios)):
            for part in (ratio.numerator, ratio.denominator):
                if part not in names[:position]:
                    raise ValueError(
                        f"use case {self.name}: ratio {ratio.name!r}: no feature {part!r}"
                    )
        for found in (f for group in self.feature_groups for f in group.features):
            if found.type == "string":
                raise ValueError(
                    f"use case {self.name}: {found.name} is text, and models take numbers; "
                    "take a share, a distinct count or the entropy of it"
                )
        for heuristic in self.heuristics:
            for feature in heuristic.features:
                if feature not in names:
                    raise ValueError(
                        f"use case {self.name}: heuristic {heuristic.name!r}: no feature "
                        f"{feature!r}"
                    )
        for name in self.model.monotone:
            if name not in names:
                raise ValueError(f"use case {self.name}: monotone: no feature {name!r}")
        if self.loss not in LOSSES[self.objective]:
            raise ValueError(
                f"use case {self.name}: a {self.objective} objective has no loss {self.loss!r}; it "
                f"has {', '.join(LOSSES[self.objective])}"
            )
        if self.objective == "ranking":
            ranks = [band.from_rank or 0 for band in self.bands]
            if ranks != sorted(set(ranks)) or ranks[0] != 1:
                raise ValueError(
                    f"use case {self.name}: bands of a ranking are of places: from_rank must start "
                    f"at 1 and rise; got {ranks}"
                )
        elif any(band.from_rank is not None for band in self.bands):
            raise ValueError(f"use case {self.name}: from_rank is for rankings; give from_score")
        starts = [band.from_score for band in self.bands]
        if self.objective != "ranking" and (starts != sorted(set(starts)) or starts[0] != 0):
            raise ValueError(f"use case {self.name}: bands must start at 0 and rise; got {starts}")
        if self.objective == "binary" and starts[-1] > 1:
            raise ValueError(f"use case {self.name}: bands of probabilities end at 1; got {starts}")
        if self.interval is not None and self.objective != "regression":
            raise ValueError(
                f"use case {self.name}: an interval is of amounts, and its scores are those of a "
                f"{self.objective} objective; leave it out"
            )
        exposure = self.model.exposure
        for field in ("label_cap", "exposure"):
            if getattr(self.model, field) is not None and self.objective != "regression":
                raise ValueError(
                    f"use case {self.name}: {field} is for amounts; a {self.objective} objective "
                    "has none"
                )
        if exposure is not None and exposure.feature not in names:
            raise ValueError(f"use case {self.name}: exposure: no feature {exposure.feature!r}")
        if self.factorisation is not None and not isinstance(self.population, Candidates):
            raise ValueError(
                f"use case {self.name}: a factorisation orders candidates, and there are none"
            )
        if self.shown is None and any(isinstance(each, ListsFull) for each in self.audits):
            raise ValueError(f"use case {self.name}: lists_full is for rankings; leave it out")
        audits = [audit_name(audit) for audit in self.audits]
        if len(set(audits)) != len(audits):
            raise ValueError(f"use case {self.name}: the same audit twice: {audits}")
        bands = [band.name for band in self.bands]
        for audit in self.audits:
            if isinstance(audit, BandShare) and audit.band not in bands:
                raise ValueError(
                    f"use case {self.name}: audit {audit_name(audit)}: {audit.band!r} is none of "
                    f"the bands {bands}"
                )
        return self

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        where = f"use case {self.name}"
        if isinstance(self.working_point, TopItems) != (self.objective == "ranking") and (
            self.working_point is not None
        ):
            raise ValueError(
                f"{where}: a working point of {self.working_point.kind} is none of a "
                f"{self.objective} objective; rankings take TopItems, and nothing else does"
            )
        if self.objective == "ranking" and self.working_point is None:
            raise ValueError(
                f"{where}: a ranking asks for a working_point: how many items are shown"
            )
        if isinstance(self.working_point, TopItems):
            popularity = self.working_point.popularity
            if popularity is not None and popularity not in self.feature_names:
                raise ValueError(f"{where}: working_point: no feature {popularity!r}")
            keep = self.population.keep if isinstance(self.population, Candidates) else None
            if keep is not None and keep < self.working_point.k:
                raise ValueError(
                    f"{where}: {keep} candidates are kept, and lists show {self.working_point.k}"
                )
        if isinstance(self.working_point, TopEntities) and self.objective != "binary":
            raise ValueError(
                f"{where}: a working point of top_entities is none of a {self.objective} objective"
            )
        if self.settled is not None and self.settled.feature not in self.feature_names:
            raise ValueError(f"{where}: settled: no feature {self.settled.feature!r}")
        slices = [each.name for each in self.slices]
        if len(set(slices)) != len(slices):
            raise ValueError(f"{where}: two slices of one name: {slices}")
        for each in self.slices:
            if each.feature not in self.feature_names:
                raise ValueError(f"{where}: slice {each.name!r}: no feature {each.feature!r}")
        gates = [gate_name(gate) for gate in self.gates]
        if len(set(gates)) != len(gates):
            raise ValueError(f"{where}: the same gate twice: {gates}")
        for gate in self.gates:
            self._check_gate(gate)
        return self

    @model_validator(mode="after")
    def _can_decide(self) -> Self:
        where = f"use case {self.name}"
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError(f"{where}: two rules of one name: {names}")
        for rule in self.rules:
            unknown = sorted(_columns_read(rule.where) - set(self.feature_names))
            if unknown:
                raise ValueError(
                    f"{where}: rule {rule.name!r}: {rule.where!r} reads {', '.join(unknown)}, "
                    "which is no feature; declare it, or an event's own column as a feature"
                )
        if self.alerts is not None and not isinstance(self.label, Reported):
            raise ValueError(
                f"{where}: alerts follow what is reported of events; its label is {self.label.kind}"
            )
        taken = {*self.row_key, self.score_column, "as_of", "band", "reasons", "model_version"}
        if both := sorted(taken & set(self.decision_columns)):
            raise ValueError(f"{where}: rename {', '.join(both)}, which is a column of decisions")
        return self

    def _check_gate(self, gate: Gate) -> None:
        where = f"use case {self.name}: gate {gate_name(gate)}"
        baselines = {h.name for h in self.heuristics} | {"linear"}
        baselines |= {self.factorisation.name} if self.factorisation else set()
        if isinstance(gate, BeatsBaseline) and gate.baseline not in baselines:
            raise ValueError(f"{where}: {gate.baseline!r} is none of {sorted(baselines)}")
        slices = [each.name for each in self.slices]
        if isinstance(gate, SliceAtLeast | ParityWithin) and gate.slice not in slices:
            raise ValueError(f"{where}: slice {gate.slice!r} is none of {slices}")
        if isinstance(gate, CalibrationWithin):
            if self.objective == "ranking":
                raise ValueError(f"{where}: the scores of a ranking have no level")
        elif not isinstance(gate, GainShareAtMost | Reproducible | LoadsAndScores):
            rule = METRICS[gate.metric]
            if rule.objective != self.objective:
                known = [name for name, r in METRICS.items() if r.objective == self.objective]
                raise ValueError(
                    f"{where}: a {self.objective} objective has no {gate.metric}; it has "
                    f"{', '.join(known)}"
                )
            if rule.reads == "working_point" and self.working_point is None:
                raise ValueError(f"{where}: {gate.metric} asks for a working_point, declare one")
            if gate.metric == "entity_precision_at_k" and not isinstance(
                self.working_point, TopEntities
            ):
                raise ValueError(f"{where}: {gate.metric} asks for the working point TopEntities")
            if rule.reads == "interval" and (
                self.interval is None or not isinstance(gate, AtLeast | AtMost)
            ):
                raise ValueError(
                    f"{where}: {gate.metric} is of the model's own interval: declare one, and use "
                    "AtLeast or AtMost"
                )
            if (
                isinstance(gate, BeatsBaseline)
                and rule.reads == "scale"
                and gate.baseline in self.order_only
            ):
                raise ValueError(
                    f"{where}: {gate.baseline!r} tells an order only, so that it has no "
                    f"{gate.metric}; give the heuristic its scale, or take another baseline"
                )
            wrong = {
                AtLeast: "lower", SliceAtLeast: "lower", BeatsBaseline: None, BeatsChampion: None
            }  # fmt: skip
            if type(gate) in wrong and rule.better == wrong[type(gate)]:
                raise ValueError(
                    f"{where}: {gate.metric} is better "
                    + ("when it is lower; use AtMost" if rule.better else "neither way")
                )

    @model_validator(mode="after")
    def _is_due_in_time(self) -> Self:
        apart = self.nights.every_days
        if apart > 1 and self.mode == "event":
            raise ValueError(
                f"use case {self.name}: each event is scored in the night after its day; "
                f"{self.nights.words} would leave out those of the days between"
            )
        for audit in self.audits:
            if isinstance(audit, StableSincePrevious) and audit.within_days < apart:
                raise ValueError(
                    f"use case {self.name}: audit {audit_name(audit)}: of the last "
                    f"{audit.within_days} days there is no publication where it is scored "
                    f"{self.nights.words}; give it within_days={apart} or more"
                )
        return self

    @model_validator(mode="after")
    def _is_of_one_mode(self) -> Self:
        where, population, label = f"use case {self.name}", self.population, self.label
        groups = [*self.feature_groups, *self._through_groups]
        groups += [] if isinstance(population, EveryEvent) else population.groups
        groups += population.item_groups if isinstance(population, Candidates) else []
        groups += [self.outcome] if self.outcome is not None else []
        sources = [population.source, label.source, *(group.source for group in groups)]
        parts: list[Source | FeatureGroup] = [*sources, *groups]
        named: dict[str, Source | FeatureGroup] = {}
        for part in parts:
            if named.setdefault(f"{type(part).__name__} {part.name}", part) != part:
                raise ValueError(f"{where}: two differ that are named {part.name}; rename one")
        if isinstance(population, EveryEvent):
            known = tuple(population.source.columns)
            if self.key not in known:
                raise ValueError(
                    f"{where}: key {self.key!r} is not a column of {population.source.name}"
                )
            if isinstance(label, Reported):
                self._knows_no_report(population, label)
            if isinstance(label, Reported) and label.source != population.source:
                raise ValueError(
                    f"{where}: what is reported of events is read from {population.source.name}, "
                    f"where they are; got {label.source.name}"
                )
        else:
            known = key_columns(population.key)
            if known[0] != self.key:
                raise ValueError(f"{where}: the population is of {known}, the key {self.key!r}")
            if isinstance(population, Candidates) and not isinstance(label, AnyEvent):
                raise ValueError(
                    f"{where}: candidates are relevant or not; got the label {label.kind}, declare "
                    "AnyEvent"
                )
            if isinstance(label, Reported):
                raise ValueError(
                    f"{where}: what is reported of single events is no label of a {self.entity}; "
                    "score EveryEvent, or declare a label over a window after as_of"
                )
        if not isinstance(label, Reported):
            keys = key_columns(label.key)
            same = set(keys) <= set(known) if self.mode == "event" else keys == known
            if not same or self.key not in keys:
                raise ValueError(f"{where}: the label is of {keys}, what is scored of {known}")
        for group in self.feature_groups:
            if not set(group.key_columns) <= set(known):
                raise ValueError(
                    f"{where}: feature group {group.name} is of {group.key_columns}, of which a row"
                    f" that is scored has {known}; to reach another entity, declare a Through"
                )
            if self.mode == "event" and any(isinstance(m, Through) for m in group.measures):
                raise ValueError(
                    f"{where}: feature group {group.name} goes through other entities, which is "
                    f"for snapshots; take features of the {group.key_columns} of each event"
                )
        return self

    def _knows_no_report(self, population: EveryEvent, label: Reported) -> None:
        """An event's own columns are known when it lands; those of its report are not."""
        measures = (m for group in self.feature_groups for m in group.measures)
        told = _columns_read(label.where) | {label.known} | {m.known for m in measures if m.known}
        for measure in population.own:
            if leaks := sorted(_columns_read(measure.value) & told):
                raise ValueError(
                    f"use case {self.name}: own {measure.name!r} reads {', '.join(leaks)}, which "
                    "is not known before the event is reported"
                )

    @property
    def mode(self) -> Literal["snapshot", "candidate", "event"]:
        """What a row is: an entity at ``as_of``, several together, or an event at its instant."""
        if isinstance(self.population, EveryEvent):
            return "event"
        return "candidate" if isinstance(self.population, Candidates) else "snapshot"

    def is_due(self, as_of: date) -> bool:
        """Whether it is scored for ``as_of``."""
        return self.nights.is_due(as_of)

    def why_not_due(self, as_of: date) -> str:
        """What people are told of a night on which it is not."""
        return (
            f"not due on {as_of}: it is scored {self.nights.words}, next on"
            f" {self.nights.next_after(as_of)}"
        )

    @property
    def objective(self) -> Objective:
        """What the scores are for: to tell two classes apart, foretell an amount, order items."""
        if self.mode == "candidate":
            return "ranking"
        return "regression" if isinstance(self.label, Sum | Count) else "binary"

    @property
    def is_non_negative(self) -> bool:
        """Of amounts, whether no label is below 0, and so none is foretold below it."""
        label = self.label
        return self.objective == "regression" and (
            isinstance(label, Count) or (isinstance(label, Sum) and label.non_negative)
        )

    @property
    def judged_metrics(self) -> tuple[Metric, ...]:
        """The metrics of which a gate asks something of the whole, in the gates' order."""
        kinds = (AtLeast, AtMost, BeatsBaseline, BeatsChampion)
        found = (gate.metric for gate in self.gates if isinstance(gate, kinds))
        default: dict[Objective, Metric] = {
            "binary": "auc", "regression": "spearman", "ranking": "ndcg_at_k"
        }  # fmt: skip
        return tuple(dict.fromkeys(found)) or (default[self.objective],)

    @property
    def interval_columns(self) -> tuple[str, ...]:
        """The published columns of the interval: low and high, or none."""
        if self.interval is None:
            return ()
        return (f"{self.score_column}_low", f"{self.score_column}_high")

    @property
    def decision_columns(self) -> tuple[str, ...]:
        """The published columns of what is decided, or none."""
        if not self.rules and self.alerts is None:
            return ()
        return (
            "decision",
            *(("rule_hits",) if self.rules else ()),
            *(("threshold_version",) if self.alerts else ()),
        )

    @property
    def order_only(self) -> frozenset[str]:
        """The baselines whose scores are no probabilities or amounts, and tell an order only."""
        factors = () if self.factorisation is None else (self.factorisation.name,)
        return frozenset((*(h.name for h in self.heuristics if h.scale is None), *factors))

    @property
    def reason_unit(self) -> str:
        """What the contributions to a score are measured in."""
        if self.objective != "regression":
            return "log-odds" if self.objective == "binary" else "points of rank"
        exposure = self.model.exposure
        what = "amount" if exposure is None else f"multiple of {exposure.feature}"
        if self.loss == "tweedie":
            return f"the logarithm of the {what}"
        return f"the {what}" + (f" in {self.unit}" if self.unit and exposure is None else "")

    @property
    def loss(self) -> Loss:
        """What its model minimises."""
        return self.model.loss or LOSSES[self.objective][0]

    @property
    def vector_key(self) -> tuple[str, ...]:
        """The columns that name a row of features: key, key and item, or event and key."""
        if isinstance(self.population, EveryEvent):
            return (self.population.source.row_id, self.key)
        return key_columns(self.population.key)

    @property
    def row_key(self) -> tuple[str, ...]:
        """The same columns as rows are published by: the key first, by which readers look up."""
        return (self.key, *(name for name in self.vector_key if name != self.key))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The feature vector's columns, in order."""
        return tuple(described.name for _, described in self.catalogue)

    @property
    def shown(self) -> int | None:
        """How many rows of an entity's list are published; None for all that is scored."""
        return self.working_point.k if isinstance(self.working_point, TopItems) else None

    @property
    def list_columns(self) -> tuple[str, ...]:
        """The published columns of a ranking beside the score."""
        return ("rank", "generators") if isinstance(self.population, Candidates) else ()

    @property
    def popularity(self) -> str | None:
        """The feature by which the novelty of what is shown is told; None without."""
        point = self.working_point
        return point.popularity if isinstance(point, TopItems) else None

    @property
    def own_features(self) -> tuple[Measure, ...]:
        """What the features of an event are that it has itself."""
        return self.population.own if isinstance(self.population, EveryEvent) else ()

    @property
    def catalogue(self) -> tuple[tuple[str, Described], ...]:
        """Every feature, in order, with the name of its group; an event's ``own``, ``candidates``
        and ``ratios`` are groups too."""
        own = (
            Described(
                each.name, "double", f"null where {each.value} is",
                each.description or each.name.replace("_", " "),
            )
            for each in self.own_features
        )  # fmt: skip
        proposed = self.population.catalogue if isinstance(self.population, Candidates) else ()
        divided = (ratio_described(ratio) for ratio in self.ratios)
        return (
            *(("own", each) for each in own),
            *(("candidates", each) for each in proposed),
            *((group.name, each) for group in self.feature_groups for each in group.catalogue),
            *(("ratios", each) for each in divided),
        )

    @property
    def source(self) -> Source:
        """The mart that tells who or what is scored."""
        return self.population.source

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every mart that the use case reads."""
        return tuple({source.name: source for source, _ in self.streams}.values())

    @property
    def landings(self) -> tuple[str, ...]:
        """The sources of the landing zone without which it cannot be scored."""
        read = {name for each in self.sources for name in each.landed_from or (each.name,)}
        return tuple(sorted(read))

    @property
    def outcome(self) -> FeatureGroup | None:
        """The label as a feature group; None where it is read off the event itself."""
        return None if isinstance(self.label, Reported) else self.label.group

    @property
    def related_groups(self) -> tuple[FeatureGroup, ...]:
        """The groups of other entities than the use case's own, each once."""
        groups = (group for group in self.feature_groups if self.key not in group.key_columns)
        items = self.population.item_groups if isinstance(self.population, Candidates) else ()
        return tuple({g.name: g for g in (*groups, *self._through_groups, *items)}.values())

    @property
    def _through_groups(self) -> tuple[FeatureGroup, ...]:
        return tuple(
            measure.group
            for group in self.feature_groups
            for measure in group.measures
            if isinstance(measure, Through)
        )

    @property
    def streams(self) -> tuple[tuple[Source, str], ...]:
        """The marts that are read, each with the key by whose buckets: the population's first."""
        found = [(self.population.source, self.key)]
        if self.outcome is not None:
            found.append((self.outcome.source, self.key))
        own = (group for group in self.feature_groups if self.key in group.key_columns)
        found += [(group.source, self.key) for group in own]
        for group in self.related_groups:
            found.append((group.source, group.key_columns[0]))
            if self.mode == "event":  # the events themselves, by that key
                found.append((self.population.source, group.key_columns[0]))
        return tuple({(source.name, key): (source, key) for source, key in found}.values())

    def known_by(self, source: Source) -> tuple[str, ...]:
        """The date columns of ``source`` that say when what was joined to a row became known."""
        groups = (*self.feature_groups, *self.related_groups)
        dates = {m.known for group in groups if group.source == source for m in group.measures}
        if isinstance(self.label, Reported) and self.label.source == source:
            dates.add(self.label.known)
        return tuple(sorted(name for name in dates if name is not None))

    @property
    def table(self) -> str:
        """The view that consumers read."""
        return f"predictions.{self.name}"
