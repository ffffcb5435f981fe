"""Codes that the texts of several months have in common."""

import pyarrow as pa

from nightshift.features.state import CommonCodes

OLDER, RECENT = pa.array(["b", "d"]), pa.array(["a", "b"])


def test_codes_are_those_of_the_lists_that_are_asked_for() -> None:
    common = CommonCodes()

    values, codes = common.of([OLDER, RECENT])
    assert values.to_pylist() == ["a", "b", "d"]
    assert [part.tolist() for part in codes] == [[1, 2], [0, 1]]
    assert common.of([pa.array(["b", "d"]), RECENT])[1] is codes

    for others in ([RECENT, OLDER], [OLDER], [OLDER, pa.array(["a", "c"])]):
        values, codes = common.of(others)
        assert [values.take(pa.array(part)) for part in codes] == others
