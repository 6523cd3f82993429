"""The page at `/` in a real browser: what people see, what is sent, and what never happens."""

import json
import re
from contextlib import ExitStack

import pytest
from chromium import chromium

from luthier.serving.page import read_page
from luthier.serving.records.feedback import corrections, read_feedback
from tests.serving.gateways import KEY, eventually, gateway_of
from tests.serving.scripted import echo, scripted

INSIDE = "document.querySelector('footer')?.hidden === false"
HOSTILE = """<img src=x onerror="document.title='hacked'"><script>document.title='hacked'</script><b>& javascript:alert(1)"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def engine():
    with scripted() as script:
        yield script


@pytest.fixture(scope="module")
def running(tmp_path_factory, engine):
    engines = {3: [engine.url], 4: [engine.url]}
    with gateway_of(tmp_path_factory.mktemp("log"), engines, weights=(0.5, 0.5), limits={"characters": 5_000}) as found:
        yield found


@pytest.fixture
def page(browser, running):
    """Return a page that has got in by the address that the server prints."""
    with browser.page(f"{running.address}/#key={KEY}") as found:
        found.wait(INSIDE)
        yield found
        assert found.happened("Runtime.exceptionThrown") == []


def ask(page, question: str, *, submitted: bool = True) -> None:
    page.evaluate("document.querySelector('#text').focus()")
    page.write(question)
    if submitted:
        page.press("Enter")


def answered(page, number: int) -> dict[str, str]:
    """Wait for the end of the answer of a number; return what stands in it."""
    page.wait(f"document.querySelectorAll('.answered:not([aria-busy])').length === {number}")
    parts = {
        name: f"one.querySelector('.{name}').textContent" for name in ("text", "note", "told", "model", "variant", "request")
    }
    listed = ", ".join(f"{name}: {part}" for name, part in parts.items())
    return page.evaluate(f"(() => {{ const one = [...document.querySelectorAll('.answered')].at(-1); return {{{listed}}} }})()")


def test_the_page_is_open_and_allows_itself_nothing_but_this_server(running):
    got = running.get("/", {})
    assert (got.status_code, got.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in got.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert all(re.fullmatch(r"'sha256-[\w+/]{43}='", policy[part]) for part in ("script-src", "style-src"))
    html, _ = read_page()
    assert got.text == html
    assert set(re.findall(r"\w+://[^\s'\"`$]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    for way_in in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "srcdoc", "localStorage", "cookie"):
        assert way_in not in html


def test_a_conversation_with_versions_votes_and_a_correction(page, running, engine):
    assert page.evaluate("[location.href, sessionStorage.length, history.length]") == [f"{running.address}/", 1, 2]
    names = [model.id for model in running.client.models.list()]
    assert page.evaluate("[...document.querySelector('#model').options].map((one) => one.value)") == names
    ask(page, "Write to ada@example.org", submitted=False)
    page.press("Enter", shift=True)
    page.write("soon")
    page.press("Enter")
    first = answered(page, 1)
    assert (first["text"], first["note"], first["told"]) == ("Write to ada@example.org\nsoon", "", "")
    engine.says = lambda body: HOSTILE
    ask(page, f"Is {HOSTILE} shown?")
    second = answered(page, 2)
    engine.says = echo
    assert second["text"] == HOSTILE
    assert page.evaluate("[document.title, document.querySelectorAll('img, b').length]") == ["Luthier", 0]
    assert page.text().count(HOSTILE) == 2
    assert [turn["role"] for turn in engine.seen[-1]["messages"]] == ["system", "user", "assistant", "user"]
    assert engine.seen[-1]["temperature"] == 0

    rows = running.rows().set_index("request")
    for told in (first, second):
        row = rows.loc[told["request"]]
        assert (f"version {row.version}", row.served) == (told["model"], told["variant"])
    assert rows.loc[first["request"]].subject == rows.loc[second["request"]].subject

    page.click(".up")
    page.wait("document.querySelectorAll('.kept')[1].textContent === 'Thank you.'")
    page.click(".correct")
    page.evaluate("document.activeElement.select()")
    page.write('{"intent": "return"}')
    page.click(".correction .main")
    page.wait("document.querySelectorAll('.kept')[1].textContent.includes('correction is kept')")
    page.click(".down")
    page.wait("document.querySelectorAll('.down')[1].getAttribute('aria-pressed') === 'true'")
    assert page.evaluate("document.querySelectorAll('.up')[1].getAttribute('aria-pressed')") == "false"
    votes = read_feedback(running.log_uri).set_index("request")
    assert votes.rating.to_dict() == {second["request"]: "down"}
    (kept,) = [one for one in corrections(running.log_uri) if one["meta"]["request"] == second["request"]]
    assert kept["messages"][-1]["content"] == '{"intent": "return"}'

    asked = [event["request"]["url"] for event in page.happened("Network.requestWillBeSent")]
    assert all(url.startswith((f"{running.address}/", "data:image/svg+xml")) for url in asked)
    assert not any(KEY in url.partition("#")[0] for url in asked)
    assert page.happened("Log.entryAdded") == []  # nothing was refused by the policy, nothing was missing

    page.click("#fresh")
    assert page.evaluate("[document.querySelector('#talk').childElementCount, document.querySelector('#welcome').hidden]") == [
        0,
        False,
    ]
    ask(page, "Anew")
    assert answered(page, 1)["text"] == "Anew"
    assert len(engine.seen[-1]["messages"]) == 2
    page.click("#leave")
    assert page.evaluate("[document.querySelector('footer').hidden, sessionStorage.getItem('luthier-key')]") == [True, None]
    assert "Anew" not in page.text()


@pytest.mark.parametrize("way", ["Escape", "Stop", "New chat"])
def test_an_answer_is_stopped_and_the_engine_with_it(page, engine, way):
    engine.between, cancelled = 0.05, engine.cancelled
    ask(page, "word " * 200)
    page.wait("document.querySelector('.answered .text').textContent.length > 8")
    ask(page, "not while it writes")
    page.press("Escape") if way == "Escape" else page.click("#stop" if way == "Stop" else "#fresh")
    assert eventually(lambda: engine.cancelled == cancelled + 1)
    engine.between = 0.0
    assert page.evaluate("document.querySelector('#text').value") == "not while it writes"
    if way != "New chat":
        told = answered(page, 1)
        assert (told["note"], told["told"]) == ("Stopped.", "")
        assert 8 < len(told["text"]) < 1_000
    assert page.evaluate("document.querySelectorAll('.answered').length") == (0 if way == "New chat" else 1)
    page.press("Enter")
    assert answered(page, 1 if way == "New chat" else 2)["text"] == "not while it writes"


def test_what_goes_wrong_is_told_in_words_and_can_be_tried_again(page, running, engine):
    ask(page, "x" * 6_000)
    told = answered(page, 1)
    assert (told["text"], told["told"]) == ("", "messages: they hold 6,000 characters, and 5,000 are allowed.")
    assert page.evaluate("document.querySelector('#text').value.length") == 6_000
    page.evaluate("document.querySelector('#text').select()")
    engine.troubles = ["stream breaks"]
    ask(page, "This breaks off")
    told = answered(page, 2)
    assert (told["text"], told["told"]) == ("This bre", "The engine broke off.")
    running.gateway.draining = True
    ask(page, "Once more")
    told = answered(page, 3)
    assert told["told"] == "This server is about to stop: try again. (Try again in 1 s.)"
    running.gateway.draining = False
    assert eventually(lambda: all(served.engine.status().alive for served in running.gateway.live.engines.values()))
    page.press("Enter")  # the question is back in the box
    assert answered(page, 4)["text"] == "Once more"
    assert [turn["content"] for turn in engine.seen[-1]["messages"][1:]] == ["This breaks off", "This bre", "Once more"]
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    ask(page, "Is anybody there?")
    assert answered(page, 5)["told"] == "The server does not answer. Does it still run?"
    page.click(".judge:not([hidden]) .up")
    page.wait("document.querySelector('.kept.told') !== null")


def test_a_server_that_goes_away_in_the_middle_is_told(browser, engine, tmp_path):
    engine.between = 0.1
    with ExitStack() as until_it_ends:
        running = until_it_ends.enter_context(gateway_of(tmp_path, {3: [engine.url]}))
        with browser.page(f"{running.address}/#key={KEY}") as page:
            page.wait(INSIDE)
            ask(page, "word " * 40)
            page.wait("document.querySelector('.answered .text')?.textContent.length > 8")
            until_it_ends.close()
            told = answered(page, 1)
            assert (told["told"], told["text"][:4]) == ("The answer broke off: the server is gone.", "word")
    engine.between = 0.0


def test_a_wrong_key_is_told_and_forgotten_and_keys_are_asked_for(browser, running):
    with browser.page(f"{running.address}/#key=two%20words") as page:
        page.wait("document.querySelector('#refused').textContent.startsWith('A key has no spaces')")
        page.evaluate("location.hash = '#key=sk-wrong-0123456789'")
        page.wait("document.querySelector('#refused').textContent === 'The server does not know this key.'")
        assert page.evaluate("sessionStorage.getItem('luthier-key')") is None
        for wrong in ("two words", "schlüssel"):
            page.write(wrong)
            page.press("Enter")
            page.wait("document.querySelector('#refused').textContent.startsWith('A key has no spaces')")
        page.write(KEY)
        page.press("Enter")
        page.wait(INSIDE)
        page.call("Page.reload")
        page.wait(INSIDE)  # a tab keeps it


def test_everything_is_reached_by_keyboard(page):
    ask(page, "Hello")
    answered(page, 1)
    names = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
    reached = []
    for _ in range(12):
        page.press("Tab")
        name = page.evaluate(names)
        reached.append(name)
        if name == "up":
            page.press("Space")
            page.wait("document.querySelector('.up').getAttribute('aria-pressed') === 'true'")
        if name == "correct":
            page.press("Space")
            page.wait("document.activeElement.tagName === 'TEXTAREA'")
            page.press("Escape")
            page.wait("document.activeElement.className === 'correct'")
    assert {"model", "fresh", "leave", "up", "down", "correct", "text", "send"} <= set(reached)
    unnamed = "[...document.querySelectorAll('button, input, textarea, select')].filter((one) => !(one.labels?.length || one.ariaLabel || one.innerText))"
    assert page.evaluate(f"{unnamed}.map((one) => one.outerHTML)") == []


CONTRASTS = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (one) => {
    while (one && (parts(getComputedStyle(one).backgroundColor)[3] ?? 1) === 0) one = one.parentElement;
    return light(parts(getComputedStyle(one).backgroundColor));
  };
  return [...document.querySelectorAll('body *')].filter((one) => one.checkVisibility() && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((one) => [light(parts(getComputedStyle(one).color)), behind(one), one.className || one.tagName])
    .map(([front, back, name]) => [(Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05), name]);
})()"""


@pytest.mark.parametrize(("width", "dark"), [(320, False), (1000, True)])
def test_it_is_readable_in_light_and_dark_and_fits_narrow_windows(browser, running, width, dark):
    with browser.page(f"{running.address}/#key={KEY}", width=width, dark=dark) as page:
        page.wait(INSIDE)
        ask(page, f"{'long' * 60} {json.dumps({'a': 1})}")
        answered(page, 1)
        page.click(".correct")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 10
        assert [one for one in found if one[0] < 4.5] == []  # of WCAG's AA
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)(document.querySelector('main'))") == 0
        wide = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert wide == ("rgb(27, 25, 23)" if dark else "rgb(253, 252, 250)")
