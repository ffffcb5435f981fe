"""The text of an alert, for e-mail and for a webhook."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from nightshift.alerts.failure import Diagnosis, Failure, masked
from nightshift.errors import Cause

MAX_SUBJECT = 200
MAX_CAUSES = 10
MAX_NOTED_CAUSES, MAX_NOTED_LINE = 2, 300
"""A note in Airflow has a thousand characters, which are to reach as far as what to do."""


@dataclass(frozen=True)
class Incident:
    """An open or a just closed row of ``ops.incidents``."""

    incident_id: int
    task_id: str | None
    cause: Cause
    opened_at: datetime
    times_seen: int


@dataclass(frozen=True)
class Section:
    """A heading and its lines."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Message:
    """One alert. The subject is a single line; the sections are plain text."""

    subject: str
    sections: tuple[Section, ...]

    def as_text(self) -> str:
        """Plain text."""
        parts = [
            "\n".join((section.title, *(f"- {line}" for line in section.lines)))
            for section in self.sections
        ]
        return "\n\n".join(parts) + "\n"

    def as_html(self) -> str:
        """A fragment of HTML; whatever came from the data is escaped."""
        return "".join(
            f"<h4>{html.escape(section.title)}</h4>\n<ul>\n"
            + "".join(f"<li>{_linked(line)}</li>\n" for line in section.lines)
            + "</ul>\n"
            for section in self.sections
        )

    def as_mrkdwn(self) -> str:
        """Slack's own markup: with these three escaped, nothing in the data can mention people."""
        escaped = [
            Section(_escaped(section.title), tuple(map(_escaped, section.lines)))
            for section in self.sections
        ]
        parts = [
            "\n".join((f"*{section.title}*", *(f"• {line}" for line in section.lines)))
            for section in escaped
        ]
        return "\n\n".join((f"*{_escaped(self.subject)}*", *parts))


def of_failure(
    failure: Failure,
    published: Mapping[str, date | None] | None,
    open_since: Mapping[Cause, Incident],
    runbooks: str,
    unrecorded: str = "",
) -> Message:
    """The message that a failure is worth.

    Args:
        failure: what failed.
        published: prediction table → newest published ``as_of``, None before the first, of the
            tables that the DAG serves; None as a whole when the warehouse does not tell.
        open_since: the open incident of each cause that has been told before.
        runbooks: URL or path of the folder of runbooks.
        unrecorded: why the incident could not be recorded; "" when it was.
    """
    shown = failure.causes[:MAX_CAUSES]
    causes = [_cause_line(cause, open_since.get(cause)) for cause in shown]
    if len(failure.causes) > len(shown):
        causes.append(f"and {len(failure.causes) - len(shown)} more: see the log")
    sections = [
        Section(f"{_run_name(failure)} stopped at {failure.place}", tuple(causes)),
        Section("Predictions", tuple(_consequences(failure, published))),
    ]
    remedy = tuple(line.strip() for line in failure.remedy.splitlines() if line.strip())
    links = (f"log: {failure.log_url}", f"runbook: {runbooks.rstrip('/')}/{failure.runbook}.md")
    sections.append(Section("What to do", (*remedy, *links)))
    if unrecorded:
        sections.append(Section("Not recorded in ops.incidents", (unrecorded,)))
    first, more = failure.causes[0], len(failure.causes) - 1
    what = _where(first) + (f" (+{more} more)" if more else "")
    return Message(
        _subject(
            f"{failure.dag_id} {failure.as_of or ''} stopped at {failure.place}: {what}",
            _summary(failure.dag_id, published),
        ),
        tuple(sections),
    )


def as_note(outcome: str, causes: Sequence[Cause], diagnosis: Diagnosis, runbooks: str) -> str:
    """What failed and what to do, as Markdown, for the task's note in Airflow.

    Args:
        outcome: in a few words.
        causes: of the diagnosis, as far as a person may be told.
    """
    first, *others = [_cut(_cause_line(cause, None)) for cause in causes[:MAX_NOTED_CAUSES]]
    if len(causes) > MAX_NOTED_CAUSES:
        others.append(f"and {len(causes) - MAX_NOTED_CAUSES} more: see the log")
    todo = [" ".join(diagnosis.remedy.split())] if diagnosis.remedy else []
    todo.append(f"runbook: {runbooks.rstrip('/')}/{diagnosis.runbook}.md")
    # the first line is what Airflow shows before the note is opened
    lines = [f"**{outcome}:** {first}", "", *(f"- {line}" for line in others)]
    return "\n".join([*lines, *([""] if others else []), f"**What to do:** {'; '.join(todo)}"])


def of_recovery(
    dag_id: str,
    as_of: date | None,
    closed: Sequence[Incident],
    published: Mapping[str, date | None],
    now: datetime,
    timezone: str,
) -> Message:
    """The message that closes incidents: what failed, since when, for how long.

    Args:
        dag_id: the DAG whose run succeeded, for ``as_of``.
        closed: the incidents that it closed; at least one.
        published: prediction table → newest published ``as_of``.
        now: the instant of the recovery, with its zone.
        timezone: of the instants in the message.
    """
    zone = ZoneInfo(timezone)
    since = min(incident.opened_at for incident in closed)
    lines = [
        f"{incident.task_id or 'the DAG run'}: {_where(incident.cause)}: since"
        f" {incident.opened_at.astimezone(zone):%Y-%m-%d %H:%M %Z}, for"
        f" {duration(now - incident.opened_at)}, failed {_times(incident.times_seen)}"
        for incident in closed[:MAX_CAUSES]
    ]
    if len(closed) > MAX_CAUSES:
        lines.append(f"and {len(closed) - MAX_CAUSES} more: see ops.incidents")
    name = f"{dag_id} for as_of {as_of}" if as_of else dag_id
    tables = tuple(f"{table} is {_at(day)}" for table, day in published.items())
    places = list(dict.fromkeys(incident.task_id or "the DAG run" for incident in closed))
    return Message(
        _subject(
            f"recovered: {dag_id}, {', '.join(places)}, after {duration(now - since)}",
            _together(published),
        ),
        (
            Section(f"{name} succeeded; closed with it", tuple(lines)),
            Section("Predictions", tables),
        ),
    )


def of_question(question: str, lines: Sequence[str], answer_url: str, runbooks: str) -> Message:
    """The message that a person has to answer.

    Args:
        question: in one line.
        lines: what is known.
        answer_url: where to answer.
        runbooks: URL or path of the folder of runbooks.
    """
    runbook = f"{runbooks.rstrip('/')}/roll-back-a-model.md"
    return Message(
        _subject(question, ""),
        (
            Section(question, tuple(lines)),
            Section("What to do", (f"answer: {answer_url}", f"runbook: {runbook}")),
        ),
    )


def duration(elapsed: timedelta) -> str:
    """In its two largest units: ``3 d 4 h``, ``9 h 12 min``, ``4 min``."""
    minutes = max(0, int(elapsed.total_seconds() // 60))
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _run_name(failure: Failure) -> str:
    return f"{failure.dag_id} for as_of {failure.as_of}" if failure.as_of else failure.dag_id


def _where(cause: Cause) -> str:
    """Source, day, column and rule, as far as the cause has them."""
    parts = []
    if cause.source:
        landed = f" landed {cause.landed_date}" if cause.landed_date else ""
        parts.append(f"{cause.source}{landed}")
    if cause.column:
        parts.append(f"column {cause.column}")
    return ", ".join([*parts, cause.rule])


def _cause_line(cause: Cause, incident: Incident | None) -> str:
    line = _where(cause)
    if cause.observed:
        line = (
            cause.observed if masked(cause.observed) in cause.rule else f"{line}: {cause.observed}"
        )
    if cause.examples:
        line += f"; for example {', '.join(cause.examples)}"
    if incident is not None:
        line += f" (told before, failed {_times(incident.times_seen)})"
    return " ".join(line.split())


def _consequences(failure: Failure, published: Mapping[str, date | None] | None) -> list[str]:
    if published is None:
        return ["unknown: the warehouse does not answer; what was published stays"]
    if _is_training(failure.dag_id):
        return [
            f"{table} is {_at(day)}: nightly goes on, with the champion that it has"
            for table, day in published.items()
        ]
    lines = []
    for table, day in published.items():
        is_behind = failure.as_of is not None and (day is None or day < failure.as_of)
        missing = f": {failure.as_of} is not published" if is_behind else ""
        lines.append(f"{table} stays {_at(day)}{missing}")
    return lines


def _summary(dag_id: str, published: Mapping[str, date | None] | None) -> str:
    if published is None:
        return "the warehouse does not answer"
    return _together(published, ("is", "are") if _is_training(dag_id) else ("stays", "stay"))


def _together(published: Mapping[str, date | None], verbs: tuple[str, str] | None = None) -> str:
    """The tables of a day in one breath: a subject has little room, and a night many use cases."""
    tables: dict[date | None, list[str]] = {}
    for table, day in published.items():
        tables.setdefault(day, []).append(table)
    found = []
    for day, (first, *others) in tables.items():
        names = ", ".join([first, *(other.rpartition(".")[2] for other in others)])
        verb = "" if verbs is None else f" {verbs[bool(others)]}"
        found.append(f"{names}{verb} {_at(day)}")
    return ", ".join(found)


def _is_training(dag_id: str) -> bool:
    return dag_id.startswith("train__")


def _at(day: date | None) -> str:
    return "empty" if day is None else f"at {day}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _subject(what: str, consequence: str) -> str:
    """One line: a line break that came from the data would begin another header."""
    line = " ".join(f"[nightshift] {what}".split())
    tail = f"; {consequence}" if consequence else ""
    room = max(MAX_SUBJECT - len(tail), MAX_SUBJECT // 2)
    line = line if len(line) <= room else line[: room - 1] + "…"
    return (line + tail)[:MAX_SUBJECT]


def _cut(line: str) -> str:
    return line if len(line) <= MAX_NOTED_LINE else line[: MAX_NOTED_LINE - 1] + "…"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _linked(line: str) -> str:
    """Escaped, with the URL that ends a line of ours as a link."""
    match = re.fullmatch(r"(log|runbook|answer): (https?://\S+)", line)
    if match is None:
        return html.escape(line)
    url = html.escape(match[2])
    return f'{match[1]}: <a href="{url}">{url}</a>'
