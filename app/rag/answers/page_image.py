"""A page of a PDF as a picture, with a passage marked as with a pen: for clients without a viewer."""

import contextlib
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pypdfium2 as pdfium  # type: ignore[import-untyped,unused-ignore]

from app.errors import NotFound, UnreadableDocument
from app.rag.answers.spans import Box
from app.rag.parsing.pdf import _PDFIUM as PDFIUM

SCALE = 1.5  # pixels per point: 108 dpi
MAX_PIXELS = 4_000_000
PEN = np.array([255, 235, 90], dtype=np.uint16)  # RGB
MARGIN = 1.5  # points around a line of text

Picture = npt.NDArray[np.uint8]


def render(data: bytes, number: int, boxes: Sequence[Box]) -> bytes:
    """PNG of page `number` (from 1) with `boxes`, in PDF points, highlighted; blocks.

    Raises NotFound for a page that is not there, UnreadableDocument where pdfium cannot draw it.
    """
    with PDFIUM:  # pdfium is not thread-safe
        try:
            return png(_draw(data, number, boxes))
        except pdfium.PdfiumError as error:
            raise UnreadableDocument(f"Page {number} cannot be drawn: {error}", reason="corrupt") from error


def _draw(data: bytes, number: int, boxes: Sequence[Box]) -> Picture:
    with contextlib.closing(pdfium.PdfDocument(data)) as document:
        if not 1 <= number <= len(document):
            raise NotFound(f"The document has no page {number}.")
        with contextlib.closing(document[number - 1]) as page:
            width, height = page.get_size()
            scale = min(SCALE, (MAX_PIXELS / max(width * height, 1.0)) ** 0.5)
            with contextlib.closing(page.render(scale=scale, rev_byteorder=True, prefer_bgrx=False)) as bitmap:
                picture: Picture = np.array(bitmap.to_numpy(), dtype=np.uint8, copy=True)[..., :3]
                place = bitmap.get_posconv(page)
                for left, bottom, right, top in boxes:
                    corners = [
                        place.to_bitmap(left - MARGIN, top + MARGIN),
                        place.to_bitmap(right + MARGIN, bottom - MARGIN),
                    ]
                    _mark(picture, corners)
    return picture


def _mark(picture: Picture, corners: Sequence[tuple[int, int]]) -> None:
    """Multiply the rectangle by the pen's colour: ink stays black. Whatever of it is beyond the page is cut off."""
    (x1, x2), (y1, y2) = (sorted(max(0, value) for value in axis) for axis in zip(*corners, strict=True))
    area = picture[y1:y2, x1:x2]
    area[...] = (area.astype(np.uint16) * PEN // 255).astype(np.uint8)


def png(picture: Picture) -> bytes:
    """An RGB picture [height, width, 3] as PNG (W3C, third edition): one IDAT, no filters."""
    height, width, _ = picture.shape
    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), picture.reshape(height, width * 3)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
