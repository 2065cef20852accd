"""Response headers of an answer: who served it, what it cost, what is left.

Rates: https://platform.openai.com/docs/guides/rate-limits (durations such as `1m0s`) and
https://platform.claude.com/docs/en/api/rate-limits (times in RFC 3339).
"""

from datetime import timedelta

from app.db import now
from app.gateway.limits import MINUTE
from app.gateway.metering import REQUESTS, TOKENS, Reservation
from app.gateway.prices import dollars
from app.gateway.stream import ChatStream


def answer_headers(stream: ChatStream, dialect: str) -> dict[str, str]:
    """`dialect`: openai or anthropic. The cost is final once the stream is closed, before that what is reserved."""
    record, reservation = stream.exchange.record, stream.exchange.reservation
    headers = {"x-precedent-served-by": stream.served_by, "x-precedent-request-id": str(record.id)}
    if record.status:
        headers["x-precedent-cost-usd"] = dollars(record.cost_micros)
    else:
        headers["x-precedent-cost-reserved-usd"] = dollars(reservation.cost_micros)
    if record.cache:
        headers["x-precedent-cache"] = record.cache
    if stream.exchange.cache_age is not None:
        headers["age"] = str(int(stream.exchange.cache_age))
    if reservation.budget_left is not None:
        headers["x-precedent-budget-remaining-usd"] = dollars(reservation.budget_left)
    return headers | rate_headers(reservation, dialect)


def rate_headers(reservation: Reservation, dialect: str) -> dict[str, str]:
    """Limits in the caller's dialect. What is counted now is back after a minute."""
    headers: dict[str, str] = {}
    for unit in (REQUESTS, TOKENS):
        if draw := reservation.tightest(unit):
            left = max(0, reservation.granted.remaining[draw.key])
            if dialect == "anthropic":
                reset = (now() + timedelta(seconds=MINUTE)).isoformat(timespec="seconds").replace("+00:00", "Z")
                values = {"limit": draw.limit, "remaining": left, "reset": reset}
                headers |= {f"anthropic-ratelimit-{unit}-{name}": str(value) for name, value in values.items()}
            else:
                values = {"limit": draw.limit, "remaining": left, "reset": "1m0s"}
                headers |= {f"x-ratelimit-{name}-{unit}": str(value) for name, value in values.items()}
    return headers
