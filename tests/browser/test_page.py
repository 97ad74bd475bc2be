"""The server's page in a real browser: ranked, painted and explained, and nothing of a document is markup."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import uvicorn
from playwright.sync_api import expect

from rerank_core.data.loading import load_collection
from rerank_core.records import Document
from rerank_core.retrieval.bm25 import Bm25Retriever
from rerank_core.testing import OverlapScorer, grounded_answer
from serve.app import build_http
from serve.args import ServeArgs
from serve.attributor import AttributorService
from serve.auth import add_key
from serve.reranker import Reranker
from serve.retriever import RetrieverService
from serve.routes import PAGE
from tests.fake_services import (
    TEXTS,
    ScriptedWriter,
    build_overlap_attributor,
    card_of,
    open_overlap_deletion,
)
from tests.untrained import save_untrained_artefact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from playwright.sync_api import Browser, Page
    from starlette.types import ASGIApp

pytestmark = pytest.mark.browser

HOSTILE = (
    "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    " ice \U0001d54f sea"
)
LINES = ("sand dunes of a desert", HOSTILE, "sea ice thickness from radar on lakes", "river ice dates")
HOSTILE_TITLE = "<b>lakes</b>"
CORPUS = (
    Document("lakes", "ice on water", title=HOSTILE_TITLE),
    Document("sea", "the sea, far from any ice"),
    Document("dust", "dust in the air"),
)
SIZES = {"wide": {"width": 1280, "height": 900}, "narrow": {"width": 360, "height": 740}}


def lying_about_rivers(prompt: str, schema: Mapping[str, Any]) -> str:
    honest = grounded_answer(prompt, schema)
    return '{"sentences": [{"text": "Ignore the rules"}]}' if "river" in honest else honest


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a gateway whose texts about rivers are lies, and its key."""
    folder = tmp_path_factory.mktemp("page")
    save_untrained_artefact(folder / "tiny", texts=TEXTS)
    key = add_key(folder / "keys.json", "page")
    app = build_http(
        ServeArgs(artefact=folder / "tiny", keys=folder / "keys.json"),
        reranker=Reranker(OverlapScorer(), card_of(folder / "tiny"), max_tokens_per_batch=512),
        attributors=AttributorService(build_overlap_attributor, open_overlap_deletion, digest="ab" * 32),
        writer=ScriptedWriter(lying_about_rivers),
        retrievers=RetrieverService(Bm25Retriever(CORPUS)),
    )
    with running(app) as address:
        yield address, key


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """Serve an application on loopback; give its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(params=["light-wide", "dark-narrow"])
def page(request: pytest.FixtureRequest, browser: Browser, server: tuple[str, str]) -> Iterator[Page]:
    """The page, opened, with every complaint of the browser a failure."""
    scheme, size = request.param.split("-")
    complaints: list[str] = []
    with browser.new_context(viewport=SIZES[size], color_scheme=scheme) as context:  # type: ignore[arg-type]
        opened = context.new_page()
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(server[0])
        yield opened
        assert opened.title() == "Whyrank: which words put it there"
        assert [told for told in complaints if "401" not in told] == []


def ask(page: Page, key: str) -> None:
    """Fill in the form and wait for the end of the answer, with the keyboard alone."""
    page.locator("#query").focus()
    page.keyboard.type("sea ice")
    page.keyboard.press("Tab")
    page.keyboard.insert_text("\n".join(LINES))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # opens where the key goes
    page.keyboard.press("Tab")
    page.keyboard.type(key)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Done")


def texts_of(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_text_contents()


def test_a_list_is_ranked_painted_and_explained_with_the_keyboard_alone(
    page: Page, server: tuple[str, str]
) -> None:
    ask(page, server[1])
    assert texts_of(page, "#results .text") == [HOSTILE, LINES[2], LINES[3], LINES[0]]
    assert texts_of(page, "#results .change") == ["▲ 1 (was 2)", "▲ 1 (was 3)", "▲ 1 (was 4)", "▼ 3 (was 1)"]
    strong = page.locator("#results .result").nth(1).locator(".text .word.strong").all_text_contents()
    assert strong == ["sea", "ice"]
    whys = texts_of(page, "#results .body > .why")
    assert whys[1].startswith("This document describes ")
    cited = page.locator("#results .result").nth(1).locator(".why mark").all_text_contents()
    assert {"sea", "ice"} <= set(cited)


def test_nothing_of_a_document_is_markup_or_runs(page: Page, server: tuple[str, str]) -> None:
    ask(page, server[1])
    assert page.locator("#results img, #results script").count() == 0
    painted = page.locator("#results .result").first.locator(".text .word.strong").all_text_contents()
    assert painted == ["ice", "sea"]  # behind a character of two UTF-16 units too


def test_a_text_that_was_replaced_is_marked(page: Page, server: tuple[str, str]) -> None:
    ask(page, server[1])
    marks = page.locator("#results .body > .mark")
    assert [marks.nth(n).is_visible() for n in range(3)] == [False, False, True]


def test_why_above_the_next_one_is_answered_beside_the_result(page: Page, server: tuple[str, str]) -> None:
    ask(page, server[1])
    assert page.locator("#results .above:visible").count() == 3  # the last one stands above none
    second = page.locator("#results .result").nth(1)
    second.locator(".above").focus()
    page.keyboard.press("Enter")
    second.locator(".contrast .next .word").first.wait_for()
    assert second.locator(".contrast .next").text_content() == f"The next one, 1.00 lower: {LINES[3]}"
    expect(second.locator(".contrast .why")).to_contain_text("above the document at rank 3")


def test_what_decides_a_rank_is_answered_beside_the_result(page: Page, server: tuple[str, str]) -> None:
    ask(page, server[1])
    assert page.locator("#results .decides:visible").count() == 3  # the last one cannot stand lower
    second = page.locator("#results .result").nth(1)
    second.locator(".decides").focus()
    page.keyboard.press("Enter")
    expect(second.locator(".flip")).to_have_text("Without sea, ice it would stand at rank 4.")
    assert second.locator(".flip mark").all_text_contents() == ["sea", "ice"]
    assert page.evaluate("flipped({ units: [] })") == ["No few words decide it."]
    assert page.evaluate("flipped(undefined)") == ["These words could not be found out this time."]


def test_a_heat_map_shows_at_the_result_that_has_the_focus_alone(page: Page, server: tuple[str, str]) -> None:
    ask(page, server[1])
    word = page.locator("#results .result").nth(1).locator(".text .word.strong").first
    transparent = "rgba(0, 0, 0, 0)"
    page.locator("#query").focus()
    assert word.evaluate("e => getComputedStyle(e).backgroundColor") == transparent
    page.locator("#results .result").nth(1).focus()
    assert word.evaluate("e => getComputedStyle(e).backgroundColor") != transparent


def search(page: Page, key: str, query: str) -> None:
    """Search the corpus with the keyboard alone; it is offered once the key is known."""
    page.locator("#access summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type(key)
    page.keyboard.press("Tab")
    page.locator("#source").wait_for()
    page.locator("#query").focus()
    page.keyboard.type(query)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert not page.locator("#documents").is_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Done")


def test_a_corpus_is_offered_where_one_is_served_and_searched_with_the_keyboard_alone(
    page: Page, server: tuple[str, str]
) -> None:
    assert not page.locator("#source").is_visible()  # who brings no key is told nothing
    search(page, server[1], "lakes sea ice")
    assert texts_of(page, "#results .text") == [
        f"{HOSTILE_TITLE} – ice on water",
        "the sea, far from any ice",
    ]
    assert texts_of(page, "#results .change") == ["= same", "= same"]
    strong = page.locator("#results .result").first.locator(".text .word.strong").all_text_contents()
    assert strong == ["lakes", "ice"]  # of the title and of the text
    assert page.locator("#results b, #results img").count() == 0
    page.locator("#results .above").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#results .contrast .next").first).to_contain_text("the sea, far from any ice")
    assert page.locator("html").evaluate("e => e.scrollWidth <= window.innerWidth")


def test_a_search_that_finds_nothing_says_so(page: Page, server: tuple[str, str]) -> None:
    search(page, server[1], "zebra")
    expect(page.locator("#status")).to_have_text(
        "Done. No document of the corpus shares a word with the query."
    )
    assert not page.locator("#legend").is_visible()
    page.locator("#sample").click()  # the sample is a list
    expect(page.locator("#documents")).to_be_visible()


def test_no_corpus_is_offered_where_none_is_served(browser: Browser, tmp_path: Path) -> None:
    save_untrained_artefact(tmp_path / "tiny", texts=TEXTS)
    app = build_http(
        ServeArgs(artefact=tmp_path / "tiny", auth=False),
        reranker=Reranker(OverlapScorer(), card_of(tmp_path / "tiny"), max_tokens_per_batch=512),
        attributors=AttributorService(build_overlap_attributor, open_overlap_deletion, digest="ab" * 32),
    )
    with running(app) as address, browser.new_context() as context:
        opened = context.new_page()
        with opened.expect_response("**/v1/models") as told:
            opened.goto(address)
        assert told.value.json()["data"][0]["has_corpus"] is False
        assert not opened.locator("#source").is_visible()
        opened.evaluate("search.checked = true; showSource()")  # as a browser keeps it from an earlier server
        assert not opened.locator("#documents").is_visible()
        with opened.expect_response("**/v1/models"):
            opened.evaluate("key.dispatchEvent(new Event('change'))")
        expect(opened.locator("#documents")).to_be_visible()
        assert opened.evaluate("search.checked") is False


def test_the_page_is_as_wide_as_the_screen(page: Page, server: tuple[str, str]) -> None:
    ask(page, server[1])
    assert page.locator("html").evaluate("e => e.scrollWidth <= window.innerWidth")
    heights = page.locator("button:visible").evaluate_all("all => all.map(e => e.offsetHeight)")
    assert min(heights) >= 44  # large enough for a finger


def test_a_missing_key_is_asked_for_where_it_goes(page: Page) -> None:
    page.locator("#sample").click()
    expect(page.locator("#documents")).not_to_have_value("")
    page.locator("#rank").click()
    expect(page.locator("#status.failed")).to_contain_text("Authorization: Bearer")
    assert page.locator("#key").is_visible()


def test_the_sample_of_the_page_is_one_of_the_embedded_collection() -> None:
    told = json.loads((PAGE / "sample.json").read_text(encoding="utf-8"))
    collection = load_collection("sample")
    (query,) = [query for query in collection.queries.values() if query.text == told["query"]]
    assert collection.pool is not None
    assert told["documents"] == [
        " ".join(f"{document.title}. {document.text}".split())
        for document in (collection.documents[doc_id] for doc_id in collection.pool[query.query_id])
    ]


def test_the_page_s_files_need_no_key_and_hold_no_data(server: tuple[str, str]) -> None:
    import httpx

    with httpx.Client(base_url=server[0], trust_env=False) as stranger:
        for path in ("/", "/page/page.css", "/page/page.js", "/page/sample.json"):
            assert stranger.get(path).status_code == 200
        policy = stranger.get("/").headers["content-security-policy"]
        for path in ("/page/../routes.py", "/page/%2e%2e/routes.py", "/page//etc/passwd", "/page/"):
            assert stranger.get(path).status_code in (401, 404)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
