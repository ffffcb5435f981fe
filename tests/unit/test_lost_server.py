"""What a library says of a server that went away, and what it says of anything else."""

import pytest

from nightshift.errors import SettingError
from nightshift.io.warehouse import require_server
from nightshift.task_outcomes import may_pass


@pytest.mark.parametrize(
    "line",
    [
        "FATAL:  terminating connection due to administrator command",
        "server closed the connection unexpectedly",
        'connection to server at "127.0.0.1", port 1 failed: Connection refused',
        "FATAL:  the database system is shutting down",
        "SSL SYSCALL error: EOF detected",
        "SSL error: unexpected eof while reading",
        'could not translate host name "db" to address',
    ],
)
def test_a_lost_server_is_told_by_its_line_and_may_pass(line: str) -> None:
    with pytest.raises(SettingError) as lost:
        require_server(f"Database Error in model m\n  {line}\n  compiled code at m.sql")
    assert str(lost.value.what) == f"the warehouse has ended the connection: {line}"
    assert may_pass(lost.value)


@pytest.mark.parametrize(
    "told",
    [
        "Got 3 results, configured to fail if != 0",
        'relation "checked_order_lines" does not exist',
        "Database Error in model m\n  division by zero",
        "x" * 1_000_000,
    ],
)
def test_anything_else_is_not(told: str) -> None:
    require_server(told)
