"""Who has which page: every page is free, idle and known, or in use, and never two of these."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from llmasos_jax.engine.pages import PagePool, page_keys

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["take", "give", "name", "share"]), st.integers(0, 7)), max_size=60
)


@hypothesis.settings(deadline=None, derandomize=True, max_examples=50)
@hypothesis.given(num_pages=st.integers(2, 6), actions=ACTIONS)
def test_a_pool_follows_its_books(num_pages, actions):
    pool = PagePool(num_pages)
    users, names = {}, {}  # pages in use, and the key that a page answers to
    for action, pick in actions:
        if action == "take":
            page = pool.take()
            if page is None:
                assert len(users) == num_pages - 1
                continue
            assert 0 < page < num_pages and page not in users
            users[page] = 1
            names = {key: known for key, known in names.items() if known != page}
        elif action == "give" and users:
            page = sorted(users)[pick % len(users)]
            pool.give_back([page])
            users[page] -= 1
            users = {page: num for page, num in users.items() if num}
        elif action == "name" and users:
            page, key = sorted(users)[pick % len(users)], b"%d" % pick
            if key not in names and page not in names.values():
                names[key] = page
            pool.name(page, key)
        elif action == "share" and names:
            key = sorted(names)[pick % len(names)]
            page = pool.find(key)
            pool.share(page)
            users[page] = users.get(page, 0) + 1
        assert {key: pool.find(key) for key in names} == names
        idle = set(names.values()) - set(users)
        assert (pool.num_in_use, pool.num_cached) == (len(users), len(idle))
        assert pool.num_available == num_pages - 1 - len(users)


def test_what_was_used_longest_ago_goes_first_and_a_texts_end_before_its_beginning():
    pool = PagePool(5)
    first, second = [pool.take(), pool.take()], [pool.take(), pool.take()]
    for page, key in zip(first + second, (b"1", b"2", b"3", b"4"), strict=True):
        pool.name(page, key)
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take() == first[1]
    pool.share(first[0])  # used again, so it is not the oldest
    pool.give_back([first[0]])
    assert [pool.take(), pool.take(), pool.take()] == [second[1], second[0], first[0]]
    assert pool.take() is None and pool.find(b"1") is None


def test_keys_hang_on_all_tokens_before():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50_000, 70).tolist()
    keys = page_keys(ids, 16)
    assert len(keys) == 4 and len(set(keys)) == 4
    assert page_keys(ids[:48], 16) == keys[:3]
    other = [ids[0] + 1, *ids[1:]]
    assert not set(page_keys(other, 16)) & set(keys)
