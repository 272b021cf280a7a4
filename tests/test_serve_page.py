"""The chat page in a real browser, against a server that streams slowly."""

import http.server
import json
import threading
import time

import pytest
from headless_chromium import CHROMIUM, Browser

from llmasos_jax.serve.page.chat import chat_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

WORDS = [f"word{i}, " for i in range(400)]
LAST = "document.querySelector('.message:last-child > :last-child').textContent"
ANSWERS = "[...document.querySelectorAll('.assistant .text, .assistant code')]"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server of the test says."""

    server: "Stub"

    def do_GET(self):
        if self.path == "/":
            page = chat_page()
            return self.answer(200, page.html, page.headers)
        if self.path == "/v1/models" and self.is_allowed():
            self.answer(200, {"object": "list", "data": [{"id": "small-stub"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.is_allowed():
            return
        self.server.asked.append(body)
        if self.server.error is not None:
            return self.answer(*self.server.error)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for piece in self.server.pieces:
                self.event({"choices": [{"index": 0, "delta": {"content": piece}}]})
                self.server.num_sent += 1
                time.sleep(self.server.pause_s)
            for last in self.server.endings:
                self.event(last)
        except (BrokenPipeError, ConnectionResetError):
            self.server.gone.set()

    def event(self, data):
        text = data if isinstance(data, str) else json.dumps(data)
        self.wfile.write(f"data: {text}\r\n\r\n".encode())

    def is_allowed(self):
        key = self.server.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self.answer(401, {"error": {"message": "the key is wrong", "type": "x", "code": None}})
        return False

    def answer(self, status, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {"Content-Type": "application/json"}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Stub(http.server.ThreadingHTTPServer):
    """Streams `pieces`, then `endings`; asks for `key`; answers `error` in place of a stream."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.pieces, self.pause_s = ["Hello", ", you."], 0.0
        self.usage = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
        self.endings = [
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": self.usage},
            "[DONE]",
        ]
        self.key = self.error = None
        self.asked, self.num_sent, self.gone = [], 0, threading.Event()


@pytest.fixture
def stub():
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(tab, stub):
    tab.complaints.clear()
    tab.resize(900, 700)
    tab.open(stub.url)
    return tab


def ask(browser, text, is_whole=True):
    browser.click("#prompt")
    browser.type(text)
    browser.press("Enter")
    if is_whole:
        browser.wait("document.querySelector('.assistant:last-child:not([aria-busy])')")


def test_the_text_grows_and_stops_half_way(browser, stub, tmp_path):
    stub.pieces, stub.pause_s = WORDS, 0.02
    browser.wait("document.title === 'small-stub'")
    ask(browser, "Count the words.", is_whole=False)
    browser.wait("document.querySelector('.assistant .text')")
    lengths = [browser.look(f"{LAST}.length")]
    for _ in range(3):
        lengths.append(browser.wait(f"{LAST}.length > {lengths[-1]} && {LAST}.length"))
    assert lengths == sorted(set(lengths))
    browser.wait(f"{LAST}.length > 200")
    browser.photograph(tmp_path / "under_way.png")
    browser.click("#stop")
    browser.wait("document.getElementById('stop').hidden")
    kept = browser.look(LAST)
    assert stub.gone.wait(10), "the server still writes to a browser that stopped"
    whole = "".join(WORDS)
    assert 200 < len(kept) < len(whole) and whole.startswith(kept)
    assert stub.num_sent < len(WORDS)
    assert browser.look(LAST) == kept
    assert browser.look("document.getElementById('status').textContent") == "stopped"
    assert browser.look("document.activeElement.id") == "prompt"
    browser.photograph(tmp_path / "stopped.png")
    assert (tmp_path / "stopped.png").read_bytes().startswith(b"\x89PNG")
    # What was kept is part of what is said next.
    stub.pieces, stub.pause_s = ["Then more."], 0.0
    ask(browser, "Go on.")
    assert browser.look(LAST) == "Then more."
    first, second, third = stub.asked[-1]["messages"]
    assert first == {"role": "user", "content": "Count the words."}
    assert second == {"role": "assistant", "content": kept}
    assert third == {"role": "user", "content": "Go on."}
    assert browser.complaints == []


def test_escape_stops_as_well(browser, stub):
    stub.pieces, stub.pause_s = WORDS, 0.02
    ask(browser, "Count.", is_whole=False)
    browser.wait("document.querySelector('.assistant .text')")
    browser.press("Escape")
    browser.wait("document.getElementById('stop').hidden")
    assert stub.gone.wait(10)
    assert browser.look(f"{LAST}.startsWith('word0, ')")


def test_settings_are_sent_and_usage_is_shown(browser, stub):
    stub.pause_s = 0.05
    ask(browser, "Hi")
    assert stub.asked[-1] == {
        "model": "small-stub",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    shown = browser.look("document.getElementById('status').textContent")
    count, pace = shown.split(" · ")
    assert count == "7 tokens"
    assert 10 < float(pace.removesuffix(" tokens/s")) < 6 / 0.05 * 1.5
    browser.click("#settings")
    assert browser.look("document.activeElement.id") == "system"
    browser.type("Be brief.")
    browser.click("#temperature")
    browser.type("0.25")
    browser.click("#max-tokens")
    browser.type("64")
    browser.click("#new")
    assert browser.look("document.querySelectorAll('.message').length") == 0
    ask(browser, "Hi again")
    assert stub.asked[-1]["temperature"] == 0.25
    assert stub.asked[-1]["max_tokens"] == 64
    assert stub.asked[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi again"},
    ]


def test_a_temperature_out_of_range_is_not_sent(browser, stub):
    browser.look("document.getElementById('temperature').value = '9'")
    ask(browser, "Hi", is_whole=False)
    assert browser.wait("!document.getElementById('settings-panel').hidden")
    assert browser.look("document.getElementById('prompt').value") == "Hi"
    assert stub.asked == []


def test_shift_and_enter_makes_a_line(browser, stub):
    browser.click("#prompt")
    browser.type("one")
    browser.press("Enter", shift=True)
    browser.type("two")
    browser.press("Enter")
    browser.wait("document.querySelector('.assistant:last-child:not([aria-busy])')")
    assert stub.asked[-1]["messages"][0]["content"] == "one\ntwo"


def test_html_is_text_and_code_is_a_block(browser, stub):
    markup = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    answer = f"{markup}\nsecond  line\n```python\nif a < b:\n    print('&amp;')\n```\n\nAfter."
    stub.pieces = list(answer)
    ask(browser, "<b>bold</b>")
    assert browser.look(f"{ANSWERS}.map((block) => block.textContent)") == [
        f"{markup}\nsecond  line",
        "if a < b:\n    print('&amp;')",
        "After.",
    ]
    assert browser.look("document.querySelectorAll('.message :is(img, script, b)').length") == 0
    assert browser.look("document.title") == "small-stub"
    assert "mono" in browser.look("getComputedStyle(document.querySelector('pre')).fontFamily")
    assert browser.look(f"getComputedStyle({ANSWERS}[0]).whiteSpace").startswith("pre-wrap")
    assert browser.look("document.querySelector('.user .text').textContent") == "<b>bold</b>"
    assert browser.complaints == []


def test_an_error_is_shown_and_the_question_comes_back(browser, stub):
    stub.error = (400, {"error": {"message": "max_tokens=512 is more than 64 <b>", "code": None}})
    ask(browser, "Hi", is_whole=False)
    shown = "document.querySelector('#error[role=alert] span')?.textContent"
    assert browser.wait(shown) == "max_tokens=512 is more than 64 <b>"
    assert browser.look("document.querySelectorAll('.message').length") == 0
    assert browser.look("document.getElementById('prompt').value") == "Hi"
    stub.error = (502, b"<html>")
    browser.press("Enter")
    assert browser.wait(f"{shown}?.includes('502') && {shown}") == "The server answered 502."
    stub.error = None
    browser.press("Enter")
    browser.wait("document.querySelector('.assistant:last-child:not([aria-busy])')")
    assert browser.look(LAST) == "Hello, you."
    assert browser.look("document.getElementById('error').childElementCount") == 0
    assert [len(body["messages"]) for body in stub.asked] == [1, 1, 1]


@pytest.mark.parametrize(
    ("endings", "message"),
    [
        ([{"error": {"message": "the engine failed: out of pages"}}], "the engine failed"),
        ([], "The connection ended before the answer did."),
    ],
)
def test_a_failure_in_the_middle_keeps_what_was_written(browser, stub, endings, message):
    stub.endings = endings
    ask(browser, "Hi")
    assert browser.wait("document.querySelector('#error span')?.textContent").startswith(message)
    assert browser.look(LAST) == "Hello, you."
    assert browser.look("document.getElementById('stop').hidden")


def test_a_401_asks_for_the_key(browser, stub):
    stub.key = "secret"
    ask(browser, "Hi", is_whole=False)
    browser.wait("!document.getElementById('key-panel').hidden")
    shown = "document.querySelector('#error span')?.textContent"
    assert browser.wait(shown) == "the key is wrong"
    assert browser.look("document.activeElement.id") == "key"
    assert stub.asked == []
    browser.type("secret")
    browser.press("Enter")
    # The question that was refused goes off again by itself.
    browser.wait("document.querySelector('.assistant:last-child:not([aria-busy])')")
    assert browser.look(LAST) == "Hello, you."
    assert browser.look("document.getElementById('key-panel').hidden")
    assert browser.look("sessionStorage.getItem('llmasos-api-key')") == "secret"
    assert browser.look("localStorage.length") == 0
    browser.look("sessionStorage.clear()")


@pytest.mark.parametrize("width", [320, 900])
def test_nothing_lies_beside_the_window(browser, stub, width):
    browser.resize(width, 600)
    stub.pieces = ["long" * 200, "\n```\n", "code " * 100, "\n```\n", "line\n" * 60]
    ask(browser, "Hi")
    assert browser.look("document.documentElement.scrollWidth") == width
    assert browser.look("document.documentElement.scrollHeight") == 600
    assert browser.look("document.getElementById('send').getBoundingClientRect().right") <= width
    end = "(({scrollHeight: h, scrollTop: t, clientHeight: c}) => h - t - c)"
    assert browser.look(f"{end}(document.getElementById('scroll'))") < 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, stub, scheme):
    """Contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    browser.prefer(scheme)
    stub.pieces = ["Text\n```\ncode\n```"]
    ask(browser, "Hi")
    pairs = browser.look("""(() => {
      const style = (found) => getComputedStyle(document.querySelector(found));
      return [["body", "body"], ["#status", "body"], [".user .text", ".user"],
        [".assistant .text", ".assistant"], ["pre code", "pre"], ["#send", "#send"]]
        .map(([ink, page]) => [style(ink).color, style(page).backgroundColor]);
    })()""")
    for ink, page in pairs:
        low, high = sorted((luminance(ink), luminance(page)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, page)
    is_dark = luminance(pairs[0][1]) < 0.2
    assert is_dark == (scheme == "dark")


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)"."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_field_has_a_name(browser):
    """As a screen reader says it."""
    nodes = browser.do("Accessibility.getFullAXTree")["nodes"]
    named = {
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node["ignored"] and "role" in node
    }
    expected = {("button", "Send"), ("button", "Settings"), ("button", "New chat")}
    assert expected | {("textbox", "Message"), ("log", "Messages")} <= named
    assert not [node for node in named if node[0] in ("button", "textbox") and not node[1]]
