/** Whether everything works, what is loaded, and what the index holds. */
import { useState } from "preact/hooks";
import { api, can } from "../api";
import type { Schemas } from "../api";
import { exact } from "../format";
import { live } from "../live";
import { Badge, Card, Empty, Facts, Loaded, Page } from "../parts/basic";
import { Confirm, FormDialog } from "../parts/dialog";
import type { Values } from "../parts/dialog";
import { Filters, clearFilters, useFilters } from "../parts/filters";
import { Table } from "../parts/table";
import { asProblem, useReloadOn, useResource } from "../resource";
import { moment } from "../time";

interface Ready {
  status: string;
  reasons: Record<string, string>;
}

/** 503 is an answer here, not a failure. */
async function readiness(signal: AbortSignal): Promise<Ready> {
  return (await fetch("/health/ready", { signal })).json() as Promise<Ready>;
}

function Readiness() {
  const ready = useResource(readiness, []);
  useReloadOn("metrics", ready, 5_000);
  return (
    <Card title="Health">
      <Loaded of={ready}>
        {(found) => {
          const reasons = Object.entries(found.reasons);
          return (
            <div class="stack tight">
              <div><Badge tone={reasons.length ? "bad" : "ok"}>{found.status}</Badge></div>
              {reasons.map(([name, reason]) => <p><strong>{name}</strong> {reason}</p>)}
              {!reasons.length && <p class="muted">Everything that is configured can serve.</p>}
            </div>
          );
        }}
      </Loaded>
    </Card>
  );
}

function Config() {
  const [problem, setProblem] = useState("");
  const config = useResource((signal) => api.get("/api/v1/config", { signal }), []);
  useReloadOn("config", config, 200);
  const reload = () => api.post("/api/v1/config/reload").then((found) => (setProblem(""), config.set(found)), (error) => setProblem(asProblem(error).message));
  return (
    <Card title="Configuration" actions={<button onClick={reload}>Read the file again</button>}>
      <Loaded of={config}>
        {(found) => (
          <div class="stack tight">
            <Facts rows={[["File", found.file ?? "none: built-in settings and environment"], ["Loaded", moment(found.loaded_at)], ["State", found.error ? <Badge tone="bad">not taken</Badge> : <Badge tone="ok">in force</Badge>]]} />
            {(problem || found.error) && <p class="bad" role="alert">{problem || found.error}</p>}
          </div>
        )}
      </Loaded>
    </Card>
  );
}

function Credentials() {
  const [doing, setDoing] = useState<"" | "new" | { name: string }>("");
  const data = useResource(async (signal) => (await api.get("/api/v1/credentials", { signal })).credentials, []);
  const put = (values: Values) => api.put("/api/v1/credentials/{name}", { path: { name: String(values.name) }, body: { secret: String(values.secret ?? "") } }).then(data.reload);
  return (
    <Card title="Upstream credentials" actions={<button onClick={() => setDoing("new")}>New credential</button>}>
      <Table
        caption="Stored upstream credentials"
        columns={[
          { title: "Name", cell: (row: { name: string; updated_at: string }) => row.name },
          { title: "Changed", cell: (row) => moment(row.updated_at) },
          { title: "Actions", cell: (row) => <button class="plain bad" aria-label={`Delete ${row.name}`} onClick={() => setDoing(row)}>Delete</button> },
        ]}
        rows={data.data}
        name={(row) => row.name}
        error={data.error}
        reload={data.reload}
        none={{ title: "No credentials stored", text: "Keys of upstreams are kept encrypted and never shown." }}
      />
      {doing === "new" && <FormDialog title="New credential" submit="Store" fields={[{ name: "name", label: "Name", required: true }, { name: "secret", label: "Secret", kind: "password", required: true }]} act={put} close={() => setDoing("")} />}
      {typeof doing === "object" && <Confirm title="Delete this credential" verb="Delete" typed={doing.name} text="Targets that use it keep it from being deleted." act={() => api.delete("/api/v1/credentials/{name}", { path: { name: doing.name } }).then(data.reload)} close={() => setDoing("")} />}
    </Card>
  );
}

type Report = Schemas["IndexReport"];
const INDEXED: [keyof Report, string][] = [["documents", "Documents"], ["chunks", "Passages"], ["points", "Indexed"], ["missing", "Missing"], ["stale", "Of old versions"], ["mislabelled", "With other rights"], ["orphans", "Of nothing"]];

function Index() {
  const report = useResource((signal) => api.get("/api/v1/index/report", { signal }), []);
  const [busy, setBusy] = useState(false);
  const repair = async () => {
    setBusy(true);
    await api.post("/api/v1/index/repair").catch(() => undefined);
    setBusy(false);
    report.reload();
  };
  return (
    <Card title="Index">
      <Loaded of={report}>
        {(found) => (
          <div class="stack tight">
            <div class="row"><Badge tone={found.clean ? "ok" : "bad"}>{found.clean ? "agrees with the database" : "differs from the database"}</Badge>{!found.clean && can("admin") && <button onClick={repair} disabled={busy}>Repair</button>}</div>
            <Table
              caption="Index by tenant"
              columns={[
                { title: "Tenant", cell: (row: Report) => row.tenant },
                ...INDEXED.map(([name, title]) => ({ title, right: true, cell: (row: Report) => exact(row[name] as number) })),
              ]}
              rows={found.tenants}
              name={(row) => row.tenant}
              none={{ title: "Nothing is indexed yet" }}
            />
          </div>
        )}
      </Loaded>
    </Card>
  );
}

type Setting = Schemas["SettingView"];

function Settings() {
  const settings = useResource(async (signal) => (await api.get("/api/v1/config/settings", { signal })).settings, []);
  const { named, only } = useFilters(["named", "only"]);
  const wanted = ({ section, name, changed }: Setting) => `${section}.${name}`.includes((named ?? "").toLowerCase()) && (only !== "changed" || changed);
  return (
    <Card title="Settings" actions={<Filters specs={[{ name: "named", label: "Name contains" }, { name: "only", label: "Show", options: { changed: "Changed only" } }]} />}>
      <Table
        caption="Settings in force"
        columns={[
          { title: "Setting", cell: (row: Setting) => <code>{row.section}.{row.name}</code> },
          { title: "Value", text: true, cell: (row) => <code class="break">{row.value || "empty"}</code> },
          { title: "", cell: (row) => row.changed && <Badge tone="neutral">changed</Badge> },
          { title: "Meaning", text: true, cell: (row) => <span class="small">{row.meaning}</span>, hint: (row) => row.variable },
        ]}
        rows={settings.data?.filter(wanted)}
        name={(row) => `${row.section}.${row.name}`}
        error={settings.error}
        reload={settings.reload}
        filtered
        clear={() => clearFilters(["named", "only"])}
        none={{ title: "No settings" }}
      />
    </Card>
  );
}

export function Health() {
  const { state, asOf } = live.use();
  return (
    <Page title="Health and settings">
      <div class="two">
        <Readiness />
        <Card title="This page"><Facts rows={[["Events", state], ["Last heard", asOf ? moment(asOf) : "nothing yet"]]} /></Card>
        {can("operator") && <Config />}
      </div>
      {can("admin") && <Index />}
      {can("operator") ? (
        <>
          <Credentials />
          <Settings />
        </>
      ) : <Empty title="Settings are the operator's">Who runs the installation sees configuration and credentials here.</Empty>}
      <p class="muted">What is not the default comes from the file or the environment. <a href="/docs" target="_blank">API documentation</a></p>
    </Page>
  );
}
