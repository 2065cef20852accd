/** Models, the targets behind them, and which way a request would go. */
import { useState } from "preact/hooks";
import { api, can, chatModels } from "../api";
import type { Schemas } from "../api";
import { duration, exactMoney, exact } from "../format";
import { Badge, Card, Facts, Page, Status } from "../parts/basic";
import { Confirm, Form, FormDialog } from "../parts/dialog";
import type { FieldSpec, Values } from "../parts/dialog";
import { Table } from "../parts/table";
import { useResource } from "../resource";
import { Why } from "./request";

type Entry = Schemas["EntryView"];
type Kind = "target" | "route" | "price";
const STRATEGIES = ["order", "weight", "latency", "cost", "load", "affinity", "hybrid"];
const PLACES = { target: "/api/v1/targets/{name}", route: "/api/v1/routes/{model}", price: "/api/v1/prices/{target}" } as const;

const FIELDS: Record<Kind, (entry?: Entry) => FieldSpec[]> = {
  target: (entry) => [
    { name: "name", label: "Name", required: true, value: entry?.name },
    { name: "provider", label: "Provider", kind: "select", options: ["openai", "azure", "anthropic", "tgi", "triton", "ollama", "local", "fake"], value: (entry?.settings.provider as string) ?? "openai" },
    { name: "base_url", label: "Base URL", value: entry?.settings.base_url as string },
    { name: "model", label: "Model as the upstream knows it", value: entry?.settings.model as string },
    { name: "credential", label: "Stored credential", value: entry?.settings.credential as string },
    { name: "region", label: "Region", value: entry?.settings.region as string },
    { name: "privileged", label: "May see material under privilege", kind: "checkbox", value: Boolean(entry?.settings.privileged) },
    { name: "allow_private", label: "Address may be private", kind: "checkbox", value: Boolean(entry?.settings.allow_private) },
  ],
  route: (entry) => [
    { name: "name", label: "Model name for callers", required: true, value: entry?.name },
    { name: "targets", label: "Targets, first to last", kind: "list", required: true, value: entry?.settings.targets as string[] },
    { name: "strategy", label: "Strategy", kind: "select", options: STRATEGIES, value: (entry?.settings.strategy as string) ?? "order" },
    { name: "weights", label: "Weights, in the same order", kind: "list", value: (entry?.settings.weights as number[] | undefined)?.map(String) },
    { name: "cache_seconds", label: "Keep exact answers, seconds", kind: "number", value: (entry?.settings.cache_seconds as number) ?? 0 },
  ],
  price: (entry) => [
    { name: "name", label: "Target", required: true, value: entry?.settings.target as string },
    { name: "model", label: "Model; empty: every one", value: entry?.settings.model as string },
    { name: "input", label: "Prompt, micro-dollars a million tokens", kind: "number", value: (entry?.settings.input as number) ?? 0 },
    { name: "output", label: "Answer, micro-dollars a million tokens", kind: "number", value: (entry?.settings.output as number) ?? 0 },
    { name: "second", label: "Computing, micro-dollars a second", kind: "number", value: (entry?.settings.second as number) ?? 0 },
  ],
};

/** What the form does not show of an entry stays as it is. */
function bodyOf(values: Values, entry: Entry | undefined): Record<string, unknown> {
  const { name: _, weights, ...rest } = values;
  const kept = Object.fromEntries(Object.entries(entry?.settings ?? {}).filter(([key]) => !["name", "model", "target"].includes(key) || key in rest));
  const given = Object.entries({ ...rest, ...(weights ? { weights: (weights as string[]).map(Number) } : {}) });
  return { ...kept, ...Object.fromEntries(given.filter(([, value]) => value !== null)) };
}

type Doing = { what: "put"; kind: Kind; entry?: Entry } | { what: "delete"; kind: Kind; entry: Entry } | null;

function Entries({ kind, rows, columns, act }: { kind: Kind; rows: Entry[] | undefined; columns: { title: string; cell: (row: Entry) => preact.ComponentChildren; text?: boolean; right?: boolean }[]; act: (doing: Doing) => void }) {
  return (
    <Card title={`${kind[0]!.toUpperCase()}${kind.slice(1)}s`} actions={<button onClick={() => act({ what: "put", kind })}>New {kind}</button>}>
      <Table
        caption={`${kind}s`}
        columns={[
          ...columns,
          { title: "From", cell: (row: Entry) => (row.source === "api" ? "console or API" : "file") },
          { title: "Actions", cell: (row: Entry) => <span class="row"><button class="plain" aria-label={`Change ${row.name}`} onClick={() => act({ what: "put", kind, entry: row })}>Change</button>{row.source === "api" && <button class="plain bad" aria-label={`Delete ${row.name}`} onClick={() => act({ what: "delete", kind, entry: row })}>Delete</button>}</span> },
        ]}
        rows={rows}
        name={(row) => row.name}
        none={{ title: `No ${kind}s yet` }}
      />
    </Card>
  );
}

const text = (value: unknown) => (Array.isArray(value) ? value.join(" → ") : value === undefined ? "—" : String(value));

function Tables() {
  const [doing, act] = useState<Doing>(null);
  const data = useResource(async (signal) => {
    const [targets, routes, prices] = await Promise.all([api.get("/api/v1/targets", { signal }), api.get("/api/v1/routes", { signal }), api.get("/api/v1/prices", { signal })]);
    return { targets, routes: routes.entries, prices: prices.entries };
  }, []);
  const put = (kind: Kind, entry?: Entry) => async (values: Values) => {
    const body = bodyOf(values, entry) as never;
    await api.put(PLACES[kind], { path: { name: String(values.name), model: String(values.name), target: String(values.name) }, body });
    data.reload();
  };
  const remove = async (kind: Kind, { name }: Entry) => {
    const paths = { target: "/api/v1/targets/{name}", route: "/api/v1/routes/{model}", price: "/api/v1/prices/{name}" } as const;
    await api.delete(paths[kind], { path: { name, model: name } });
    data.reload();
  };
  const health = (name: string) => data.data?.targets.health?.find((one) => one.name === name);
  return (
    <>
      <Entries kind="route" rows={data.data?.routes} act={act} columns={[{ title: "Model", cell: (row) => row.name }, { title: "Targets in order", text: true, cell: (row) => text(row.settings.targets) }, { title: "Strategy", cell: (row) => text(row.settings.strategy ?? "order") }, { title: "Weights", cell: (row) => text(row.settings.weights) }]} />
      <Entries
        kind="target"
        rows={data.data?.targets.entries}
        act={act}
        columns={[
          { title: "Target", cell: (row) => row.name },
          { title: "Provider", cell: (row) => text(row.settings.provider ?? "openai") },
          { title: "Circuit", cell: (row) => (health(row.name) ? <Status value={health(row.name)!.state} /> : "—") },
          { title: "Trouble", text: true, cell: (row) => (health(row.name)?.trouble ? <span class="bad">{health(row.name)!.trouble}</span> : <span class="muted">none</span>) },
          { title: "Running", right: true, cell: (row) => exact(health(row.name)?.running) },
          { title: "First token", right: true, cell: (row) => duration(health(row.name)?.first_delta_ms) },
          { title: "Region", cell: (row) => text(row.settings.region) },
          { title: "Privilege", cell: (row) => (row.settings.privileged ? <Badge tone="ok">allowed</Badge> : <span class="muted">no</span>) },
        ]}
      />
      <Entries kind="price" rows={data.data?.prices} act={act} columns={[{ title: "For", cell: (row) => row.name }, { title: "Prompt, a million", right: true, cell: (row) => exactMoney((row.settings.input as number) ?? 0) }, { title: "Answer, a million", right: true, cell: (row) => exactMoney((row.settings.output as number) ?? 0) }, { title: "A second", right: true, cell: (row) => exactMoney((row.settings.second as number) ?? 0) }]} />
      {data.error && <p class="bad" role="alert">{data.error.message}</p>}
      {doing?.what === "put" && <FormDialog title={doing.entry ? `Change ${doing.entry.name}` : `New ${doing.kind}`} submit="Save" fields={FIELDS[doing.kind](doing.entry)} act={put(doing.kind, doing.entry)} close={() => act(null)} />}
      {doing?.what === "delete" && <Confirm title={`Delete ${doing.entry.name}`} verb="Delete" typed={doing.entry.name} text="Requests under way end as they began; new ones go without it." act={() => remove(doing.kind, doing.entry)} close={() => act(null)} />}
    </>
  );
}

function DryRun() {
  const models = useResource(chatModels, []);
  const [decision, setDecision] = useState<Schemas["DecisionView"]>();
  const ask = async (values: Values) => {
    const body: Schemas["ExplainRequest"] = {
      request: { model: String(values.model), messages: [{ role: "user", content: String(values.message) }], max_tokens: values.max_tokens as number | null },
      regions: values.regions as string[],
      privileged: Boolean(values.privileged),
      ttft_ms: values.ttft_ms as number | null,
    };
    setDecision(await api.post("/api/v1/routes/explain", { body }));
  };
  if (!models.data) return null;
  const fields: FieldSpec[] = [
    { name: "model", label: "Model", kind: "select", options: models.data },
    { name: "message", label: "Message", kind: "textarea", required: true },
    { name: "max_tokens", label: "Longest answer, tokens", kind: "number", value: 256 },
    { name: "regions", label: "Only these regions", kind: "list" },
    { name: "ttft_ms", label: "First token within, ms", kind: "number" },
    { name: "privileged", label: "Under legal privilege", kind: "checkbox" },
  ];
  return (
    <div class="two" id="dry-run">
      <section class="card" style={{ padding: 0 }}><Form fields={fields} submit="Which way would it go?" act={ask}><h2>Which route would this take?</h2></Form></section>
      <Card title="The way">
        {decision ? (
          <>
            <Facts rows={[["Expected", `${exact(decision.expected_prompt_tokens)} tokens in, ${exact(decision.expected_completion_tokens)} out`], ["At most", exactMoney(decision.expected_cost_micros)]]} />
            <Why decision={decision} />
          </>
        ) : (
          <p class="muted">Nothing is sent, reserved or recorded.</p>
        )}
      </Card>
    </div>
  );
}

export function Routing() {
  return (
    <Page title="Models and routes">
      {can("operator") && <Tables />}
      {can("chat") && <DryRun />}
    </Page>
  );
}
