"""A server of tiny models on a port of its own, in a thread, shared by the tests of a process."""

import contextlib
import functools
import threading
import time

import pytest
from engine_model import MANIFEST

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `serve`")
for package in ("fastapi", "jinja2", "prometheus_client"):
    pytest.importorskip(package, reason="needs the extras `serve` and `models`")

from llmasos_jax.config.model import ModelConfig  # noqa: E402
from llmasos_jax.engine import Engine, EngineOptions  # noqa: E402
from llmasos_jax.format.manifest import Generation, Manifest  # noqa: E402
from llmasos_jax.generate.load import init_model  # noqa: E402
from llmasos_jax.serve.app import make_app  # noqa: E402
from llmasos_jax.serve.options import ServeOptions  # noqa: E402
from llmasos_jax.serve.run import Server, address, listen  # noqa: E402
from llmasos_jax.serve.service import Service  # noqa: E402

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@functools.cache
def chatting_model(cfg=MANIFEST.parameters):
    """The engine's tiny model, with a chat template."""
    generation = Generation(chat_template=TEMPLATE)
    manifest = Manifest("tiny", cfg, tokenizer=MANIFEST.tokenizer, generation=generation)
    return init_model(manifest, seed=3)


@functools.cache
def encoder():
    cfg = ModelConfig(264, 32, 1, num_heads=2, causal=False, context_length=64)
    return init_model(Manifest("tiny-encoder", cfg, tokenizer={"kind": "bytes"}))


OPTIONS = EngineOptions((1, 4), 16, num_pages=60)


@contextlib.contextmanager
def running(engine_options=OPTIONS, cfg=MANIFEST.parameters, **limits):
    """A server; gives its address and its service."""
    engine = Engine(chatting_model(cfg), engine_options)
    engine.warm_up()
    options = ServeOptions(**{"model_name": "tiny", **limits})
    service = Service(engine, ("tiny-encoder", encoder()), options)
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(service), log_level="warning", lifespan="off")
    server = Server(config, service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield address(listening), service
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(20)
        listening.close()
        engine.close()


def settled(service):
    """The engine's books once nothing runs."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        stats = service.engine.stats()
        if not (stats.num_running or stats.num_waiting or stats.pages_in_use):
            return stats
        time.sleep(0.01)
    raise AssertionError(f"not idle: {stats}")
