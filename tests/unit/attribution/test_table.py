"""Attributions survive the way to disk and back."""

import pytest

from rerank_core.attribution.table import ATTRIBUTIONS, attributions_table, read_attributions
from rerank_core.errors import DataError
from rerank_core.formats import write_table
from rerank_core.records import Attribution, Unit

FULL = Attribution(
    query_id="q1",
    doc_id="d1",
    score=1.5,
    base_value=0.25,
    units=(Unit("Sea", 0, 3, field="title"), Unit("ice", 4, 7)),
    values=(1.0, 1 / 3),
    method="shap",
    num_evals=33,
    residual=-1e-9,
    seed=2**32 - 1,
    is_truncated=True,
)
EMPTY = Attribution(
    query_id="q2",
    doc_id="d2",
    score=0.5,
    base_value=0.5,
    units=(),
    values=(),
    method="shap",
    num_evals=1,
    residual=0.0,
    seed=0,
)


def test_attributions_are_read_as_they_were_written(tmp_path):
    (tmp_path / "data").mkdir()
    write_table(attributions_table([FULL], model_digest="abc"), tmp_path / "data" / "shard-00000.parquet")
    write_table(attributions_table([EMPTY], model_digest="abc"), tmp_path / "data" / "shard-00001.parquet")
    assert read_attributions(tmp_path) == [FULL, EMPTY]


def test_the_table_names_the_model_of_every_row():
    table = attributions_table([FULL, EMPTY], model_digest="abc")
    assert table.schema.names == list(ATTRIBUTIONS)
    assert table.column("model_digest").to_pylist() == ["abc", "abc"]
    assert table.column("units").to_pylist()[0][0] == {
        "field": "title",
        "text": "Sea",
        "start": 0,
        "end": 3,
        "value": 1.0,
    }


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no shard"):
        read_attributions(tmp_path)
