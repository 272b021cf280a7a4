"""A machine that is about to be taken away: what a metadata server says is treated like SIGTERM."""

import http.server
import socket
import threading

import pytest
from small_run import At, Record, small_config

from llmasos_jax.errors import PreemptedError
from llmasos_jax.parallel.metadata import metadata
from llmasos_jax.train import maintenance
from llmasos_jax.train.run import run


class Metadata(http.server.BaseHTTPRequestHandler):
    """What Google's server answers, on loopback."""

    def do_GET(self):
        name = self.path.removeprefix("/computeMetadata/v1/instance/")
        is_asked_rightly = self.headers.get("Metadata-Flavor") == "Google"
        answer = self.server.values.get(name) if is_asked_rightly else None
        self.send_response(200 if answer else 403)
        self.end_headers()
        self.wfile.write((answer or "").encode())
        self.server.asked.append(name)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    server.values = {"maintenance-event": "NONE", "preempted": "FALSE"}
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # where nothing is
    monkeypatch.setattr(maintenance, "_ASKED_EVERY_S", 0.01)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "notice"),
    [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")],
)
def test_a_notice_saves_and_stops_and_the_run_goes_on(server, tmp_path, capfd, name, notice):
    cfg = small_config(tmp_path, steps=100_000)

    def notify():
        assert set(server.asked) == {"maintenance-event", "preempted"}
        server.values[name] = notice

    with pytest.raises(PreemptedError, match="SIGTERM: saved at step") as caught:
        run(cfg, tmp_path / "run", [At(40, notify)], cache=tmp_path / "cache")
    assert caught.value.exit_status == 75
    assert f"this machine is about to end ({name}: {notice})" in capfd.readouterr().err
    saved = int(str(caught.value).split("step ")[1].split()[0].replace(",", ""))
    assert saved > 40
    # Started again on a machine that stays, it goes on from there.
    server.values[name] = "NONE"
    record = Record()

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cfg, tmp_path / "run", [record, At(saved + 2, stop)], cache=tmp_path / "cache")
    assert record.events[0] == ("start", saved)


def test_no_server_stops_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    monkeypatch.setattr(maintenance, "_ASKED_EVERY_S", 0.01)
    record = Record()
    run(small_config(tmp_path, steps=3), tmp_path / "run", [record], cache=tmp_path / "cache")
    assert record.events[-1] == ("end", 3)
    assert not [thread for thread in threading.enumerate() if thread.name == "maintenance"]


@pytest.mark.parametrize(
    "reply", [b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nTRUE"]
)
def test_a_garbled_answer_is_none(monkeypatch, reply):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            link, _ = server.accept()
            with link:
                link.recv(4096)
                link.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.getsockname()[1]}")
        assert metadata("preempted", timeout_s=2) is None
        thread.join()
