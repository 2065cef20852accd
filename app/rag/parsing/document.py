"""What a parsed document is: one text, and everything else as offsets into it."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Page:
    """One page as a half-open character range of the text; width and height in PDF points."""

    number: int  # 1-based, as a reader counts
    start: int
    end: int
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading the format itself marks (style, tag, #); level 1 is the outermost."""

    start: int
    end: int
    level: int
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class ParsedDocument:
    """The text is the truth: pages, headings and boxes are positions in it.

    `boxes` is float32 [len(text), 4]: left, bottom, right, top in PDF points with the origin at the lower left
    of the page the character is on; a row of NaN for characters without ink (line breaks). None without pages.
    """

    title: str
    text: str
    media_type: str
    pages: tuple[Page, ...] = ()
    headings: tuple[Heading, ...] = ()
    boxes: npt.NDArray[np.float32] | None = field(default=None, repr=False)
