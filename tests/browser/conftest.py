"""One headless Chromium, and a report with planted findings for it to show."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pytest
from playwright.sync_api import sync_playwright

from rerank_core.evaluation.findings import (
    ExplainedDocument,
    Findings,
    MetricRow,
    MetricTable,
    RankedDocument,
    RankedQuery,
)
from rerank_core.evaluation.report import render_report
from rerank_core.evaluation.significance import Interval
from rerank_core.records import Attribution, Document, Explanation, Query, Unit
from rerank_core.testing import AdditiveScorer
from rerank_core.text import words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Page

REQUIRED = "WHYRANK_REQUIRE_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome")

WEIGHTS = {"ice": 1.2, "arctic": 0.7, "thickness": 0.9, "freeboard": 0.5, "radar": 0.4, "snow": -0.6}
WEIGHTS |= {"river": -1.1, "harbour": -0.3, "the": 0.05, "of": -0.04, "script": 0.8, "from": 0.02}
SCORER = AdditiveScorer(WEIGHTS)
HOSTILE = (
    "</div></style><script>window.attacked = 1</script><img src=x onerror='window.attacked = 1'>"
    "<svg onload=window.attacked=1> \"' onmouseover='window.attacked = 1' &lt;script&gt; ice of the river"
)
DOCUMENTS = (
    Document(
        "altimeter-7",
        "Freeboard of Arctic sea ice from a radar altimeter, with the snow depth that the conversion to "
        "thickness needs.\nMonthly grids from 2011 to 2020; the first two summers are missing.",
        title="Arctic ice thickness from radar",
        url="https://ice.example/altimeter-7",
    ),
    Document(
        "hostile-3", HOSTILE, title="<b onclick='window.attacked = 1'>River</b> ice", url="javascript:1"
    ),
    Document(
        "harbour-1",
        "Dates of river ice in the harbour. " + "Pneumonoultramicroscopicsilicovolcanoconiosis" * 3,
    ),
)
QUERY = Query("q1", "arctic ice thickness <script>window.attacked = 1</script>")


def _attribution(document: Document) -> Attribution:
    """Attribute an additive scorer's score: the value of a word is its weight."""
    units = tuple(
        Unit(word.text, word.start, word.end, field)  # type: ignore[arg-type]
        for field, content in (("title", document.title), ("text", document.text))
        for word in words(content)
    )
    values = tuple(WEIGHTS.get(unit.text.lower(), 0.0) for unit in units)
    (score,) = SCORER.score(QUERY, [document])
    return Attribution(QUERY.query_id, document.doc_id, score, 0.0, units, values, "exact", 60, 0.0, 0)


def _explained(ranked: RankedDocument) -> ExplainedDocument:
    attribution = _attribution(ranked.document)
    text = Explanation(
        *(
            QUERY.query_id,
            ranked.document.doc_id,
            f"It speaks of ice. {HOSTILE}",
            ("ice",),
            ("raised",),
            True,
            (),
        ),
        with_attribution=True,
        fallback=False,
        prompt_tokens=9,
        generated_tokens=9,
        generator="scripted",
        template="explain_with_attribution",
        num_attempts=1,
        asked_digest="",
    )
    above = replace(text, template="explain_contrast")
    return ExplainedDocument(QUERY, ranked, 3, True, attribution, text, None, above, None)


def _metric_table() -> MetricTable:
    kinds: dict[str, Literal["first_stage", "run", "ideal"]]
    kinds = {"bm25": "first_stage", "dpo": "run", "ideal": "ideal"}
    rows = []
    for (name, kind), mean in zip(kinds.items(), (0.6, 0.7, 1.0), strict=True):
        change = {"ndcg_burges@10": Interval(0.1, 0.02, 0.18)} if kind == "run" else {}
        value = Interval(mean, mean - 0.1, min(1.0, mean + 0.1))
        rows.append(MetricRow(name, kind, 1, {"ndcg_burges@10": value}, change))
    return MetricTable(("ndcg_burges@10",), tuple(rows), "2^g-1", 1000, 0.95)


@pytest.fixture(scope="session")
def findings() -> Findings:
    """One query with three documents, one of them hostile in every text that a collection can hold."""
    scores = SCORER.score(QUERY, DOCUMENTS)
    places = zip(DOCUMENTS, (3, None, 0), (3, 1, 2), (1, 2, 3), scores, strict=True)
    ranked = tuple(RankedDocument(*place) for place in places)
    query = RankedQuery(QUERY, ranked, grades=(3, 0), first_stage_value=0.6, value=0.9)
    explained = tuple(_explained(item) for item in ranked)
    return Findings("tiny <img src=x>", 2, "dpo", _metric_table(), (query,), explained, ())


@pytest.fixture(scope="session")
def report(findings: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report as a file."""
    path = tmp_path_factory.mktemp("browser") / "report.html"
    path.write_text(render_report(findings), encoding="utf-8")
    return path


# Not of the session: while Playwright runs, its event loop does, and other tests could start none themselves.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the system's Chromium once; skip where there is none, unless the environment requires one."""
    found = [path for path in map(shutil.which, NAMES) if path]
    if not found:
        reason = f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{reason}, and {REQUIRED}=1 requires one", pytrace=False)
        pytest.skip(reason)
    # Chromium refuses to run as root inside its sandbox; it opens no page here but ours.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found[0], args=flags)
        yield running
        running.close()


class Visit:
    """The report opened in the browser, with all that the browser complained about."""

    def __init__(self, context: BrowserContext, report: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())

    def styles(self, selector: str, name: str) -> list[str]:
        """Return a computed style of every element that a selector finds."""
        code = "(all, name) => all.map(e => getComputedStyle(e).getPropertyValue(name))"
        values: list[str] = self.page.locator(selector).evaluate_all(code, name)
        return values

    def boxes(self, selector: str) -> list[dict[str, Any]]:
        """Return the rectangle of every element that a selector finds, in CSS pixels."""
        code = "all => all.map(e => e.getBoundingClientRect().toJSON())"
        found: list[dict[str, Any]] = self.page.locator(selector).evaluate_all(code)
        return found


@pytest.fixture
def wide(browser: Browser, report: Path) -> Iterator[Visit]:
    """Visit the report on a desk's screen, in the light scheme."""
    with browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light") as context:
        yield Visit(context, report)


@pytest.fixture
def narrow(browser: Browser, report: Path) -> Iterator[Visit]:
    """Visit the report on a telephone's screen, in the dark scheme."""
    with browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark") as context:
        yield Visit(context, report)
