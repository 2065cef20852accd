/** Tenants for who runs the installation; budgets and matters of one's own tenant. */
import { useState } from "preact/hooks";
import { api, can } from "../api";
import type { Schemas } from "../api";
import { exact, exactMoney, money, percent } from "../format";
import { Badge, Bar, Card, Copy, Facts, Loaded, Page, Status } from "../parts/basic";
import { Confirm, Dialog, Form, FormDialog } from "../parts/dialog";
import type { FieldSpec, Values } from "../parts/dialog";
import { Table } from "../parts/table";
import { useReloadOn, useResource } from "../resource";
import { href } from "../router";
import { moment } from "../time";

type Tenant = Schemas["TenantView"];
type Budget = Schemas["BudgetView"];
type Matter = Schemas["MatterView"];
const limit = (value: number | null) => (value === null ? "no limit" : exact(value));

const tenantFields = (tenant: Tenant): FieldSpec[] => [
  { name: "regions", label: "Regions that may compute for it", kind: "list", value: tenant.regions, hint: "None: any." },
  { name: "privileged", label: "All it sends is under legal privilege", kind: "checkbox", value: tenant.privileged },
  { name: "requests_per_minute", label: "Requests a minute", kind: "number", value: tenant.requests_per_minute },
  { name: "tokens_per_minute", label: "Tokens a minute", kind: "number", value: tenant.tokens_per_minute },
  { name: "concurrency", label: "Requests at once", kind: "number", value: tenant.concurrency },
];

type Doing = { what: "new" } | { what: "change" | "key"; tenant: Tenant } | { what: "secret"; secret: string } | null;

function Everybody() {
  const [doing, setDoing] = useState<Doing>(null);
  const tenants = useResource(async (signal) => (await api.get("/api/v1/tenants", { signal })).tenants, []);
  const close = () => setDoing((now) => (now?.what === "secret" ? now : null));
  const create = (values: Values) => api.post("/api/v1/tenants", { body: { name: String(values.name) } }).then(tenants.reload);
  const change = (tenant: Tenant) => (values: Values) => api.patch("/api/v1/tenants/{tenant_id}", { path: { tenant_id: tenant.id }, body: values }).then(tenants.reload);
  const key = (tenant: Tenant) => async (values: Values) => {
    const made = await api.post("/api/v1/tenants/{tenant_id}/keys", { path: { tenant_id: tenant.id }, body: { name: String(values.name) } });
    setDoing({ what: "secret", secret: (made as { secret: string }).secret });
  };
  const name: FieldSpec[] = [{ name: "name", label: "Name", required: true }];
  return (
    <Card title="Tenants" actions={<button onClick={() => setDoing({ what: "new" })}>New tenant</button>}>
      <Table
        caption="Tenants"
        columns={[
          { title: "Name", cell: (row: Tenant) => row.name },
          { title: "Regions", cell: (row) => row.regions.join(", ") || "any" },
          { title: "Privilege", cell: (row) => (row.privileged ? <Badge tone="ok">all of it</Badge> : <span class="muted">by request</span>) },
          { title: "Requests a minute", right: true, cell: (row) => limit(row.requests_per_minute) },
          { title: "Tokens a minute", right: true, cell: (row) => limit(row.tokens_per_minute) },
          { title: "Since", cell: (row) => moment(row.created_at) },
          { title: "Actions", cell: (row) => <span class="row"><a class="button plain" href={`${href("/tenants")}${href("/tenants").includes("?") ? "&" : "?"}tenant=${row.id}`} aria-label={`Look at ${row.name}`}>Look at</a><button class="plain" aria-label={`Change ${row.name}`} onClick={() => setDoing({ what: "change", tenant: row })}>Change</button><button class="plain" aria-label={`First key of ${row.name}`} onClick={() => setDoing({ what: "key", tenant: row })}>First key</button></span> },
        ]}
        rows={tenants.data}
        name={(row) => row.id}
        error={tenants.error}
        reload={tenants.reload}
        none={{ title: "No tenants yet" }}
      />
      {doing?.what === "new" && <FormDialog title="New tenant" submit="Make it" fields={name} act={create} close={close} />}
      {doing?.what === "change" && <FormDialog title={`Change ${doing.tenant.name}`} submit="Save" fields={tenantFields(doing.tenant)} act={change(doing.tenant)} close={close} />}
      {doing?.what === "key" && <FormDialog title={`First key of ${doing.tenant.name}`} submit="Make the key" fields={name} act={key(doing.tenant)} close={close}><p>It has every right within the tenant, and none beyond.</p></FormDialog>}
      {doing?.what === "secret" && <Dialog title="The key's secret" close={() => setDoing(null)}><div class="body"><p>Copy it now: it cannot be shown again.</p><div class="secret"><code>{doing.secret}</code><Copy text={doing.secret} /></div></div></Dialog>}
    </Card>
  );
}

function OwnTenant() {
  const tenant = useResource((signal) => api.get("/api/v1/tenant", { signal }), []);
  return <Card title="Tenant"><Loaded of={tenant}>{(found) => <Facts rows={[["Name", found.name], ["Regions", found.regions.join(", ") || "any"], ["Under privilege", found.privileged ? "all of it" : "by request"], ["Requests a minute", limit(found.requests_per_minute)], ["Tokens a minute", limit(found.tokens_per_minute)], ["Requests at once", limit(found.concurrency)]]} />}</Loaded></Card>;
}

const budgetFields = (keys: Record<string, string>, people: Record<string, string>): FieldSpec[] => [
  { name: "whose", label: "Whose", kind: "select", options: { "": "The whole tenant's", ...Object.fromEntries(Object.entries(keys).map(([id, name]) => [`key ${id}`, `Key ${name}`])), ...Object.fromEntries(Object.entries(people).map(([id, name]) => [`user ${id}`, name])) } },
  { name: "window", label: "For", kind: "select", options: { day: "a day (UTC)", month: "a month (UTC)", total: "ever" } },
  { name: "dollars", label: "Dollars", kind: "number", required: true },
];
const micros = (values: Values) => Math.round(Number(values.dollars) * 1e6);

function Budgets() {
  const [doing, setDoing] = useState<{ what: "new" } | { what: "change" | "delete"; budget: Budget } | null>(null);
  const data = useResource(async (signal) => {
    const [budgets, keys, users] = await Promise.all([api.get("/api/v1/budgets", { signal }), can("keys") ? api.get("/api/v1/keys", { signal }) : null, can("admin") ? api.get("/api/v1/users", { signal }) : null]);
    const named = (rows: { id: string; name: string }[] = []) => Object.fromEntries(rows.map(({ id, name }) => [id, name]));
    return { budgets: budgets.budgets, keys: named(keys?.keys.filter((key) => !key.revoked_at)), people: named(users?.users) };
  }, []);
  useReloadOn("budget", data);
  const whose = (budget: Budget) => (budget.key_id ? `Key ${data.data?.keys[budget.key_id] ?? ""}` : budget.user_id ? (data.data?.people[budget.user_id] ?? "Person") : "The whole tenant's");
  const path = (budget: Budget) => ({ budget_id: budget.id });
  const create = (values: Values) => {
    const [kind, id] = String(values.whose ?? "").split(" ");
    const body = { window: values.window, limit_micros: micros(values), ...(id ? { [`${kind}_id`]: id } : {}) } as Schemas["BudgetRequest"];
    return api.post("/api/v1/budgets", { body }).then(data.reload);
  };
  const change = (budget: Budget) => (values: Values) => api.patch("/api/v1/budgets/{budget_id}", { path: path(budget), body: { limit_micros: micros(values) } }).then(data.reload);
  const actions = can("admin") ? [{ title: "Actions", cell: (row: Budget) => <span class="row"><button class="plain" aria-label={`Change the budget of ${whose(row)}`} onClick={() => setDoing({ what: "change", budget: row })}>Change</button><button class="plain bad" aria-label={`Delete the budget of ${whose(row)}`} onClick={() => setDoing({ what: "delete", budget: row })}>Delete</button></span> }] : [];
  return (
    <Card title="Budgets" actions={can("admin") && <button onClick={() => setDoing({ what: "new" })}>New budget</button>}>
      <Table
        caption="Budgets"
        columns={[
          { title: "Whose", cell: whose },
          { title: "For", cell: (row: Budget) => (row.window === "total" ? "ever" : `a ${row.window}`) },
          { title: "Spent", cell: (row) => <Bar label={percent(row.spent_micros / Math.max(1, row.limit_micros), 0)} parts={[{ share: row.spent_micros / Math.max(1, row.limit_micros), color: row.spent_micros >= row.limit_micros ? "var(--bad)" : row.spent_micros >= 0.8 * row.limit_micros ? "var(--warn)" : "var(--ok)" }]} /> },
          { title: "Amount", right: true, cell: (row) => money(row.spent_micros), hint: (row) => exactMoney(row.spent_micros) },
          { title: "Limit", right: true, cell: (row) => money(row.limit_micros), hint: (row) => exactMoney(row.limit_micros) },
          { title: "Begins anew", cell: (row) => (row.resets_at ? moment(row.resets_at) : "never") },
          ...actions,
        ]}
        rows={data.data?.budgets}
        name={(row) => row.id}
        error={data.error}
        reload={data.reload}
        none={{ title: "No budgets yet", text: "Without one, spending is counted and not limited." }}
      />
      {doing?.what === "new" && <FormDialog title="New budget" submit="Make it" fields={budgetFields(data.data?.keys ?? {}, data.data?.people ?? {})} act={create} close={() => setDoing(null)} />}
      {doing?.what === "change" && <FormDialog title="Change the budget" submit="Save" fields={[{ name: "dollars", label: "Dollars", kind: "number", required: true, value: doing.budget.limit_micros / 1e6 }]} act={change(doing.budget)} close={() => setDoing(null)} />}
      {doing?.what === "delete" && <Confirm title="Delete this budget" verb="Delete" text="Spending is no longer limited by it." act={() => api.delete("/api/v1/budgets/{budget_id}", { path: path(doing.budget) }).then(data.reload)} close={() => setDoing(null)} />}
    </Card>
  );
}

function Members({ matter, close }: { matter: Matter; close: () => void }) {
  const path = { matter_id: matter.id };
  const members = useResource(async (signal) => (await api.get("/api/v1/matters/{matter_id}/members", { path, signal })).members, [matter.id]);
  const people = useResource(async (signal) => (can("admin") ? (await api.get("/api/v1/users", { signal })).users : []), []);
  const put = (user_id: string, access: "allow" | "deny") => api.put("/api/v1/matters/{matter_id}/members/{user_id}", { path: { ...path, user_id }, body: { access } }).then(members.reload);
  const fields: FieldSpec[] = [
    { name: "user", label: "Person", kind: "select", options: Object.fromEntries((people.data ?? []).map((user) => [user.id, user.name])) },
    { name: "access", label: "Access", kind: "select", options: { allow: "In the matter", deny: "Walled off: wins over everything else" } },
  ];
  return (
    <Dialog title={`Members of ${matter.name}`} kind="drawer" close={close}>
      <div class="body">
        <Loaded of={members}>
          {(found) => (
            <Table
              caption="Members"
              columns={[
                { title: "Name", cell: (row: Schemas["MemberView"]) => row.name },
                { title: "Access", cell: (row) => <Badge tone={row.access === "allow" ? "ok" : "bad"}>{row.access === "allow" ? "in" : "walled off"}</Badge> },
                { title: "Actions", cell: (row) => can("admin") && <button class="plain" aria-label={`Take ${row.name} out`} onClick={() => api.delete("/api/v1/matters/{matter_id}/members/{user_id}", { path: { ...path, user_id: row.user_id } }).then(members.reload)}>Take out</button> },
              ]}
              rows={found}
              name={(row) => row.user_id}
              none={{ title: "Nobody is in this matter" }}
            />
          )}
        </Loaded>
      </div>
      {people.data?.length ? <Form fields={fields} submit="Set" act={(values) => put(String(values.user), values.access as "allow" | "deny")} /> : null}
    </Dialog>
  );
}

function Matters() {
  const [doing, setDoing] = useState<{ what: "new" } | { what: "members"; matter: Matter } | null>(null);
  const matters = useResource(async (signal) => (await api.get("/api/v1/matters", { signal })).matters, []);
  const create = (values: Values) => api.post("/api/v1/matters", { body: { label: String(values.label), name: String(values.name), description: String(values.description ?? ""), parent_id: values.parent_id as string | null } }).then(matters.reload);
  const names = Object.fromEntries((matters.data ?? []).map((matter) => [matter.id, matter.name]));
  const fields: FieldSpec[] = [
    { name: "label", label: "Label on documents", required: true, hint: "Letters, digits, dots, dashes." },
    { name: "name", label: "Name", required: true },
    { name: "description", label: "Description" },
    { name: "parent_id", label: "Below", kind: "select", options: { "": "no other matter", ...names } },
  ];
  const toggle = (matter: Matter) => api.patch("/api/v1/matters/{matter_id}", { path: { matter_id: matter.id }, body: { closed: !matter.closed_at } }).then(matters.reload);
  return (
    <Card title="Matters" actions={can("admin") && <button onClick={() => setDoing({ what: "new" })}>New matter</button>}>
      <Table
        caption="Matters"
        columns={[
          { title: "Name", cell: (row: Matter) => row.name },
          { title: "Label", cell: (row) => <code>{row.label}</code> },
          { title: "Below", cell: (row) => (row.parent_id ? (names[row.parent_id] ?? "—") : "—") },
          { title: "State", cell: (row) => <Badge tone={row.closed_at ? "neutral" : "ok"}>{row.closed_at ? "closed" : "open"}</Badge> },
          { title: "You", cell: (row) => (row.held ? <Status value="active" /> : <span class="muted">not in it</span>) },
          ...(can("admin") ? [{ title: "Actions", cell: (row: Matter) => <button class="plain" aria-label={`${row.closed_at ? "Open" : "Close"} ${row.name}`} onClick={() => toggle(row)}>{row.closed_at ? "Open again" : "Close"}</button> }] : []),
        ]}
        rows={matters.data}
        name={(row) => row.id}
        error={matters.error}
        reload={matters.reload}
        open={(matter) => setDoing({ what: "members", matter })}
        none={{ title: "No matters yet", text: "A matter is a label on documents, and the people who may read them." }}
      />
      {doing?.what === "new" && <FormDialog title="New matter" submit="Make it" fields={fields} act={create} close={() => setDoing(null)} />}
      {doing?.what === "members" && <Members matter={doing.matter} close={() => setDoing(null)} />}
    </Card>
  );
}

export function Tenants() {
  return (
    <Page title="Tenants and budgets">
      {can("operator") ? <Everybody /> : can("usage") && <OwnTenant />}
      {can("usage") && <Budgets />}
      {can("documents:read") && <Matters />}
    </Page>
  );
}
