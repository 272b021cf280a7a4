"""The chat page in a real browser, against the server and its engine."""

import time

import openai
import pytest
from headless_chromium import CHROMIUM, Browser
from serving import running, settled

from llmasos_jax.engine.runner import Runner

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

ANSWER = "document.querySelector('.assistant:last-child .text')?.textContent"
STATUS = "document.getElementById('status').textContent"


def test_a_conversation_behind_a_key_is_stopped_and_its_pages_are_free(tmp_path, monkeypatch):
    step = Runner.step

    def slow_step(*args, **options):
        time.sleep(0.1)
        return step(*args, **options)

    with running(api_keys=("secret",)) as (url, service), Browser(tmp_path) as browser:
        browser.open(url)
        browser.wait("!document.getElementById('key-panel').hidden")
        browser.type("secret")
        browser.press("Enter")
        browser.wait("document.title === 'tiny'")
        browser.look("document.getElementById('max-tokens').value = 40")
        browser.look("document.getElementById('temperature').value = 0")
        browser.click("#prompt")
        browser.type("Hi")
        browser.press("Enter")
        told = browser.wait(STATUS)
        # What the page shows is what OpenAI's client gets.
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret")
        whole = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=40, temperature=0
        )
        assert browser.look(ANSWER) == whole.choices[0].message.content != ""
        assert told.startswith(f"{whole.usage.completion_tokens} tokens · ")
        # As long as the context allows, at a pace that a hand can stop.
        monkeypatch.setattr(Runner, "step", slow_step)
        browser.look("document.getElementById('max-tokens').value = ''")
        browser.type("More")
        browser.press("Enter")
        browser.wait(f"document.querySelectorAll('.assistant').length === 2 && {ANSWER}")
        browser.press("Escape")
        assert browser.wait(STATUS) == "stopped"
        assert browser.look(ANSWER)
        stats = settled(service)
        assert (stats.pages_in_use, stats.num_running) == (0, 0)
        assert stats.num_finished == 2  # the page's first and the client's
        browser.photograph(tmp_path / "conversation.png")
        assert [text for text in browser.complaints if "401" not in text] == []
