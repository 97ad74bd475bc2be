"""The page: complete, self-contained, and safe against the texts it shows."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from rerank_core.evaluation.findings import signed
from rerank_core.evaluation.report import MAX_CARDS, render_report, wall_time
from rerank_core.records import Unit
from rerank_core.text import words

if TYPE_CHECKING:
    from rerank_core.evaluation.findings import Findings

VOID = frozenset({"meta", "img", "source", "br", "link", "input"})


class Page(HTMLParser):
    """What a browser would find: tags with attributes, and the text by class of its nearest element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.text_by_class: dict[str, str] = {}
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self.open.pop()
        assert opened == tag

    def handle_data(self, data: str) -> None:
        if any(tag == "style" for tag, _ in self.open):
            return
        self.text += data
        for name in {c for _, attributes in self.open for c in (attributes.get("class") or "").split()}:
            self.text_by_class[name] = self.text_by_class.get(name, "") + data

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


@pytest.fixture(scope="module")
def html(findings: Findings) -> str:
    return render_report(findings)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_is_loaded_and_nothing_is_run(page: Page) -> None:
    assert {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
    } == set()
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    loaded = [a.get("src") or a.get("srcset") or "" for tag, a in page.tags if tag in ("img", "source")]
    assert len(loaded) == 8
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", address) for address in loaded)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_style_sheets_name_no_address(html: str) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


def test_only_web_addresses_become_links(page: Page) -> None:
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert {link for link in links if link and not link.startswith("#")} == {"https://d.example/ice"}
    assert "javascript:alert(1)" in page.text


def test_hostile_text_is_shown_letter_by_letter(findings: Findings, page: Page) -> None:
    bad = findings.explained[0].ranked.document
    assert bad.text in page.text_by_class["document"]
    assert bad.title in page.text_by_class["title"]
    assert findings.queries[1].query.text in page.text


def test_the_finding_comes_first_and_the_table_has_every_ranking(page: Page) -> None:
    assert "includes 0" in page.text_by_class["lede"]
    rows = [a for a in page.with_class("ours") if a["class"] == "ours"]
    assert len(rows) == 4  # a tile and a row each, for run and fusion
    for name in (
        "floor (ideal reversed)",
        "random order",
        "BM25 (first stage)",
        "dpo",
        "bm25+dpo",
        "ideal order",
    ):
        assert name in page.text
    assert "gain 2^g−1" in page.text
    assert "+0.050 to +0.150" in page.text_by_class["change"]


def test_words_carry_value_sign_and_citation(page: Page) -> None:
    words = page.with_class("w")
    values = [a["data-value"] for a in words if "data-value" in a]
    assert "+0.800 cited" in values
    assert "−0.100" in values
    assert {"w pos strong cited", "w neg strong"} <= {a["class"] for a in words}


def test_base_value_words_and_residual_stand_with_the_score(page: Page) -> None:
    assert re.search(
        r"base value −1\.000.*residual \+0\.000010.*score", page.text_by_class["sum"], flags=re.DOTALL
    )


def test_strong_words_are_reached_by_keyboard_and_named_with_their_value(page: Page) -> None:
    for word in page.with_class("w"):
        is_strong = "strong" in (word["class"] or "").split()
        assert (word.get("tabindex") == "0") == is_strong
        assert ("aria-label" in word) == is_strong
    assert "ice +0.800, cited" in {word.get("aria-label") for word in page.with_class("w")}


def test_every_document_has_its_waterfall(findings: Findings, page: Page) -> None:
    assert len(page.with_class("waterfall")) == len(findings.explained) + 1  # and one for the margin
    shown = page.text_by_class["waterfall"]
    assert "base value−1.000" in shown
    assert "ice+1.600" in shown
    assert "other words" in shown


def test_bars_lie_inside_their_lane_and_meet(page: Page) -> None:
    for bar in page.with_class("bar"):
        left, width = map(float, re.findall(r"[\d.]+", bar["style"] or ""))
        assert left >= 0
        assert left + width <= 100.01


def test_two_documents_are_compared_by_the_margin_of_their_scores(findings: Findings, page: Page) -> None:
    bad, good = (item.attribution.score for item in findings.explained)
    assert "Why good stands above bad" in page.text
    assert f"margin, A − B{signed(good - bad)}" in page.text_by_class["waterfall"]
    assert "ice (A)+1.600" in page.text_by_class["waterfall"]


def test_a_text_on_why_one_stands_above_is_shown_where_that_is_the_next(findings: Findings) -> None:
    text = "It stands above the other one."
    assert text in Page(render_report(findings)).text
    bad, good = findings.explained
    apart = (replace(bad, ranked=replace(bad.ranked, rank=7)), good)  # no longer the next one
    assert text not in Page(render_report(replace(findings, explained=apart))).text


def test_a_document_alone_in_its_query_leaves_the_comparison_out(findings: Findings) -> None:
    page = Page(render_report(replace(findings, explained=findings.explained[1:])))
    assert page.with_class("versus") == []
    assert "#contrast" not in [a.get("href") for tag, a in page.tags if tag == "a"]


def test_the_words_that_hold_a_rank_are_named_where_they_were_searched(page: Page) -> None:
    told = re.sub(r"\s+", " ", page.text)
    assert "Without “ice” and “Sea” it would stand at rank 2; with any one of them back" in told
    assert told.count("it would stand at rank") == 1


def test_words_of_a_query_carry_values_where_they_were_attributed(findings: Findings, page: Page) -> None:
    assert "What the words of the query did" not in page.text
    first, *others = findings.explained
    found = words(first.query.text)
    units = tuple(Unit(word.text, word.start, word.end, field="query") for word in found)
    values = (0.75, *[-0.125] * (len(units) - 1))
    base = first.attribution.score - sum(values)
    of_query = replace(first.attribution, units=units, values=values, base_value=base)
    shown = Page(render_report(replace(findings, explained=(replace(first, of_query=of_query), *others))))
    assert f"What the words of the query did here: {first.query.text}" in shown.text
    assert f"(from {signed(base)} without any of them" in shown.text
    values_shown = [attributes.get("data-value") for attributes in shown.with_class("w")]
    assert values_shown.count("+0.750") == 1
    assert values_shown.count("−0.125") == len(units) - 1


def test_a_replaced_text_is_marked_and_says_why(page: Page) -> None:
    assert "failed verification, replaced by the template" in page.text_by_class["replaced"]
    assert "cites “glacier”, which the evidence lacks" in page.text_by_class["problems"]
    assert "text replaced" in page.text_by_class["meta"]
    assert "✗ not verified" in page.text_by_class["unverified"]
    assert page.text.count("✓ verified") == 3


def test_cited_words_stand_with_their_value_or_without(page: Page) -> None:
    chips = re.sub(r"\s+", " ", page.text_by_class["chips"])
    assert "glacier (no value)" in chips
    assert "Ice +1.60" in chips  # "ice" in title and text, 0.80 each


def test_what_was_run_is_told(page: Page) -> None:
    for part in ("score", "3 min 20 s", "not from a checkout", "ab" * 32, "2.13.0", '"split": "test"'):
        assert part in page.text
    assert "100 model evaluations per document" in re.sub(r"\s+", " ", page.text)


def test_texts_that_were_never_written_leave_the_heat_map_alone(findings: Findings) -> None:
    bad = findings.explained[0]
    bare = replace(
        bad,
        with_attribution=None,
        without_attribution=None,
        attribution=replace(
            bad.attribution,
            num_evals=50,
            is_truncated=True,
            units=bad.attribution.units[:3],
            values=bad.attribution.values[:3],
        ),
        ranked=replace(bad.ranked, grade=None),
    )
    page = Page(render_report(replace(findings, explained=(bare, findings.explained[1]))))
    assert "characters outside the part whose score this is" in page.text
    assert "75 (50 to 100) model evaluations per document" in re.sub(r"\s+", " ", page.text)
    assert "not judged" in page.text
    assert len(page.with_class("text")) == 3


def test_many_documents_are_cut_and_counted(findings: Findings) -> None:
    good = findings.explained[1]
    many = tuple(replace(good, is_tested=n > 0) for n in range(MAX_CARDS + 3))
    page = Page(render_report(replace(findings, explained=many, queries=findings.queries[:1])))
    assert len(page.with_class("text")) == 2 * MAX_CARDS
    assert page.text.count("not a test query") == 1
    assert f"Shown are {MAX_CARDS} of {MAX_CARDS + 3} attributed documents." in page.text


def test_a_run_that_moved_nothing_says_so(findings: Findings) -> None:
    query = findings.queries[0]
    still = replace(query, documents=tuple(replace(d, rank=d.first_stage_rank) for d in query.documents))
    page = Page(render_report(replace(findings, queries=(still,))))
    assert "No graded document changed its place" in page.text


@pytest.mark.parametrize(("seconds", "shown"), [(7.6, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_wall_times_are_for_people(seconds: float, shown: str) -> None:
    assert wall_time(seconds) == shown
