/** API keys: the secret is shown once, in a dialog that forgets it. */
import { useState } from "preact/hooks";
import { api, session } from "../api";
import type { Schemas } from "../api";
import { exactMoney, money } from "../format";
import { Badge, Bar, Copy, Page, Status } from "../parts/basic";
import { Confirm, Dialog, FormDialog } from "../parts/dialog";
import type { FieldSpec, Values } from "../parts/dialog";
import { Table } from "../parts/table";
import { useReloadOn, useResource } from "../resource";
import { ago, moment } from "../time";

type Key = Schemas["KeyView"];
type Budget = Schemas["BudgetView"];

export const stateOf = (key: Key) => (key.revoked_at ? "revoked" : key.expires_at && new Date(key.expires_at) < new Date() ? "expired" : "active");

function fields(): FieldSpec[] {
  const { scopes, labels } = session.get()!;
  return [
    { name: "name", label: "Name", required: true },
    { name: "scopes", label: "Rights", kind: "choices", options: scopes.filter((scope) => scope !== "operator"), value: ["chat", "answers", "documents:read"], hint: "No more than you have yourself." },
    { name: "labels", label: "Matters", kind: labels.length ? "choices" : "list", options: [...labels], hint: "Documents of other matters stay hidden from this key." },
    { name: "models", label: "Models", kind: "list", hint: "With commas; none: any." },
    { name: "networks", label: "Networks", kind: "list", hint: "CIDR, with commas; none: any address." },
    { name: "expires_at", label: "Expires", kind: "date" },
    { name: "requests_per_minute", label: "Requests a minute", kind: "number" },
    { name: "tokens_per_minute", label: "Tokens a minute", kind: "number" },
    { name: "concurrency", label: "Requests at once", kind: "number" },
  ];
}

const body = (values: Values) => ({ ...values, expires_at: values.expires_at ? new Date(String(values.expires_at)).toISOString() : null }) as Schemas["KeyRequest"];

function Secret({ secret, close }: { secret: string; close: () => void }) {
  return (
    <Dialog title="The key's secret" close={close}>
      <div class="body">
        <p>Copy it now: it is kept nowhere and cannot be shown again.</p>
        <div class="secret"><code data-secret>{secret}</code><Copy text={secret} /></div>
      </div>
      <div class="foot"><button class="primary" onClick={close}>I have copied it</button></div>
    </Dialog>
  );
}

function Spent({ budget }: { budget: Budget | undefined }) {
  if (!budget) return <span class="muted">none</span>;
  const share = budget.spent_micros / Math.max(1, budget.limit_micros);
  const label = `${exactMoney(budget.spent_micros)} of ${exactMoney(budget.limit_micros)} a ${budget.window}`;
  return <div class="stack tight"><Bar label={label} parts={[{ share, color: share >= 1 ? "var(--bad)" : share >= 0.8 ? "var(--warn)" : "var(--ok)" }]} /><span class="small muted">{money(budget.spent_micros)} of {money(budget.limit_micros)}</span></div>;
}

type Doing = { what: "create" } | { what: "rotate" | "revoke"; key: Key } | { what: "secret"; secret: string } | null;

export function Keys() {
  const [doing, setDoing] = useState<Doing>(null);
  const data = useResource(async (signal) => {
    const [keys, budgets] = await Promise.all([api.get("/api/v1/keys", { signal }), api.get("/api/v1/budgets", { signal })]);
    return { keys: [...keys.keys].reverse(), budgets: budgets.budgets };
  }, []);
  useReloadOn("budget", data);
  // A form that made a key closes after the secret has taken its place.
  const close = () => setDoing((now) => (now?.what === "secret" ? now : null));
  const shown = (made: Schemas["NewKeyView"]) => (setDoing({ what: "secret", secret: made.secret }), data.reload());
  const create = async (values: Values) => shown(await api.post("/api/v1/keys", { body: body(values) }));
  const rotate = (key: Key) => async (values: Values) => shown(await api.post("/api/v1/keys/{key_id}/rotate", { path: { key_id: key.id }, body: { grace_seconds: Number(values.hours ?? 0) * 3600 } }));
  const revoke = (key: Key) => api.delete("/api/v1/keys/{key_id}", { path: { key_id: key.id } }).then(data.reload);
  return (
    <Page title="Keys" actions={<button class="primary" onClick={() => setDoing({ what: "create" })}>New key</button>}>
      <Table
        caption="API keys"
        columns={[
          { title: "Name", cell: (row: Key) => row.name },
          { title: "Begins with", cell: (row) => <code>{row.prefix}…</code> },
          { title: "State", cell: (row) => <span class="row"><Status value={stateOf(row)} />{row.previous_until && new Date(row.previous_until) > new Date() && <Badge tone="warn">old secret until {moment(row.previous_until)}</Badge>}</span> },
          { title: "Rights", text: true, cell: (row) => <span class="small">{row.scopes.join(", ")}</span> },
          { title: "Matters", cell: (row) => row.labels.join(", ") || <span class="muted">none</span> },
          { title: "Budget", cell: (row) => <Spent budget={data.data?.budgets.find((budget) => budget.key_id === row.id)} /> },
          { title: "Last used", cell: (row) => ago(row.last_used_at), hint: (row) => moment(row.last_used_at) },
          { title: "Actions", cell: (row) => stateOf(row) === "active" && <span class="row"><button class="plain" aria-label={`Rotate ${row.name}`} onClick={() => setDoing({ what: "rotate", key: row })}>Rotate</button><button class="plain bad" aria-label={`Revoke ${row.name}`} onClick={() => setDoing({ what: "revoke", key: row })}>Revoke</button></span> },
        ]}
        rows={data.data?.keys}
        name={(row) => row.id}
        error={data.error}
        reload={data.reload}
        none={{ title: "No keys yet", text: "Programs use keys; people sign in." }}
      />
      {doing?.what === "create" && <FormDialog title="New key" submit="Make the key" fields={fields()} act={create} close={close} />}
      {doing?.what === "rotate" && <FormDialog title={`Rotate ${doing.key.name}`} submit="Make a new secret" fields={[{ name: "hours", label: "The old secret goes on for, hours", kind: "number", value: 24 }]} act={rotate(doing.key)} close={close} />}
      {doing?.what === "revoke" && <Confirm title="Revoke this key" verb="Revoke" typed={doing.key.name} text={<>Whatever uses <strong>{doing.key.name}</strong> stops working at once. It cannot be undone.</>} act={() => revoke(doing.key)} close={close} />}
      {doing?.what === "secret" && <Secret secret={doing.secret} close={() => setDoing(null)} />}
    </Page>
  );
}
