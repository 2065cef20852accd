"""Where the text so far occurred before, so that what followed there can be tried here. numpy, no torch.

A suffix array over reversed contexts: positions sorted by (token, token before it, token before that), packed into
one integer of 3 x 21 bits, so that one binary search finds all places where the last three, two or one tokens stand.
Beyond three tokens the few candidates are compared one by one. It answers what a suffix automaton would (the longest
earlier occurrence), takes 16 bytes a token, and is built by one sort instead of a Python step per token.
"""

from collections.abc import Sequence

import numpy as np

DEPTH = 3
_BITS = 21  # vocabularies up to two million
_TAIL = 32  # tokens that may wait for being indexed
_CANDIDATES = 16  # latest ones compared beyond DEPTH tokens
_LONGEST = 32  # matches are not measured beyond this
SEPARATOR = (1 << _BITS) - 1  # between texts that do not follow one another


class SuffixIndex:
    """Of one request alone, so that nothing of it can reach another's draft."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens = list(tokens)
        self._index()

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """More text; it is found from some _TAIL tokens later on."""
        self._tokens += tokens
        if len(self._tokens) - self._indexed >= _TAIL:
            self._index()

    def continuations(self, context: Sequence[int], most: int, at_least: int = 2) -> list[tuple[list[int], int]]:
        """What followed the earlier places where the last tokens of `context` stand, longest match first, then latest.

        Each up to `most` tokens with the length of its match; nothing where fewer than `at_least` tokens match.
        """
        for length in range(min(DEPTH, len(context)), at_least - 1, -1):
            low = _pack(context, length)
            first, last = self._keys.searchsorted((low, low + (1 << _BITS * (DEPTH - length))))
            places = self._order[max(first, last - _CANDIDATES) : last].tolist()
            ranked = [(self._from(place, most), match) for match, place in self._ranked(places, context, length)]
            if found := [(tokens, match) for tokens, match in ranked if tokens]:
                return found
        return []

    def _ranked(self, places: Sequence[int], context: Sequence[int], length: int) -> list[tuple[int, int]]:
        """(match, place) of those that something follows, best first."""
        tokens, limit, found = self._tokens, min(_LONGEST, len(context)), []
        for place in places:
            match = length
            while match < limit and match <= place and tokens[place - match] == context[-1 - match]:
                match += 1
            found.append((match, place))
        return sorted(found, reverse=True)

    def _from(self, place: int, most: int) -> list[int]:
        found = self._tokens[place + 1 : place + 1 + most]
        return found[: found.index(SEPARATOR)] if SEPARATOR in found else found

    def _index(self) -> None:
        tokens = np.array(self._tokens, dtype=np.int64)
        keys = tokens.copy()
        for back in range(1, DEPTH):
            keys <<= _BITS
            keys[back:] |= tokens[:-back]
            keys[:back] |= SEPARATOR
        self._order = np.argsort(keys, kind="stable").astype(np.int32)
        self._keys = keys[self._order]
        self._indexed = len(tokens)


def _pack(context: Sequence[int], length: int) -> int:
    """The smallest key whose leading `length` tokens are the last of context."""
    key = 0
    for back in range(1, length + 1):
        key = key << _BITS | context[-back]
    return key << _BITS * (DEPTH - length)
