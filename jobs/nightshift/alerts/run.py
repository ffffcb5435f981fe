"""Open incidents, close them, and send what they say through Airflow's notifiers.

The message is written in the transaction that opens or closes the incident, and sent after it: a
kill between the two, or a mail server that does not answer, delays a message until the next failed
task or ended run, and loses none. A message may be sent twice if the process dies while it is sent.
Nothing here raises: an alert must not hide the error that it tells of.
"""

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
from psycopg2.extensions import connection as Connection

from nightshift.alerts.failure import Failure, without_personal_data
from nightshift.alerts.message import Incident, Message, of_failure, of_question, of_recovery
from nightshift.contracts import SOURCES, load_contract
from nightshift.errors import Cause, NightshiftError
from nightshift.io.warehouse import connect, migrate
from nightshift.settings import Settings
from nightshift.use_cases import USE_CASES

logger = logging.getLogger(__name__)

_CONNECTIONS = {"email": "smtp_default", "webhook": "slack_default"}
WEBHOOK_SECONDS = 10


def report_failure(settings: Settings, failure: Failure) -> None:
    """Record what failed, and tell of it unless the same is open and was told already."""
    failure = replace(failure, causes=tellable(failure.causes))
    try:
        _record_failure(settings, failure)
        shutil.rmtree(_told_without_warehouse(settings), ignore_errors=True)
    except (psycopg2.Error, NightshiftError) as error:
        logger.error("the incident is not recorded: %s", error)
        _tell_without_warehouse(settings, failure, str(error).strip().splitlines()[0])
        return
    send_unsent(settings)


def report_failed_run(settings: Settings, failure: Failure) -> bool:
    """The same for a DAG run that failed, unless the task that failed it has reported itself.

    A task that was killed, or never ran, cannot.

    Returns:
        Whether the task has reported itself.
    """
    try:
        _ensure_tables(settings)
        with connect(settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "select exists (select from ops.incidents where dag_id = %s"
                " and %s = any(run_ids || last_run_id)"
                " and task_id is not distinct from %s and closed_at is null)",
                (failure.dag_id, failure.run_id, failure.task_id),
            )
            is_reported = cursor.fetchone()[0]
    except (psycopg2.Error, NightshiftError):
        is_reported = False  # and report_failure meets the same
    if is_reported:
        send_unsent(settings)
    else:
        report_failure(settings, failure)
    return is_reported


def report_success(settings: Settings, dag_id: str, as_of: date | None) -> None:
    """Close the DAG's incidents up to ``as_of``, and tell of them in one message.

    An incident of a later ``as_of`` stays open: a backfill of old nights repairs no newer one.
    """
    try:
        _record_success(settings, dag_id, as_of)
    except (psycopg2.Error, NightshiftError) as error:
        logger.error("incidents of %s stay open: %s", dag_id, error)
        return
    send_unsent(settings)


def report_question(
    settings: Settings, question: str, lines: Sequence[str], answer_url: str
) -> None:
    """Tell that a person has to answer ``question``, at ``answer_url``."""
    try:
        _ensure_tables(settings)
        with connect(settings) as connection:
            message = of_question(question, lines, answer_url, settings.runbooks_url)
            _write(connection, settings, "question", [], message)
    except (psycopg2.Error, NightshiftError) as error:
        logger.error("nobody is told of the question: %s", error)
        return
    send_unsent(settings)


def tellable(causes: tuple[Cause, ...]) -> tuple[Cause, ...]:
    """The causes without personal data; without any example where no contract says what is."""
    try:
        personal = {(s, column) for s in SOURCES for column in load_contract(s).pii}
    except NightshiftError:  # it may be what failed
        return tuple(replace(cause, examples=()) for cause in causes)
    return without_personal_data(causes, personal)


def send_unsent(settings: Settings) -> None:
    """Send every message that is written and not sent, oldest first.

    A channel that fails is left alone until the next time; the other one goes on.
    """
    channels = _channels(settings)
    try:
        with connect(settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "select message_id, channel from ops.alert_messages"
                " where sent_at is null and channel = any(%s) order by message_id",
                (list(channels),),
            )
            unsent = cursor.fetchall()
        broken: set[str] = set()
        for message_id, channel in unsent:
            if channel not in broken and not _send_one(settings, message_id, channel):
                broken.add(channel)
    except (psycopg2.Error, NightshiftError) as error:
        logger.error("alerts wait for the warehouse: %s", error)


def _send_one(settings: Settings, message_id: int, channel: str) -> bool:
    """Whether the message is sent now, or someone else is sending it."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select kind, incident_ids, subject, body from ops.alert_messages"
            " where message_id = %s and sent_at is null for update skip locked",
            (message_id,),
        )
        row = cursor.fetchone()
        if row is None:
            return True
        kind, incident_ids, subject, body = row
        error = _notify(settings, channel, subject, body)
        cursor.execute(
            "update ops.alert_messages set attempts = attempts + 1, last_error = %s,"
            " sent_at = case when %s then null else clock_timestamp() end where message_id = %s",
            (error, error is not None, message_id),
        )
        if error is None:
            told = "notified_at" if kind == "failure" else "recovery_notified_at"
            cursor.execute(
                f"update ops.incidents set {told} = coalesce({told}, clock_timestamp())"
                " where incident_id = any(%s)",
                (incident_ids,),
            )
    return error is None


def _ensure_tables(settings: Settings) -> None:
    """Migrate where no run of this version has: migrating waits for every open transaction."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass('ops.alert_messages')")
        (found,) = cursor.fetchone()
    if found is None:
        migrate(settings)


def _record_failure(settings: Settings, failure: Failure) -> None:
    _ensure_tables(settings)
    with connect(settings) as connection:
        told, ids = _count(connection, failure)
        if len(told) == len(ids):
            logger.info("incident %s is open, and was told", ", ".join(map(str, ids)))
            return
        tables = _published(connection, failure.dag_id)
        message = of_failure(failure, tables, told, settings.runbooks_url)
        _write(connection, settings, "failure", ids, message)


def _count(connection: Connection, failure: Failure) -> tuple[dict[Cause, Incident], list[int]]:
    """Open an incident a cause, or count on the one that is open: (the latter, ids of all)."""
    told: dict[Cause, Incident] = {}
    ids = []
    with connection.cursor() as cursor:
        # in one order, so that two tasks that fail at once do not wait for each other
        for cause in sorted(set(failure.causes), key=repr):
            cursor.execute(
                "insert into ops.incidents (dag_id, task_id, source, landed_date, column_name,"
                " rule, message, examples, as_of, last_as_of, last_run_id, run_ids)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
                " on conflict (dag_id, task_id, source, landed_date, column_name, rule)"
                " where closed_at is null do update set"
                " message = excluded.message, examples = excluded.examples,"
                " last_as_of = greatest(incidents.last_as_of, excluded.last_as_of),"
                " last_run_id = excluded.last_run_id, last_seen_at = now(),"
                " run_ids = array_remove(incidents.run_ids, excluded.last_run_id)"
                " || excluded.last_run_id,"
                " times_seen = incidents.times_seen + 1"
                " returning incident_id, opened_at, times_seen",
                (
                    failure.dag_id, failure.task_id, cause.source, cause.landed_date, cause.column,
                    cause.rule, cause.observed, list(cause.examples), failure.as_of, failure.as_of,
                    failure.run_id, [failure.run_id],
                ),
            )  # fmt: skip
            incident_id, opened_at, times_seen = cursor.fetchone()
            ids.append(incident_id)
            if times_seen > 1:
                told[cause] = Incident(incident_id, failure.task_id, cause, opened_at, times_seen)
    return told, ids


def _record_success(settings: Settings, dag_id: str, as_of: date | None) -> None:
    _ensure_tables(settings)
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "update ops.incidents set closed_at = now() where dag_id = %s and closed_at is null"
            " and (last_as_of is null or last_as_of <= %s) returning incident_id, task_id, rule,"
            " source, landed_date, column_name, message, opened_at, times_seen",
            (dag_id, as_of),
        )
        closed = [
            Incident(row[0], row[1], Cause(*row[2:7]), row[7], row[8])
            for row in sorted(cursor.fetchall())
        ]
        if closed:
            message = of_recovery(
                dag_id,
                as_of,
                closed,
                _published(connection, dag_id),
                datetime.now(UTC),
                settings.timezone,
            )
            ids = [incident.incident_id for incident in closed]
            _write(connection, settings, "recovery", ids, message)


def _write(
    connection: Connection, settings: Settings, kind: str, ids: Sequence[int], message: Message
) -> None:
    """Put the message in its envelope, one a channel, in the open transaction."""
    with connection.cursor() as cursor:
        for channel in _channels(settings):
            cursor.execute(
                "insert into ops.alert_messages (kind, channel, incident_ids, subject, body)"
                " values (%s, %s, %s, %s, %s)",
                (kind, channel, list(ids), message.subject, _body(message, channel)),
            )


def _published(connection: Connection, dag_id: str) -> dict[str, date | None]:
    """Prediction table → newest published ``as_of``, of the tables that the DAG serves."""
    name = dag_id.removeprefix("train__")
    served = [u for u in USE_CASES if u.name == name] or list(USE_CASES)
    with connection.cursor() as cursor:
        cursor.execute("select use_case, max(as_of) from predictions.pointers group by use_case")
        newest: Mapping[str, date] = dict(cursor.fetchall())
    return {use_case.table: newest.get(use_case.name) for use_case in served}


def _tell_without_warehouse(settings: Settings, failure: Failure, reason: str) -> None:
    """Send at once what cannot be recorded, once a DAG run: a file remembers that it was sent."""
    run = hashlib.sha256(f"{failure.dag_id} {failure.run_id}".encode()).hexdigest()
    told = _told_without_warehouse(settings) / run[:16]
    if told.exists():
        return
    unrecorded = f"{reason}; every failed run sends this until the warehouse answers"
    message = of_failure(failure, None, {}, settings.runbooks_url, unrecorded)
    errors = [
        _notify(settings, channel, message.subject, _body(message, channel))
        for channel in _channels(settings)
    ]
    if None in errors:
        with suppress(OSError):
            told.parent.mkdir(parents=True, exist_ok=True)
            told.touch()


def _told_without_warehouse(settings: Settings) -> Path:
    return settings.state_dir / "alerts"


def connections(settings: Settings) -> list[str]:
    """Ids of the Airflow connections that the channels which are switched on send by."""
    return [_CONNECTIONS[channel] for channel in _channels(settings)]


def _channels(settings: Settings) -> list[str]:
    return ["email"] * bool(settings.alert_recipients) + ["webhook"] * settings.alert_webhook


def _body(message: Message, channel: str) -> str:
    return message.as_html() if channel == "email" else message.as_mrkdwn()


def _require_url(webhook: str) -> None:
    """Refuse what would be quoted, secret and all, by the error of who reads it as a URL."""
    try:
        is_url = urlsplit(webhook).port != 0 and re.search(r"[\s\x00-\x1f\x7f]", webhook) is None
    except ValueError:
        is_url = False
    if not is_url:
        raise ValueError("the connection's password is no URL: look for a space in it")


def _notify(settings: Settings, channel: str, subject: str, body: str) -> str | None:
    """Send through Airflow's notifier of the channel: None, or what went wrong."""
    from airflow.sdk.bases.hook import BaseHook
    from airflow.sdk.bases.notifier import BaseNotifier

    notifier: BaseNotifier
    if channel == "email":
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        notifier = SmtpNotifier(
            to=list(settings.alert_recipients),
            subject=subject,
            html_content=body,
            smtp_conn_id=_CONNECTIONS[channel],
        )
    else:
        from airflow.providers.slack.notifications.slack_webhook import SlackWebhookNotifier

        notifier = SlackWebhookNotifier(
            text=body,
            slack_webhook_conn_id=_CONNECTIONS[channel],
            timeout=WEBHOOK_SECONDS,
            retry_handlers=[],  # they log the URL, which is the secret
        )
    try:
        if channel == "webhook":
            _require_url(BaseHook.get_connection(_CONNECTIONS[channel]).password or "")
        # not notifier(context): that renders the text as a template, and parts of it are data
        notifier.notify({})
    except Exception as error:  # of any library behind the notifier
        logger.error(
            "the alert is not sent by %s: %r\n  → correct Airflow's connection %s; it is sent again"
            " when a task fails or a run ends",
            channel, error, _CONNECTIONS[channel],
        )  # fmt: skip
        return repr(error)
    logger.info("alert sent by %s: %s", channel, subject)
    return None
