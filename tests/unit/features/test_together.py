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
    return together.lines(pa.Table.from_pylist(rows), POPULATION, generator)


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
