"""A receipt as one page that a person reads, and as JSON. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from nightshift.receipt.facts import Receipt

FILES_SHOWN = 10
ROWS_SHOWN = 8
SHORT = 12
"""Digits of a SHA-256 that the page shows; the JSON has all."""


def as_json(receipt: Receipt) -> dict[str, Any]:
    """All that the page shows, and what it shortens."""
    features, training = receipt.features, receipt.training
    return {
        **receipt.told,
        "missing": receipt.missing,
        "features": {
            **asdict(features),
            "remade": None if receipt.remade is None else list(receipt.remade),
        },
        "training": asdict(training),
    }


def page(receipt: Receipt) -> Group:
    """The page, top to bottom as a person asks: what, by which model, who let it, from what."""
    told = receipt.told
    shown: list[RenderableType] = [
        Text(
            f"Receipt: {receipt.use_case.title}, {_name(receipt)} as of {told['as_of']}",
            style="bold",
        ),
        _published(receipt),
        _model(receipt),
        _gates(told["gates"]),
        _features(receipt),
        *(_files(source) for source in told["sources"] if source["landed_files"] is not None),
        _quality(told["quality"]),
    ]
    missing = receipt.missing
    heading = "Not there, or not as it was" if missing else "Nothing is missing"
    shown.append(Text(heading, style="bold yellow" if missing else "bold green"))
    shown += [Text(f"- {each}") for each in missing]
    return Group(*shown)


def _name(receipt: Receipt) -> str:
    told, use_case = receipt.told, receipt.use_case
    asked = {use_case.key: told["entity"]} if told["entity"] else {}
    row = told["row"] or asked | told["named"]
    return " · ".join(f"{name} {row[name]}" for name in use_case.row_key if name in row)


def _pairs(title: str, pairs: Mapping[str, str]) -> Table:
    table = Table(
        Column(style="dim", no_wrap=True), Column(overflow="fold"), title=title, show_header=False,
        title_justify="left", title_style="bold",
    )  # fmt: skip
    for name, value in pairs.items():
        table.add_row(name, Text(value))
    return table


def _table(title: str, *columns: str) -> Table:
    return Table(
        *(Column(name, overflow="fold", no_wrap=name in ("file", "loaded")) for name in columns),
        title=title, title_justify="left", title_style="bold", min_width=len(title),
    )  # fmt: skip


def _time(stamp: str | None) -> str:
    return "never" if stamp is None else stamp[:16].replace("T", " ")


def _short(sha256: str | None) -> str:
    return f"SHA-256 {sha256[:SHORT]}…" if sha256 else "no SHA-256 recorded"


def _published(receipt: Receipt) -> Table:
    told, row = receipt.told, receipt.told["row"]
    publication, made = told["publication"], told["made_from"] or {}
    pairs = {"row": "none; see below"}
    if row is not None:
        pairs = {
            receipt.use_case.score_column: f"{row[receipt.use_case.score_column]!r}, band"
            f" {row['band']}",
            **{name: repr(row[name]) for name in receipt.use_case.interval_columns},
            "reasons": "; ".join(
                f"{each['feature']} = {'null' if each['value'] is None else each['value']}"
                f" {each['direction']} it ({each['contribution']:+g})"
                for each in row["reasons"] or ()
            )
            or "none in this band",
            **_others(told["others"], row, receipt.use_case.row_key),
        }
    seen = "readers see it" if publication["is_seen"] else "readers no longer see it"
    pairs |= {
        "publication": f"{publication['publication_id']}, {publication['rows']:,} rows: {seen}",
        "scored": f"{_time(publication['scored_at'])} by code {made.get('code_commit', 'unknown')}",
        "published": _time(publication["published_at"]),
        "audit": _audit(told["audit"]),
    }
    for move in told["moves"]:
        if move["person"]:
            to_it = move["to_publication_id"] == publication["publication_id"]
            pairs[f"rolled back {'to it' if to_it else 'from it'}"] = (
                f"{_time(move['moved_at'])} by {move['person']}: {move['reason']}"
            )
    return _pairs("Published row", pairs)


def _others(
    others: Mapping[str, Any], row: Mapping[str, Any], columns: Sequence[str]
) -> dict[str, str]:
    """The rows beside it that what was asked for names too."""
    if not others["rows"]:
        return {}
    key, *more_columns = columns
    names = [
        " ".join(
            [each[key]] * (each[key] != row[key])
            + [f"--row {column}={each[column]}" for column in more_columns]
        )
        for each in others["first"][:ROWS_SHOWN]
    ]
    more = "…" if others["rows"] > len(names) else ""
    rows = f"{others['rows']:,} more, with lower scores"
    return {"other rows": f"{rows}: {', '.join(names)}{more}"}


def _audit(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "none is kept"
    applied = [each for each in results if each["outcome"] != "not_applied"]
    passed = sum(each["outcome"] == "passed" for each in applied)
    failed = [
        f"{each['rule']}: {each['detail']}" for each in applied if each["outcome"] == "failed"
    ]
    return "; ".join([f"{passed} of {len(applied)} rules passed", *failed])


def _model(receipt: Receipt) -> Table:
    told, training = receipt.told, receipt.training
    publication, decision = told["publication"], told["decision"]
    recorded = (told["made_from"] or {}).get("training") or {}
    manifest = training.told
    pairs = {
        "version": f"{receipt.use_case.name} version {publication['model_version']},"
        f" {_short(recorded.get('model_sha256'))}",
        "MLflow run": publication["mlflow_run_id"],
    }
    if decision is not None:
        person = decision["person"]
        who = {"gates": "the gates, by themselves", "person": person, "approval": person}
        pairs |= {
            "champion by": f"{decision['action']} at {_time(decision['promoted_at'])}",
            "approver": f"{who[decision['actor']]}"
            + (", asked after the gates" if decision["actor"] == "approval" else "")
            + (", despite gates that failed" if decision["despite_gates"] else ""),
            "reason": decision["reason"],
        }
    pairs["training set"] = (
        f"{recorded.get('path') or 'not recorded where'},"
        f" {_short(recorded.get('dataset_sha256') or manifest.get('sha256'))}"
    )
    if manifest:
        window = manifest.get("label_window", {})
        pairs |= {
            "learnt from": f"{manifest.get('rows', 0):,} rows at"
            f" {len(manifest.get('snapshots', ()))} snapshots; labels of"
            f" [{window.get('from')}, {window.get('before')}), landed before"
            f" {window.get('landed_before')}",
            "its code": str(manifest.get("code_commit", "unknown")),
            "its manifest": f"{training.where}, {_short(training.sha256)}",
        }
    return _pairs("Model", pairs)


def _gates(gates: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not gates:
        return Text("No gate results are kept of this version.", style="yellow")
    passed = sum(each["passed"] for each in gates)
    table = _table(f"Gates of the decision: {passed} of {len(gates)} passed", "gate", "", "detail")
    for each in gates:
        mark = "[green]passed[/]" if each["passed"] else "[red]FAILED[/]"
        table.add_row(Text(each["gate"]), mark, Text(each["detail"]))
    return table


def _features(receipt: Receipt) -> RenderableType:
    features = receipt.features
    recorded = (receipt.told["made_from"] or {}).get("features") or {}
    place = f"{recorded.get('path') or features.folder}, {_short(recorded.get('sha256'))}"
    if not features.vector:
        return _pairs("Features", {"dataset": place, "values": "none; see below"})
    named = {each["feature"] for each in (receipt.told["row"] or {}).get("reasons") or ()}
    cells = [
        (Text(name, style="bold" if name in named else ""), _value(value))
        for name, value in features.vector.items()
    ]
    scored = (
        "the bytes that were scored" if features.is_scored else "NOT the bytes that were scored"
    )
    if receipt.remade is not None:
        again = "the same bits" if not receipt.remade else f"{len(receipt.remade)} other values"
        scored += f"; made again from the rows of today: {again}"
    part = features.part.name if features.part else ""
    table = Table(
        "feature", "value", "feature", "value",
        title=f"Features: {part} of {place}; {scored}", title_justify="left", title_style="bold",
        caption=f"code {recorded.get('code_commit') or 'unknown'}; in bold: the published reasons",
    )  # fmt: skip
    half = (len(cells) + 1) // 2
    for left, right in zip_longest(cells[:half], cells[half:], fillvalue=("", "")):
        table.add_row(*left, *right)
    return table


def _value(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _files(source: Mapping[str, Any]) -> RenderableType:
    found = source["landed_files"]
    files = sorted(found["files"], key=lambda each: each["landed_date"], reverse=True)
    title = (
        f"{found['rows']:,} rows of {source['relation']} by {source['key']} that were known, from"
        f" {len(files)} files"
    )
    table = _table(title, "landed", "file", "rows", "loaded", "", "SHA-256")
    for each in files[:FILES_SHOWN]:
        if each["path"] is None:
            table.add_row(each["landed_date"], "not in the ledger", str(each["rows"]), "", "", "")
            continue
        numbers = each["row_numbers"]
        rows = f"{each['rows']}{' joined' if each['is_joined'] else ''}"
        if numbers:
            more = "…" if len(numbers) > ROWS_SHOWN else ""
            rows = f"{each['rows']}: {', '.join(map(str, numbers[:ROWS_SHOWN]))}{more}"
        table.add_row(
            each["landed_date"], Text(each["path"]), rows, _time(each["loaded_at"]),
            "" if each["status"] == "loaded" else each["status"], each["sha256"][:SHORT],
        )  # fmt: skip
    if len(files) > FILES_SHOWN:
        table.caption = f"and {len(files) - FILES_SHOWN} older files: --json lists them"
    return table


def _quality(results: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not results:
        return Text("No data quality results are kept of this night.", style="yellow")
    batches: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for each in results:
        batches.setdefault((each["checked"], each["landed_date"]), []).append(each)
    runs = ", ".join(str(run) for run in sorted({each["run_id"] for each in results}))
    table = _table(
        f"Data quality before it was published (ops.runs {runs})", "checked", "landed", "passed",
        "broken",
    )  # fmt: skip
    for (checked, landed), found in batches.items():
        broken = [f"{each['rule']} ({each['severity']})" for each in found if not each["success"]]
        passed = f"{len(found) - len(broken)} of {len(found)}"
        table.add_row(checked, landed, passed, Text("; ".join(broken)))
    return table
