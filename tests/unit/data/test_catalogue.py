"""Data sets of the ir_datasets catalogue, by a small one registered for the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ir_datasets
import pytest
from ir_datasets.formats import BaseDocs, BaseQrels, BaseQueries, GenericDoc, GenericQuery, TrecQrel

from rerank_core.data.loading import load_collection
from rerank_core.errors import DataError
from rerank_core.records import Document

if TYPE_CHECKING:
    from collections.abc import Iterator


class TitledDoc(NamedTuple):
    """A document with fields, as BEIR's."""

    doc_id: str
    title: str
    text: str

    def default_text(self) -> str:
        return f"{self.title} {self.text}"


class Docs(BaseDocs):  # type: ignore[misc]
    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def docs_iter(self) -> Iterator[Any]:
        return iter(self._rows)


class Queries(BaseQueries):  # type: ignore[misc]
    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def queries_iter(self) -> Iterator[Any]:
        return iter(self._rows)


class Judgements(BaseQrels):  # type: ignore[misc]
    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def qrels_iter(self) -> Iterator[Any]:
        return iter(self._rows)


@pytest.fixture(scope="module")
def name() -> str:
    """The name of a registered data set."""
    registered = "whyrank-test"
    docs = Docs([TitledDoc("a", "Sea ice", "extent"), GenericDoc("b", "wind")])
    queries = Queries([GenericQuery("q1", "ice")])
    judgements = Judgements([TrecQrel("q1", "a", 2, "0"), TrecQrel("q1", "b", -1, "0")])
    ir_datasets.registry.register(registered, ir_datasets.Dataset(docs, queries, judgements))
    ir_datasets.registry.register(f"{registered}/docs", ir_datasets.Dataset(docs))
    return registered


def test_a_catalogue_data_set_loads_and_junk_counts_as_grade_0(name: str) -> None:
    collection = load_collection(f"ir_datasets:{name}")
    assert collection.name == f"ir_datasets:{name}"
    assert collection.documents == {"a": Document("a", "extent", title="Sea ice"), "b": Document("b", "wind")}
    assert collection.qrels == {"q1": {"a": 2, "b": 0}}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(DataError, match="ir_datasets:no/such is unknown; the names are listed on"):
        load_collection("ir_datasets:no/such")


def test_a_data_set_without_judgements_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="lacks documents, queries or judgements"):
        load_collection(f"ir_datasets:{name}/docs")
