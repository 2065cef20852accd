"""What a request must satisfy before it reaches the step loop. No torch."""

from dataclasses import dataclass

from app.engine.request import Request, choices
from app.errors import ContextTooLong, InvalidRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """max_model_len: prompt plus output tokens of one request.  max_num_seqs: requests running at once.  adapters: by
    name."""

    max_model_len: int
    vocab_size: int
    has_tokenizer: bool
    max_num_seqs: int = 1
    adapters: frozenset[str] = frozenset()


def check_request(request: Request, limits: Limits) -> int:
    """The output tokens this request may have. Raises InvalidRequest or ContextTooLong, naming the field."""
    prompt, sampling = request.prompt_token_ids, request.sampling
    if not prompt:
        raise InvalidRequest("The prompt is empty.", param="messages")
    if len(prompt) >= limits.max_model_len:
        raise ContextTooLong(len(prompt), limits.max_model_len)
    if min(prompt) < 0 or max(prompt) >= limits.vocab_size:
        raise InvalidRequest(f"Prompt token ids must be between 0 and {limits.vocab_size - 1}.", param="messages")
    if request.adapter is not None and request.adapter not in limits.adapters:
        raise InvalidRequest(f"There is no adapter {request.adapter!r}.", param="model")
    for name, ids in (("stop_token_ids", sampling.stop_token_ids), ("logit_bias", sampling.logit_bias)):
        unknown = [i for i in ids if i >= limits.vocab_size]
        if unknown:
            highest = limits.vocab_size - 1
            raise InvalidRequest(f"{name} has the unknown token id {unknown[0]}; the last is {highest}.", param=name)
    if request.max_queue_seconds is not None and not request.max_queue_seconds > 0:
        raise InvalidRequest("max_queue_seconds must be more than 0 or absent.", param="max_queue_seconds")
    if sampling.stop and not limits.has_tokenizer:
        raise InvalidRequest("Stop strings need a model folder with a tokenizer.", param="stop")
    if request.grammar is not None and (sampling.ignore_eos or sampling.min_tokens):
        field = "ignore_eos" if sampling.ignore_eos else "min_tokens"
        raise InvalidRequest(f"{field} cannot be combined with response_format.", param=field)
    room = limits.max_model_len - len(prompt)
    if sampling.min_tokens > room:
        raise InvalidRequest(f"min_tokens is {sampling.min_tokens}, but only {room} fit.", param="min_tokens")
    return min(sampling.max_tokens, room)


def split_choices(request: Request, count: int, limits: Limits) -> list[Request]:
    """`n` as that many requests; see choices(). Raises InvalidRequest beyond what can run at once."""
    if not 1 <= count <= limits.max_num_seqs:
        raise InvalidRequest(f"n must be between 1 and {limits.max_num_seqs}, not {count}.", param="n")
    check_request(request, limits)
    return choices(request, count)
