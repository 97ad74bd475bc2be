"""Explanations survive the way to disk and back."""

import pytest

from rerank_core.errors import DataError
from rerank_core.explanation.table import EXPLANATIONS, explanations_table, read_explanations
from rerank_core.formats import write_table
from rerank_core.records import Explanation

EXPLAINED = Explanation(
    "q",
    "d",
    "It has ice.",
    ("ice",),
    ("raised",),
    True,
    (),
    True,
    False,
    40,
    9,
    "smollm2",
    "explain_with_attribution",
    1,
    "0a1b",
)
REPLACED = Explanation(
    "q",
    "d",
    "Rank 2.",
    (),
    (),
    False,
    ("not_json", "empty_text"),
    False,
    True,
    30,
    0,
    "smollm2",
    "explain_without_attribution",
    2,
    "2c3d",
)


def test_explanations_come_back_as_they_were_written(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    table = explanations_table([EXPLAINED, REPLACED])
    assert table.column_names == list(EXPLANATIONS)
    write_table(table, tmp_path / "data" / "shard-00000.parquet")
    assert read_explanations(tmp_path) == [EXPLAINED, REPLACED]


def test_the_columns_stand_in_the_order_of_the_record() -> None:
    assert tuple(EXPLANATIONS) == Explanation.__slots__


def test_a_folder_without_shards_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match="no shard"):
        read_explanations(tmp_path)
