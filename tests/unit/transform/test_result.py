from nightshift.transform.result import NodeResult, failure, held_by, summarise

BUILT = NodeResult("stg_order_lines", "model", "success", 0.1, "CREATE VIEW", None, "stg.sql")
FAILED = NodeResult(
    "unique_fct_order_lines_order_line_id",
    "test",
    "fail",
    0.25,
    "Got 2 results,\n  configured to fail if != 0",
    2,
    "unique.sql",
)
WARNED = NodeResult("landed_within_5_days", "test", "warn", 0.1, "Got 1 result", 1, "warn.sql")
SKIPPED = NodeResult("dim_customers", "model", "skipped", 0.0, "", None, None)


def test_summary_keeps_status_and_seconds_of_each_node() -> None:
    result = summarise([BUILT, FAILED, SKIPPED])

    assert result.nodes == {
        "stg_order_lines": "success",
        "unique_fct_order_lines_order_line_id": "fail",
        "dim_customers": "skipped",
    }
    assert result.seconds["unique_fct_order_lines_order_line_id"] == 0.25
    assert result.failed == ("unique_fct_order_lines_order_line_id",)


def test_failure_names_the_node_its_message_and_its_sql() -> None:
    error = failure([BUILT, FAILED, SKIPPED])

    assert error is not None
    assert error.what == (
        "dbt build: test unique_fct_order_lines_order_line_id failed (2 rows break it): Got 2"
        " results, configured to fail if != 0; its SQL: unique.sql; 1 nodes were skipped"
    )


def test_a_failed_node_holds_the_sources_that_it_is_made_of() -> None:
    def node(name: str, status: str, *sources: str) -> NodeResult:
        return NodeResult(name, "model", status, 0.1, f"of {name}", None, None, sources)

    both = ("cards", "orders")
    of_cards, of_orders = node("a", "error", "cards"), node("b", "success", "orders")
    of_both, of_none = node("c", "error", *both), node("d", "error")

    assert set(held_by([of_cards, of_orders, node("c", "skipped", *both)], both)) == {"cards"}
    assert "model a failed: of a; 1 nodes" in (
        held_by([of_cards, node("c", "skipped", *both)], both)["cards"].what
    )
    assert set(held_by([of_orders, of_both], both)) == set(both)
    assert set(held_by([of_orders, of_none], both)) == set(both)
    assert held_by([of_orders], both) == {}


def test_a_warning_is_no_failure() -> None:
    assert failure([BUILT, WARNED]) is None


def test_failure_shows_no_row() -> None:
    message = (
        'Database Error\n  null value in column "country" violates not-null constraint\n'
        "  DETAIL:  Failing row contains (1:1, 17850,\n (2), null).\n  compiled code at fct.sql"
    )
    broken = NodeResult("fct_order_lines", "model", "error", 0.1, message, None, None)

    error = failure([broken])

    assert error is not None
    assert error.what == (
        'dbt build: model fct_order_lines failed: Database Error null value in column "country"'
        " violates not-null constraint compiled code at fct.sql"
    )
