"""Dates as contracts write them: "1 June 2024", "June 1st, 2024", "the 1st day of June, 2024", 2024-06-01, 6/1/2024."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

_MONTH_NAMES = """
    january february march april may june july august september october november december
"""
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES.split(), 1)}
_MONTH = r"(?P<{0}>January|February|March|April|May|June|July|August|September|October|November|December)"
_ORDINAL = r"(?:\s?(?:st|nd|rd|th))?"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"\b(?P<day>\d{{1,2}}){_ORDINAL}\s+(?:day\s+of\s+)?{_MONTH.format('month')}\s*,?\s+(?P<year>\d{{4}})\b",
        rf"\b{_MONTH.format('month')}\s+(?P<day>\d{{1,2}}){_ORDINAL}\s*,?\s+(?P<year>\d{{4}})\b",
        r"\b(?P<year>\d{4})-(?P<number>\d{2})-(?P<day>\d{2})\b",
        # Month first, as American filings write it; where that is no date (31/12/2024), day first.
        r"\b(?P<number>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})\b",
    )
)
FIRST_YEAR, LAST_YEAR = 1900, 2199


@dataclass(frozen=True, slots=True)
class DateSpan:
    """text[start:end] names `day`."""

    day: date
    start: int
    end: int


def dates(text: str) -> list[DateSpan]:
    """Every complete date in `text`, in order of position."""
    found = {span.start: span for form in _FORMS for match in form.finditer(text) for span in _read(match)}
    return [found[start] for start in sorted(found)]


def _read(match: re.Match[str]) -> Iterator[DateSpan]:
    parts = match.groupdict()
    month = int(parts["number"]) if parts.get("number") else _MONTHS[parts["month"].lower()]
    year, day = int(parts["year"]), int(parts["day"])
    if parts.get("number") and month > 12 >= day:
        month, day = day, month
    if FIRST_YEAR <= year <= LAST_YEAR:
        try:
            yield DateSpan(date(year, month, day), match.start(), match.end())
        except ValueError:  # 30 February: numbers that look like a date
            return
