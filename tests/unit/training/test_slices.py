import numpy as np

from nightshift.spec import Slice
from nightshift.training.slices import slice_rows

NAN = float("nan")


def column(*values: float) -> np.ndarray:
    return np.array([[0.0, value] for value in values], dtype=np.float32).reshape(-1, 2)


def groups(each: Slice, train: np.ndarray, rows: np.ndarray) -> list[str]:
    matrix, is_train = np.vstack([train, rows]), np.arange(len(train) + len(rows)) < len(train)
    found = slice_rows([each], ["other", "days"], matrix, is_train, ~is_train)[each.name]
    return [found.names[code] for code in found.codes]


def test_a_value_at_a_cut_belongs_to_the_group_above() -> None:
    tenure = Slice(name="tenure", feature="days", cuts=(30, 90))
    assert groups(tenure, column(), column(29.9, 30, 89, 90, NAN)) == [
        *("below 30", "30 to 90", "30 to 90", "from 90", "null")
    ]
    assert set(groups(tenure, column(), column(1, 2))) == {"below 30"}


def test_the_edges_of_bands_are_those_of_the_training_rows() -> None:
    value = Slice(name="value", feature="days", bands=2)
    assert groups(value, column(0, 10, 20, 30, NAN), column(14.9, 15, 1000)) == [
        *("band 1", "band 2", "band 2")
    ]
    assert groups(value, column(NAN, NAN), column(NAN)) == ["null"]
