"""What is bought together, of a handful of orders."""

from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nightshift.features import kernel, together
from nightshift.spec import BoughtTogether, Candidates
from nightshift.use_cases.recommendations import RECOMMENDATIONS

AS_OF = date(2011, 9, 9)
POPULATION = RECOMMENDATIONS.population
assert isinstance(POPULATION, Candidates)


def lines(*orders: tuple[str, int, int, str | None]) -> together.Lines:
    """Orders of (products, one letter each; days before as_of; days until it landed; its name)."""
    rows: list[dict[str, Any]] = []
    for products, days, late, name in orders:
        at = datetime.combine(AS_OF - timedelta(days=days), datetime.min.time())
        rows += [
            {
                "invoice_id": name, "product_id": product, "invoiced_at": at,
                "landed_date": at.date() + timedelta(days=late), "is_cancellation": False,
                "quantity": 1, "is_product": product != "P",
            }
            for product in products
        ]  # fmt: skip
    generator = BoughtTogether(order="invoice_id", days=30, limit=5)
    return together.lines([pa.Table.from_pylist(rows)], POPULATION, generator)


def nearest(found: together.Lines, **changes: Any) -> list[tuple[str, str, float]]:
    wanted: dict[str, Any] = {"order": "invoice_id", "days": 30, "limit": 5, "shrinkage": 0}
    generator = BoughtTogether(**(wanted | changes))
    known = (AS_OF - kernel.EPOCH).days
    orders = together.orders(found, generator, AS_OF, known)
    table = together.neighbours(orders, generator, np.ones(len(found.items), bool))
    return [tuple(row.values()) for row in table.to_pylist()]  # type: ignore[misc]


def test_nearness_is_the_cosine_of_orders_shrunken() -> None:
    found = lines(("AB", 3, 0, "1"), ("ABC", 2, 0, "2"), ("A", 1, 0, "3"), ("AAP", 1, 0, "4"))
    cosine = {("A", "B"): 2 / np.sqrt(4 * 2), ("A", "C"): 1 / 2, ("B", "C"): 1 / np.sqrt(2)}
    expected = [
        ("A", "B"), ("A", "C"), ("B", "A"), ("B", "C"), ("C", "B"), ("C", "A"),
    ]  # fmt: skip
    assert [row[:2] for row in nearest(found)] == expected
    for one, other, value in nearest(found):
        assert value == pytest.approx(cosine[min(one, other), max(one, other)])
    assert nearest(found, shrinkage=2, neighbours=1)[0] == ("A", "B", 2 / (np.sqrt(8) + 2))
    assert len(nearest(found, neighbours=1)) == 3


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (("AB", 0, 0, "1"), "it happens at as_of"),
        (("AB", 31, 0, "1"), "it is before the window"),
        (("AB", 1, 1, "1"), "it lands at as_of"),
        (("AB", 30, -1, "1"), "it landed before the window"),
        (("AP", 1, 0, "1"), "postage is no product"),
        (("AB", 1, 0, None), "it has no name"),
        (("A", 1, 0, "1"), "one item is bought with none"),
    ],
)
def test_what_does_not_count(order: tuple[str, int, int, str | None], why: str) -> None:
    assert nearest(lines(order)) == [], why


def test_an_order_of_too_many_items_tells_nothing() -> None:
    found = lines(("AB", 30, 0, "1"), ("BCD", 1, 0, "2"))
    assert [row[:2] for row in nearest(found, most_items=2)] == [("A", "B"), ("B", "A")]
    assert len(nearest(found, most_items=3)) == 8


def test_rows_may_come_in_parts_with_codes_of_their_own() -> None:
    generator = BoughtTogether(order="invoice_id", days=30, limit=5)
    population = POPULATION.model_copy(update={"where": "product_id <> 'P'"})
    at = datetime.combine(AS_OF - timedelta(days=1), datetime.min.time())
    row = {"invoiced_at": at, "landed_date": at.date()}
    one = [
        {"invoice_id": order, "product_id": item, **row}
        for order, item in [("1", "B"), ("1", "A"), ("2", "P"), ("2", "A"), ("3", "C")]
    ]
    other = [
        {"invoice_id": order, "product_id": item, **row}
        for order, item in [("3", "A"), ("2", "C"), ("1", None), (None, "A")]
    ]

    def encoded(rows: list[dict[str, Any]]) -> pa.Table:
        table = pa.Table.from_pylist(rows)
        for place, name in enumerate(table.column_names[:2]):
            table = table.set_column(place, name, table[name].dictionary_encode())
        return table

    parts = [encoded(one), encoded(other)]
    found = together.lines(parts, population, generator)
    assert nearest(found) == nearest(together.lines([encoded(one + other)], population, generator))
    assert {row[:2] for row in nearest(found)} == {("A", "B"), ("B", "A"), ("A", "C"), ("C", "A")}


def test_a_condition_may_name_no_column() -> None:
    population = POPULATION.model_copy(update={"where": "true"})
    generator = BoughtTogether(order="invoice_id", days=30, limit=5)
    at = datetime.combine(AS_OF - timedelta(days=1), datetime.min.time())
    row = {"invoice_id": "1", "invoiced_at": at, "landed_date": at.date()}
    table = pa.Table.from_pylist([{"product_id": item, **row} for item in "AB"])
    found = together.lines([table], population, generator)
    assert {row[:2] for row in nearest(found)} == {("A", "B"), ("B", "A")}
