"""What goes wrong from outside: the right status and body, and a server that goes on."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2 as httpx
import pytest
from engine_model import model
from serving import OPTIONS, running, settled

from llmasos_jax.engine import EngineOptions

ASK = {"model": "tiny", "prompt": "abc", "max_tokens": 5, "temperature": 0}
LONG = {"model": "tiny", "prompt": "abc", "max_tokens": 180, "logit_bias": {"122": 100}}
KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def server():
    with running(api_keys=KEYS, max_body_bytes=2**20) as (url, service):
        yield url, service


def post(url, content, key=KEYS[0], **headers):
    if isinstance(content, dict):
        content = json.dumps(content).encode()
    known = {} if key is None else {"authorization": b"Bearer " + key.encode("latin-1")}
    return httpx.post(
        f"{url}/v1/completions",
        content=content,
        headers={"content-type": "application/json", **known, **headers},
        timeout=60,
    )


def is_alive(url):
    return post(url, ASK).status_code == 200 and httpx.get(f"{url}/health").status_code == 200


def test_a_body_of_100_mb_is_refused_before_it_is_read(server):
    url, _ = server
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer first-key\r\n"
            b"content-type: application/json\r\ncontent-length: 104857600\r\n\r\n{"
        )
        raw.settimeout(10)
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    assert is_alive(url)


def test_a_large_body_without_a_length_is_refused_on_its_way(server):
    url, _ = server
    sent = 0

    def parts():
        nonlocal sent
        for _ in range(1600):  # 100 MB
            sent += 65536
            yield b" " * 65536

    try:
        answer = post(url, parts())
        assert answer.status_code == 413
        assert "1048576 bytes" in answer.json()["error"]["message"]
    except httpx.TransportError:
        pass  # the server hung up while the client still wrote
    assert sent < 40 * 2**20
    assert is_alive(url)


@pytest.mark.parametrize(
    "content",
    [b'{"prompt": "\xff\xfe"}', b"", b"[", b"[]", b'"a"', b"null", b"[" * 100_000, b'{"model": 1}'],
)
def test_what_is_no_request_is_refused(server, content):
    answer = post(server[0], content)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert is_alive(server[0])


@pytest.mark.parametrize("key", [None, "wrong", "first-ke", "first-keys", "schlüssel"])
def test_a_wrong_key_opens_nothing(server, key):
    url, _ = server
    answer = post(url, ASK, key=key)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert post(url, ASK, key="second-key").status_code == 200


def test_wrong_methods_and_places(server):
    url, _ = server
    known = {"authorization": "Bearer first-key"}
    wrong = httpx.get(f"{url}/v1/completions", headers=known)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    nothing = httpx.get(f"{url}/v2/anything", headers=known)
    assert nothing.status_code == 404
    assert nothing.json()["error"]["type"] == "not_found_error"


def test_a_reader_that_is_slow_holds_up_nobody(server):
    url, service = server
    headers = {"authorization": "Bearer first-key"}
    with httpx.stream(
        "POST", f"{url}/v1/completions", json={**LONG, "stream": True}, headers=headers, timeout=60
    ) as slow:
        lines = slow.iter_lines()
        first = next(line for line in lines if line)
        start = time.monotonic()
        for _ in range(5):
            assert post(url, ASK).status_code == 200
        assert time.monotonic() - start < 10
        settled(service)  # the slow one's text is written, whoever reads it
        text = json.loads(first[6:])["choices"][0]["text"]
        for line in lines:
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
                time.sleep(0.01)
        assert text == "z" * 180
        assert line == "" or line == "data: [DONE]"


@pytest.mark.parametrize("streams", [True, False])
def test_who_goes_ends_the_text(server, streams):
    url, service = server
    host, port = url.removeprefix("http://").split(":")
    before = service.engine.stats()
    body = json.dumps({**LONG, "n": 16, "stream": streams}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer first-key\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    raw = socket.create_connection((host, int(port)))
    raw.sendall(head.encode() + body)
    while service.engine.stats().generated_tokens < before.generated_tokens + 8:
        time.sleep(0.001)
    raw.close()
    after = settled(service)
    assert after.generated_tokens - before.generated_tokens < 16 * 180
    assert after.num_finished - before.num_finished < 16
    assert is_alive(url)


def test_a_full_queue_says_when_to_come_again():
    options = EngineOptions((1,), 16, num_pages=60, max_queue=2)
    with running(options) as (url, service):
        statuses = []
        ask = lambda: statuses.append(post(url, LONG).status_code)
        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) <= {200, 429} and statuses.count(200) >= 2
        many = post(url, {**LONG, "n": 8})
        assert many.status_code == 429
        assert int(many.headers["retry-after"]) >= 1
        assert many.json()["error"]["code"] == "queue_full"
        settled(service)
        assert is_alive(url)


def test_a_request_has_its_time():
    with running(OPTIONS, timeout_s=0.05) as (url, service):
        body = {**LONG, "n": 16}
        answer = post(url, body)
        assert answer.status_code == 504
        assert "longer than 0.05 s" in answer.json()["error"]["message"]
        streamed = post(url, {**body, "stream": True})
        last = [line for line in streamed.text.splitlines() if line][-1]
        assert "longer than 0.05 s" in json.loads(last[6:])["error"]["message"]
        settled(service)


def test_limits_of_tokens():
    with running(OPTIONS, max_tokens=10) as (url, _):
        assert post(url, {**ASK, "max_tokens": 10}).status_code == 200
        refused = post(url, {**ASK, "max_tokens": 11})
        assert "more than the 10" in refused.json()["error"]["message"]
        chat = httpx.post(
            f"{url}/v1/chat/completions",
            json={"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": 1},
        )
        assert chat.json()["usage"]["completion_tokens"] <= 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model().save(tmp_path_factory.mktemp("served") / "tiny")


@contextlib.contextmanager
def started(folder, *more):
    """A process that serves, and its address."""
    command = [sys.executable, "-m", "llmasos", "serve", str(folder), "--port=0"]
    process = subprocess.Popen(
        [*command, "--batch-sizes=1,4", "--num-pages=60", *more],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    try:
        line = next(line for line in process.stderr if "http://" in line)
        yield process, line.split(" at ")[1].split()[0]
    finally:
        process.kill()
        process.communicate()


def test_sigterm_lets_what_runs_end(folder):
    with started(folder) as (process, url):
        answers = []
        body = {**LONG, "n": 8}
        thread = threading.Thread(target=lambda: answers.append(post(url, body, key=None)))
        thread.start()
        while b"texts_running 0.0" in httpx.get(f"{url}/metrics").content:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        thread.join(60)
        assert answers[0].status_code == 200
        assert [c["text"] for c in answers[0].json()["choices"]] == ["z" * 180] * 8
        assert process.wait(30) == 0


def test_a_second_sigterm_does_not_wait(folder):
    with started(folder, "--timeout-s=600") as (process, url):
        body = {"model": "tiny", "prompt": "a", "max_tokens": 190, "n": 16, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as stream:
            next(stream.iter_lines())
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_a_port_that_is_taken_is_said_at_once(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = subprocess.run(
            [sys.executable, "-m", "llmasos", "serve", str(folder), f"--port={port}"],
            capture_output=True,
            text=True,
        )
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1 and "take another --port" in found.stderr
