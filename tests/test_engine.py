"""The engine: a text is the same whoever is beside it, and every page comes back."""

import random
import threading
import time
from dataclasses import replace

import hypothesis
import jax
import jax.monitoring
import numpy as np
import pytest
from engine_model import MANIFEST, OPTIONS, engine, model, random_ask
from hypothesis import strategies as st

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.engine.engine import Engine
from llmasos_jax.engine.options import EngineOptions
from llmasos_jax.engine.replicas import start_engine
from llmasos_jax.engine.request import Ask
from llmasos_jax.errors import EngineClosedError, GenerationError, QueueFullError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.generate.load import init_model
from llmasos_jax.generate.sampling import Sampling

GREEDY = Sampling(temperature=0.0)


def pieces_of(ticket):
    return list(ticket)


def ids_of(ticket):
    return [i for piece in ticket for i in piece.ids]


def settled(running):
    """The engine's books once nothing runs."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        stats = running.stats()
        if not (stats.num_running or stats.num_waiting or stats.pages_in_use):
            return stats
        time.sleep(0.01)
    raise AssertionError(f"not idle: {running.stats()}")


@hypothesis.settings(deadline=None, derandomize=True, max_examples=12)
@hypothesis.given(
    seeds=st.lists(st.integers(0, 10**6), min_size=2, max_size=9),
    waits=st.lists(st.sampled_from([0, 0, 0.003, 0.02]), min_size=9, max_size=9),
    cancels=st.sets(st.integers(0, 8), max_size=3),
)
def test_a_text_hangs_neither_on_its_neighbours_nor_on_when_they_come(seeds, waits, cancels):
    running = engine()
    tickets = []
    for at, (seed, wait) in enumerate(zip(seeds, waits, strict=False)):
        tickets.append(running.submit(random_ask(seed)))
        time.sleep(wait)
        if at in cancels:
            tickets[at].cancel()
    together = [ids_of(ticket) for ticket in tickets]
    settled(running)
    for at, (seed, ticket) in enumerate(zip(seeds, tickets, strict=True)):
        alone = ids_of(running.submit(random_ask(seed, batch_size=ticket.batch_size or None)))
        if at in cancels:
            assert alone[: len(together[at])] == together[at]
        else:
            assert alone == together[at]
    stats = settled(running)
    assert stats.pages_in_use == 0


def test_texts_are_those_of_generate_text():
    prompts = ["the quick brown fox", "a", "jumps over the lazy dog and goes on running" * 2]
    wanted = model().generate_text(prompts, max_length=40, temperature=0.0)
    tickets = [engine().submit(Ask(tuple(model().encode(p)), 40, GREEDY)) for p in prompts]
    assert [ticket.text() for ticket in tickets] == wanted
    sampled = model().generate_text(prompts, max_length=40, temperature=0.9, top_k=9, seed=5)
    asks = [
        Ask(tuple(model().encode(p)), 40, Sampling(0.9, top_k=9, seed=5, index=i))
        for i, p in enumerate(prompts)
    ]
    assert [engine().submit(ask).text() for ask in asks] == sampled


def test_a_prefix_is_read_once_and_changes_no_bit():
    with Engine(model(), EngineOptions((4,), 16, num_pages=60, shares_prefixes=False)) as fresh:
        head = tuple(range(100, 120)) * 4  # 80 tokens, five pages
        tails = [(), (97,), tuple(range(97, 120)), tuple(range(97, 113))]
        asks = [Ask(head + tail, 30, Sampling(seed=1)) for tail in tails]
        wanted = [ids_of(fresh.submit(ask)) for ask in asks]
        assert fresh.stats().cached_tokens == 0
    with Engine(model(), EngineOptions((4,), 16, num_pages=60)) as sharing:
        tickets = [sharing.submit(ask) for ask in asks]
        assert [ids_of(ticket) for ticket in tickets] == wanted
        again = [sharing.submit(ask) for ask in asks]
        assert [ids_of(ticket) for ticket in again] == wanted
        # All full pages but one that the whole prompt would end with: a token has to be read.
        assert [ticket.num_cached for ticket in again] == [64, 80, 96, 80]
        assert settled(sharing).pages_cached == 6


def test_samples_of_one_prompt_share_its_pages_at_once():
    with Engine(model(), EngineOptions((4,), 16, num_pages=60)) as sharing:
        ids = tuple(range(97, 122)) * 3
        tickets = [sharing.submit(Ask(ids, 5, Sampling(seed=1, index=i))) for i in range(4)]
        texts = [tuple(ids_of(ticket)) for ticket in tickets]
        assert len(set(texts)) > 1
        # Four full pages are read once, by whoever comes to them first; each reads its own rest.
        assert sum(ticket.num_cached for ticket in tickets) == 3 * 64
        assert sharing.stats().prompt_tokens == 64 + 4 * 11


def test_texts_that_are_set_aside_go_on_with_the_same_bits():
    asks = [random_ask(seed) for seed in range(40)]
    with Engine(model(), EngineOptions((4,), 16, num_pages=61)) as roomy:
        wanted = [ids_of(ticket) for ticket in map(roomy.submit, asks)]
        assert roomy.stats().num_preempted == 0
    with Engine(model(), EngineOptions((4,), 16, num_pages=14, context=192)) as tight:
        assert [ids_of(ticket) for ticket in [tight.submit(a) for a in asks]] == wanted
        assert tight.stats().num_preempted > 3
        assert settled(tight).pages_in_use == 0


def test_nothing_compiles_after_warm_up():
    running = engine()
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: events.append(event)
    )
    before = running.stats().num_compiled
    asks = [random_ask(seed, num_logprobs=seed % 3 or None) for seed in range(100, 120)]
    for ticket in [running.submit(ask) for ask in asks]:
        pieces_of(ticket)
    assert running.stats().num_compiled == before == running.num_programs
    assert "/jax/core/compile/backend_compile_duration" not in events


def test_pieces_make_the_text_and_stop_strings_cut_across_tokens():
    ask = Ask((104, 105), 60, Sampling(seed=12))
    whole = engine().submit(ask).text()
    got = pieces_of(engine().submit(ask))
    assert "".join(piece.text for piece in got) == whole
    assert [piece.finish for piece in got[:-1]] == [None] * (len(got) - 1) and len(got) > 3
    at = next(i for i in range(5, len(whole) - 3) if whole.find(whole[i : i + 3]) == i)
    stop = whole[at : at + 3]
    cut = pieces_of(engine().submit(Ask(ask.ids, 60, ask.sampling, stop=("never", stop))))
    assert "".join(piece.text for piece in cut) == whole[:at]
    assert cut[-1].finish == "stop"
    assert pieces_of(engine().submit(ask))[-1].finish in ("length", "stop")


def test_log_probabilities_are_the_models_own():
    ids = tuple(b"once upon a time")
    ticket = engine().submit(Ask(ids, 12, Sampling(0.8, top_k=40, seed=4), num_logprobs=3))
    told = [entry for piece in ticket for entry in piece.logprobs]
    drawn = [entry.id for entry in told]
    logits = model().logits(np.array([[*ids, *drawn]]))[0, len(ids) - 1 : -1]
    wanted = np.asarray(jax.nn.log_softmax(logits[:, : model().num_ids], axis=-1))
    np.testing.assert_allclose(
        [e.logprob for e in told], wanted[range(len(drawn)), drawn], atol=1e-4
    )
    for entry, row in zip(told, wanted, strict=True):
        best = np.argsort(-row, kind="stable")[:3]
        assert [i for i, _ in entry.top] == best.tolist()
        np.testing.assert_allclose([x for _, x in entry.top], row[best], atol=1e-4)


def test_a_mesh_writes_the_same_texts():
    """Tensor parallel, and four replicas of that."""
    devices = jax.devices()
    assert len(devices) == 8
    asks = [random_ask(seed) for seed in range(300, 308)]
    wanted = [ids_of(ticket) for ticket in map(engine().submit, asks)]
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=axes)
    with start_engine(init_model(MANIFEST, seed=3, mesh=mesh), OPTIONS) as split:
        assert (
            len({d for e in split.engines for d in e.model.weights.placing.mesh.devices.flat}) == 8
        )
        split.warm_up()
        tickets = [split.submit(ask) for ask in asks]
        assert [ids_of(ticket) for ticket in tickets] == wanted
        assert all(one.stats().num_finished >= 1 for one in split.engines)
        assert split.stats().num_finished == 8
        assert split.stats().num_compiled == split.num_programs
        assert split.drain(10) and not split.is_open


def test_many_threads_ask_and_leave():
    running = engine()
    faults = []

    def client(seed):
        rng = random.Random(seed)
        for _ in range(4):
            ask = random_ask(rng.randrange(10**6))
            ticket = running.submit(ask)
            got = []
            for piece in ticket:
                got += piece.ids
                if rng.random() < 0.05:
                    ticket.cancel()
            if not ticket.is_cancelled:
                again = Ask(ask.ids, ask.max_new, ask.sampling, batch_size=ticket.batch_size)
                if ids_of(running.submit(again)) != got:
                    faults.append(ask)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not faults
    assert settled(running).pages_in_use == 0


def test_proposals_change_no_text():
    """A repeating text is guessed from itself; what is drawn is what would have been drawn."""
    head = tuple(b"abcabcabdabcabc" * 3)
    samplings = [GREEDY, Sampling(0.7, seed=1), Sampling(0.2, top_p=0.9, frequency_penalty=0.3)]
    asks = [Ask(head, 60, s, num_logprobs=1, stop=("zz",)) for s in samplings]
    asks += [random_ask(seed) for seed in range(400, 420)]
    wanted = [engine().submit(replace(ask, batch_size=1)) for ask in asks]
    wanted = [pieces_of(ticket) for ticket in wanted]
    options = EngineOptions((1, 4), 16, num_pages=60, num_proposed=4)
    with Engine(model(), options) as guessing:
        guessing.warm_up()
        got = [pieces_of(guessing.submit(replace(ask, batch_size=1))) for ask in asks]
        stats = settled(guessing)
    assert stats.num_compiled == guessing.num_programs
    assert 20 < stats.accepted_tokens < stats.proposed_tokens
    for theirs, ours in zip(wanted, got, strict=True):
        assert ["".join(p.text for p in theirs), theirs[-1].finish] == [
            "".join(p.text for p in ours),
            ours[-1].finish,
        ]
        told = [
            [entry.logprob for p in pieces for entry in p.logprobs] for pieces in (theirs, ours)
        ]
        np.testing.assert_allclose(*told, atol=1e-4)
    # Fewer steps than tokens, where the text repeats itself.
    assert len(got[0]) < 0.8 * sum(len(piece.ids) for piece in got[0])


def test_what_cannot_be_is_said_in_one_line():
    running = engine()
    cases = {
        "192": Ask((97,) * 192, 5, GREEDY),
        "no tokens": Ask((), 5, GREEDY),
        "1, 4": Ask((97,), 5, GREEDY, batch_size=3),
    }
    for words, ask in cases.items():
        with pytest.raises(GenerationError, match=words) as error:
            running.submit(ask)
        assert "\n" not in str(error.value)
    with pytest.raises(GenerationError, match="reads in both directions"):
        Engine(
            init_model(
                Manifest("e", ModelConfig(264, 64, 1, causal=False), tokenizer={"kind": "bytes"})
            )
        )
    with pytest.raises(GenerationError, match="at least 13, or context=64"):
        Engine(model(), EngineOptions(num_pages=5, page_size=16, context=192))
    with pytest.raises(GenerationError, match="at most 192"):
        Engine(model(), EngineOptions(context=193))
    with pytest.raises(GenerationError, match="a power of two"):
        EngineOptions(page_size=24)


def test_a_context_that_is_full_ends_a_text():
    ticket = engine().submit(Ask((97,) * 190, 50, GREEDY))
    got = pieces_of(ticket)
    assert sum(len(piece.ids) for piece in got) <= 2
    assert got[-1].finish in ("length", "stop")


def test_a_full_queue_refuses_and_a_closed_engine_ends_all():
    running = Engine(model(), EngineOptions((1,), 16, num_pages=60, max_queue=2))
    tickets = [running.submit(Ask((97,), 150, Sampling(seed=i))) for i in range(2)]
    with pytest.raises(QueueFullError, match="wait already"):
        for i in range(4):
            tickets.append(running.submit(Ask((98,), 150, Sampling(seed=i))))
    running.close()
    assert {pieces_of(ticket)[-1].finish for ticket in tickets} <= {"cancelled", "stop", "length"}
    with pytest.raises(EngineClosedError, match="shut down"):
        running.submit(Ask((97,), 5, GREEDY))
    assert running.stats().pages_in_use == 0


def test_draining_ends_what_runs_and_takes_no_more():
    running = Engine(model(), EngineOptions((4,), 16, num_pages=60))
    tickets = [running.submit(Ask((97 + i,), 30, Sampling(seed=i))) for i in range(6)]
    assert running.drain(60)
    with pytest.raises(EngineClosedError):
        running.submit(Ask((97,), 5, GREEDY))
    assert {pieces_of(ticket)[-1].finish for ticket in tickets} <= {"length", "stop"}
    running.close()


def test_logits_that_are_no_numbers_end_the_text_and_not_the_engine():
    broken = init_model(MANIFEST, seed=3)
    params = jax.tree.map(lambda x: x, broken.weights.params)
    params["final_norm"] = jax.tree.map(lambda x: x * np.float32("nan"), params["final_norm"])
    object.__setattr__(broken.weights, "params", params)
    with Engine(broken, EngineOptions((2,), 16, num_pages=20)) as running:
        for _ in range(2):
            with pytest.raises(GenerationError, match="not finite"):
                running.submit(Ask((97, 98), 5, GREEDY)).text()
        assert settled(running).pages_in_use == 0
