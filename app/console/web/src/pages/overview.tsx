/** The first look: what was asked, how fast, what it cost, what needs somebody. */
import { useMemo, useState } from "preact/hooks";
import { api, can } from "../api";
import type { Schemas } from "../api";
import { useEvents } from "../live";
import { count, duration, exact, exactMoney, money, percent } from "../format";
import { Badge, Card, Delta, Empty, Loaded, Page, Tile } from "../parts/basic";
import { Chart } from "../parts/chart";
import { useReloadOn, useResource } from "../resource";
import { href } from "../router";
import { brief, bounds, useRange } from "../time";
import type { Range } from "../time";

type Point = Schemas["SeriesPoint"];
const STEPS: Record<string, number> = { "1h": 60, "6h": 300, "24h": 1800, "7d": 10_800, "30d": 43_200, "90d": 86_400 };

interface Metrics {
  requests: number;
  errors: number;
  tokens_per_s: number;
  first_delta_p50_ms: number | null;
}

async function load(range: Range, signal: AbortSignal) {
  const [series, usage, budgets, failed] = await Promise.all([
    api.get("/api/v1/metrics/series", { query: { ...bounds(range), step_seconds: STEPS[range.name] }, signal }),
    api.get("/api/v1/usage", { query: bounds(range), signal }),
    api.get("/api/v1/budgets", { signal }),
    api.get("/api/v1/requests", { query: { status: "failed", since: bounds(range).start, limit: 5 }, signal }),
  ]);
  const targets = can("operator") ? await api.get("/api/v1/targets", { signal }) : null;
  const prompt = usage.buckets.reduce((sum, bucket) => sum + bucket.prompt_tokens, 0);
  const cached = usage.buckets.reduce((sum, bucket) => sum + bucket.cached_tokens, 0);
  return { now: series.total, points: series.points, prompt, cached, budgets: budgets.budgets, failed: failed.requests, targets: targets?.health ?? [] };
}

type Data = Awaited<ReturnType<typeof load>>;

function Tiles({ data, before, range }: { data: Data; before: Point | undefined; range: Range }) {
  const { now, budgets } = data;
  const idle = !now.requests;
  const tenant = budgets.find((budget) => !budget.key_id && !budget.user_id);
  const speed = now.completion_tokens / (range.length / 1000);
  const share = (point: Point) => (point.requests ? point.errors / point.requests : null);
  return (
    <div class="tiles four">
      <Tile label="Requests" value={idle ? "No traffic" : count(now.requests)} exact={exact(now.requests)} note={<Delta now={now.requests} before={before?.requests ?? null} />} />
      <Tile label="Errors" value={idle ? "—" : count(now.errors)} exact={exact(now.errors)} note={idle ? undefined : <>{percent(share(now))} of requests</>} />
      <Tile label="First token, median" value={duration(now.first_delta_p50_ms)} note={<Delta now={now.first_delta_p50_ms ?? null} before={before?.first_delta_p50_ms ?? null} better="down" />} />
      <Tile label="First token, 95th percentile" value={duration(now.first_delta_p95_ms)} note={<Delta now={now.first_delta_p95_ms ?? null} before={before?.first_delta_p95_ms ?? null} better="down" />} />
      <Tile label="Tokens written" value={idle ? "—" : count(now.completion_tokens)} exact={exact(now.completion_tokens)} note={`${speed.toFixed(2)} a second on average`} />
      <Tile label="Spend" value={idle ? "—" : money(now.cost_micros)} exact={exactMoney(now.cost_micros)} note={<Delta now={now.cost_micros} before={before?.cost_micros ?? null} />} />
      <Tile label="Budget" value={tenant ? percent(tenant.spent_micros / Math.max(1, tenant.limit_micros), 0) : "No budget"} note={tenant && `of ${money(tenant.limit_micros)}${tenant.window === "total" ? "" : ` a ${tenant.window}`}`} />
      <Tile label="Prompt tokens from cache" value={data.prompt ? percent(data.cached / data.prompt) : "—"} exact={`${exact(data.cached)} of ${exact(data.prompt)}`} note={`${count(data.cached)} not computed again`} />
    </div>
  );
}

function Now() {
  const [metrics, setMetrics] = useState<Metrics>();
  useEvents<Metrics>("metrics", setMetrics);
  if (!metrics) return <p class="muted">Waiting for the first figures…</p>;
  if (!metrics.requests) return <p class="muted" data-now>No traffic in the last minute.</p>;
  return (
    <p data-now>
      Last minute: <strong>{count(metrics.requests)}</strong> {metrics.requests === 1 ? "request" : "requests"}, <strong class={metrics.errors ? "bad" : ""}>{count(metrics.errors)}</strong> failed,{" "}
      <strong>{metrics.tokens_per_s.toFixed(1)}</strong> tokens/s, first token after <strong>{duration(metrics.first_delta_p50_ms)}</strong>.
    </p>
  );
}

function Attention({ data }: { data: Data }) {
  const budgets = data.budgets.filter((budget) => budget.spent_micros >= 0.8 * budget.limit_micros);
  const targets = data.targets.filter((target) => target.trouble || target.state !== "closed");
  if (!data.failed.length && !budgets.length && !targets.length) return <Empty title="Nothing needs attention">No failed requests in this range, no budget near its limit, every target is well.</Empty>;
  return (
    <ul class="stack tight" style={{ margin: 0, padding: 0, listStyle: "none" }}>
      {targets.map((target) => <li class="row"><Badge tone="bad">target</Badge><a href={href("/routing")}>{target.name}</a><span class="break">{target.trouble ?? `circuit ${target.state}`}</span></li>)}
      {budgets.map((budget) => <li class="row"><Badge tone="warn">budget</Badge><a href={href("/tenants")}>{money(budget.spent_micros)} of {money(budget.limit_micros)} a {budget.window}</a></li>)}
      {data.failed.map((request) => <li class="row"><Badge tone="bad">{request.status.replaceAll("_", " ")}</Badge><a href={href(`/requests/${request.id}`)}>{request.model}</a><span class="muted">{brief(request.created_at)}</span><span class="break">{request.error}</span></li>)}
    </ul>
  );
}

export function Overview() {
  const range = useRange();
  const data = useResource((signal) => load(range, signal), [range.name]);
  useReloadOn("request", data, 5_000);
  // What was before does not change: it is asked for once.
  const before = useResource(async (signal) => (await api.get("/api/v1/metrics/series", { query: { ...bounds(range, 1), step_seconds: 86_400 }, signal })).total, [range.name]);
  const points = data.data?.points;
  const times = useMemo(() => (points ?? []).map((point) => Date.parse(point.at) / 1000), [points]);
  const column = (name: keyof Point) => (points ?? []).map((point) => point[name] as number | null);
  const traffic = useMemo(() => [{ label: "Requests", values: column("requests"), bars: true }, { label: "Errors", values: column("errors"), bars: true }], [points]);
  const waits = useMemo(() => [{ label: "Median", values: column("first_delta_p50_ms") }, { label: "95th percentile", values: column("first_delta_p95_ms") }], [points]);
  return (
    <Page title="Overview">
      <Now />
      <Loaded of={data}>
        {(found) => (
          <>
            <Tiles data={found} before={before.data} range={range} />
            <div class="two">
              <Card title="Requests"><Chart times={times} series={traffic} format={count} label="Requests over time" /></Card>
              <Card title="Time to first token"><Chart times={times} series={waits} format={duration} label="Time to first token" /></Card>
            </div>
            <Card title="Needs attention"><Attention data={found} /></Card>
          </>
        )}
      </Loaded>
    </Page>
  );
}
