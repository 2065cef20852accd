/** The in-process engine as it is now: its own counters, twice a second. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { Problem, api } from "../api";
import type { Schemas } from "../api";
import { count, exact, percent } from "../format";
import { live, useEvents } from "../live";
import { Bar, Card, Empty, Failure, Loaded, Page, Tile } from "../parts/basic";
import { BlockMap } from "../parts/blockmap";
import { Chart } from "../parts/chart";
import { Table } from "../parts/table";
import { useResource } from "../resource";

type State = Schemas["EngineState"];
interface Stats {
  running: number; waiting: number; total_blocks: number; free_blocks: number; used_blocks: number; cached_blocks: number;
  pinned_blocks: number; steps: number; tokens_per_s: number; prompt_tokens: number; prefill_tokens_computed: number;
  output_tokens: number; prefix_hit_tokens: number; preemptions: number; draft_tokens: number; draft_tokens_accepted: number;
  aborts: number; expired: number; forgotten: number;
}
interface Sample { at: number; stats: Stats }

const KEPT = 240; // two minutes
const REASONS: Record<string, string> = { seat: "A seat: as many run as may", room: "Room: blocks, or tokens of a step", prefix: "A prefix that another request computes", preempted: "Their turn again, after preemption" };
const statsOf = (state: State) => state.stats as unknown as Stats;

function Kv({ stats }: { stats: Stats }) {
  const { total_blocks: total, free_blocks: free, cached_blocks: cached, pinned_blocks: pinned } = stats;
  const active = stats.used_blocks - pinned;
  const parts = { Active: [active, "var(--series-1)"], Pinned: [pinned, "var(--series-2)"], Cached: [cached, "var(--series-4)"], Free: [free, "var(--line)"] } as const;
  const text = Object.entries(parts).map(([name, [number]]) => `${name} ${exact(number)}`).join(", ");
  return (
    <div class="stack tight" data-kv={JSON.stringify({ total, free, cached, pinned, active })}>
      <Bar label={text} parts={Object.values(parts).map(([number, color]) => ({ share: number / Math.max(1, total), color }))} />
      <div class="legend">
        {Object.entries(parts).map(([name, [number, color]]) => <span><span class="swatch" style={{ background: color }} />{name} <strong>{exact(number)}</strong> <span class="muted">{percent(number / Math.max(1, total), 1)}</span></span>)}
      </div>
    </div>
  );
}

function Queue({ state }: { state: State }) {
  const rows = Object.entries(state.waiting_for ?? {});
  if (!rows.length) return <p class="muted">Nobody waits.</p>;
  return <Table caption="Waiting by reason" columns={[{ title: "Waits for", cell: ([reason]: [string, number]) => REASONS[reason] ?? reason }, { title: "Requests", right: true, cell: ([, number]) => exact(number) }]} rows={rows} name={([reason]) => reason} none={{ title: "" }} />;
}

function Drafts({ state }: { state: State }) {
  const stats = statsOf(state);
  if (!state.draft_steps) return <p class="muted">No drafts were tried.</p>;
  const rows = (state.accepted_by_position ?? []).map((held, position) => ({ position: position + 1, held }));
  return (
    <div class="stack tight">
      <p>{exact(stats.draft_tokens_accepted)} of {exact(stats.draft_tokens)} drafted tokens held ({percent(stats.draft_tokens_accepted / Math.max(1, stats.draft_tokens))}), in {exact(state.draft_steps)} drafts.</p>
      <div class="columns" role="img" aria-label={rows.map(({ position, held }) => `position ${position}: ${percent(held / state.draft_steps!, 0)}`).join(", ")}>
        {rows.slice(0, 24).map(({ position, held }) => <span title={`Position ${position}: ${exact(held)} of ${exact(state.draft_steps)} drafts`} style={{ height: `${Math.max(2, (held / state.draft_steps!) * 100)}%` }} />)}
      </div>
      <p class="muted small">Share of drafts whose token at position 1, 2, 3, … held.</p>
    </div>
  );
}

function Prefixes({ since }: { since: number }) {
  const hits = useResource((signal) => api.get("/api/v1/engine/prefixes", { signal }), []);
  useEffect(() => hits.reload(), [since]);
  return (
    <Loaded of={hits}>
      {(found) => (
        <Table
          caption="Prefix cache by access label"
          columns={[
            { title: "Text of", cell: (row: Schemas["LabelHits"]) => row.label },
            { title: "Requests", right: true, cell: (row) => exact(row.requests) },
            { title: "Prompt tokens", right: true, cell: (row) => count(row.prompt_tokens), hint: (row) => exact(row.prompt_tokens) },
            { title: "From cache", right: true, cell: (row) => percent(row.hit_tokens / Math.max(1, row.prompt_tokens)) },
          ]}
          rows={found.labels}
          name={(row) => row.label}
          none={{ title: "No traffic", text: "Nothing was asked of the engine yet." }}
        />
      )}
    </Loaded>
  );
}

/** What happened between samples, a step or a second. */
function rates(samples: Sample[]) {
  const pairs = samples.slice(1).map((now, at) => [samples[at]!, now] as const);
  const tokens = (stats: Stats) => stats.prefill_tokens_computed + stats.output_tokens;
  return {
    times: pairs.map(([, now]) => now.at / 1000),
    step: pairs.map(([before, now]) => (now.stats.steps > before.stats.steps ? (tokens(now.stats) - tokens(before.stats)) / (now.stats.steps - before.stats.steps) : 0)),
    written: pairs.map(([before, now]) => ((now.stats.output_tokens - before.stats.output_tokens) * 1000) / Math.max(1, now.at - before.at)),
  };
}

function Figures({ state, samples }: { state: State; samples: Sample[] }) {
  const stats = statsOf(state);
  const idle = !stats.running && !stats.waiting;
  const { times, step, written } = useMemo(() => rates(samples), [samples]);
  const perSecond = useMemo(() => [{ label: "Tokens written a second", values: written }], [written]);
  const perStep = useMemo(() => [{ label: "Tokens in a step", values: step }], [step]);
  const blocks = useResource((signal) => api.get("/api/v1/engine/blocks", { signal }), []);
  const stale = live.use().state !== "live";
  useEffect(() => blocks.reload(), [stats.steps, Math.floor((samples.at(-1)?.at ?? 0) / 2000)]);
  return (
    <>
      <div class="tiles">
        <Tile label="Running" value={idle ? "No traffic" : exact(stats.running)} note={`${exact(stats.waiting)} waiting`} />
        <Tile label="Tokens a second" value={idle ? "No traffic" : (written.at(-1) ?? stats.tokens_per_s).toFixed(0)} note={`${count(stats.output_tokens)} written since the start`} />
        <Tile label="Prompt tokens from cache" value={percent(stats.prefix_hit_tokens / Math.max(1, stats.prompt_tokens))} note={`${count(stats.prefix_hit_tokens)} of ${count(stats.prompt_tokens)}`} />
        <Tile label="Preemptions" value={exact(stats.preemptions)} note={`${exact(stats.expired)} expired, ${exact(stats.aborts)} stopped`} />
        <Tile label="Steps" value={count(stats.steps)} exact={exact(stats.steps)} note={`${count(stats.prefill_tokens_computed)} prompt tokens computed`} />
      </div>
      <Card title="KV memory"><Kv stats={stats} /></Card>
      <Card title="Blocks">{blocks.data ? <BlockMap map={blocks.data} /> : <p class="muted">{stale ? "Waiting for the server…" : "Loading…"}</p>}</Card>
      <div class="two">
        <Card title="Speed"><Chart times={times} series={perSecond} format={count} label="Tokens written a second" height={140} /></Card>
        <Card title="Steps"><Chart times={times} series={perStep} format={count} label="Tokens in a step" height={140} /></Card>
        <Card title="Queue"><Queue state={state} /></Card>
        <Card title="Drafts"><Drafts state={state} /></Card>
      </div>
      <Card title="Prefix cache"><Prefixes since={Math.floor((samples.at(-1)?.at ?? 0) / 5000)} /></Card>
    </>
  );
}

export function Engine() {
  const first = useResource((signal) => api.get("/api/v1/engine/state", { signal }), []);
  const [latest, setLatest] = useState<State>();
  const [samples, setSamples] = useState<Sample[]>([]);
  useEvents<State & { at: string }>("engine", (state) => {
    setLatest(state);
    if (!state.unhealthy) setSamples((before) => [...before, { at: Date.parse(state.at), stats: statsOf(state) }].slice(-KEPT));
  });
  const state = latest ?? first.data;
  if (!state) {
    return (
      <Page title="Engine">
        {first.error?.status === 404 ? <Empty title="No engine in this process">Models are served by other targets.</Empty> : first.error ? <Failure error={first.error} retry={first.reload} /> : <p class="muted">Loading…</p>}
      </Page>
    );
  }
  return <Page title="Engine">{state.unhealthy ? <Failure error={new Problem(503, state.unhealthy, "", null)} retry={first.reload} /> : <Figures state={state} samples={samples} />}</Page>;
}
