"""NVIDIA Triton Inference Server, the generate extension.

Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_generate.html.
The first response fixes the HTTP status, later errors come as `{"error": …}` under 200. There is no usage, no finish
reason and no stop string: tokens are estimated, stop strings are cut here and end the request.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from urllib.parse import quote

from app.gateway.capabilities import COMPLETION, TOP_K, estimate_text
from app.gateway.providers.http import HttpProvider, Json, sse_data
from app.gateway.providers.text import StopFilter, prompt_text, stops
from app.gateway.schemas import ChatRequest, Delta, Usage


class TritonProvider(HttpProvider):
    """`model` names the Triton model; NAME/versions/N names a version."""

    TAKES = frozenset({COMPLETION, TOP_K})
    READY_IS_200 = True

    def probe_path(self) -> str:
        return f"v2/models/{quote(self.target.model, safe='')}/ready" if self.target.model else "v2/health/ready"

    def path(self, request: ChatRequest) -> str:
        return f"v2/models/{quote(self.target.model or request.model)}/generate_stream"

    def body(self, request: ChatRequest) -> Json:
        sampling = request.sampling
        fields = {
            "stream": True,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            TOP_K: sampling.top_k or None,
            "seed": sampling.seed,
        }
        return {
            "text_input": prompt_text(request),
            "parameters": {name: value for name, value in fields.items() if value is not None},
        }

    async def deltas(self, chunks: AsyncIterator[bytes], request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """A model that does not stream answers with a single event, which is read the same way."""
        stop = StopFilter(stops(request))
        output = ""
        events = 0
        async for data in sse_data(chunks):
            events += 1
            text = stop.feed(str(self.decode(data).get("text_output") or ""))
            output += text
            if text:
                yield Delta(text=text)
            if stop.met is not None:
                break
        if not events:
            raise self.broken_off()
        held = stop.rest()
        usage = Usage(estimate_text(prompt_text(request)), estimate_text(output + held))
        limit = request.sampling.max_tokens
        # One event is one token where the model streams.
        finish = "length" if limit and events >= limit and stop.met is None else "stop"
        yield Delta(text=held, finish_reason=finish, usage=usage, stop_sequence=stop.met)
