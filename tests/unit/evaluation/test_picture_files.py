"""The report's pictures as files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from rerank_core.evaluation.picture_files import draw_pictures

if TYPE_CHECKING:
    from rerank_core.evaluation.findings import Findings

NAMES = ("metrics", "rank_changes", "words", "waterfall", "margin")


@pytest.fixture(scope="module")
def files(findings: Findings) -> dict[str, bytes]:
    return draw_pictures(findings)


def test_every_picture_comes_as_png_and_as_svg(files: dict[str, bytes]) -> None:
    assert list(files) == [f"{name}.{ending}" for name in NAMES for ending in ("png", "svg")]
    for name, content in files.items():
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
        else:
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_findings_give_the_same_files(findings: Findings, files: dict[str, bytes]) -> None:
    assert draw_pictures(findings) == files


def test_a_document_alone_in_its_query_has_no_margin(findings: Findings) -> None:
    alone = replace(findings, explained=findings.explained[1:])
    assert {name.partition(".")[0] for name in draw_pictures(alone)} == {*NAMES} - {"margin"}
