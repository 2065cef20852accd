// The official OpenAI client for Node, unmodified: prints what it got as one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "one two three" }];
const found = {};

const whole = await client.chat.completions.create({ model: "echo", messages });
found.whole = whole.choices[0].message.content;
found.usage = whole.usage.prompt_tokens;

found.pieces = [];
const stream = await client.chat.completions.create({
  model: "echo", messages, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  if (chunk.choices[0]?.delta?.content) found.pieces.push(chunk.choices[0].delta.content);
  if (chunk.usage) found.streamed_usage = chunk.usage.completion_tokens;
}

found.models = (await client.models.list()).data.map((model) => model.id);
found.vector = (await client.embeddings.create({ model: "all-MiniLM-L6-v2", input: "a clause" })).data[0].embedding.length;

const tools = [{ type: "function", function: { name: "find", parameters: { type: "object", properties: {} } } }];
const called = await client.chat.completions.create({ model: "tools", messages, tools, stream: true });
const calls = {};
for await (const chunk of called)
  for (const call of chunk.choices[0]?.delta?.tool_calls ?? []) {
    calls[call.index] ??= { name: "", arguments: "" };
    calls[call.index].name += call.function?.name ?? "";
    calls[call.index].arguments += call.function?.arguments ?? "";
  }
found.calls = Object.values(calls);

for (const [name, options, model] of [
  ["unknown", {}, "nothing"], ["limited", {}, "limited"], ["key", { apiKey: "wrong" }, "echo"],
])
  try {
    await client.withOptions({ ...options }).chat.completions.create({ model, messages });
  } catch (error) {
    found[name] = [error.constructor.name, error.status, error.code];
  }

const leaving = new AbortController();
try {
  const slow = await client.chat.completions.create({ model: "slow", messages, stream: true }, { signal: leaving.signal });
  for await (const _ of slow) leaving.abort();
  found.left = true;
} catch (error) {
  found.left = error.constructor.name;
}
console.log(JSON.stringify(found));
