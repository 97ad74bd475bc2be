"""The report in a real browser: what only a browser knows about a page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from rerank_core.evaluation.colours import Colour, contrast_ratio

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    from tests.browser.conftest import Visit

pytestmark = pytest.mark.browser

READABLE = 4.5  # WCAG 2, level AA
SCREENS = pytest.mark.parametrize("screen", ["wide", "narrow"])
CARD = "#words .card"


@pytest.fixture
def visit(request: pytest.FixtureRequest, screen: str) -> Visit:
    found: Visit = request.getfixturevalue(screen)
    return found


def colour_of(css: str) -> tuple[Colour, float]:
    """Return a computed colour and its opacity."""
    red, green, blue, *alpha = (float(part) for part in re.findall(r"[\d.]+", css))
    return (red / 255, green / 255, blue / 255), alpha[0] if alpha else 1.0


def over(css: str, paper: Colour) -> Colour:
    """Return the opaque colour of a background on its paper."""
    colour, alpha = colour_of(css)
    red, green, blue = (alpha * part + (1 - alpha) * under for part, under in zip(colour, paper, strict=True))
    return red, green, blue


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than the screen."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width


def open_everything(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


@SCREENS
def test_the_page_is_as_wide_as_the_screen(visit: Visit) -> None:
    open_everything(visit.page)
    assert overflow(visit.page) == 0


@SCREENS
def test_nothing_hostile_runs_and_nothing_is_complained_about(visit: Visit, report: Path) -> None:
    open_everything(visit.page)
    for word in visit.page.locator(".w").all()[:12]:
        word.hover()
    assert visit.page.evaluate("window.attacked") is None
    assert visit.complaints == []
    assert visit.page.locator("script, [onclick], [onerror], [onload], [onmouseover]").count() == 0
    assert [url for url in visit.requests if not url.startswith("data:")] == [report.as_uri()]
    assert "<script>window.attacked = 1</script>" in visit.page.locator(".document").nth(1).inner_text()


@SCREENS
def test_raising_and_lowering_words_have_other_colours_and_other_lines(visit: Visit) -> None:
    raising = visit.styles(f"{CARD} .w.pos.strong", "background-color")
    lowering = visit.styles(f"{CARD} .w.neg.strong", "background-color")
    assert raising
    assert lowering
    raised, lowered = ({colour_of(css)[0] for css in found} for found in (raising, lowering))
    assert (len(raised), len(lowered)) == (1, 1)  # they differ in opacity alone
    assert raised != lowered
    assert set(visit.styles(f"{CARD} .w.pos", "border-bottom-style")) == {"solid"}
    assert set(visit.styles(f"{CARD} .w.neg", "border-bottom-style")) == {"dashed"}


@SCREENS
def test_every_word_can_be_read_on_its_background(visit: Visit) -> None:
    paper, _ = colour_of(visit.styles(".document", "background-color")[0])
    pairs = zip(visit.styles(".w", "color"), visit.styles(".w", "background-color"), strict=True)
    ratios = [contrast_ratio(colour_of(ink)[0], over(css, paper)) for ink, css in pairs]
    assert len(ratios) > 50
    assert min(ratios) >= READABLE


@pytest.mark.parametrize("screen", ["narrow"])
def test_the_dark_scheme_is_dark(visit: Visit) -> None:
    paper, _ = colour_of(visit.styles(".document", "background-color")[0])
    assert max(paper) < 0.25


@SCREENS
def test_pointing_at_a_word_shows_its_value_within_the_screen(visit: Visit) -> None:
    selector = f"{CARD}:first-of-type .w[data-value]"
    code = "e => getComputedStyle(e, '::after').content"
    assert visit.page.locator(selector).first.evaluate(code) == "none"
    rights = [box["right"] for box in visit.boxes(selector)]
    from_left_to_right = sorted(range(len(rights)), key=lambda n: rights[n])
    for number in (*from_left_to_right[:3], *from_left_to_right[-5:]):  # a value could leave the screen there
        word = visit.page.locator(selector).nth(number)
        word.hover()
        assert word.evaluate(code) == f'"{word.get_attribute("data-value")}"'
        assert overflow(visit.page) == 0
    assert "+0.700" in visit.page.locator(selector).evaluate_all("all => all.map(e => e.dataset.value)")


def test_the_strongest_words_are_reached_by_keyboard(wide: Visit) -> None:
    strong = wide.page.locator(f"{CARD} .strong").first
    wide.page.locator(f"{CARD} summary").first.focus()
    wide.page.keyboard.press("Tab")
    assert strong.evaluate("e => e === document.activeElement")
    assert strong.evaluate("e => getComputedStyle(e, '::after').content") == '"+0.700"'
    assert wide.page.get_by_role("img", name="Arctic +0.700").first.is_visible()


def test_two_documents_stand_side_by_side_on_a_desk(wide: Visit) -> None:
    first, second = wide.boxes("#contrast .versus article")
    assert first["right"] <= second["left"]
    assert first["top"] == second["top"]
    assert first["width"] == pytest.approx(second["width"], abs=1)


def test_two_documents_stand_below_each_other_on_a_telephone(narrow: Visit) -> None:
    first, second = narrow.boxes("#contrast .versus article")
    assert first["bottom"] <= second["top"]
    assert first["left"] == second["left"]


@SCREENS
def test_bars_begin_where_the_bar_above_ends(visit: Visit) -> None:
    table = f"{CARD} >> nth=0 >> table.waterfall"
    lane = visit.boxes(f"{table} >> .lane")[0]
    marks = [(box["left"] + box["right"]) / 2 for box in visit.boxes(f"{table} >> .mark")]
    bars = visit.boxes(f"{table} >> .bar")
    lowers = [
        "neg" in name
        for name in visit.page.locator(f"{table} >> .bar").evaluate_all("a => a.map(e => e.className)")
    ]
    place = marks[0]
    for bar, is_lowering in zip(bars, lowers, strict=True):
        start, end = (bar["right"], bar["left"]) if is_lowering else (bar["left"], bar["right"])
        assert start == pytest.approx(place, abs=1.5)  # pixels; a bar is at least two wide
        assert lane["left"] - 1 <= min(start, end) <= max(start, end) <= lane["right"] + 2
        place = end
    assert place == pytest.approx(marks[1], abs=1.5)


@SCREENS
def test_no_label_of_a_waterfall_is_cut_or_covers_its_bars(visit: Visit) -> None:
    open_everything(visit.page)
    labels, lanes, numbers = (visit.boxes(f".waterfall {part}") for part in ("th", ".lane", ".number"))
    for label, lane, number in zip(labels, lanes, numbers, strict=True):
        assert label["right"] <= lane["left"]
        assert lane["right"] <= number["left"]
        assert lane["width"] > 60


@SCREENS
def test_pictures_are_drawn_for_the_screen(visit: Visit, screen: str) -> None:
    natural: list[int] = visit.page.locator("picture img").evaluate_all("all => all.map(e => e.naturalWidth)")
    assert set(natural) == {{"wide": 2000, "narrow": 660}[screen]}


def test_the_page_prints_without_a_mistake(browser: Browser, report: Path) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(report.as_uri())
        page.emulate_media(media="print")
        assert page.pdf().startswith(b"%PDF")
