"""Who has which page: a count of users for each, and an index of pages by the tokens in them.

A page that is full of a prompt's tokens is known by these tokens and all before them. Who comes
with the same beginning takes it too. Nobody's pages stay known until they are needed, the one that
was used longest ago first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

ROOT = b""


def page_keys(ids: Sequence[int], page_size: int) -> list[bytes]:
    """A key for each full page of a text: of its tokens and all before them.

    Example:
      >>> a, b = page_keys([1, 2, 3, 4, 5], 2), page_keys([1, 2, 3, 9], 2)
      >>> len(a), a[0] == b[0], a[1] == b[1]
      (2, True, False)
    """
    keys, key = [], ROOT
    for start in range(0, len(ids) - page_size + 1, page_size):
        tokens = np.asarray(ids[start : start + page_size], np.int32).tobytes()
        key = hashlib.blake2b(key + tokens, digest_size=16).digest()
        keys.append(key)
    return keys


class PagePool:
    """The pages 1 to num_pages - 1.

    Example:
      >>> pool = PagePool(3)
      >>> a, b = pool.take(), pool.take()
      >>> pool.take() is None
      True
      >>> pool.name(a, b"tokens")
      >>> pool.give_back([a, b])
      >>> pool.num_in_use, pool.num_cached, pool.find(b"tokens") == a
      (0, 1, True)
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages - 1
        self._free = list(range(num_pages - 1, 0, -1))
        self._users: dict[int, int] = {}
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # known and nobody's, oldest first

    @property
    def num_in_use(self) -> int:
        """Pages that some text has."""
        return len(self._users)

    @property
    def num_cached(self) -> int:
        """Pages that are nobody's and known by their tokens."""
        return len(self._idle)

    @property
    def num_available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._idle)

    def take(self) -> int | None:
        """A page for one user, or None where all are in use."""
        if self._free:
            page = self._free.pop()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
        else:
            return None
        self._users[page] = 1
        return page

    def find(self, key: bytes) -> int | None:
        """The page that is known by a key."""
        return self._page_of.get(key)

    def share(self, page: int) -> None:
        """One user more of a page that is in use or known."""
        self._users[page] = self._users.get(page, 0) + 1
        self._idle.pop(page, None)

    def name(self, page: int, key: bytes) -> None:
        """Makes a page in use known; the first of two with the same tokens is."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def give_back(self, pages: Sequence[int]) -> None:
        """One user less of each."""
        # The end of a text first: it goes before its beginning, without which nobody finds it.
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            del self._users[page]
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)
