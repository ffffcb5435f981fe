"""Arrow columns from and to NumPy without pandas.

PyArrow's own ``to_numpy``, and any array or scalar that it makes of NumPy arrays or of Python
objects, imports pandas where that is installed: 0.9 s, in which a night scores 200,000 rows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Vector = npt.NDArray[np.float64]


def of_numbers(values: Vector) -> pa.Array:
    """(rows,) as an array of doubles, NaN as NaN, without a copy where it lies in one piece."""
    buffer = pa.py_buffer(np.ascontiguousarray(values, dtype=np.float64))
    return pa.Array.from_buffers(pa.float64(), len(values), [None, buffer])


def of_integers(values: npt.NDArray[np.integer]) -> pa.Array:
    """(rows,) as an array of whole numbers of 64 bits."""
    buffer = pa.py_buffer(np.ascontiguousarray(values, dtype=np.int64))
    return pa.Array.from_buffers(pa.int64(), len(values), [None, buffer])


def of_texts(values: Sequence[str]) -> pa.Array:
    """As an array of strings."""
    whole = "".join(values)
    # of ASCII, as most are, characters are bytes
    sizes = map(len, values) if whole.isascii() else (len(value.encode()) for value in values)
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum(np.fromiter(sizes, np.int64, len(values)), out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(whole.encode())]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def texts_at(places: npt.NDArray[np.integer], values: Sequence[str]) -> pa.Array:
    """``values[place]`` of each place, (rows,), as an array of strings."""
    return of_texts(values).take(of_integers(places))


_NAN = of_numbers(np.array([np.nan]))[0]


def numbers(column: pa.Array | pa.ChunkedArray) -> Vector:
    """A column of numbers, (rows,), as float64 with NaN for null."""
    filled = pc.fill_null(column.cast(pa.float64()), _NAN)
    if isinstance(filled, pa.ChunkedArray):
        filled = filled.combine_chunks()
    return np.asarray(np.from_dlpack(filled), dtype=np.float64)
