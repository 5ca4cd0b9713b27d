"""The page and the documentation: what a browser is told, and, where Chromium is installed, what it then does."""

import asyncio
import contextlib
import json
import re
import threading

import pytest

pytest.importorskip("fastapi_offline", reason="pip install -r requirements-serve.txt")
import browser
from page_kit import client, listening, page_of, play

from posttrain.serving.page import OURS

LINES = {"tiny-sft": ["I am Robin."], "tiny-dpo": ["I am Nova."]}
EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script><b>bold</b> &amp;'


def get(app, *paths):
    async def go():
        async with client(app) as c:
            return [await c.get(path) for path in paths]

    return asyncio.run(go())


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with page_of(play(LINES), tmp_path_factory.mktemp("votes") / "votes.jsonl") as (app, _):
        yield app


def test_the_page_and_its_policy(app):
    page, docs, missing, *_ = get(app, "/", "/docs", "/static/page.html", "/static/..%2Fpage.py")
    assert page.status_code == docs.status_code == 200 and missing.status_code == 404
    assert page.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert "script-src 'self';" in docs.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["cache-control"] == "no-cache"


def test_every_file_that_the_pages_name_is_there(app):
    for page in get(app, "/", "/docs"):
        names = re.findall(r'(?:src|href)="(static/[^"]+)"', page.text)
        assert len(names) >= 3
        for name, file in zip(names, get(app, *(f"/{name}" for name in names)), strict=True):
            kind = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[name.rsplit(".", 1)[1]]
            assert file.status_code == 200 and file.headers["content-type"].startswith(kind)
    assert [file.status_code for file in get(app, "/static/..%2Fpage.py", "/static/", "/static/core.py")] == [404] * 3


def test_nothing_inline_nothing_from_elsewhere_and_no_html_from_text():
    for path in OURS.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text), path
        assert not re.search(r"<script(?![^>]* src=)[^>]*>|<style|\son\w+=|\sstyle=|javascript:", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", text), path


def test_the_description_says_that_a_key_is_needed(app, tmp_path):
    (plain,) = get(app, "/openapi.json")
    assert "security" not in plain.json() and "/arena/match" in plain.json()["paths"]
    with page_of(play(LINES), tmp_path / "v.jsonl", key="secret") as (guarded, _):
        (described,) = get(guarded, "/openapi.json")
    assert described.json()["security"] == [{"key": []}]
    assert described.json()["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.chromium(tmp_path_factory.mktemp("profile")) as b:
        yield b


@pytest.fixture
def at(tmp_path, chromium):
    """at(lines, …) -> (the browser on the page, the engine, the matches); no complaint is left in the console."""
    with contextlib.ExitStack() as stack:

        def opened(lines, *, path="", pause=0.0, allowed=(), **how):
            engine = play(lines, pause=pause)
            app, matches = stack.enter_context(page_of(engine, tmp_path / "votes.jsonl", **how))
            address = stack.enter_context(listening(app))
            stack.callback(lambda: check(allowed))
            chromium.look_like(1000, 800)
            chromium.complaints()
            chromium.open(address + path)
            return chromium, engine, matches

        def check(allowed):
            left = [line for line in chromium.complaints() if not any(part in line for part in allowed)]
            chromium.open("about:blank")
            assert left == []

        yield opened


def in_a_browser(test):
    return pytest.mark.long(pytest.mark.skipif(bool(browser.MISSING), reason=browser.MISSING)(test))


ENDED = "!document.querySelector('[data-vote=left]').disabled"
CAN_ASK = "document.activeElement.id === 'question'"


@pytest.mark.parametrize("said", ["left", "right", "tie", "both_bad"])
@in_a_browser
def test_ask_and_vote_by_keyboard_alone(at, said):
    page, _, matches = at(LINES)
    page.until(CAN_ASK)
    page.press("Who are you?", "Control+Enter")
    page.until(ENDED)
    assert {page.text("#left-text"), page.text("#right-text")} == {"I am Robin.", "I am Nova."}
    assert page.text("#asked") == "Who are you?" and page.text("#left-name") == "Left"
    assert "tiny" not in page.text("#match") and page.focused() == "match"
    sides = {"left": page.text("#left-text"), "right": page.text("#right-text")}
    page.press({"left": "1", "right": "2", "tie": "3", "both_bad": "4"}[said])
    page.until("document.getElementById('left-name').textContent !== 'Left'")
    names = {"I am Robin.": "tiny-sft", "I am Nova.": "tiny-dpo"}
    assert page.text("#left-name").startswith(f"Left: {names[sides['left']]}")
    assert page.text("#right-name").startswith(f"Right: {names[sides['right']]}")
    won = page.js("return [...document.querySelectorAll('.won')].map((one) => one.id)")
    assert won == ([said] if said in sides else [])
    assert matches.votes.made == (said in sides)
    assert page.focused() == "question"  # the next one can be typed at once
    assert "1" not in page.js("return document.getElementById('question').value")
    page.press("And now?", "Control+Enter")
    page.until(ENDED)
    assert page.text("#asked") == "And now?" and page.text("#left-name") == "Left"
    page.click("#question")
    page.press("12")  # in a field these are digits
    assert page.js(f"return {ENDED}") and matches.votes.counts.total() == 1


@in_a_browser
def test_what_a_model_says_is_text(at):
    page, _, matches = at({"a": [EVIL], "b": ["plain"]}, most_tokens=200)
    page.until(CAN_ASK)
    page.js("document.getElementById('question').value = arguments[0]", EVIL)
    page.press("Control+Enter")
    page.until(ENDED)
    assert EVIL in (page.text("#left-text"), page.text("#right-text")) and page.text("#asked") == EVIL
    page.press("1")
    page.until("document.getElementById('left-name').textContent !== 'Left'")
    assert page.js("return document.querySelectorAll('#match img, #match script, #match b').length") == 0
    assert page.js("return document.title") == "Which answer is better?"
    assert json.loads(matches.votes.path.read_text())["prompt"] == EVIL


@in_a_browser
def test_names_of_models_are_text(at):
    page, _, _ = at({"<b>a</b>": ["one"], "<i>b</i>": ["two"]})
    page.until(CAN_ASK)
    page.press("Who?", "Control+Enter")
    page.until(ENDED)
    page.press("2")
    page.until("document.querySelectorAll('#rows tr').length")
    assert page.js("return document.querySelectorAll('main b, main i').length") == 0
    assert "<i>b</i>" in page.text("#rows")


@in_a_browser
def test_tokens_stream_and_esc_stops_them(at):
    page, engine, matches = at({"a": ["one two three four five six seven"], "b": ["words"]}, pause=0.15)
    page.until(CAN_ASK)
    page.press("Count", "Control+Enter")
    page.until("document.getElementById('left-text').textContent !== ''")
    assert page.js(f"return {ENDED}") is False and page.text("#go") == "Stop"
    page.press("1")  # there is nothing to vote on yet
    page.press("Escape")
    page.until("document.getElementById('problem').textContent.startsWith('stopped')")
    assert page.text("#go") == "Ask" and page.js(f"return {ENDED}") is False
    for _ in range(60):
        if len({request.voice for request in engine.left}) == 2:
            break
        threading.Event().wait(0.05)
    assert {request.voice for request in engine.left} == {"a", "b"} and matches.votes.counts.total() == 0


@in_a_browser
def test_a_vote_that_was_not_written_can_be_sent_again(at, monkeypatch):
    page, _, matches = at(LINES, allowed=["503"])
    add = matches.votes.add

    def full(vote):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(matches.votes, "add", full)
    page.until(CAN_ASK)
    page.press("Who?", "Control+Enter")
    page.until(ENDED)
    page.press("1")
    page.until("document.getElementById('problem').textContent.includes('No space left on device')")
    assert page.text("#left-name") == "Left"
    monkeypatch.setattr(matches.votes, "add", add)
    page.click("[data-vote=left]")
    page.until("document.getElementById('left-name').textContent !== 'Left'")
    assert page.text("#problem") == "" and matches.votes.made == 1


@in_a_browser
def test_a_question_that_is_refused_shows_no_answers(at):
    page, engine, _ = at(LINES, allowed=["400"])
    engine.voices["tiny-dpo"].limit = 8
    page.until(CAN_ASK)
    page.press("Who are you, and what can you do?", "Control+Enter")
    page.until("document.getElementById('problem').textContent.includes('that tiny-dpo is served with')")
    page.until("document.getElementById('match').hidden")
    assert page.focused() == "question" and page.text("#go") == "Ask"


@in_a_browser
def test_the_key_is_asked_for(at):
    page, engine, matches = at(LINES, key="secret", allowed=["401"])
    page.until("document.activeElement.id === 'key'")
    page.press("wrong", "Enter")
    page.until("document.getElementById('door-said').textContent === 'not this one'")
    assert not page.js(f"return {CAN_ASK}") and engine.asked == []
    page.js("document.getElementById('key').value = ''")
    page.press("secret", "Enter")
    page.until(CAN_ASK)
    page.press("Who?", "Control+Enter")
    page.until(ENDED)
    assert len(engine.asked) == 2 and len(matches.waiting) == 1


@in_a_browser
def test_one_model_gives_two_samples(at):
    page, _, matches = at({"alone": ["one", "two"]})
    page.until(CAN_ASK)
    assert page.js("return [...document.getElementById('pair').options].map((o) => o.text)") == ["two samples of alone"]
    page.press("Count", "Control+Enter")
    page.until(ENDED)
    page.press("2")
    page.until("document.querySelectorAll('#rows tr').length")
    assert "itself" in page.text("#rows") and matches.votes.made == 1


@in_a_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 1000])
def test_it_fits_and_can_be_read(at, dark, width):
    long = ["word " * 40 + "x" * 400]
    page, _, _ = at({"organisation/a-model-with-quite-a-long-name": long, "b": ["short"]}, most_tokens=1000)
    page.look_like(width, 700, dark=dark, phone=width < 600)
    page.until(CAN_ASK)
    page.press("Who? " + "y" * 300, "Control+Enter")
    page.until(ENDED)
    page.press("1")
    page.until("document.querySelectorAll('#rows tr').length")
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
    left, right = (page.js(f"return document.getElementById('{side}').getBoundingClientRect().toJSON()") for side in ("left", "right"))  # fmt: skip
    assert (right["top"] >= left["bottom"]) if width == 320 else right["left"] >= left["right"]
    small = page.js("return [...document.querySelectorAll('button')].filter((b) => b.offsetParent && b.offsetHeight < 44).length")  # fmt: skip
    assert small == 0
    for selector in ("#left-text", ".quiet", "#go", "[data-vote]", "a", "#problem"):
        assert page.js(CONTRAST, selector) >= 4.5, selector  # WCAG 2, AA


CONTRAST = """
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const element = document.querySelector(arguments[0]);
let under = element;
while (parse(getComputedStyle(under).backgroundColor)[3] === 0) under = under.parentElement;
const [a, b] = [getComputedStyle(element).color, getComputedStyle(under).backgroundColor].map(parse).map(light).sort((x, y) => y - x);
return (a + .05) / (b + .05);
"""


@in_a_browser
def test_every_control_has_a_name_and_tab_reaches_it(at):
    page, _, _ = at(LINES)
    page.until(CAN_ASK)
    named = page.js(
        "return [...document.querySelectorAll('input, textarea, select')].every((one) => one.labels.length === 1)"
    )
    assert named
    order = []
    for _ in range(4):
        page.press("Tab")
        order.append(page.focused())
    assert order == ["pair", "temperature", "longest", "go"]
    page.js("document.getElementById('question').focus()")
    page.press("Who?", "Control+Enter")
    page.until(ENDED)
    page.press("Tab")
    assert page.js("return document.activeElement.dataset.vote") == "left"
    page.press("Enter")
    page.until("document.getElementById('left-name').textContent !== 'Left'")
    assert "Left was tiny-" in page.text("[role=status]")


@in_a_browser
def test_the_documentation_works_without_a_network(at):
    page, _, _ = at(LINES, key="secret", path="docs")
    page.until("document.querySelectorAll('.opblock').length >= 8")
    assert "/v1/chat/completions" in page.text() and "Authorize" in page.text()
    asked = page.js("return performance.getEntriesByType('resource').map((one) => new URL(one.name).host)")
    assert len(asked) >= 4 and set(asked) == {page.js("return location.host")}
    page.click(".authorize")
    page.until("document.querySelector('.modal-ux input')")
    page.click(".modal-ux input")
    page.press("secret")
    page.click(".modal-ux button.authorize")
    page.click(".modal-ux .btn-done")
    page.js(
        "[...document.querySelectorAll('.opblock-summary-path')].find((one) => one.textContent.includes('/v1/models')).click()"
    )
    page.until("document.querySelector('.try-out__btn')")
    page.click(".try-out__btn")
    page.until("document.querySelector('.execute')")
    page.click(".execute")
    page.until("document.querySelector('.responses-table.live-responses-table')")
    assert '"tiny-dpo"' in page.text(".live-responses-table")
