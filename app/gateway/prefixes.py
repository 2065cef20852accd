"""What prompts begin with, as fingerprints that need no tokenizer: so that a gateway and an engine in another process
can speak of what is in KV memory.

A prompt's n-th fingerprint covers role, access label and text of its first n segments. Labels are in it, so that equal
text of two tenants has nothing in common; 64 bits of a hash that cannot be inverted say nothing about the text.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

from app.gateway.schemas import Message

SIZE = 8


def fingerprints(messages: Sequence[Message]) -> list[str]:
    """Of each beginning that ends with a segment; empty segments are none. In hexadecimal."""
    parent, found = b"", []
    for message in messages:
        for segment in message.segments:
            if not segment.text:
                continue
            said = "\0".join((message.role, *sorted(segment.label))).encode()
            digest = blake2b(parent + said + b"\1" + segment.text.encode(), digest_size=SIZE)
            parent = digest.digest()
            found.append(digest.hexdigest())
    return found


def split(messages: Sequence[Message], resident: Mapping[str, int]) -> tuple[int, str]:
    """Tokens of the longest beginning that is in memory there, and the text that follows it."""
    texts = [segment.text for message in messages for segment in message.segments if segment.text]
    found = [(i, resident[one]) for i, one in enumerate(fingerprints(messages), start=1) if one in resident]
    end, tokens = found[-1] if found else (0, 0)
    return tokens, "".join(texts[end:])
