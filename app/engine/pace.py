"""How much of a long prompt goes into a step beside rows that decode. No torch.

By what steps took, not by a model of them: at 32,000 tokens most of a chunk's time is reading what came before it,
and a model that has seen short prompts alone knows nothing of that.
"""

MIN_CHUNK = 16
MAX_SLOWDOWN = 1.8  # of a step, by a chunk of a long prompt
LOOK_EVERY = 32  # one step in so many goes without a chunk, to see what it takes


class Pace:
    """tokens() before a step, took() after it."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._chunk = float(min(budget, 4 * MIN_CHUNK))
        self._alone = 0.0  # seconds of a step that only decodes, lately; 0: not known
        self._steps = 0

    def tokens(self) -> int:
        self._steps += 1
        return 0 if self._steps % LOOK_EVERY == 0 else int(self._chunk)

    def took(self, seconds: float, *, long_tokens: int, other_tokens: int, decode_rows: int) -> None:
        """A step with so many tokens of long prompts, of others, and of decoding rows."""
        if not decode_rows or other_tokens:
            return
        if not long_tokens:
            self._alone += (0.2 if self._alone else 1.0) * (seconds - self._alone)
        elif self._alone:
            room = MAX_SLOWDOWN * self._alone / max(seconds, 1e-9)
            self._chunk *= min(1.25, max(0.5, room))
            self._chunk = min(self._budget, max(MIN_CHUNK, self._chunk))
