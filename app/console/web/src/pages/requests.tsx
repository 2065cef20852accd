/** The request log, newest first, as it grows. */
import { api, can } from "../api";
import type { Schemas } from "../api";
import { count, duration, exact, exactMoney, money } from "../format";
import { useEvents } from "../live";
import { Badge, Page, Status } from "../parts/basic";
import { Filters, clearFilters, useFilters } from "../parts/filters";
import { Table } from "../parts/table";
import type { Column } from "../parts/table";
import { useListing, useResource } from "../resource";
import { href } from "../router";
import { bounds, brief, moment, useRange } from "../time";

export type Row = Schemas["RequestView"];
const NAMES = ["model", "target", "status", "error", "endpoint", "key_id"];
const ENDED = { stop: "Stopped", length: "Ran to its length", cancelled: "Cancelled", failed: "Failed" };
const ANSWERED = ["stop", "length", "tool_calls", "content_filter", "cancelled"];

/** Whether a live row belongs into the list as it is filtered: the same rules as the server's. */
export function matches(row: Row, filters: Record<string, string>): boolean {
  const { status, error, ...equal } = filters;
  if (status === "failed" ? ANSWERED.includes(row.status) : status && row.status !== status) return false;
  if (error && !row.error?.toLowerCase().includes(error.toLowerCase())) return false;
  return Object.entries(equal).every(([name, value]) => !value || String(row[name as keyof Row] ?? "") === value);
}

export function useKeyNames(): Record<string, string> {
  const keys = useResource(async (signal) => (can("keys") ? (await api.get("/api/v1/keys", { signal })).keys : []), []);
  return Object.fromEntries((keys.data ?? []).map((key) => [key.id, key.name]));
}

function columns(keys: Record<string, string>): Column<Row>[] {
  return [
    { title: "Time", cell: (row) => <time dateTime={row.created_at}>{brief(row.created_at)}</time>, hint: (row) => moment(row.created_at) },
    { title: "Model → served by", cell: (row) => <>{row.model} <span class="muted">→ {row.target || "nobody"}</span></> },
    { title: "Caller", cell: (row) => (row.key_id ? (keys[row.key_id] ?? "key") : row.user_id ? "console" : "—") },
    { title: "Status", cell: (row) => <span class="row"><Status value={row.status} />{row.fallbacks > 0 && <Badge tone="warn">{row.fallbacks} fallback{row.fallbacks > 1 ? "s" : ""}</Badge>}{row.cache === "hit" && <Badge tone="ok">cache</Badge>}</span>, hint: (row) => row.error ?? "" },
    { title: "In", right: true, cell: (row) => count(row.prompt_tokens), hint: (row) => exact(row.prompt_tokens) },
    { title: "Cached", right: true, cell: (row) => count(row.cached_tokens), hint: (row) => exact(row.cached_tokens) },
    { title: "Out", right: true, cell: (row) => count(row.completion_tokens), hint: (row) => exact(row.completion_tokens) },
    { title: "Cost", right: true, cell: (row) => money(row.cost_micros), hint: (row) => exactMoney(row.cost_micros) },
    { title: "First token", right: true, cell: (row) => (row.first_delta_ms ? duration(row.first_delta_ms) : "—"), hint: (row) => `${row.first_delta_ms} ms` },
    { title: "Total", right: true, cell: (row) => duration(row.total_ms), hint: (row) => `${row.total_ms} ms` },
  ];
}

export function Requests() {
  const range = useRange();
  const filters = useFilters(NAMES);
  const keys = useKeyNames();
  const list = useListing<Row>(
    async (cursor, signal) => {
      const page = await api.get("/api/v1/requests", { query: { ...filters, cursor, since: bounds(range).start, limit: 50 }, signal });
      return { rows: page.requests, next: page.next_cursor };
    },
    [filters, range.name],
  );
  useEvents<Row>("request", (row) => matches(row, filters) && list.put(row));
  return (
    <Page title="Requests">
      <Filters
        specs={[
          { name: "model", label: "Model" },
          { name: "target", label: "Target" },
          { name: "status", label: "Status", options: ENDED },
          { name: "error", label: "Error contains" },
          { name: "endpoint", label: "Endpoint", options: { chat: "chat", answers: "answers", completions: "completions", messages: "messages", embeddings: "embeddings" } },
          ...(Object.keys(keys).length ? [{ name: "key_id", label: "Key", options: keys }] : []),
        ]}
      />
      <Table
        caption="Requests, newest first"
        columns={columns(keys)}
        rows={list.rows}
        name={(row) => row.id}
        error={list.error}
        busy={list.busy}
        more={list.more}
        reload={list.reload}
        link={(row) => href(`/requests/${row.id}`)}
        filtered={Object.values(filters).some(Boolean)}
        clear={() => clearFilters(NAMES)}
        none={{ title: "No requests in this range", text: "Requests appear here as soon as they end.", action: can("chat") ? <a class="button" href={href("/playground")}>Ask something</a> : undefined }}
      />
    </Page>
  );
}
