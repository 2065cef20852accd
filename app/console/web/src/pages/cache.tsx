/** Answers that are kept for questions of the same meaning: what they saved, and a way to try and to empty it. */
import { useState } from "preact/hooks";
import { api, can } from "../api";
import type { Schemas } from "../api";
import { count, duration, exact, exactMoney, money, percent } from "../format";
import { Badge, Card, Facts, Loaded, Page, Tile } from "../parts/basic";
import { Confirm, Dialog, Form } from "../parts/dialog";
import { Table } from "../parts/table";
import { useReloadOn, useResource } from "../resource";
import { moment } from "../time";

type State = Schemas["SemanticCacheView"];
type Entry = Schemas["CacheEntryView"];

/** What the test needs of an answer; answers are not in the OpenAPI document. */
interface Answered {
  answer: string;
  cache: string;
  served_by: string;
  timings_ms: Record<string, number>;
}

function Tiles({ state }: { state: State }) {
  const lookups = state.hits + state.drafts + state.misses;
  return (
    <div class="tiles">
      <Tile label="Hit rate" value={lookups ? percent(state.hits / lookups) : "No traffic"} note={`${count(state.hits)} of ${count(lookups)} lookups since the start`} />
      <Tile label="Given to the model as a draft" value={count(state.drafts)} exact={exact(state.drafts)} note="not sure enough to be the answer" />
      <Tile label="Entries" value={count(state.entries)} exact={exact(state.entries)} />
      <Tile label="Saved" value={money(state.saved_micros)} exact={exactMoney(state.saved_micros)} note={`${count(state.saved_tokens)} tokens`} />
      <Tile label="Waiting saved" value={duration(state.saved_ms)} />
    </div>
  );
}

function Try() {
  const [found, setFound] = useState<Answered>();
  const ask = async ({ question }: Record<string, unknown>) => setFound((await api.post("/api/v1/answers", { body: { question: String(question) } })) as unknown as Answered);
  return (
    <div class="two">
      <section class="card" style={{ padding: 0 }}>
        <Form fields={[{ name: "question", label: "Question", kind: "textarea", required: true }]} submit="Ask it" act={ask}><h2>Would this be answered from the cache?</h2></Form>
      </section>
      <Card title="The answer">
        {found ? <Facts rows={[["Cache", <Badge tone={found.cache === "hit" || found.cache === "semantic" ? "ok" : "neutral"}>{found.cache}</Badge>], ["Served by", found.served_by || "nobody"], ["Took", duration(found.timings_ms.total)], ["Answer", found.answer]]} /> : <p class="muted">The question is asked in earnest, and is in the request log.</p>}
      </Card>
    </div>
  );
}

export function Cache() {
  const [open, setOpen] = useState<Entry | null>(null);
  const [purging, setPurging] = useState(false);
  const state = useResource((signal) => api.get("/api/v1/cache/semantic", { signal }), []);
  const entries = useResource(async (signal) => (await api.get("/api/v1/cache/semantic/entries", { signal })).entries, []);
  const reload = () => (state.reload(), entries.reload());
  useReloadOn("request", { reload }, 3_000);
  const drop = (entry: Entry) => api.delete("/api/v1/cache/semantic/entries/{entry_id}", { path: { entry_id: entry.id } }).then(() => (setOpen(null), reload()));
  return (
    <Page title="Semantic cache" actions={<button class="danger" disabled={!entries.data?.length} onClick={() => setPurging(true)}>Empty it</button>}>
      <Loaded of={state}>
        {(found) => (
          <>
            {!found.enabled && <p class="banner">The semantic cache is off in the settings: nothing is kept or looked up.</p>}
            <Tiles state={found} />
          </>
        )}
      </Loaded>
      <Table
        caption="Kept answers, newest first"
        columns={[
          { title: "Question", text: true, cell: (row: Entry) => row.question },
          { title: "Must match", text: true, cell: (row) => row.slots.join(", ") || <span class="muted">nothing</span> },
          { title: "Matters", cell: (row) => row.labels.join(", ") || <span class="muted">none</span> },
          { title: "Written by", cell: (row) => row.target },
          { title: "Hits", right: true, cell: (row) => exact(row.hits) },
          { title: "Until", cell: (row) => moment(row.until) },
        ]}
        rows={entries.data}
        name={(row) => row.id}
        error={entries.error}
        reload={entries.reload}
        open={setOpen}
        none={{ title: "Nothing is kept yet", text: "Verified answers of routes that allow it are kept until their documents change." }}
      />
      {can("answers") && <Try />}
      {open && (
        <Dialog title="Kept answer" kind="drawer" close={() => setOpen(null)}>
          <div class="body">
            <Facts rows={[["Question", open.question], ["Answer", open.answer], ["Documents", exact(open.documents.length)], ["Kept", moment(open.created_at)], ["Until", moment(open.until)], ["Hits", exact(open.hits)]]} />
            <div><button class="danger" onClick={() => void drop(open)}>Drop this entry</button></div>
          </div>
        </Dialog>
      )}
      {purging && <Confirm title="Empty the semantic cache" verb="Empty it" typed="empty" text={<>All {exact(entries.data?.length)} entries that you may see go. Their questions are answered anew.</>} act={() => api.delete("/api/v1/cache/semantic").then(reload)} close={() => setPurging(false)} />}
    </Page>
  );
}
