"""The words around the evidence: one rendering of passages and question, for answers and for training alike.

`demo/train.py` trains on exactly these strings, so a change here means training the demo model again.
"""

from collections.abc import Sequence

REFUSAL = "The documents provided do not answer this question."
HEADER = "Passages:\n\n"


def render_passage(number: int, title: str, section: str, text: str) -> str:
    """`[1] Title | Section`, then the text; without a section the heading is the title alone."""
    heading = f"{title} | {section}" if section else title
    return f"[{number}] {heading}\n{text}\n\n"


def render_question(question: str) -> str:
    return f"Question: {question}"


def user_text(passages: Sequence[tuple[str, str, str]], question: str) -> str:
    """The user message for `passages` as (title, section, text) in rank order."""
    rendered = (render_passage(number, *passage) for number, passage in enumerate(passages, start=1))
    return HEADER + "".join(rendered) + render_question(question)
