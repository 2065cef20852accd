/** What was used and what it cost, from the ledger: every hour belongs to one day, so that days sum to the range. */
import { useMemo } from "preact/hooks";
import { api, can } from "../api";
import type { Schemas } from "../api";
import { count, exact, exactMoney, money } from "../format";
import { Card, Empty, Loaded, Page, Segmented, Tile, download } from "../parts/basic";
import { Chart } from "../parts/chart";
import { Table } from "../parts/table";
import { useReloadOn, useResource } from "../resource";
import { setQuery, useQuery } from "../router";
import { bounds, day, moment, useRange, useZone } from "../time";

type Bucket = Schemas["UsageBucket"];
type Group = "day" | "model" | "target" | "key" | "user" | "tenant";
const GROUPS: Record<Group, string> = { day: "Day", model: "Model", target: "Target", key: "Key", user: "Person", tenant: "Tenant" };

interface Sum {
  name: string;
  requests: number;
  prompt: number;
  cached: number;
  completion: number;
  micros: number;
}

export function sums(buckets: Bucket[], nameOf: (bucket: Bucket) => string): Sum[] {
  const found = new Map<string, Sum>();
  for (const bucket of buckets) {
    const name = nameOf(bucket);
    const sum = found.get(name) ?? { name, requests: 0, prompt: 0, cached: 0, completion: 0, micros: 0 };
    sum.requests += bucket.requests;
    sum.prompt += bucket.prompt_tokens;
    sum.cached += bucket.cached_tokens;
    sum.completion += bucket.completion_tokens;
    sum.micros += bucket.amount_micros;
    found.set(name, sum);
  }
  return [...found.values()];
}

/** A name that begins like a formula must not become one in a spreadsheet. */
function cell(value: string | number): string {
  const text = typeof value === "string" && /^[=+\-@\t]/.test(value) ? `'${value}` : String(value);
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
const csv = (rows: (string | number)[][]) => rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";

function useNames(group: Group): Record<string, string> {
  const names = useResource(async (signal) => {
    if (group === "key" && can("keys")) return (await api.get("/api/v1/keys", { signal })).keys.map(({ id, name }) => [id, name]);
    if (group === "user" && can("admin")) return (await api.get("/api/v1/users", { signal })).users.map(({ id, name }) => [id, name]);
    if (group === "tenant") return (await api.get("/api/v1/tenants", { signal })).tenants.map(({ id, name }) => [id, name]);
    return [];
  }, [group]);
  return Object.fromEntries((names.data ?? []) as [string, string][]);
}

export function Usage() {
  const range = useRange();
  const zone = useZone();
  const query = useQuery();
  const group = (query.get("by") ?? "day") as Group;
  const names = useNames(group);
  const { tenant: _, ...own } = GROUPS;
  const groups = (can("operator") ? GROUPS : own) as Record<Group, string>;
  const data = useResource((signal) => api.get("/api/v1/usage", { query: { ...bounds(range), group: group === "day" ? undefined : group }, signal }), [range.name, group]);
  useReloadOn("budget", data, 3_000);
  const nameOf = (bucket: Bucket) => (group === "day" ? day(bucket.hour) : bucket.group === null ? "—" : (names[bucket.group] ?? bucket.group));
  const rows = useMemo(() => sums(data.data?.buckets ?? [], nameOf).sort((a, b) => (group === "day" ? b.name.localeCompare(a.name) : b.micros - a.micros || b.requests - a.requests)), [data.data, names, zone]);
  const days = useMemo(() => sums(data.data?.buckets ?? [], (bucket) => bucket.hour).sort((a, b) => a.name.localeCompare(b.name)), [data.data]);
  const all = sums(data.data?.buckets ?? [], () => "all")[0];
  const chart = useMemo(() => [{ label: "Spend by hour", values: days.map(({ micros }) => micros), bars: true }], [days]);
  const save = () => download(`usage-by-${group}.csv`, csv([[GROUPS[group], "Requests", "Prompt tokens", "Cached tokens", "Answer tokens", "Micro-dollars"], ...rows.map((row) => [row.name, row.requests, row.prompt, row.cached, row.completion, row.micros])]));
  return (
    <Page title="Usage" actions={<button onClick={save} disabled={!rows.length}>Download CSV</button>}>
      <Loaded of={data}>
        {(found) => (
          <>
            <p class="muted">{moment(found.start)} to {moment(found.end)}, {zone}. The ledger counts by hours of UTC; where your day begins within such an hour, it belongs to the day it began in.</p>
            <div class="tiles">
              <Tile label="Spend" value={money(found.total_micros)} exact={exactMoney(found.total_micros)} note={<span data-total={found.total_micros}>{exactMoney(found.total_micros)} in the ledger</span>} />
              <Tile label="Requests" value={all ? count(all.requests) : "No traffic"} exact={exact(all?.requests)} />
              <Tile label="Prompt tokens" value={count(all?.prompt ?? 0)} exact={exact(all?.prompt)} note={`${count(all?.cached ?? 0)} from cache`} />
              <Tile label="Answer tokens" value={count(all?.completion ?? 0)} exact={exact(all?.completion)} />
            </div>
            {days.length > 0 && <Card title="Spend"><Chart times={days.map(({ name }) => Date.parse(name) / 1000)} series={chart} format={money} label="Spend by hour" /></Card>}
            <Segmented label="Group by" value={group} options={groups} onChange={(value) => setQuery({ by: value === "day" ? null : value })} />
            {rows.length ? (
              <Table
                caption={`Usage by ${GROUPS[group].toLowerCase()}`}
                columns={[
                  { title: GROUPS[group], cell: (row: Sum) => <span data-name>{row.name}</span> },
                  { title: "Requests", right: true, cell: (row) => exact(row.requests) },
                  { title: "Prompt tokens", right: true, cell: (row) => exact(row.prompt) },
                  { title: "From cache", right: true, cell: (row) => exact(row.cached) },
                  { title: "Answer tokens", right: true, cell: (row) => exact(row.completion) },
                  { title: "Amount", right: true, cell: (row) => <span data-micros={row.micros}>{exactMoney(row.micros)}</span> },
                ]}
                rows={rows}
                name={(row) => row.name}
                none={{ title: "" }}
              />
            ) : (
              <Empty title="No traffic in this range">Choose a longer range above, or ask something.</Empty>
            )}
          </>
        )}
      </Loaded>
    </Page>
  );
}
