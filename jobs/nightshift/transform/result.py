"""What a dbt build did, node by node, and how its failure reads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nightshift.errors import Cause, TransformError

BROKEN = frozenset({"error", "fail", "runtime error", "partial success"})
"""dbt's words for a node that ran and did not end well; a node after it is ``skipped``."""

_ROW = re.compile(r"DETAIL:\s+Failing row contains \(.*?(?=\n\s*compiled code at |\Z)", re.DOTALL)
"""What Postgres adds to a broken constraint: a whole row, which may hold personal data."""


@dataclass(frozen=True)
class NodeResult:
    """One model or test of a build.

    Attributes:
        failures: how many rows break a test.
        sources: of the landing zone, that it is made of; none for what all marts share.
    """

    name: str
    kind: str
    status: str
    seconds: float
    message: str
    failures: int | None
    compiled_path: str | None
    sources: tuple[str, ...] = ()

    @property
    def is_broken(self) -> bool:
        """Whether the node itself failed, not one before it."""
        return self.status in BROKEN


@dataclass(frozen=True)
class TransformResult:
    """A build: status and seconds by node name, and the names of those that failed.

    Attributes:
        is_full_refresh: all of history was built, not only the landed days that changed.
    """

    nodes: Mapping[str, str]
    seconds: Mapping[str, float]
    failed: tuple[str, ...]
    is_full_refresh: bool = False


def summarise(nodes: list[NodeResult], is_full_refresh: bool = False) -> TransformResult:
    """The build's nodes, in the order in which they ended."""
    return TransformResult(
        nodes={node.name: node.status for node in nodes},
        seconds={node.name: round(node.seconds, 3) for node in nodes},
        failed=tuple(node.name for node in nodes if node.is_broken),
        is_full_refresh=is_full_refresh,
    )


def held_by(nodes: list[NodeResult], sources: Sequence[str]) -> dict[str, TransformError]:
    """The sources of ``sources`` that a failed node is made of, and the error of each."""
    held = {}
    for source in sources:
        error = failure([node for node in nodes if source in (node.sources or sources)])
        if error is not None:
            held[source] = error
    return held


def failure(nodes: list[NodeResult]) -> TransformError | None:
    """The error that names each failed node, its message and its compiled SQL, or None."""
    broken = [node for node in nodes if node.is_broken]
    if not broken:
        return None
    skipped = sum(node.status == "skipped" for node in nodes)
    lines = []
    for node in broken:
        counted = f" ({node.failures} rows break it)" if node.failures else ""
        sql = f"; its SQL: {node.compiled_path}" if node.compiled_path else ""
        message = " ".join(_ROW.sub("", node.message).split())
        lines.append(f"{node.kind} {node.name} failed{counted}: {message}{sql}")
    return TransformError(
        f"dbt build: {'; '.join(lines)}" + (f"; {skipped} nodes were skipped" if skipped else ""),
        "run the named SQL against the warehouse to see the rows, correct the model or the landed"
        " file, then run the night again",
        causes=tuple(
            Cause(f"dbt {n.kind} {n.name}", observed=f"{n.failures} rows" if n.failures else "")
            for n in broken
        ),
    )
