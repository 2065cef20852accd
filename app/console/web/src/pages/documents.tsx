/** What is filed, and what is on its way in. */
import { useRef, useState } from "preact/hooks";
import { api, can } from "../api";
import type { Schemas } from "../api";
import { bytes, exact, plural } from "../format";
import { Badge, Bar, Card, Empty, Page, Status } from "../parts/basic";
import { Confirm, FormDialog } from "../parts/dialog";
import { Filters, clearFilters, useFilters } from "../parts/filters";
import { Table } from "../parts/table";
import { asProblem, useListing, useReloadOn, useResource } from "../resource";
import { href } from "../router";
import { brief } from "../time";

type Document = Schemas["DocumentView"];
type Job = Schemas["JobView"];
const PAGE = 50;
const AGAIN_MS = 2_000; // a job that is tried again may fail sooner than anybody is told that it runs

/** A file that the server did not take at all; what it took has a job. */
interface Refused {
  name: string;
  reason: string;
}

async function upload(files: File[], collection: string, labels: string, refused: (one: Refused) => void): Promise<void> {
  // One request a file: that one is refused keeps no other out.
  for (const file of files) {
    const form = new FormData();
    form.set("files", file);
    if (collection) form.set("collection", collection);
    if (labels) form.set("labels", labels);
    await api.post("/api/v1/documents", { form }).catch((error) => refused({ name: file.name, reason: asProblem(error).message }));
  }
}

function DropZone({ filed }: { filed: () => void }) {
  const input = useRef<HTMLInputElement>(null);
  const form = useRef<HTMLFormElement>(null);
  const [over, setOver] = useState(false);
  const [sending, setSending] = useState(0);
  const [refused, setRefused] = useState<Refused[]>([]);
  const take = async (files: File[]) => {
    if (!files.length) return;
    setRefused([]);
    setSending(files.length);
    const data = new FormData(form.current!);
    await upload(files, String(data.get("collection")).trim(), String(data.get("labels")).trim(), (one) => setRefused((all) => [...all, one]));
    setSending(0);
    filed();
  };
  const drop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    void take([...(event.dataTransfer?.files ?? [])]);
  };
  return (
    <div class={over ? "drop over stack tight" : "drop stack tight"} onDragOver={(event) => (event.preventDefault(), setOver(true))} onDragLeave={() => setOver(false)} onDrop={drop}>
      <form class="row" ref={form} style={{ justifyContent: "center" }} onSubmit={(event) => event.preventDefault()}>
        <span>Drop files here, or</span>
        <button type="button" class="primary" disabled={sending > 0} onClick={() => input.current!.click()}>{sending ? `Sending ${plural(sending, "file")}…` : "Choose files"}</button>
        <input ref={input} type="file" multiple hidden aria-label="Files" onChange={(event) => void take([...(event.currentTarget.files ?? [])])} />
        <span>into</span>
        <input name="collection" aria-label="Collection" placeholder="collection: default" size={18} />
        <input name="labels" aria-label="Matters" placeholder="matters, with commas" size={18} />
      </form>
      {refused.map(({ name, reason }) => <p class="bad" role="alert">{name}: {reason}</p>)}
    </div>
  );
}

const STAGES: Record<string, string> = { parse: "Reading", chunk: "Dividing", embed: "Embedding", index: "Indexing" };

function JobRow({ job, name, reload }: { job: Job; name: string; reload: () => void }) {
  const [error, setError] = useState("");
  const act = (verb: "cancel" | "retry") => api.post(`/api/v1/jobs/{job_id}/${verb}`, { path: { job_id: job.id } }).then(
      () => (reload(), setTimeout(reload, AGAIN_MS)),
      (caught) => setError(asProblem(caught).message),
    );
  const running = job.status === "queued" || job.status === "running";
  return (
    <li class="row" data-job={job.status} data-name={name}>
      <Status value={job.status} />
      <a class="break" href={href(`/documents/${job.document_id}`, { version: job.version })}>{name}</a>
      {job.status === "running" && <span class="muted">{STAGES[job.stage] ?? job.stage} {job.total > 0 && `${exact(job.done)} of ${exact(job.total)}`}</span>}
      {job.status === "running" && job.total > 0 && <span class="grow"><Bar parts={[{ share: job.done / job.total, color: "var(--accent)" }]} label={`${job.done} of ${job.total}`} /></span>}
      {(job.error || error) && <span class="bad break">{error || job.error}</span>}
      <span class="grow" />
      {can("documents:write") && running && <button onClick={() => act("cancel")}>Cancel</button>}
      {can("documents:write") && (job.status === "failed" || job.status === "cancelled") && <button onClick={() => act("retry")}>Retry</button>}
    </li>
  );
}

function Jobs({ names, jobs, reload }: { names: Map<string, string>; jobs: Job[]; reload: () => void }) {
  const active = jobs.filter(({ status }) => status === "queued" || status === "running");
  const failed = jobs.filter(({ status }) => status === "failed" || status === "cancelled");
  if (!active.length && !failed.length) return null;
  return (
    <Card title={`On the way: ${exact(active.length)}, not taken in: ${exact(failed.length)}`}>
      <ul class="stack tight" style={{ margin: 0, padding: 0, listStyle: "none" }}>
        {[...active, ...failed].slice(0, 50).map((job) => <JobRow key={job.id} job={job} name={names.get(job.document_id) ?? "document"} reload={reload} />)}
      </ul>
    </Card>
  );
}

const shown = (document: Document) => document.versions.find(({ version }) => version === document.current_version) ?? document.versions[0];

function Actions({ document, changed }: { document: Document; changed: () => void }) {
  const [doing, setDoing] = useState<"" | "rights" | "delete">("");
  const path = { document_id: document.id };
  const relabel = (values: Record<string, unknown>) => api.put("/api/v1/documents/{document_id}/labels", { path, body: { labels: values.labels as string[] } }).then(changed);
  const remove = () => api.delete("/api/v1/documents/{document_id}", { path }).then(changed);
  return (
    <span class="row">
      <button class="plain" onClick={() => setDoing("rights")} aria-label={`Rights of ${document.title}`}>Rights</button>
      <button class="plain bad" onClick={() => setDoing("delete")} aria-label={`Delete ${document.title}`}>Delete</button>
      {doing === "rights" && <FormDialog title="Who may read this" submit="Save" act={relabel} close={() => setDoing("")} fields={[{ name: "labels", label: "Matters", kind: "list", value: document.labels, hint: "A reader holds all of them. None: everybody of the tenant." }]} />}
      {doing === "delete" && <Confirm title="Delete this document" verb="Delete for good" typed={document.title} text={<>Every version of <strong>{document.title}</strong> goes ({exact(document.versions.length)} in all), with its passages, cached answers and computed state.</>} act={remove} close={() => setDoing("")} />}
    </span>
  );
}

export function Documents() {
  const filters = useFilters(["collection"]);
  const list = useListing<Document>(
    async (cursor, signal) => {
      const offset = Number(cursor ?? 0);
      const page = await api.get("/api/v1/documents", { query: { collection: filters.collection || undefined, limit: PAGE, offset }, signal });
      const end = offset + page.documents.length;
      return { rows: page.documents, next: end < page.total ? String(end) : null };
    },
    [filters],
  );
  const jobs = useResource(async (signal) => (await api.get("/api/v1/jobs", { query: { limit: 100, since: new Date(Date.now() - 86_400_000).toISOString() }, signal })).jobs, []);
  useReloadOn("job", list, 500);
  useReloadOn("job", jobs, 500);
  const changed = () => (list.reload(), jobs.reload());
  const names = new Map((list.rows ?? []).map((document) => [document.id, shown(document)?.filename ?? document.title]));
  return (
    <Page title="Documents">
      {can("documents:write") && <DropZone filed={changed} />}
      <Jobs names={names} jobs={jobs.data ?? []} reload={changed} />
      <Filters specs={[{ name: "collection", label: "Collection" }]} />
      <Table
        caption="Documents, newest first"
        columns={[
          { title: "Title", text: true, cell: (row: Document) => row.title },
          { title: "Collection", cell: (row) => row.collection },
          { title: "Matters", cell: (row) => (row.labels.length ? row.labels.map((label) => <Badge tone="neutral">{label}</Badge>) : <span class="muted">everybody</span>) },
          { title: "Status", cell: (row) => <Status value={row.status} />, hint: (row) => row.versions[0]?.error ?? "" },
          { title: "Version", right: true, cell: (row) => (row.current_version === null ? "—" : String(row.current_version)) },
          { title: "Pages", right: true, cell: (row) => exact(shown(row)?.pages || null) },
          { title: "Size", right: true, cell: (row) => bytes(shown(row)?.size ?? 0), hint: (row) => exact(shown(row)?.size) },
          { title: "Filed", cell: (row) => brief(row.created_at) },
          ...(can("documents:write") ? [{ title: "Actions", cell: (row: Document) => <Actions document={row} changed={changed} /> }] : []),
        ]}
        rows={list.rows}
        name={(row) => row.id}
        error={list.error}
        busy={list.busy}
        more={list.more}
        reload={list.reload}
        link={(row) => href(`/documents/${row.id}`)}
        filtered={Boolean(filters.collection)}
        clear={() => clearFilters(["collection"])}
        none={{ title: "No documents yet", text: can("documents:write") ? "Drop contracts above; each is read, divided and indexed, and can then be asked." : "Nothing is filed that you may read." }}
      />
      {!list.rows && !list.error && <Empty title="Loading" />}
    </Page>
  );
}
