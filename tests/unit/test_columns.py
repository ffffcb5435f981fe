import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from nightshift.columns import numbers, of_numbers, of_texts, texts_at


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.5, None, -2.0]),
        pa.array([9.0, 1.5, None, -2.0])[1:],
        pa.chunked_array([[1.5], [None, -2.0]]),
    ],
)
def test_nulls_are_nan(column: pa.Array | pa.ChunkedArray) -> None:
    np.testing.assert_array_equal(numbers(column), [1.5, np.nan, -2.0])


def test_whole_numbers_and_no_rows() -> None:
    assert numbers(pa.array([1, 2], pa.int32())).tolist() == [1.0, 2.0]
    assert numbers(pa.chunked_array([], pa.float64())).shape == (0,)


def test_there_and_back() -> None:
    values = np.array([0.25, np.nan, np.inf])[::-1]
    np.testing.assert_array_equal(numbers(of_numbers(values)), values)
    texts = ["low", "", "größer", "low"]
    assert of_texts(texts).equals(pa.array(texts))
    assert of_texts([]).equals(pa.array([], pa.string()))
    assert texts_at(np.array([2, 0, 2]), texts).to_pylist() == ["größer", "low", "größer"]


def test_pandas_is_not_imported() -> None:
    code = (
        "import sys, numpy as np, pyarrow as pa\n"
        "from nightshift.columns import numbers, of_numbers, of_texts, texts_at\n"
        "numbers(of_numbers(np.array([1.0, 2.0])))\n"
        "texts_at(np.array([0, 0]), ['a'])\n"
        "assert 'pandas' not in sys.modules\n"
        "pa.array([1.0])\n"
        "assert 'pandas' in sys.modules, 'PyArrow does without it now: so can nightshift.columns'\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
