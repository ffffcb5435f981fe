from datetime import UTC, date, datetime, timedelta

import pytest

from nightshift.alerts.failure import Failure
from nightshift.alerts.message import (
    MAX_CAUSES,
    MAX_SUBJECT,
    Incident,
    duration,
    of_failure,
    of_recovery,
)
from nightshift.errors import Cause

AS_OF = date(2026, 1, 9)
BEFORE = date(2026, 1, 8)
PRICES = Cause(
    rule="expect_column_median_to_be_between",
    source="order_lines",
    landed_date=BEFORE,
    column="price",
    observed="observed 295.0, expected at most 8.85",
    examples=("invoice 536365", "invoice 536366"),
)
LOG = "http://localhost:8080/dags/nightly/runs/r/tasks/quality.check_landed?try_number=1"


def failure(*causes: Cause, dag_id: str = "nightly", task_id: str | None = "t") -> Failure:
    return Failure(
        causes=causes,
        remedy="look at the file",
        runbook="quality-failed",
        dag_id=dag_id,
        run_id="r",
        task_id=task_id,
        as_of=AS_OF,
        log_url=LOG,
    )


def test_a_failure_says_what_where_which_predictions_stay_and_what_to_do() -> None:
    stopped = failure(PRICES, task_id="quality.check_landed")
    message = of_failure(stopped, {"predictions.churn": BEFORE}, {}, "docs/runbooks")

    assert message.subject == (
        "[nightshift] nightly 2026-01-09 stopped at quality.check_landed: order_lines landed"
        " 2026-01-08, column price, expect_column_median_to_be_between;"
        " predictions.churn stays at 2026-01-08"
    )
    assert message.as_text() == (
        "nightly for as_of 2026-01-09 stopped at quality.check_landed\n"
        "- order_lines landed 2026-01-08, column price, expect_column_median_to_be_between:"
        " observed 295.0, expected at most 8.85; for example invoice 536365, invoice 536366\n"
        "\n"
        "Predictions\n"
        "- predictions.churn stays at 2026-01-08: 2026-01-09 is not published\n"
        "\n"
        "What to do\n"
        "- look at the file\n"
        f"- log: {LOG}\n"
        "- runbook: docs/runbooks/quality-failed.md\n"
    )


@pytest.mark.parametrize(
    ("published", "line"),
    [
        ({"predictions.churn": None}, "predictions.churn stays empty: 2026-01-09 is not published"),
        ({"predictions.churn": AS_OF}, "predictions.churn stays at 2026-01-09\n"),
        (None, "the warehouse does not answer; what was published stays"),
    ],
)
def test_predictions_that_were_never_published_or_are_as_unknown(
    published: dict[str, date | None] | None, line: str
) -> None:
    assert line in of_failure(failure(PRICES), published, {}, "").as_text()


def test_a_training_that_fails_keeps_the_champion_and_nightly_goes_on() -> None:
    gate = Cause("at_least_auc", observed="0.51 is below 0.6")
    stopped = failure(gate, dag_id="train__churn", task_id="judge_gates")
    message = of_failure(stopped, {"predictions.churn": BEFORE}, {}, "")
    assert "at_least_auc: 0.51 is below 0.6" in message.as_text()
    assert "nightly goes on, with the champion that it has" in message.as_text()
    assert "predictions.churn is at 2026-01-08" in message.subject


def test_what_is_new_is_told_apart_from_what_is_open() -> None:
    known = Incident(1, "t", PRICES, datetime(2026, 1, 8, tzinfo=UTC), times_seen=3)
    new = Cause("rows", "chargebacks", BEFORE)
    text = of_failure(failure(PRICES, new), {}, {PRICES: known}, "").as_text()
    assert "invoice 536366 (told before, failed 3 times)" in text
    assert "- chargebacks landed 2026-01-08, rows\n" in text


def test_many_causes_are_counted() -> None:
    causes = [Cause(f"rule {number}") for number in range(MAX_CAUSES + 2)]
    message = of_failure(failure(*causes), {}, {}, "")
    assert "- and 2 more: see the log" in message.as_text()
    assert f"(+{MAX_CAUSES + 1} more)" in message.subject


def test_a_plain_refusal_is_its_own_rule() -> None:
    plain = Cause("RefusedAsOf: as_of #-#-# is early", observed="as_of 2026-01-09 is early")
    message = of_failure(failure(plain), {}, {}, "")
    assert "\n- as_of 2026-01-09 is early\n" in message.as_text()


def test_nothing_in_the_data_breaks_out_of_the_message() -> None:
    hostile = Cause(
        "<script>x</script> <!channel>\r\nBcc: all@example.com",
        examples=("order_lines/ds=2026-01-08/{{ 7*7 }}<b>.csv",),
    )
    message = of_failure(failure(hostile), {}, {}, "https://git.example.com/runbooks/")

    assert "\n" not in message.subject and "\r" not in message.subject
    assert "<script>" not in message.as_html()
    assert "{{ 7*7 }}&lt;b&gt;.csv" in message.as_html()
    assert "<!channel>" not in message.as_mrkdwn()
    assert "\nBcc" not in message.as_text()
    link = "https://git.example.com/runbooks/quality-failed.md"
    assert f'<a href="{link}">{link}</a>' in message.as_html()


def test_a_subject_keeps_its_length_and_its_consequence() -> None:
    long = Cause("x" * 500)
    subject = of_failure(failure(long), {"predictions.churn": BEFORE}, {}, "").subject
    assert len(subject) == MAX_SUBJECT
    assert subject.endswith("…; predictions.churn stays at 2026-01-08")


def test_a_subject_tells_the_tables_of_a_day_together() -> None:
    tables = {
        "predictions.churn": BEFORE, "predictions.fraud": AS_OF, "predictions.spend": BEFORE,
    }  # fmt: skip
    stopped = of_failure(failure(PRICES), tables, {}, "").subject
    assert stopped.endswith(
        "; predictions.churn, spend stay at 2026-01-08, predictions.fraud stays at 2026-01-09"
    )
    opened = datetime(2026, 1, 9, tzinfo=UTC)
    closed = [Incident(1, "quality.check_landed", PRICES, opened, times_seen=1)]
    recovered = of_recovery("nightly", AS_OF, closed, tables, opened, "UTC")
    assert recovered.subject.endswith(
        "; predictions.churn, spend at 2026-01-08, predictions.fraud at 2026-01-09"
    )


def test_a_recovery_says_what_since_when_and_how_long() -> None:
    opened = datetime(2026, 1, 9, 0, 3, tzinfo=UTC)
    closed = [Incident(1, "quality.check_landed", PRICES, opened, times_seen=2)]
    message = of_recovery(
        "nightly",
        AS_OF,
        closed,
        {"predictions.churn": AS_OF},
        opened + timedelta(hours=9, minutes=12, seconds=59),
        "Europe/Berlin",
    )
    assert message.subject == (
        "[nightshift] recovered: nightly, quality.check_landed, after 9 h 12 min;"
        " predictions.churn at 2026-01-09"
    )
    assert message.as_text() == (
        "nightly for as_of 2026-01-09 succeeded; closed with it\n"
        "- quality.check_landed: order_lines landed 2026-01-08, column price,"
        " expect_column_median_to_be_between: since 2026-01-09 01:03 CET, for 9 h 12 min,"
        " failed 2 times\n"
        "\n"
        "Predictions\n"
        "- predictions.churn is at 2026-01-09\n"
    )


@pytest.mark.parametrize(
    ("elapsed", "text"),
    [
        (timedelta(seconds=-5), "0 min"),
        (timedelta(seconds=59), "0 min"),
        (timedelta(minutes=59), "59 min"),
        (timedelta(minutes=60), "1 h 0 min"),
        (timedelta(hours=24), "1 d 0 h"),
        (timedelta(days=3, hours=4, minutes=50), "3 d 4 h"),
    ],
)
def test_duration(elapsed: timedelta, text: str) -> None:
    assert duration(elapsed) == text
