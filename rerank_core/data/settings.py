"""What a collection folder says about itself: collection.json, splits.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from rerank_core.data.leakage import check_disjoint
from rerank_core.errors import DataError
from rerank_core.records import Split

if TYPE_CHECKING:
    from collections.abc import Collection as Some
    from collections.abc import Mapping
    from pathlib import Path

KNOWN_SETTINGS = {"name", "pool", "relevant_from", "description", "licence"}
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    """The settings of collection.json; what it leaves out is None, or grade 1 for `relevant_from`."""

    name: str | None
    has_judged_pool: bool
    relevant_from: int


def read_settings(path: Path) -> CollectionSettings:
    """Return the settings of a collection.json, the defaults where there is no such file.

    Raises:
        DataError: it is no JSON object, or a setting is unknown or wrong.
    """
    found = _read_object(path) if path.is_file() else {}
    unknown = sorted(found.keys() - KNOWN_SETTINGS)
    if unknown:
        raise DataError(
            f"{path}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(KNOWN_SETTINGS))}"
        )
    name, pool, relevant_from = found.get("name"), found.get("pool"), found.get("relevant_from", 1)
    if not isinstance(name, str | None):
        raise DataError(f"{path}: name must be text, got {name!r}")
    if pool not in (None, "judged"):
        raise DataError(f'{path}: pool must be "judged" or left out, got {pool!r}')
    if not isinstance(relevant_from, int) or isinstance(relevant_from, bool) or relevant_from < 1:
        raise DataError(f"{path}: relevant_from must be an integer of 1 or more, got {relevant_from!r}")
    return CollectionSettings(name, pool == "judged", relevant_from)


def read_splits(path: Path, *, queries: Some[str], judged: Some[str]) -> dict[str, Split]:
    """Return the split of every judged query; queries of the file that nobody judged are left out.

    Raises:
        DataError: the file is not {"train": [query_id, …], "dev": […], "test": […]}, names an unknown query,
            has one in two splits, leaves a judged one out, or leaves a split without judged queries.
    """
    found = _read_object(path)
    if set(found) != set(SPLITS) or not all(_is_list_of_text(found[split]) for split in SPLITS):
        raise DataError(
            f'{path}: expected {{"train": [query_id, …], "dev": […], "test": […]}}, got the keys '
            f"{sorted(found)[:5]}; write it in this form, or split by query with --num-folds 5"
        )
    lists: dict[Split, list[str]] = {split: found[split] for split in SPLITS}
    try:
        check_disjoint(lists)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    split_by_query = {query_id: split for split, query_ids in lists.items() for query_id in query_ids}
    _check_coverage(path, split_by_query, queries=queries, judged=judged)
    return {query_id: split_by_query[query_id] for query_id in judged}


def _check_coverage(
    path: Path, split_by_query: Mapping[str, Split], *, queries: Some[str], judged: Some[str]
) -> None:
    unknown = sorted(split_by_query.keys() - set(queries))
    if unknown:
        raise DataError(f"{path}: query {unknown[0]!r} is absent from the queries; remove it")
    left_out = sorted(set(judged) - split_by_query.keys())
    if left_out:
        raise DataError(
            f"{path}: judged query {left_out[0]!r} is in no split; add it, or remove its judgements"
        )
    empty = sorted(set(SPLITS) - {split_by_query[query_id] for query_id in judged})
    if empty:
        raise DataError(
            f"{path}: {empty[0]} has no judged query; add one, or split by query with --num-folds 5"
        )


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error}); mend or remove it") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
