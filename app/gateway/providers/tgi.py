"""Hugging Face Text Generation Inference, its native `/generate_stream`.

Source: https://huggingface.co/docs/text-generation-inference/reference/api_reference and
https://huggingface.github.io/text-generation-inference/ (OpenAPI). There is no `[DONE]`; the last event carries
`generated_text` and `details`. Stop strings come back inside the text and are cut here. Its OpenAI route, which applies
the model's chat template, is served by the provider `openai`.
"""

from collections.abc import AsyncGenerator, AsyncIterator

from app.errors import AppError
from app.gateway.capabilities import COMPLETION, RESPONSE_FORMAT, TOP_K
from app.gateway.providers.http import HttpProvider, Json, kind_of, sse_data
from app.gateway.providers.text import StopFilter, prompt_text, stops
from app.gateway.schemas import ChatRequest, Delta, Usage

MAX_STOPS = 4
FINISH = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class TgiProvider(HttpProvider):
    TAKES = frozenset({COMPLETION, TOP_K, RESPONSE_FORMAT, "repetition_penalty"})

    def probe_path(self) -> str:
        return "health"

    def path(self, request: ChatRequest) -> str:
        return "generate_stream"

    def body(self, request: ChatRequest) -> Json:
        sampling = request.sampling
        greedy = sampling.temperature == 0
        fields = {
            "max_new_tokens": sampling.max_tokens,
            "do_sample": not greedy,
            # TGI refuses a temperature of 0 and a top_p of 1.
            "temperature": None if greedy else sampling.temperature,
            "top_p": sampling.top_p if sampling.top_p and sampling.top_p < 1 else None,
            TOP_K: sampling.top_k or None,
            "seed": sampling.seed,
            "stop": list(stops(request)[:MAX_STOPS]) or None,
            "repetition_penalty": request.upstream_only.get("repetition_penalty"),
            "grammar": _grammar(request.upstream_only.get(RESPONSE_FORMAT)),
            "details": True,
        }
        return {
            "inputs": prompt_text(request),
            "parameters": {name: value for name, value in fields.items() if value is not None},
        }

    def reported(self, said: Json) -> AppError:
        match kind_of(said):
            case "validation":
                return self.refused(said)
            case "overloaded":
                return self._limited(1.0)
        return super().reported(said)

    async def deltas(self, chunks: AsyncIterator[bytes], request: ChatRequest) -> AsyncGenerator[Delta, None]:
        stop = StopFilter(stops(request))
        async for data in sse_data(chunks):
            event = self.decode(data)
            token = event.get("token") or {}
            text = "" if token.get("special") else stop.feed(token.get("text") or "")
            if text:
                yield Delta(text=text)
            if event.get("generated_text") is not None:
                yield _last(event.get("details") or {}, stop)
                return
        raise self.broken_off()


def _last(details: Json, stop: StopFilter) -> Delta:
    return Delta(
        text=stop.rest(),
        finish_reason="stop" if stop.met else FINISH.get(str(details.get("finish_reason")), "stop"),
        usage=Usage(details.get("input_length") or 0, details.get("generated_tokens") or 0),
        stop_sequence=stop.met,
    )


def _grammar(response_format: Json | None) -> Json | None:
    """TGI's grammar of an OpenAI response_format: the schema, or any object."""
    if not response_format or response_format.get("type") == "text":
        return None
    schema = (response_format.get("json_schema") or {}).get("schema")
    return {"type": "json", "value": schema or {"type": "object"}}
