"""The page of a check's results that Airflow's tasks link to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from importlib.resources import files
from itertools import groupby
from urllib.parse import quote

from jinja2 import Environment

from nightshift.quality.verdict import Outcome, compared

TITLES = {"quality": "Quality of what landed", "quality_marts": "Quality of the marts"}
"""By stage, as in ``ops.runs``."""


@dataclass(frozen=True)
class CheckedRun:
    """One run of a check.

    Attributes:
        pages: by table and landed date, its page of Data Docs, as a path below the reports' folder.
            Their index is of no use to a reader without internet: it is made by scripts from there.
    """

    run_id: int
    status: str
    started_at: datetime
    outcomes: tuple[Outcome, ...]
    pages: Mapping[tuple[str, date], str]

    @property
    def first_page(self) -> str | None:
        """Of the newest landed day with the worst that is broken; None when there is no page."""
        worst = sorted(
            (o for o in self.outcomes if (o.table, o.landed_date) in self.pages),
            key=lambda o: (o.success, o.severity, -o.landed_date.toordinal(), o.table),
        )
        return self.pages[worst[0].table, worst[0].landed_date] if worst else None


def render(stage: str, as_of: date, run: CheckedRun | None, reports_url: str) -> str:
    """HTML: for each landed day a table of its rules, broken ones first, all values escaped.

    Args:
        run: None when the check has not run for ``as_of``.
        reports_url: where the reports' folder is served.
    """
    # a landed value is anybody's text
    environment = Environment(autoescape=True)
    template = files("nightshift.quality").joinpath("results.html.j2").read_text(encoding="utf-8")
    outcomes = run.outcomes if run else ()
    return environment.from_string(template).render(
        title=TITLES[stage],
        as_of=as_of,
        run=run,
        outcomes=outcomes,
        broken=[o.severity for o in outcomes if not o.success],
        days=_days(outcomes),
        pages={day: f"{reports_url}/{quote(p)}" for day, p in run.pages.items()} if run else {},
        compared=compared,
    )


def _days(outcomes: Sequence[Outcome]) -> list[tuple[tuple[str, date], list[Outcome]]]:
    """By table, its newest day first; in a day what is broken first."""
    in_order = sorted(outcomes, key=lambda o: (o.success, o.severity, o.rule))
    in_order.sort(key=lambda o: o.landed_date, reverse=True)
    in_order.sort(key=lambda o: o.table)
    return [
        (day, list(rules)) for day, rules in groupby(in_order, lambda o: (o.table, o.landed_date))
    ]
