"""What a receipt's page says, of facts that are told to it."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nightshift.receipt.facts import FeatureValues, Receipt, TrainingManifest
from nightshift.receipt.page import as_json, page
from nightshift.use_cases import CHURN, RECOMMENDATIONS

TOLD: dict[str, Any] = {
    "use_case": "churn",
    "entity": "ab12",
    "as_of": "2025-12-31",
    "row": {
        "churn_probability": 0.75,
        "band": "high",
        "reasons": [
            {"feature": "recency", "value": 0.1, "contribution": 1.5, "direction": "raises"},
            {"feature": "gap", "value": None, "contribution": -0.5, "direction": "lowers"},
        ],
    },
    "named": {},
    "others": {"rows": 0, "first": []},
    "missing": [],
    "publication": {
        "publication_id": "0123456789abcdef",
        "rows": 1200,
        "is_seen": True,
        "model_version": "3",
        "mlflow_run_id": "run",
        "scored_at": "2025-12-31T02:10:00+00:00",
        "published_at": "2025-12-31T02:11:00+00:00",
    },
    "made_from": None,
    "moves": [],
    "audit": [
        {"rule": "not_empty", "outcome": "passed", "detail": ""},
        {"rule": "psi", "outcome": "not_applied", "detail": "nothing before"},
    ],
    "decision": {
        "action": "promotion",
        "actor": "approval",
        "person": "Ada",
        "reason": "looks right",
        "promoted_at": "2025-12-28T09:00:00+00:00",
        "despite_gates": False,
    },
    "gates": [{"gate": "at_least_auc", "passed": False, "detail": "auc 0.5, at least 0.65"}],
    "sources": [],
    "quality": [
        {"run_id": 7, "checked": "order_lines", "landed_date": "2025-12-30", "rule": rule,
         "severity": "warning", "success": success}
        for rule, success in (("prices", False), ("rows", True))
    ],
}  # fmt: skip
# 0.1 as the float32 that the model was given is another double
VALUES = FeatureValues(Path("f"), Path("f/part-0"), {"recency": 0.1, "gap": None}, True, None)
TRAINING = TrainingManifest("MLflow run run", "c0ffee", {"rows": 9}, None, None)
RECEIPT = Receipt(CHURN, TOLD, VALUES, TRAINING, (), None)


def read(receipt: Receipt) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(page(receipt))
    return " ".join(re.sub("[│┃]", " ", console.export_text()).split())


def told(**more: Any) -> Receipt:
    return replace(RECEIPT, told=TOLD | more)


def test_the_page_names_who_decided_and_what_was_broken() -> None:
    shown = read(RECEIPT)
    for words in (
        "churn_probability 0.75, band high",
        "recency = 0.1 raises it (+1.5); gap = null lowers it (-0.5)",
        "0123456789abcdef, 1,200 rows: readers see it",
        "1 of 1 rules passed",
        "approver Ada, asked after the gates",
        "at_least_auc FAILED auc 0.5",
        "0 of 1 passed",
        "made again from the rows of today: the same bits",
        "order_lines 2025-12-30 1 of 2 prices (warning)",
        "Nothing is missing",
    ):
        assert words in shown, words
    assert as_json(RECEIPT)["features"]["remade"] == []


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        ({"actor": "gates", "person": None}, "approver the gates, by themselves"),
        ({"actor": "person", "despite_gates": True}, "approver Ada, despite gates that failed"),
    ],
)
def test_the_approver_is_a_person_or_the_gates(decision: dict[str, Any], words: str) -> None:
    assert words in read(told(decision=TOLD["decision"] | decision))


def test_other_rows_of_the_same_key_are_named() -> None:
    rows = [{"customer_id": "ab12", "product_id": f"p{i}"} for i in range(9)]
    row = TOLD["row"] | {"customer_id": "ab12", "product_id": "p9", "rank_score": 2.5}
    many = replace(RECEIPT, use_case=RECOMMENDATIONS, told=TOLD | {"row": row})
    others = {"others": {"rows": 12, "first": rows}}
    shown = read(replace(many, told=many.told | others))
    assert "customer_id ab12 · product_id p9 as of" in shown
    assert "12 more, with lower scores: --row product_id=p0, --row product_id=p1" in shown
    assert "--row product_id=p7…" in shown and "p8" not in shown
    assert "other rows" not in read(many)
    of_a_product = [{"customer_id": f"c{i}", "product_id": "p9"} for i in range(2)]
    shown = read(replace(many, told=many.told | {"others": {"rows": 2, "first": of_a_product}}))
    assert "2 more, with lower scores: c0 --row product_id=p9, c1 --row product_id=p9" in shown


def test_a_rollback_is_told_with_its_reason() -> None:
    move = {
        "to_publication_id": "another", "person": "Ada", "reason": "wrong prices",
        "moved_at": "2026-01-02T08:00:00+00:00",
    }  # fmt: skip
    assert "rolled back from it 2026-01-02 08:00 by Ada: wrong prices" in read(told(moves=[move]))


def test_of_many_files_the_newest_are_shown() -> None:
    files = [
        {"path": f"f{day:02}", "landed_date": f"2025-12-{day:02}", "sha256": "0" * 64,
         "loaded_at": "2025-12-31T01:00:00+00:00", "status": "replaced" if day == 20 else "loaded",
         "rows": 9, "row_numbers": None if day == 19 else list(range(1, 10)), "file_id": day,
         "is_joined": day == 19}
        for day in range(1, 21)
    ]  # fmt: skip
    source = {
        "relation": "marts.m", "key": "shop_id", "value": "7",
        "landed_files": {"rows": 180, "files": files},
    }  # fmt: skip
    shown = read(told(sources=[source]))
    assert "180 rows of marts.m by shop_id that were known, from 20 files" in shown
    assert "2025-12-19 f19 9 joined 2025-12-31 01:00" in shown
    assert "2025-12-20 f20 9: 1, 2, 3, 4, 5, 6, 7, 8… 2025-12-31 01:00 replaced" in shown
    assert "f11" in shown and "f10" not in shown
    assert "and 10 older files: --json lists them" in shown


@pytest.mark.parametrize(
    ("receipt", "words"),
    [
        (told(row=None, missing=["no longer kept"]), "- no longer kept"),
        (
            replace(RECEIPT, features=replace(VALUES, vector={"recency": 0.2, "gap": None})),
            "the published reasons have other values of recency",
        ),
        (replace(RECEIPT, remade=("recency",)), "1 features have other values: recency;"),
        (
            replace(RECEIPT, remade=None, remade_problem="the lake is empty"),
            "the features cannot be made again: the lake is empty",
        ),
        (
            replace(RECEIPT, training=replace(TRAINING, is_dataset=False)),
            "names another training set than the scored model",
        ),
        (
            told(sources=[{"relation": "marts.m", "landed_files": None}]),
            "there is no table marts.m to find its rows in",
        ),
        (
            told(
                sources=[
                    {
                        "relation": "marts.m",
                        "key": "shop_id",
                        "value": None,
                        "event_relation": "marts.m",
                        "landed_files": {"rows": 0, "files": []},
                    }
                ]
            ),
            "marts.m no longer has the event, and so not its shop_id",
        ),
    ],
)
def test_what_is_not_as_it_was_is_said(receipt: Receipt, words: str) -> None:
    shown = read(receipt)
    assert "Not there, or not as it was" in shown
    assert words in shown
