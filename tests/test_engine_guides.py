"""Constrained output by the engine: texts are what was asked for, and neighbours do not notice."""

import json
from dataclasses import replace

import jsonschema
import pytest
from engine_model import engine, model, random_ask

from llmasos_jax.engine.request import Ask
from llmasos_jax.generate.sampling import Sampling

pytest.importorskip("llguidance", reason="needs the extra `guide`")

from llmasos_jax.generate.guides import Guide, guides_of  # noqa: E402

SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["é", "b\n", None]},
    },
    "required": ["id", "name", "kind"],
    "additionalProperties": False,
}
MOST = 170
PROMPT = tuple(b"say: ")


def constrained(guide, seed, index, **more):
    sampling = Sampling(temperature=1.0, seed=seed, index=index)
    return Ask(PROMPT, MOST, sampling, constraint=guides_of(model()).start(guide, PROMPT), **more)


def test_samples_at_temperature_1_are_what_their_schema_says():
    guide = Guide.json_schema(SCHEMA)
    tickets = [engine().submit(constrained(guide, 5, index)) for index in range(100)]
    ended = 0
    for ticket in tickets:
        pieces = list(ticket)
        text = "".join(piece.text for piece in pieces)
        if pieces[-1].finish == "stop":
            jsonschema.validate(json.loads(text), SCHEMA)
            ended += 1
        else:
            assert pieces[-1].finish == "length"
            assert sum(len(piece.ids) for piece in pieces) == MOST
    assert ended >= 90  # random logits write long white space; what is cut is not claimed


def test_what_is_written_beside_a_constrained_text_is_the_same():
    asks = [replace(random_ask(seed), batch_size=4) for seed in range(8)]
    alone = [engine().submit(ask).text() for ask in asks]
    choice = Guide.choice(["yes", "no", "maybe"])
    both = [
        (engine().submit(ask), engine().submit(constrained(choice, seed, 0, batch_size=4)))
        for seed, ask in enumerate(asks)
    ]
    assert [ticket.text() for ticket, _ in both] == alone
    assert {ticket.text() for _, ticket in both} <= {"yes", "no", "maybe"}


@pytest.mark.parametrize("size", [1, 4])
def test_the_same_constrained_text_whatever_is_beside_it(size):
    guide = Guide.regex("[a-z]{3,9}( [a-z]{3,9}){2}")
    alone = engine().submit(constrained(guide, 7, 0, batch_size=size)).text()
    tickets = [engine().submit(constrained(guide, 7, i, batch_size=size)) for i in range(5)]
    texts = [ticket.text() for ticket in tickets]
    assert texts[0] == alone and len(set(texts)) == 5


def test_a_guide_that_gets_stuck_ends_its_own_text_alone():
    class Stuck:
        is_done = False

        def allowed(self):
            from llmasos_jax.errors import GenerationError

            raise GenerationError("stuck")

        def take(self, token):
            pass

    other = engine().submit(random_ask(1))
    ticket = engine().submit(Ask(PROMPT, 5, Sampling(), constraint=Stuck()))
    last = list(ticket)[-1]
    assert (last.finish, last.error) == ("error", "stuck")
    assert list(other)[-1].finish in ("stop", "length")
    assert engine().submit(random_ask(1)).text() is not None
