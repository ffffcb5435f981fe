"""The words a use case is declared in: entities, feature groups, labels, gates, outputs.

Declarations are frozen and checked where they are written: a nonsense fails at import, with the
place and the remedy. This module imports nothing but the validation library, so that a DAG file
loads in milliseconds.

Time: a snapshot for ``as_of`` = D sees events that happened before D 00:00 and landed in a folder
dated before D. A window of n days is ``[D − n days, D)``; a label with horizon h is taken over
``[D, D + h days)``.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=48)]
Days = Annotated[int, Field(gt=0, le=3660)]
Share = Annotated[float, Field(ge=0, le=1)]

Aggregation = Literal[
    "count", "sum", "mean", "min", "max", "distinct", "days_since_last", "days_since_first"
]
NUMERIC_AGGREGATIONS = frozenset({"sum", "mean", "min", "max"})
ALL_TIME = "all"


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Declaration):
    """A mart that events are read from.

    ``columns`` maps each column that a declaration may use to its type in the lake; a decimal
    has four places. ``row_id`` names the mart's key, and tells the extract what has changed.
    """

    name: Name
    relation: str
    row_id: Name
    event_time: Name
    landed_date: Name
    columns: dict[Name, Literal["string", "boolean", "integer", "decimal", "timestamp", "date"]]

    @model_validator(mode="after")
    def _times_are_columns(self) -> Self:
        for column in (self.event_time, self.landed_date):
            if column not in self.columns:
                raise ValueError(f"source {self.name}: {column!r} is not among its columns")
        return self


class Measure(_Declaration):
    """What is aggregated: a column of the source, over the rows where ``where`` holds.

    ``where`` is a Spark SQL condition over the source's columns; None means every row.
    """

    name: Name
    column: Name
    where: str | None = None


class Aggregate(_Declaration):
    """``measure`` × ``aggregations`` × ``windows`` (days before ``as_of``; None is all time)."""

    measure: Name
    aggregations: tuple[Aggregation, ...] = Field(min_length=1)
    windows: tuple[Days | None, ...] = Field(default=(None,), min_length=1)


class Ratio(_Declaration):
    """``numerator / denominator``, two features of the group; null where the denominator is 0."""

    name: Name
    numerator: Name
    denominator: Name


class Feature(_Declaration):
    """One column of a feature vector, as the compiler sees it.

    Null semantics: counts, distincts and sums over no events are 0; every other aggregation over
    no events is null, and so is a ratio whose parts are null or whose denominator is 0.
    """

    name: str
    measure: Name
    aggregation: Aggregation
    window: Days | None


class FeatureGroup(_Declaration):
    """Features of one entity from one source."""

    name: Name
    source: Source
    entity: Name
    key: Name
    measures: tuple[Measure, ...]
    aggregates: tuple[Aggregate, ...]
    ratios: tuple[Ratio, ...] = ()

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> Self:
        where = f"feature group {self.name}"
        if self.key not in self.source.columns:
            raise ValueError(f"{where}: key {self.key!r} is not a column of {self.source.name}")
        measures = {measure.name: measure for measure in self.measures}
        if len(measures) != len(self.measures):
            raise ValueError(f"{where}: two measures share a name")
        for measure in self.measures:
            if measure.column not in self.source.columns:
                raise ValueError(
                    f"{where}: measure {measure.name!r} reads {measure.column!r}, which is not a "
                    f"column of {self.source.name}; it has {sorted(self.source.columns)}"
                )
        for aggregate in self.aggregates:
            if aggregate.measure not in measures:
                raise ValueError(
                    f"{where}: no measure {aggregate.measure!r}; there are {sorted(measures)}"
                )
            column = measures[aggregate.measure].column
            kind = self.source.columns[column]
            for aggregation in aggregate.aggregations:
                if aggregation in NUMERIC_AGGREGATIONS and kind not in ("integer", "decimal"):
                    raise ValueError(
                        f"{where}: {aggregation} of {aggregate.measure!r} needs a number, "
                        f"{column!r} is a {kind}"
                    )
        names = [feature.name for feature in self.features] + [r.name for r in self.ratios]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{where}: declared twice: {', '.join(repeated)}")
        known = set(names)
        for ratio in self.ratios:
            for part in (ratio.numerator, ratio.denominator):
                if part not in known:
                    raise ValueError(f"{where}: ratio {ratio.name!r}: no feature {part!r}")
        return self

    @property
    def features(self) -> tuple[Feature, ...]:
        """Each aggregation of each measure over each window, in declared order.

        Named ``<entity>_<measure>_<aggregation>_<window>``.
        """
        return tuple(
            Feature(
                name=f"{self.entity}_{a.measure}_{aggregation}_"
                + (f"{window}d" if window else ALL_TIME),
                measure=a.measure,
                aggregation=aggregation,
                window=window,
            )
            for a in self.aggregates
            for aggregation in a.aggregations
            for window in a.windows
        )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """All columns of the group, aggregates first, then ratios."""
        return tuple(f.name for f in self.features) + tuple(r.name for r in self.ratios)


class Population(_Declaration):
    """Who is scored: entities with an event, where ``where`` holds, in the last ``active_days``."""

    source: Source
    key: Name
    where: str | None = None
    active_days: Days


class NoEvent(_Declaration):
    """1 where no event that satisfies ``where`` happens in ``[as_of, as_of + horizon)``, else 0.

    Mature once ``[as_of, as_of + horizon + reporting delay)`` has landed.
    """

    source: Source
    key: Name
    where: str | None = None
    horizon_days: Days
    reporting_delay_days: Annotated[int, Field(ge=0, le=366)] = 0

    @property
    def maturity_days(self) -> int:
        """Days after ``as_of`` at which the label is known."""
        return self.horizon_days + self.reporting_delay_days


class Heuristic(_Declaration):
    """A baseline without a model: rank by one feature; a low value first if ``descending``."""

    name: Name
    feature: str
    descending: bool = False


class Snapshots(_Declaration):
    """How training sets are laid through history.

    Snapshots stand every ``stride_days`` back from the newest mature one, at most ``count`` of
    them, none before ``min_history_days`` of landings. The newest ``test`` snapshots are the
    out-of-time test, the ``validation`` ones before them choose the number of trees; between two
    parts lies an embargo of one horizon, so that no label window reaches into the next part.
    """

    stride_days: Days
    count: Annotated[int, Field(ge=3, le=400)]
    min_history_days: Days
    test: Annotated[int, Field(ge=1)] = 1
    validation: Annotated[int, Field(ge=1)] = 1


class AtLeast(_Declaration):
    """The champion-to-be's ``metric`` on the test snapshots is at least ``value``."""

    kind: Literal["at_least"] = "at_least"
    metric: Literal["auc", "average_precision"]
    value: Share


class BeatsBaseline(_Declaration):
    """``metric`` is better than the baseline's by at least ``by``; the lower bound of the paired
    bootstrap interval of the difference is above 0."""

    kind: Literal["beats_baseline"] = "beats_baseline"
    metric: Literal["auc", "average_precision"]
    baseline: Name
    by: Share


class BeatsChampion(_Declaration):
    """``metric`` on the same test rows is not lower than the reigning champion's by more than
    ``tolerance``. Passes when there is no champion yet, and says so."""

    kind: Literal["beats_champion"] = "beats_champion"
    metric: Literal["auc", "average_precision"]
    tolerance: Share


class CalibrationWithin(_Declaration):
    """Expected calibration error (10 equal-mass bins) is at most ``value``."""

    kind: Literal["calibration_within"] = "calibration_within"
    value: Share


class LoadsAndScores(_Declaration):
    """A fresh process loads the logged model and scores the test sample to the same bytes."""

    kind: Literal["loads_and_scores"] = "loads_and_scores"


Gate = Annotated[
    AtLeast | BeatsBaseline | BeatsChampion | CalibrationWithin | LoadsAndScores,
    Field(discriminator="kind"),
]


def gate_name(gate: Gate) -> str:
    """A gate's name in reports and in ``ops.gate_results``: kind, then what tells it apart."""
    parts = (getattr(gate, field, None) for field in ("kind", "metric", "baseline"))
    return "_".join(part for part in parts if part is not None)


class Band(_Declaration):
    """Scores of at least ``from_score`` (up to the next band)."""

    name: Name
    from_score: Share


class UseCase(_Declaration):
    """One prediction task. All else (DAG ids, tables, registered model) follows from its name."""

    name: Name
    title: str
    description: str
    owner: str
    entity: Name
    key: Name
    population: Population
    label: NoEvent
    feature_groups: tuple[FeatureGroup, ...] = Field(min_length=1)
    snapshots: Snapshots
    heuristics: tuple[Heuristic, ...]
    score_column: Name
    bands: tuple[Band, ...] = Field(min_length=1)
    reasons: Annotated[int, Field(ge=1, le=10)] = 3
    gates: tuple[Gate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = self.feature_names
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"use case {self.name}: two groups declare {', '.join(repeated)}")
        for heuristic in self.heuristics:
            if heuristic.feature not in names:
                raise ValueError(
                    f"use case {self.name}: heuristic {heuristic.name!r}: no feature "
                    f"{heuristic.feature!r}"
                )
        baselines = {h.name for h in self.heuristics} | {"linear"}
        for gate in self.gates:
            if isinstance(gate, BeatsBaseline) and gate.baseline not in baselines:
                raise ValueError(
                    f"use case {self.name}: gate against {gate.baseline!r}, which is none of "
                    f"{sorted(baselines)}"
                )
        gates = [gate_name(gate) for gate in self.gates]
        if len(set(gates)) != len(gates):
            raise ValueError(f"use case {self.name}: the same gate twice: {gates}")
        starts = [band.from_score for band in self.bands]
        if starts != sorted(set(starts)) or starts[0] != 0:
            raise ValueError(f"use case {self.name}: bands must start at 0 and rise; got {starts}")
        return self

    @model_validator(mode="after")
    def _reads_one_stream(self) -> Self:
        streams = {(g.source.name, g.key) for g in self.feature_groups}
        streams |= {(part.source.name, part.key) for part in (self.population, self.label)}
        if streams != {(self.population.source.name, self.key)}:
            raise ValueError(
                f"use case {self.name}: population, label and feature groups must share one source "
                f"and the key {self.key!r}; got {sorted(streams)}"
            )
        return self

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The feature vector's columns, in order."""
        return tuple(name for group in self.feature_groups for name in group.feature_names)

    @property
    def source(self) -> Source:
        """The mart that the use case reads."""
        return self.population.source

    @property
    def table(self) -> str:
        """The view that consumers read."""
        return f"predictions.{self.name}"
