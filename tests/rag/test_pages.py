"""Cited pages as pictures: the highlight is on the words, the caller's rights hold, and other formats say so."""

import io
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
import pytest

from app.config import REPOSITORY
from app.rag.answers.citations import Evidence, find_citations
from app.rag.answers.page_image import PEN, render
from app.rag.answers.quotes import skeleton
from app.rag.answers.spans import SourceText
from app.rag.parsing import ParsedDocument, parse
from tests.conftest import Site
from tests.rag.conftest import make_pdf

LINES = [["Lease of Mill House", "The rent is nine hundred crowns a month."], ["No otters may be kept."]]
PEN_COLOUR = tuple(int(value) for value in PEN)


def decoded(png: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The picture [height, width, 3] of a PNG as `page_image` writes it."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    data = png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8]
    rows = np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(height, 1 + width * 3)
    return rows[:, 1:].reshape(height, width, 3)


async def test_a_cited_page_shows_the_quote_highlighted(site: Site) -> None:
    headers = await site.headers("pages")
    job = await site.file("lease.pdf", make_pdf(LINES), headers)
    document = f"/api/v1/documents/{job['document_id']}"
    text = (await site.client.get(f"{document}/text", headers=headers)).json()["text"]
    start = text.index("nine hundred crowns")
    picture = await site.client.get(
        f"{document}/versions/1/pages/1/image.png?start={start}&end={start + 19}", headers=headers
    )
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
    marked = np.argwhere((decoded(picture.content) == PEN_COLOUR).all(axis=2))
    top, left = marked.min(axis=0) / 1.5
    bottom, right = marked.max(axis=0) / 1.5
    assert 842 - 744 - 14 < top < bottom < 842 - 744 + 8  # the second line's baseline is at 744
    assert 72 + 40 < left < right < 72 + 200
    plain = await site.client.get(
        f"{document}/versions/1/pages/2/image.png?start={start}&end={start + 19}", headers=headers
    )
    assert not (decoded(plain.content) == PEN_COLOUR).all(axis=2).any()  # the quote is on the other page


async def test_pages_that_cannot_be_shown(site: Site) -> None:
    headers = await site.headers("no-pages")
    pdf = (await site.file("lease.pdf", make_pdf(LINES), headers))["document_id"]
    text = (await site.file("lease.md", "# Lease\n\nThe rent is nine hundred crowns.", headers))["document_id"]
    holder = await site.headers("no-pages", labels="walled")
    walled = (await site.file("walled.pdf", make_pdf([["Walled"]]), holder, labels="walled"))["document_id"]
    stranger = await site.headers("no-pages-strangers")
    for document, page, status, who in [
        (text, "1/pages/1/image.png", 415, headers),
        (pdf, "1/pages/3/image.png", 404, headers),
        (pdf, "1/pages/0/image.png", 404, headers),
        (pdf, "2/pages/1/image.png", 404, headers),
        (pdf, f"{2**70}/pages/1/image.png", 404, headers),
        (pdf, f"1/pages/{2**70}/image.png", 404, headers),
        (pdf, "1/pages/1/image.png?start=5&end=2", 400, headers),
        (pdf, "1/pages/1/image.png?start=0&end=99999", 400, headers),
        (pdf, "1/pages/1/image.png", 404, stranger),
        (walled, "1/pages/1/image.png", 404, headers),
        (walled, "1/pages/1/image.png", 200, holder),
    ]:
        response = await site.client.get(f"/api/v1/documents/{document}/versions/{page}", headers=who)
        assert response.status_code == status, (page, response.text)


def test_a_huge_page_is_drawn_within_bounds() -> None:
    document = pdfium.PdfDocument.new()
    document.new_page(14_000, 14_000)
    buffer = io.BytesIO()
    document.save(buffer)
    document.close()
    assert decoded(render(buffer.getvalue(), 1, [])).size <= 3 * 4_100_000


def _pdfs() -> list[Path]:
    """The sample contracts; with PRECEDENT_DEVELOPMENT_PDFS a folder of real ones as well."""
    more = os.environ.get("PRECEDENT_DEVELOPMENT_PDFS")
    folders = [REPOSITORY / "demo" / "contracts", *([Path(more)] if more else [])]
    return sorted(path for folder in folders for path in folder.iterdir() if path.suffix.lower() == ".pdf")


@pytest.mark.parametrize("path", _pdfs(), ids=lambda path: path.stem[:40])
def test_the_text_of_each_citation_stands_on_the_page_it_names(path: Path) -> None:
    """Read the page again with pdfium, by itself, and find the cited words in it."""
    data = path.read_bytes()
    parsed = parse(data, path.name, None)
    source = SourceText(parsed.text, parsed.pages, parsed.boxes)
    cited = 0
    for start, quote in _quotes(parsed):
        evidence = [Evidence("d", 1, "c", max(0, start - 400), min(len(parsed.text), start + 600), source)]
        for citation in find_citations(f'It says [1]: "{quote}"', evidence):
            for span in citation.spans:
                assert span.page is not None
                words = skeleton(parsed.text, span.start, span.end).text
                assert words in skeleton(_page(data, span.page)).text, (span.page, quote)
                assert len(span.boxes) >= 1
                cited += 1
    assert cited >= 5


def _quotes(parsed: ParsedDocument) -> list[tuple[int, str]]:
    """(offset, words) of a dozen places."""
    chosen = random.Random(7)
    starts = [chosen.randrange(max(1, len(parsed.text) - 160)) for _ in range(12)]
    return [(at, " ".join(parsed.text[at : at + 160].replace('"', " ").split()[1:-1])) for at in starts]


def _page(data: bytes, number: int) -> str:
    document = pdfium.PdfDocument(data)
    try:
        text: str = document[number - 1].get_textpage().get_text_bounded()
        return text.replace("\ufffe", "-").replace("\x02", "-")
    finally:
        document.close()
