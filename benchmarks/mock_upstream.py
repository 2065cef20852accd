"""An OpenAI-compatible upstream that answers at once, for measuring what stands before it: `… PORT`."""

import asyncio
import json
import sys
from typing import Any

CHUNKS = 64


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": choices}
    return b"data: " + json.dumps(body | more).encode() + b"\n\n"


USAGE = {"prompt_tokens": 12, "completion_tokens": CHUNKS, "total_tokens": 12 + CHUNKS}
MESSAGE = {"role": "assistant", "content": "word " * CHUNKS}
PLAIN = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "mock",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}], "usage": USAGE,
}).encode()  # fmt: skip
PIECES = [chunk({"role": "assistant", "content": ""})] + [chunk({"content": "word "}) for _ in range(CHUNKS)]
PIECES += [chunk({}, "stop"), chunk({}, choices=[], usage=USAGE), b"data: [DONE]\n\n"]
FRAMED = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in PIECES]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(PLAIN)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            body = await reader.readexactly(length)
            if b'"stream":true' in body.replace(b" ", b""):
                writer.write(STREAM_HEAD)
                for piece in FRAMED:
                    writer.write(piece)
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
            else:
                writer.write(HEAD + PLAIN)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
