/** People of the tenant: who they are, what they may do, which matters they hold. */
import { useState } from "preact/hooks";
import { api, can, session } from "../api";
import type { Schemas } from "../api";
import { Badge, Page, Status } from "../parts/basic";
import { FormDialog } from "../parts/dialog";
import type { FieldSpec, Values } from "../parts/dialog";
import { Table } from "../parts/table";
import { useResource } from "../resource";
import { ago, moment } from "../time";

type User = Schemas["UserView"];
const ROLES = { viewer: "Viewer: reads", member: "Member: works with documents and models", admin: "Admin: keys, people, budgets", owner: "Owner: everything in the tenant" };

const shared = (user?: User): FieldSpec[] => [
  { name: "name", label: "Name", required: true, value: user?.name },
  { name: "role", label: "Role", kind: "select", options: ROLES, value: user?.role ?? "member" },
  { name: "labels", label: "Matters", kind: "list", value: user?.labels, hint: "With commas; no more than you hold yourself." },
  ...(can("operator") ? [{ name: "operator", label: "Also runs the installation", kind: "checkbox" as const, value: user?.operator }] : []),
];
const NEW: FieldSpec[] = [
  { name: "email", label: "E-mail address", kind: "email", required: true },
  { name: "password", label: "First password", kind: "password", hint: "12 characters at least; empty: signs in through the organisation." },
];

/** Only what differs is sent: each field needs its own right. */
function changesOf(values: Values, user: User): Record<string, unknown> {
  return Object.fromEntries(Object.entries(values).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(user[name as keyof User])));
}

type Doing = { what: "new" } | { what: "change" | "password"; user: User } | null;

export function Users() {
  const [doing, setDoing] = useState<Doing>(null);
  const [problem, setProblem] = useState("");
  const users = useResource(async (signal) => (await api.get("/api/v1/users", { signal })).users, []);
  const own = session.get()!.user_id;
  const path = (user: User) => ({ user_id: user.id });
  const change = (user: User, changes: object) => api.patch("/api/v1/users/{user_id}", { path: path(user), body: changes }).then(users.reload);
  const add = (values: Values) => api.post("/api/v1/users", { body: values as unknown as Schemas["NewUserRequest"] }).then(users.reload);
  const password = (user: User) => (values: Values) => api.put("/api/v1/users/{user_id}/password", { path: path(user), body: { password: String(values.password ?? ""), current: String(values.current ?? "") } });
  const toggle = (user: User) => change(user, { disabled: !user.disabled_at }).then(() => setProblem(""), (error: Error) => setProblem(error.message));
  const passwordFields = (user: User): FieldSpec[] => [
    ...(user.id === own && user.has_password ? [{ name: "current", label: "Present password", kind: "password" as const, required: true }] : []),
    { name: "password", label: "New password", kind: "password", required: true, hint: "12 characters at least. All sessions of the person end." },
  ];
  return (
    <Page title="Users and roles" actions={<button class="primary" onClick={() => setDoing({ what: "new" })}>New person</button>}>
      {problem && <p class="banner error" role="alert">{problem}</p>}
      <Table
        caption="People of the tenant"
        columns={[
          { title: "Name", cell: (row: User) => row.name },
          { title: "E-mail", cell: (row) => row.email },
          { title: "Role", cell: (row) => <span class="row">{row.role}{row.operator && <Badge tone="neutral">operator</Badge>}</span> },
          { title: "Matters", cell: (row) => row.labels.join(", ") || <span class="muted">none</span> },
          { title: "Signs in", cell: (row) => [row.has_password && "password", row.single_sign_on && "organisation"].filter(Boolean).join(", ") || "link" },
          { title: "State", cell: (row) => <Status value={row.disabled_at ? "disabled" : "active"} /> },
          { title: "Last seen", cell: (row) => ago(row.last_login_at), hint: (row) => moment(row.last_login_at) },
          { title: "Actions", cell: (row) => <span class="row"><button class="plain" aria-label={`Change ${row.name}`} onClick={() => setDoing({ what: "change", user: row })}>Change</button><button class="plain" aria-label={`Password of ${row.name}`} onClick={() => setDoing({ what: "password", user: row })}>Password</button>{row.id !== own && <button class="plain" aria-label={`${row.disabled_at ? "Enable" : "Disable"} ${row.name}`} onClick={() => toggle(row)}>{row.disabled_at ? "Enable" : "Disable"}</button>}</span> },
        ]}
        rows={users.data}
        name={(row) => row.id}
        error={users.error}
        reload={users.reload}
        none={{ title: "Nobody yet" }}
      />
      {doing?.what === "new" && <FormDialog title="New person" submit="Add" fields={[...NEW.slice(0, 1), ...shared(), ...NEW.slice(1)]} act={add} close={() => setDoing(null)} />}
      {doing?.what === "change" && <FormDialog title={`Change ${doing.user.name}`} submit="Save" fields={shared(doing.user)} act={(values) => change(doing.user, changesOf(values, doing.user))} close={() => setDoing(null)} />}
      {doing?.what === "password" && <FormDialog title={`Password of ${doing.user.name}`} submit="Set" fields={passwordFields(doing.user)} act={password(doing.user)} close={() => setDoing(null)} />}
    </Page>
  );
}
