/** Ask a model, or the documents; see it arrive, stop it, check every quote at its source. */
import { useEffect, useRef, useState } from "preact/hooks";
import { api, can, chatModels } from "../api";
import { duration, plural } from "../format";
import { Badge, Card, Copy, Loaded, Page, Segmented } from "../parts/basic";
import { asProblem, useResource } from "../resource";
import { href, setQuery, useQuery } from "../router";
import { frames } from "../stream";

/** Streams are not in the OpenAPI document: what their events hold is written here. */
interface Citation {
  marker: number;
  document_id: string;
  document: string;
  version: number;
  quote: string;
  match: string;
  verified: boolean;
  spans: { page: number | null; start: number; end: number }[];
}

interface Unverified {
  said: string;
}

interface Counted {
  completion_tokens: number;
}

type Mode = "chat" | "documents";

export interface Ask {
  path: string;
  body: Record<string, unknown>;
}

interface Run {
  text: string;
  state: "running" | "done" | "stopped" | "failed";
  citations: Citation[];
  note: string;
  firstMs: number | null;
  tokensPerSecond: number | null;
  servedBy: string;
  id: string | null;
  unverified: Unverified[];
  timings: Record<string, number>;
}

const NEW: Run = { text: "", state: "running", citations: [], note: "", firstMs: null, tokensPerSecond: null, servedBy: "", id: null, unverified: [], timings: {} };

/** One frame's news. Pieces of text stand for tokens until the usage says how many there were. */
function apply(run: Run, event: string, data: any, seconds: number): Run {
  if (event === "error" || data.error) return { ...run, state: "failed", note: (data.error ?? data).detail ?? data.error.message };
  if (event === "citation") return { ...run, citations: [...run.citations, data] };
  if (event === "done") {
    const refused = data.refused ? "Not in the documents: no verified quote. " : "";
    return { ...run, state: "done", text: data.answer, citations: data.citations, servedBy: data.served_by, id: data.id, unverified: data.unverified ?? [], timings: data.timings_ms, tokensPerSecond: data.usage.completion_tokens / Math.max(seconds, 0.001), note: refused };
  }
  const usage = data.usage as Counted | null | undefined;
  const text = event === "delta" ? data.text : (data.choices?.[0]?.delta?.content ?? "");
  return { ...run, text: run.text + text, tokensPerSecond: usage ? usage.completion_tokens / Math.max(seconds, 0.001) : run.tokensPerSecond };
}

function useRun(ask: Ask): { run: Run; stop: () => void } {
  const [run, setRun] = useState(NEW);
  const controller = useRef<AbortController | undefined>(undefined);
  useEffect(() => {
    const mine = new AbortController();
    controller.current = mine;
    const begun = performance.now();
    let first = 0;
    const read = async () => {
      for await (const { event, data } of frames(ask.path, ask.body, mine.signal)) {
        if (data === "[DONE]") break;
        first ||= performance.now();
        const seconds = (performance.now() - first) / 1000;
        setRun((before) => ({ ...apply(before, event, JSON.parse(data), seconds), firstMs: first - begun }));
      }
      setRun((before) => (before.state === "running" ? { ...before, state: "done" } : before));
    };
    read().catch((error) => setRun((before) => (mine.signal.aborted ? { ...before, state: "stopped" } : { ...before, state: "failed", note: asProblem(error).message })));
    return () => mine.abort();
  }, []);
  return { run, stop: () => controller.current?.abort() };
}

export function sourceOf(citation: Citation): string {
  const first = citation.spans[0];
  const last = citation.spans.at(-1);
  return href(`/documents/${citation.document_id}`, { version: citation.version, start: first?.start, end: last?.end });
}

function Chip({ citation }: { citation: Citation }) {
  const page = citation.spans[0]?.page;
  return (
    <a class="button chip" href={sourceOf(citation)} title={citation.quote}>
      <span>[{citation.marker}] {citation.document}{page ? `, p. ${page}` : ""}</span>
      <Badge tone={citation.verified ? "ok" : "warn"}>{citation.verified ? "verified" : citation.match}</Badge>
    </a>
  );
}

function Thumbs({ id }: { id: string }) {
  const [said, setSaid] = useState("");
  const say = (thumb: "up" | "down") => api.post("/api/v1/answers/{answer_id}/feedback", { path: { answer_id: id }, body: { thumb } }).then(() => setSaid("Thank you."), (error) => setSaid(asProblem(error).message));
  if (said) return <span role="status">{said}</span>;
  return <span class="row"><button class="plain" onClick={() => say("up")} >Helpful</button><button class="plain" onClick={() => say("down")} >Wrong</button></span>;
}

function curl({ path, body }: Ask): string {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl -N ${location.origin}${path} \\\n  -H "authorization: Bearer $PRECEDENT_KEY" \\\n  -H 'content-type: application/json' \\\n  -d '${json}'`;
}

const STATES = { running: "warn", done: "ok", stopped: "neutral", failed: "bad" } as const;

function Answer({ ask, title }: { ask: Ask; title: string }) {
  const { run, stop } = useRun(ask);
  return (
    <Card title={title} actions={<span class="row"><Badge tone={STATES[run.state]}>{run.state}</Badge>{run.state === "running" && <button onClick={stop}>Stop</button>}</span>}>
      <div class="stack tight">
        <div class={run.state === "running" ? "answer cursor" : "answer"} aria-live="polite" aria-busy={run.state === "running"} data-answer>{run.text}</div>
        {run.note && <p class={run.state === "failed" ? "bad" : "warn"} role="alert">{run.note}</p>}
        {run.citations.length > 0 && <div class="row" aria-label="Citations" role="group">{run.citations.map((citation) => <Chip citation={citation} />)}</div>}
        {run.unverified.map(({ said }) => <p class="warn">Not found in the documents: “{said}”</p>)}
        <div class="row muted small">
          <span>First token {duration(run.firstMs)}</span>
          <span>{run.tokensPerSecond === null ? "— tokens/s" : `${run.tokensPerSecond.toFixed(1)} tokens/s`}</span>
          {run.servedBy && <span>Served by {run.servedBy}</span>}
          {Object.entries(run.timings).map(([name, ms]) => <span>{name} {duration(ms)}</span>)}
          <span class="grow" />
          {run.id && <Thumbs id={run.id} />}
          <Copy text={curl(ask)} label="Copy as curl" />
        </div>
      </div>
    </Card>
  );
}

function ModelChoice({ names, chosen, toggle, single }: { names: string[]; chosen: string[]; toggle: (name: string) => void; single: boolean }) {
  return (
    <fieldset class="field" style={{ border: 0, padding: 0, margin: 0 }}>
      <legend class="label" style={{ padding: 0 }}>{single ? "Model" : "Models, side by side (up to three)"}</legend>
      <div class="choices">
        {names.map((name) => (
          <label class="check"><input type={single ? "radio" : "checkbox"} name="model" checked={chosen.includes(name)} disabled={!single && !chosen.includes(name) && chosen.length >= 3} onChange={() => toggle(name)} />{name}</label>
        ))}
      </div>
    </fieldset>
  );
}

function asksOf(form: HTMLFormElement, mode: Mode, models: string[]): Ask[] {
  const data = new FormData(form);
  const text = (name: string) => String(data.get(name) ?? "").trim();
  if (mode === "documents") return [{ path: "/api/v1/answers", body: { question: text("question"), collection: text("collection") || null, model: models[0] ?? null, stream: true } }];
  const messages = [...(text("system") ? [{ role: "system", content: text("system") }] : []), { role: "user", content: text("question") }];
  const rest = { messages, temperature: Number(text("temperature")), max_tokens: Number(text("max_tokens")), stream: true, stream_options: { include_usage: true } };
  return models.map((model) => ({ path: "/v1/chat/completions", body: { model, ...rest } }));
}

function Question({ mode, names, ask }: { mode: Mode; names: string[]; ask: (asks: Ask[]) => void }) {
  const [models, setModels] = useState(names.slice(0, 1));
  const single = mode === "documents";
  const toggle = (name: string) => setModels((now) => (single ? [name] : now.includes(name) ? now.filter((one) => one !== name) : [...now, name]));
  const form = useRef<HTMLFormElement>(null);
  const submit = (event: Event) => {
    event.preventDefault();
    if (form.current!.reportValidity()) ask(asksOf(form.current!, mode, single ? models.slice(0, 1) : models));
  };
  const keyed = (event: KeyboardEvent) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event);
  return (
    <form class="card stack" ref={form} onSubmit={submit} onKeyDown={keyed}>
      <div class="field"><label for="question">{single ? "Question" : "Message"}</label><textarea id="question" name="question" required maxLength={single ? 4000 : undefined} /></div>
      {single ? (
        <div class="field"><label for="collection">Collection</label><input id="collection" name="collection" placeholder="all" /></div>
      ) : (
        <details>
          <summary>System message, temperature, length</summary>
          <div class="stack tight">
            <div class="field"><label for="system">System message</label><textarea id="system" name="system" /></div>
            <div class="row">
              <div class="field"><label for="temperature">Temperature</label><input id="temperature" name="temperature" type="number" min="0" max="2" step="0.1" defaultValue="0.7" /></div>
              <div class="field"><label for="max_tokens">Longest answer, tokens</label><input id="max_tokens" name="max_tokens" type="number" min="1" defaultValue="512" /></div>
            </div>
          </div>
        </details>
      )}
      <ModelChoice names={names} chosen={models} toggle={toggle} single={single} />
      <div class="row"><button class="primary" disabled={!models.length}>Ask</button><span class="muted small">Ctrl Enter</span></div>
    </form>
  );
}

export function Playground() {
  const asked = useQuery().get("mode");
  const mode: Mode = !can("answers") ? "chat" : !can("chat") ? "documents" : asked === "chat" ? "chat" : "documents";
  const models = useResource(chatModels, []);
  const [asks, setAsks] = useState<{ round: number; of: Mode; asks: Ask[] }>({ round: 0, of: mode, asks: [] });
  const modes = { documents: "Ask documents", chat: "Chat" };
  const choice = can("chat") && can("answers") ? <Segmented value={mode} options={modes} label="What to ask" onChange={(value) => setQuery({ mode: value === "documents" ? null : value })} /> : undefined;
  return (
    <Page title="Playground" actions={choice}>
      <Loaded of={models}>
        {(names) => (
          <>
            <Question key={mode} mode={mode} names={names} ask={(list) => setAsks({ round: asks.round + 1, of: mode, asks: list })} />
            <div class="answers">
              {asks.of === mode && asks.asks.map((ask) => <Answer key={`${asks.round} ${ask.body.model}`} ask={ask} title={String(ask.body.model ?? "Answer")} />)}
            </div>
            {!asks.asks.length && <p class="muted">{plural(names.length, "model")} to ask.</p>}
          </>
        )}
      </Loaded>
    </Page>
  );
}
