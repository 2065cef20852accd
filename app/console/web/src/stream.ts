/** Server-sent events by fetch: unlike an event source it can post, and be stopped. */
import { send } from "./api";

export interface Frame {
  event: string;
  data: string;
}

/** Frames as they come. Aborting `signal` closes the connection, upon which the server stops computing. */
export async function* frames(path: string, body: unknown, signal: AbortSignal): AsyncGenerator<Frame> {
  const response = await send(path, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (left + value.replaceAll("\r\n", "\n")).split("\n\n");
    left = parts.pop()!;
    for (const part of parts) {
      const lines = part.split("\n");
      const field = (name: string) => lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart()).join("\n");
      if (lines.some((line) => line.startsWith("data:"))) yield { event: field("event"), data: field("data") };
    }
  }
}
