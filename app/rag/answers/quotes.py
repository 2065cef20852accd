"""Is this quotation in that text? Exactly, up to typography, or nearly.

Typography is what copying and page layout change without changing a word: white space, hyphens between letters,
the shape of quotation marks and dashes, ligatures. Case, digits and punctuation count.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

Match = Literal["exact", "normalized", "fuzzy"]

MIN_SIMILARITY = 0.95  # of a fuzzy match: 1 - edit distance / length
MIN_FUZZY_CHARS = 40  # shorter quotations have to match up to typography

_SAME = str.maketrans(
    dict.fromkeys("“”„‟«»″", '"') | dict.fromkeys("‘’‚‛′`", "'") | dict.fromkeys("‐‑‒–—―−﹣-", "-") | {"…": "..."}
)
_TRAILING = ".,;:"  # American style puts the sentence's punctuation inside the quotation


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A text without its typography; `origin[i]` is where character i of `text` came from."""

    text: str
    origin: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """text[start:end] of the searched text is what was quoted."""

    start: int
    end: int
    match: Match


class Difference(NamedTuple):
    """Words that were said, and those that stand in their place in the source; either may be empty."""

    said: str
    source: str


def differences(said: str, source: str) -> tuple[Difference, ...]:
    """Where two texts part, word by word."""
    ours, theirs = said.split(), source.split()
    steps = SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    return tuple(
        Difference(" ".join(ours[a:b]), " ".join(theirs[c:d])) for kind, a, b, c, d in steps if kind != "equal"
    )


def skeleton(text: str, start: int = 0, end: int | None = None, skip: Sequence[tuple[int, int]] = ()) -> Skeleton:
    """The skeleton of text[start:end], leaving out the ranges in `skip` (page furniture)."""
    pieces = _pieces(text, start, len(text) if end is None else end, skip)
    characters: list[str] = []
    origin: list[int] = []
    for i, (character, position) in enumerate(pieces):
        before = characters[-1] if characters else ""
        if character.isspace():
            if not (before.isdigit() and i + 1 < len(pieces) and pieces[i + 1][0].isdigit()):
                continue
            character = " "
        elif character == "-" and before.isalpha() and _next_ink(pieces, i).isalpha():
            continue
        characters.append(character)
        origin.append(position)
    return Skeleton("".join(characters), tuple(origin))


def find(said: str, text: str, start: int, end: int, forms: Sequence[Skeleton]) -> Found | None:
    """`said` in text[start:end]: exact, else in one of its skeletons. Trailing punctuation may be the speaker's."""
    for words in (said, said.rstrip().rstrip(_TRAILING)):
        at = text.find(words, start, end) if words else -1
        if at >= 0:
            return Found(at, at + len(words), "exact" if words == said else "normalized")
        bare = skeleton(words).text
        for form in forms if bare else ():
            at = form.text.find(bare)
            if at >= 0:
                return Found(form.origin[at], form.origin[at + len(bare) - 1] + 1, "normalized")
    return None


def find_nearly(said: str, form: Skeleton) -> Found | None:
    """The place in `form` most like `said`, when at least MIN_SIMILARITY of its characters agree."""
    bare = skeleton(said).text
    allowed = int(len(bare) * (1 - MIN_SIMILARITY))
    if len(bare) < MIN_FUZZY_CHARS or not form.text:
        return None
    last, distance = _best_end(bare, form.text)
    if distance > allowed:
        return None
    backwards, _ = _best_end(bare[::-1], form.text[last::-1])
    return Found(form.origin[last - backwards], form.origin[last] + 1, "fuzzy")


def _pieces(text: str, start: int, end: int, skip: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """(character, position) with ligatures and typographic marks spelled out and soft hyphens gone."""
    pieces = []
    for position in range(start, end):
        if any(first <= position < last for first, last in skip):
            continue
        for character in unicodedata.normalize("NFKC", text[position].translate(_SAME)):
            if character != "\u00ad":
                pieces.append((character.translate(_SAME), position))
    return pieces


def _next_ink(pieces: Sequence[tuple[str, int]], at: int) -> str:
    return next((c for c, _ in pieces[at + 1 : at + 8] if not c.isspace() and c != "-"), "")


def _best_end(pattern: str, text: str) -> tuple[int, int]:
    """(index of the last character, edit distance) of the best approximate occurrence of `pattern` in `text`.

    Myers, "A fast bit-vector algorithm for approximate string matching", JACM 46(3), 1999; one Python integer
    holds a column.
    """
    full, top = (1 << len(pattern)) - 1, 1 << (len(pattern) - 1)
    where: dict[str, int] = {}
    for i, character in enumerate(pattern):
        where[character] = where.get(character, 0) | 1 << i
    rising, falling, score = full, 0, len(pattern)
    best, at = score, len(text) - 1
    for i, character in enumerate(text):
        equal = where.get(character, 0)
        diagonal = (((equal & rising) + rising) ^ rising) | equal | falling
        up, down = falling | (full & ~(diagonal | rising)), rising & diagonal
        score += bool(up & top) - bool(down & top)
        up, down = (up << 1) & full, (down << 1) & full
        rising, falling = down | (full & ~(diagonal | up)), up & diagonal
        if score < best:
            best, at = score, i
    return at, best
