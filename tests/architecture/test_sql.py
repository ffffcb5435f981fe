"""What is put into a text of SQL is quoted, or known to be harmless."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STATEMENT = re.compile(
    r"\s*(select|insert into|update|delete|create|alter|drop|grant|revoke|truncate|copy|comment on"
    r"|analyze|with|set|lock|vacuum|call|attach|detach)\s", re.IGNORECASE,
)  # fmt: skip
QUOTING = {"quoted", "quote", "literal"}
DECLARED = {
    *("raw_table", "quarantine_table", "day", "table", "sql_type"),
    *("key", "score_column", "shown", "landed_days", "source", "contract.name", "column.name"),
}
"""Attributes of specs and contracts, which refuse what is no identifier (``identifiers.py``)."""
FRAGMENTS = {"difference", "landed_on", "_is_subject", "_key_index", "_quoted_all"}
"""Functions that give a part of a statement: all their f-strings are looked at."""
CONTRACT = "of a contract: names are identifiers, expressions are its author's SQL"
DATES = "dates as ISO, made of date objects"
CATALOGUE = "the catalogue's own name"
OWN = "put together above, of quoted names and literals"
ALLOWED = {
    ("contracts/__init__.py", "columns"): CONTRACT,
    ("quality/run.py", "', '.join(asked.values())"): CONTRACT,
    ("quality/run.py", "', '.join(['landed.*', *names])"): CONTRACT,
    ("quality/run.py", "outcome.column"): CONTRACT,
    ("ingest/run.py", "name"): f"{CATALOGUE} of a column that was made of a contract",
    ("ingest/folders.py", "source"): "no SQL, but a message",
    ("doctor.py", "user"): "no SQL, but a remedy",
    ("doctor.py", "expected"): "no SQL, but a remedy",
    ("training/card.py", "point.score"): "no SQL, but a text",
    ("erasure/run.py", "table"): "of a contract, or of the constant _TEXTS",
    ("erasure/run.py", "where"): "of _is_subject, or a constant",
    ("erasure/run.py", "column"): "of the constant _TEXTS",
    ("erasure/run.py", "kind"): f"{CATALOGUE} of a type",
    ("features/extract.py", "values"): OWN,
    ("features/extract.py", "day"): DATES,
    ("features/extract.py", "listed"): DATES,
    ("features/packing.py", "', '.join(packed)"): OWN,
    ("features/packing.py", "share"): OWN,
    ("features/rows.py", "listed"): "expressions of a declaration: its author's SQL, in DuckDB",
    ("rules.py", "rule.where"): "a condition of a declaration: its author's SQL, in DuckDB",
    ("quality/run.py", "dates"): DATES,
    ("quality/run.py", "batch.landed_date"): DATES,
    ("io/warehouse.py", "mark"): "a digest and names of this module's roles",
    ("io/warehouse.py", "mode"): "a constant of this function",
    ("publishing/run.py", "keys"): "a constant, formatted with a quoted name",
    ("publishing/sql.py", "body"): "quoted names, and types of this module",
    ("publishing/sql.py", "partitioned"): "a constant of this function",
    ("publishing/sql.py", "query"): OWN,
    ("publishing/sql.py", "', '.join(parts)"): OWN,
    ("publishing/sql.py", "is_number"): "quoted names and numbers",
    ("publishing/sql.py", "asked"): "literals and numbers",
    ("publishing/sql.py", "steps"): "quoted names, numbers and literals",
    ("publishing/sql.py", "how"): "a constant of who calls",
}
"""(file, expression) → why it is harmless."""


class Statements:
    """The f-strings of a module that begin as a statement does, and what they hold unquoted."""

    def __init__(self, source: str) -> None:
        self.found: list[tuple[int, str]] = []
        tree = ast.parse(source)
        for scope in ast.walk(tree):
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
                self._look(scope)

    def _look(self, scope: ast.FunctionDef | ast.AsyncFunctionDef | ast.Module) -> None:
        known: dict[str, list[ast.expr]] = {}
        is_fragment = getattr(scope, "name", "") in FRAGMENTS
        for node in self._own(scope):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    known.setdefault(name, []).append(value)
                case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                    for name, value in zip(names, values, strict=True):
                        known.setdefault(ast.unparse(name), []).append(value)
                case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.GeneratorExp(elt=value)):
                    for name in names:
                        known.setdefault(ast.unparse(name), []).append(value)
                case ast.AugAssign(target=ast.Name(id=name), value=value):
                    known.setdefault(name, []).append(value)
                case (
                    ast.comprehension(target=ast.Name(id=name), iter=value)
                    | ast.For(target=ast.Name(id=name), iter=value)
                ):
                    known.setdefault(name, []).append(value)
        for node in self._own(scope):
            if isinstance(node, ast.JoinedStr) and (
                is_fragment or STATEMENT.match(_beginning(node))
            ):
                for each in node.values:
                    if isinstance(each, ast.FormattedValue) and not self._is_safe(
                        each.value, known, 0
                    ):
                        self.found.append((node.lineno, ast.unparse(each.value)))

    def _own(self, scope: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(scope):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
                yield from self._own(child)

    def _is_safe(self, node: ast.expr, known: dict[str, list[ast.expr]], depth: int) -> bool:
        def safe(each: ast.expr) -> bool:
            return depth < 8 and self._is_safe(each, known, depth + 1)

        match node:
            case ast.Constant():
                return True
            case ast.JoinedStr(values=values):
                return all(safe(v.value) for v in values if isinstance(v, ast.FormattedValue))
            case ast.Name(id=name) | ast.Attribute(attr=name) if name.isupper():
                return True
            case ast.Attribute() if (parts := ast.unparse(node).split("."))[-1] in DECLARED:
                return True
            case ast.Attribute() if ".".join(parts[-2:]) in DECLARED:
                return True
            case ast.FormattedValue(value=value):
                return safe(value)
            case ast.Call(func=ast.Name(id=name)) if name in FRAGMENTS:
                return True
            case ast.Call(func=ast.Attribute(attr=name)) if name in FRAGMENTS:
                return True
            case ast.Name(id=name):
                return name in known and all(safe(value) for value in known[name])
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in QUOTING:
                return True
            case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[joined]):
                return safe(joined)
            case ast.GeneratorExp(elt=elt) | ast.ListComp(elt=elt):
                return safe(elt)
            case ast.List(elts=elts) | ast.Tuple(elts=elts):
                return all(safe(each) for each in elts)
            case ast.Starred(value=value) | ast.Subscript(value=value):
                return safe(value)
            case ast.Dict(values=values):
                return all(safe(each) for each in values)
            case ast.BinOp(left=left, right=right):
                return safe(left) and safe(right)
            case ast.IfExp(body=body, orelse=orelse):
                return safe(body) and safe(orelse)
            case ast.BoolOp(values=values):
                return all(safe(each) for each in values)
        return False


def _beginning(node: ast.JoinedStr) -> str:
    first = node.values[0] if node.values else None
    return first.value if isinstance(first, ast.Constant) else ""


def test_what_is_put_into_a_statement_is_quoted() -> None:
    package = ROOT / "jobs" / "nightshift"
    found = {
        (str(file.relative_to(package)), expression): line
        for file in sorted(package.rglob("*.py"))
        for line, expression in Statements(file.read_text()).found
    }
    new = {where: line for where, line in found.items() if where not in ALLOWED}
    assert new == {}, "quote it, pass it as a parameter, or say in ALLOWED why it is harmless"
    assert ALLOWED.keys() - found.keys() == set(), "these are not there any more"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("cursor.execute(f'select {name} from t')", ["name"]),
        ("def f(name):\n    q = f'drop table {name}'\n    return q", ["name"]),
        ("def f(n):\n    name = n.strip()\n    return f'delete from {name}'", ["name"]),
        ("def f(ns):\n    ns = ', '.join(ns)\n    return f'select {ns}'", ["ns"]),
        ("def f(ns):\n    ns = ', '.join(quoted(n) for n in ns)\n    return f'select {ns}'", []),
        ("def f(n):\n    n = sql.quoted(n)\n    return f'drop table {n}'", []),
        ("def difference(n):\n    return f'{n} is null'", ["n"]),
        ("execute(f'truncate {TABLE}')", []),
        ("log.info(f'{name} is selected')", []),
        ("execute(f'select {use_case.key} from {use_case.table}')", []),
        ("execute(f'select {use_case.title}')", ["use_case.title"]),
    ],
)
def test_the_check_finds_what_is_not_quoted(source: str, found: list[str]) -> None:
    assert [expression for _, expression in Statements(source).found] == found
