"""Scanned pages, read by a real Tesseract."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from app.errors import UnreadableDocument
from app.rag.parsing import parse, pdf

LINES = ("LEASE AGREEMENT", "The monthly rent is nine hundred crowns,", "payable on the first day of every month.")
WIDTH, HEIGHT = 595.0, 842.0
requires_tesseract = pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")


def scanned(*, then_typed: bool = False) -> bytes:
    """A PDF whose first page is the picture of a page; perhaps one with a text layer behind it."""
    scale = 3
    picture = Image.new("L", (int(WIDTH * scale), int(HEIGHT * scale)), 255)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=16 * scale)
    for number, line in enumerate(LINES):
        draw.text((72 * scale, (100 + 40 * number) * scale), line, fill=0, font=font)
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=(WIDTH, HEIGHT))
    canvas.drawImage(ImageReader(picture), 0, 0, WIDTH, HEIGHT)
    canvas.showPage()
    if then_typed:
        canvas.drawString(72, 700, "This page was typed.")
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


@requires_tesseract
def test_words_are_read_with_the_boxes_where_they_stand() -> None:
    document = parse(scanned(then_typed=True), "scan.pdf")
    assert all(line in document.text for line in LINES)
    assert "This page was typed." in document.text
    assert [page.start < page.end for page in document.pages] == [True, True]
    assert document.boxes is not None and len(document.boxes) == len(document.text)
    start = document.text.index("nine hundred")
    left, bottom, right, top = document.boxes[start]
    assert 72 < left < right < 400 and HEIGHT - 165 < bottom < top < HEIGHT - 135
    assert np.isnan(document.boxes[document.text.index("nine hundred") + 4]).all(), "a space has no ink"
    rights = [document.boxes[start + n][2] for n in range(4)]
    assert rights == sorted(rights)


def test_without_tesseract_a_scan_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "available", lambda: False)
    with pytest.raises(UnreadableDocument, match="install Tesseract") as caught:
        parse(scanned(), "scan.pdf")
    assert caught.value.extra["reason"] == "scanned"
    document = parse(scanned(then_typed=True), "scan.pdf")
    assert [page.start < page.end for page in document.pages] == [False, True]
