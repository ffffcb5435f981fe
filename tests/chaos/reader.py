"""An application that reads predictions in a tight loop, in a process and a role of its own.

Each poll is one statement: of every use case every published date, and what ``_latest`` shows, with
the publications, the rows and a checksum of them. It must be the state before a run or the state
after it, never a mix of both, and never less; once it was the new one, never the old one again.

``python -m chaos.reader URL EXPECTED POLL`` polls until its stdin is closed, and prints one JSON
line.
"""

import json
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg2
from psycopg2.errors import AdminShutdown, CannotConnectNow, CrashShutdown

from nightshift.publishing import sql
from nightshift.spec import UseCase

State = dict[str, list[str | int]]
"""``<view> <as_of>`` → publication, rows, checksum."""

_VIEW = """
select '{name} ' || as_of as shown, string_agg(distinct publication_id, '+') as publication_id,
    count(*) as rows,
    md5(sum(hashtextextended(concat_ws('|', {columns}), 0)::numeric)::text) as checksum
from predictions.{name} group by as_of
"""
KEPT = 20
"""Violations that are told in full."""


@dataclass
class Seen:
    """What a reader has seen.

    Attributes:
        polls: statements that were answered.
        outages: how often the server was lost.
        longest_wait: for an answer, in seconds, while the server was there.
        longest_gap: between two answers, in seconds, its outages among them.
        changes: how often an answer was another than the one before it.
        violations: what must not be, each once and at most ``KEPT``; ``violated`` counts all.
        last: which of the expected states it saw last.
    """

    polls: int = 0
    outages: int = 0
    longest_wait: float = 0.0
    longest_gap: float = 0.0
    changes: int = 0
    violated: int = 0
    violations: list[str] = field(default_factory=list)
    last: int = 0


def poll_of(use_cases: Sequence[UseCase]) -> str:
    """What is asked at once of their views: one statement, and so one snapshot."""
    views = []
    for use_case in use_cases:
        # scored_at is another in each run
        columns = [f'"{name}"' for name in sql.columns(use_case) if name != "scored_at"]
        views += [
            _VIEW.format(name=name, columns=", ".join(columns)) for name in sql.view_names(use_case)
        ]
    return " union all ".join(views)


class Judge:
    """Compares each answer with the states that readers may see, in their order."""

    def __init__(self, expected: Sequence[State]) -> None:
        self.seen = Seen()
        self._expected = expected

    def take(self, state: State) -> None:
        """Count an answer, and what is wrong with it."""
        self.seen.polls += 1
        if state == self._expected[self.seen.last]:
            return
        for number, expected in enumerate(self._expected):
            if state == expected:
                if number < self.seen.last:
                    self.refuse(f"state {number} was shown again after state {self.seen.last}")
                self.seen.changes += 1
                self.seen.last = number
                return
        self.refuse(self._difference(state))

    def refuse(self, what: str) -> None:
        self.seen.violated += 1
        if what not in self.seen.violations and len(self.seen.violations) < KEPT:
            self.seen.violations.append(what)

    def _difference(self, state: State) -> str:
        last = self._expected[self.seen.last]
        told = []
        for shown in sorted({*state, *last}):
            found, before = state.get(shown), last.get(shown)
            if found is None:
                told.append(f"gap: {shown} is not there")
            elif "+" in str(found[0]):
                told.append(f"mix: {shown} shows {found[0]}")
            elif found != before:
                told.append(f"{shown} shows {found}, before {before}")
        return "; ".join(told)


def look(url: str, use_cases: Sequence[UseCase]) -> State:
    """What one poll sees."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(poll_of(use_cases))
        return {shown: list(rest) for shown, *rest in cursor.fetchall()}


def read(url: str, expected: Sequence[State], poll: str) -> Seen:
    """Poll until stdin is closed. Every second poll is of a prepared statement, whose plan is of
    an earlier time."""
    judge = Judge(expected)
    seen = judge.seen
    stdin = selectors.DefaultSelector()
    stdin.register(sys.stdin, selectors.EVENT_READ)
    answered = time.monotonic()
    is_first, is_lost = True, False
    while is_first or not stdin.select(0):
        try:
            with closing(psycopg2.connect(url, connect_timeout=10)) as connection:
                connection.autocommit = True
                cursor = connection.cursor()
                cursor.execute(f"prepare poll as {poll}")
                statements = (poll, "execute poll")
                while is_first or not stdin.select(0):
                    asked = time.monotonic()
                    cursor.execute(statements[seen.polls % 2])
                    judge.take({shown: list(rest) for shown, *rest in cursor.fetchall()})
                    now = time.monotonic()
                    seen.longest_wait = max(seen.longest_wait, now - asked)
                    seen.longest_gap = max(seen.longest_gap, now - answered)
                    answered, is_lost = now, False
                    if is_first:
                        is_first = False
                        print("ready", flush=True)
                    time.sleep(now - asked)  # what it watches needs the processor too
        except (AdminShutdown, CannotConnectNow, CrashShutdown):
            seen.outages += not is_lost
            is_lost = True
        except psycopg2.OperationalError as error:
            if error.pgcode is not None:
                judge.refuse(f"error {error.pgcode}: {str(error).strip()}")
            seen.outages += not is_lost
            is_lost = True
        except psycopg2.Error as error:
            judge.refuse(f"error {error.pgcode}: {str(error).strip()}")
        time.sleep(0.01)
    return seen


class Reader:
    """The process that polls, while the block runs; ``seen`` is there afterwards."""

    def __init__(self, url: str, use_cases: Sequence[UseCase], *expected: State) -> None:
        self.seen = Seen()
        self._command = [
            sys.executable, "-m", "chaos.reader", url, json.dumps(expected), poll_of(use_cases)
        ]  # fmt: skip

    def __enter__(self) -> "Reader":
        self._process = subprocess.Popen(
            self._command, cwd=Path(__file__).parents[1], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the reader did not start"
        return self

    def __exit__(self, *_: object) -> None:
        answer, _ = self._process.communicate(timeout=60)  # which closes its stdin
        self.seen = Seen(**json.loads(answer))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        print(json.dumps(asdict(read(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]))))
