"""Text in a document that speaks to whoever reads it: orders to a model, made-up roles, borders of a prompt.

A flag is a warning to people and a reason not to keep an answer. It is no defence: what protects is that passages are
data under a policy, that citations are checked against them, and that special tokens cannot be written by a text.
"""

import re
from functools import lru_cache

_ORDER = (
    r"(?:ignore|disregard|forget|override|bypass|skip)\b[^.\n]{0,40}?"
    r"\b(?:previous|prior|above|earlier|preceding|system|all|any|your|these|those|the)\b[^.\n]{0,30}?"
    r"\b(?:instruction|direction|prompt|polic(?:y|ies)|rule|guideline|command|context|message|passages?|"
    r"guardrail|restriction|training)"
)
_ASSISTANT = r"(?:assistants?|a\.?i\.?|language models?|llms?|chat ?bots?|models?|systems?)"
PATTERNS = {
    "override": re.compile(rf"(?is)\b{_ORDER}"),
    "role": re.compile(
        rf"(?i)\b(?:you are now (?:an?|the|in|free|my)\b|from now on,? you (?:are|will|must|should|only|answer|speak)|"
        r"(?:act|respond|behave) as (?:if you|though you)|pretend (?:to be|that) (?:you|an?)|"
        rf"(?:note|message|attention|instructions?|reminder|important)[^.\n]{{0,12}} (?:to|for) (?:the |any |all )?"
        rf"{_ASSISTANT}|(?:dear|hey|hello|attention,?) {_ASSISTANT}\b|as an? {_ASSISTANT}\b|{_ASSISTANT} (?:reading|"
        rf"processing|summari[sz]ing|that reads?)|(?:developer|jailbreak|god|dan|admin(?:istrator)?) mode)"
    ),
    "output": re.compile(
        r"(?i)\b(?:(?:answer|respond|reply|output|print|say|write|state|repeat|cite|quote|reveal|show|return|append|"
        r"translate|begin your|end your)\b[^.\n]{0,40}?(?:\b(?:only (?:with|by|the word)|exactly:?|with the words?|"
        r"the following (?:words?|text|string|sentence)|your (?:system )?(?:prompt|instructions|policy|"
        r"answer|reply|response)|"
        r"the (?:system|hidden|full) (?:prompt|message|policy)|every answer|all questions)\b|\[\d{1,3}\])|"
        r"(?:do not|don't|never) (?:cite|quote|mention|tell|reveal|answer|refuse)\b[^.\n]{0,40}?\b(?:user|reader|"
        r"passage|source|question|document|this)|"
        r"your (?:real|true|actual|new|only) (?:task|instructions?|goal|job|purpose|role)|"
        r"new (?:instructions?|system prompt|policy|task) ?(?::|follow|applies|begins?))"
    ),
    "markup": re.compile(
        r"(?i)<\|[a-z_]{2,30}\|>|\[/?(?:INST|SYS)\]|<</?SYS>>|<\s*/?\s*(?:system|assistant|user|instructions?|"
        r"tool_call|think)\s*>|(?:^|\s)#{1,4}\s*(?:system|assistant|instruction)s?\b|"
        r"(?:^|[\n.\"'])\s*(?:system|assistant|human|user)\s*:\s|\bbegin (?:system )?(?:prompt|instructions?)\b|"
        r"\bend of (?:passages?|documents?|context|prompt)\b|(?:^|\n)\s*question\s*:|(?:^|\n)\s*passages\s*:"
    ),
    "exfiltration": re.compile(
        r"(?i)!\[[^\]]{0,80}\]\(\s*https?://|\b(?:send|post|upload|forward|e-?mail|transmit|leak)\b[^.\n]{0,40}?"
        r"\b(?:conversation|prompt|passages?|answers?|chat history|api key|password|credentials?)\b[^.\n]{0,40}?"
        r"\b(?:to|at) (?:https?:|www|[\w.+-]+@|the (?:address|server|url))"
    ),
    "hidden": re.compile(
        "[\u2062-\u2064\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]|(?:[A-Za-z][\u200b-\u200d\u2060]){3}"
    ),
}


_INVISIBLE = re.compile("[\u200b-\u200d\u2060-\u2064\ufeff\u00ad]")


@lru_cache(maxsize=4096)
def flags(text: str) -> tuple[str, ...]:
    """Names of what was found, in alphabetical order; empty for what contracts usually say."""
    plain = _INVISIBLE.sub("", text)
    found = [name for name, pattern in PATTERNS.items() if pattern.search(text if name == "hidden" else plain)]
    return tuple(sorted(found))
