"""Text recognition for pages without a text layer, by Tesseract where it is installed (extra `ocr`, and the program
`tesseract`: https://tesseract-ocr.github.io). Without it such pages stay empty and are said to be."""

import functools
import importlib.util
import shutil
from dataclasses import dataclass
from typing import Any

SCALE = 200 / 72  # pixels for a point: 200 dpi, what Tesseract reads well
MIN_CONFIDENCE = 40.0  # of a word, 0 to 100; below it is mostly dirt


@dataclass(frozen=True, slots=True)
class Word:
    """A recognised word; the box is left, bottom, right, top in points from the page's lower left."""

    text: str
    box: tuple[float, float, float, float]
    line: tuple[int, int, int]  # block, paragraph, line


@functools.cache
def available() -> bool:
    return importlib.util.find_spec("pytesseract") is not None and shutil.which("tesseract") is not None


def words_of(image: Any, height: float) -> list[Word]:
    """Words of a page in reading order. image: a PIL image rendered at SCALE; height: of the page, in points."""
    import pytesseract

    found = pytesseract.image_to_data(image, output_type=pytesseract.Output.DICT)
    words = []
    for i, text in enumerate(found["text"]):
        if not text.strip() or float(found["conf"][i]) < MIN_CONFIDENCE:
            continue
        left, top = found["left"][i] / SCALE, found["top"][i] / SCALE
        right, bottom = left + found["width"][i] / SCALE, top + found["height"][i] / SCALE
        line = found["block_num"][i], found["par_num"][i], found["line_num"][i]
        words.append(Word(text, (left, height - bottom, right, height - top), line))
    return words


def characters_of(words: list[Word]) -> list[tuple[str, tuple[float, float, float, float] | None]]:
    """Each character with its share of its word's box, None for white space; paragraphs end with an empty line."""
    made: list[tuple[str, tuple[float, float, float, float] | None]] = []
    for i, word in enumerate(words):
        if i:
            last = words[i - 1].line
            between = " " if word.line == last else "\n" if word.line[:2] == last[:2] else "\n\n"
            made += [(space, None) for space in between]
        left, bottom, right, top = word.box
        step = (right - left) / len(word.text)
        made += [
            (character, (left + n * step, bottom, left + (n + 1) * step, top)) for n, character in enumerate(word.text)
        ]
    return made
