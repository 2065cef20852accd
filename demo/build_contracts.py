"""Turns the Markdown in `demo/sources/` into the PDF, DOCX and HTML files of `demo/contracts/`.

    python -m demo.build_contracts

Needs the development extras. The results are committed; run it again after editing a source.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docx import Document
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.platypus import Paragraph, SimpleDocTemplate

HERE = Path(__file__).parent
SOURCES, CONTRACTS = HERE / "sources", HERE / "contracts"
OUTPUTS = {
    "harbor-analytics-master-services": "Harbor Analytics - Master Services Agreement.pdf",
    "copperline-office-lease": "Copperline - Office Lease.pdf",
    "ostrava-castings-supply": "Ostrava Castings - Supply Agreement.pdf",
    "meridian-loan": "Meridian Kelp Farms - Term Loan Agreement.pdf",
    "tallgrass-joint-venture": "Tallgrass - Joint Venture Agreement.pdf",
    "northgate-employment": "Northgate - Employment Contract.docx",
    "wrenfield-consulting": "Wrenfield - Consulting Agreement.docx",
    "sablefin-distribution": "Sablefin - Exclusive Distribution Agreement.docx",
    "quillmark-saas-subscription": "Quillmark - Subscription Agreement.html",
    "pellam-mutual-nda": "Pellam and Ardenne - Mutual NDA.html",
}


def blocks(source: str) -> Iterator[tuple[int, str]]:
    """(heading level or 0, text) of each block of a source."""
    for block in source.strip().split("\n\n"):
        mark = re.match(r"(#+) ", block)
        yield (len(mark[1]), block[mark.end() :]) if mark else (0, block.replace("**", ""))


def write_pdf(source: str, path: Path) -> None:
    """Justified text on A4 with a footer on each page, as contracts come out of a word processor."""
    styles = getSampleStyleSheet()
    body = ParagraphStyle("body", parent=styles["BodyText"], fontSize=11, leading=15, spaceAfter=7, alignment=4)
    story: list[Any] = []
    title = ""
    for level, text in blocks(source):
        title = title or text
        style = {0: body, 1: styles["Title"], 2: styles["Heading2"]}[level]
        story.append(Paragraph(html.escape(text), style))

    def footer(canvas: Any, page: Any) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawCentredString(A4[0] / 2, 12 * mm, f"{title.title()} – page {page.page}")

    document = SimpleDocTemplate(str(path), pagesize=A4, title=title.title(), author="", invariant=1)
    document.build(story, onFirstPage=footer, onLaterPages=footer)


def write_docx(source: str, path: Path) -> None:
    document = Document()
    for level, text in blocks(source):
        if level:
            document.add_heading(text, level=level - 1)
        else:
            document.add_paragraph(text)
    document.core_properties.author = ""
    document.save(str(path))


def write_html(source: str, path: Path) -> None:
    lines = []
    title = ""
    for level, text in blocks(source):
        title = title or text
        tag = f"h{level}" if level else "p"
        lines.append(f"<{tag}>{html.escape(text, quote=False)}</{tag}>")
    head = f'<meta charset="utf-8">\n<title>{html.escape(title.title())}</title>'
    body = "\n".join(lines)
    path.write_text(f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n')


WRITERS = {".pdf": write_pdf, ".docx": write_docx, ".html": write_html}


def main() -> None:
    CONTRACTS.mkdir(exist_ok=True)
    for name, output in OUTPUTS.items():
        path = CONTRACTS / output
        WRITERS[path.suffix]((SOURCES / f"{name}.md").read_text(), path)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
