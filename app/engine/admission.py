"""What a request must satisfy before it reaches the step loop. No torch."""

from dataclasses import dataclass

from app.engine.request import Request
from app.errors import ContextTooLong, InvalidRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """max_model_len: prompt plus output tokens of one request."""

    max_model_len: int
    vocab_size: int
    has_tokenizer: bool


def check_request(request: Request, limits: Limits) -> int:
    """The output tokens this request may have. Raises InvalidRequest or ContextTooLong, naming the field."""
    prompt, sampling = request.prompt_token_ids, request.sampling
    if not prompt:
        raise InvalidRequest("The prompt is empty.", param="messages")
    if len(prompt) >= limits.max_model_len:
        raise ContextTooLong(len(prompt), limits.max_model_len)
    if min(prompt) < 0 or max(prompt) >= limits.vocab_size:
        raise InvalidRequest(f"Prompt token ids must be between 0 and {limits.vocab_size - 1}.", param="messages")
    unknown = [i for i in sampling.stop_token_ids if i >= limits.vocab_size]
    if unknown:
        raise InvalidRequest(f"Unknown stop token id {unknown[0]}.", param="stop_token_ids")
    if sampling.stop and not limits.has_tokenizer:
        raise InvalidRequest("Stop strings need a model folder with a tokenizer.", param="stop")
    room = limits.max_model_len - len(prompt)
    if sampling.min_tokens > room:
        raise InvalidRequest(f"min_tokens is {sampling.min_tokens}, but only {room} fit.", param="min_tokens")
    return min(sampling.max_tokens, room)
