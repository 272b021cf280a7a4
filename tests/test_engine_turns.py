"""Whose prompt is read next, and how long those who decode wait for it."""

from engine_model import model

from llmasos_jax.engine.engine import Engine
from llmasos_jax.engine.options import EngineOptions
from llmasos_jax.engine.request import Ask, Ticket
from llmasos_jax.generate.sampling import Sampling

LONG, SHORT = tuple(b"abcdefgh" * 20), tuple(b"short")  # ten chunks of 16, and one
GREEDY = Sampling(temperature=0.0, logit_bias=((257, -100.0), (258, -100.0)))


def scheduler(max_prefill_tokens):
    """Of an engine whose thread never starts."""
    options = EngineOptions(
        (4,), 16, num_pages=60, max_prefill_tokens=max_prefill_tokens, shares_prefixes=False
    )
    return Engine(model(), options)._scheduler


def added(held, ids, max_new=30):
    pieces = []
    held.add(Ticket(Ask(ids, max_new, GREEDY), pieces.append))
    return pieces


def num_drawn(pieces):
    return sum(len(piece.ids) for piece in pieces)


def test_a_short_prompt_does_not_wait_for_a_long_one_and_decodes_beside_it():
    held = scheduler(16)
    long, short = added(held, LONG), added(held, SHORT)
    drawn = []
    while not num_drawn(long):
        held.turn()
        drawn.append(num_drawn(short))
    # A chunk a turn, with one step of the short one: the long prompt's first, the short one, the
    # rest of the long one. Once nobody reads there are four steps in a turn.
    assert drawn == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14]


def test_a_long_prompt_is_read_though_short_ones_keep_coming():
    held = scheduler(16)
    long = added(held, LONG)
    turns = 0
    while not num_drawn(long):
        added(held, SHORT, max_new=1)
        held.turn()
        turns += 1
    assert 10 <= turns <= 20


def test_as_many_tokens_of_prompts_are_read_between_steps_as_the_options_say():
    held = scheduler(64)
    first = added(held, SHORT)
    held.turn()
    added(held, LONG)
    before = num_drawn(first)
    read, steps = [], []
    for _ in range(3):
        held.turn()
        read.append(held.counts.prompt_tokens)
        steps.append(num_drawn(first) - before)
    assert read == [5 + 64, 5 + 128, 5 + 160]
    assert steps[:2] == [1, 2]
