"""Images in prompts, in OpenAI's shape. They come as data: URLs alone: no caller makes an upstream fetch an address."""

import re
from typing import Any

from app.errors import InvalidRequest

DATA_URL = re.compile(r"data:(image/(?:png|jpeg|gif|webp));base64,([A-Za-z0-9+/=]+)")


def data_url(part: dict[str, Any]) -> tuple[str, str]:
    """(media type, base64) of an `image_url` part. Raises InvalidRequest for anything but a data: URL."""
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    match = DATA_URL.fullmatch(url) if isinstance(url, str) else None
    if match is None:
        raise InvalidRequest("Images must be sent as data: URLs in base64 (png, jpeg, gif or webp).", param="messages")
    return match[1], match[2]
