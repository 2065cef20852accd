/** Who did what: entries are never changed, and each holds the hash of the one before. */
import { useState } from "preact/hooks";
import { api, can } from "../api";
import type { Schemas } from "../api";
import { Badge, Copy, Facts, Page } from "../parts/basic";
import { Dialog } from "../parts/dialog";
import { Filters, clearFilters, useFilters } from "../parts/filters";
import { Table } from "../parts/table";
import { useListing, useResource } from "../resource";
import { moment } from "../time";

type Entry = Schemas["AuditView"];
type Row = Entry & { id: number };

function useActors(): Record<string, string> {
  const people = useResource(async (signal) => (can("admin") ? (await api.get("/api/v1/users", { signal })).users : []), []);
  const keys = useResource(async (signal) => (can("keys") ? (await api.get("/api/v1/keys", { signal })).keys : []), []);
  return Object.fromEntries([...(people.data ?? []).map((user) => [`user:${user.id}`, user.name]), ...(keys.data ?? []).map((key) => [`key:${key.id}`, `key ${key.name}`])]);
}

/** Whether a loaded entry says that it follows the one before it. */
const follows = (rows: Row[], row: Row) => {
  const before = rows.find(({ seq }) => seq === row.seq - 1);
  return before ? before.hash === row.previous_hash : null;
};

export function Audit() {
  const filters = useFilters(["action", "actor"]);
  const [open, setOpen] = useState<Row | null>(null);
  const actors = useActors();
  const list = useListing<Row>(
    async (cursor, signal) => {
      const query = { before: cursor ? Number(cursor) : undefined, limit: 50, action: filters.action || undefined, actor: filters.actor || undefined };
      const page = await api.get("/api/v1/audit", { query, signal });
      return { rows: page.entries.map((entry) => ({ ...entry, id: entry.seq })), next: page.next_before === null ? null : String(page.next_before) };
    },
    [filters],
  );
  const chained = open && follows(list.rows ?? [], open);
  return (
    <Page title="Audit">
      <Filters specs={[{ name: "action", label: "Action" }, ...(Object.keys(actors).length ? [{ name: "actor", label: "Actor", options: actors }] : [])]} />
      <Table
        caption="Audit log, newest first"
        columns={[
          { title: "Entry", cell: (row: Row) => String(row.seq) },
          { title: "Time", cell: (row) => moment(row.created_at) },
          { title: "Actor", cell: (row) => actors[row.actor] ?? row.actor },
          { title: "Action", cell: (row) => row.action },
          { title: "Object", text: true, cell: (row) => <code class="break">{row.object}</code> },
        ]}
        rows={list.rows}
        name={(row) => String(row.seq)}
        error={list.error}
        busy={list.busy}
        more={list.more}
        reload={list.reload}
        open={setOpen}
        filtered={Boolean(filters.action || filters.actor)}
        clear={() => clearFilters(["action", "actor"])}
        none={{ title: "Nothing was done yet" }}
      />
      {open && (
        <Dialog title={`Entry ${open.seq}`} kind="drawer" close={() => setOpen(null)}>
          <div class="body">
            <Facts rows={[["Time", moment(open.created_at)], ["Actor", <>{actors[open.actor] ?? ""} <code>{open.actor}</code></>], ["Action", open.action], ["Object", <code>{open.object}</code>], ["Hash", <code>{open.hash}</code>], ["Hash before", <code>{open.previous_hash}</code>], ["Chain", chained === null ? "the entry before belongs to another tenant or is not loaded" : <Badge tone={chained ? "ok" : "bad"}>{chained ? "follows the entry before" : "does not follow the entry before"}</Badge>]]} />
            <h3>Detail</h3>
            <pre>{JSON.stringify(open.detail, null, 2)}</pre>
            <Copy text={JSON.stringify(open, null, 2)} label="Copy JSON" />
          </div>
        </Dialog>
      )}
    </Page>
  );
}
