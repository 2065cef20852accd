/** What a question finds, with every leg's score, and why something else was not found. */
import { useEffect, useState } from "preact/hooks";
import { api, can } from "../api";
import type { Schemas } from "../api";
import { duration, percent } from "../format";
import { Badge, Card, Facts, Failure, Page } from "../parts/basic";
import { Table } from "../parts/table";
import { asProblem } from "../resource";
import { href, setQuery, useQuery } from "../router";

type Found = Schemas["SearchResponse"];
type Passage = Schemas["PassageView"];

function Explained({ explain }: { explain: Schemas["ExplainView"] }) {
  return (
    <div class="two">
      <Card title="How the question was read">
        <Facts
          rows={[
            ["Searched", explain.searched],
            ["Names in it", explain.names || "none"],
            ["Concepts", explain.concepts.join(", ") || "none"],
            ["Other wordings", explain.wordings.join(", ") || "none"],
            ["Terms", Object.entries(explain.terms).map(([term, weight]) => `${term} ${weight.toFixed(2)}`).join(", ") || "—"],
            ["Candidates", String(explain.candidates)],
          ]}
        />
      </Card>
      <Card title="Why others were left out">
        <Table
          caption="Passages that were left out"
          columns={[
            { title: "Passage", cell: (row: Schemas["DroppedView"]) => <code>{row.chunk_id.slice(0, 18)}</code> },
            { title: "Why", text: true, cell: (row) => row.reason },
          ]}
          rows={explain.dropped}
          name={(row) => row.chunk_id}
          none={{ title: "Nothing was left out" }}
        />
      </Card>
    </div>
  );
}

const legs = (passages: Passage[]) => [...new Set(passages.flatMap(({ scores }) => Object.keys(scores)))];

/** A question with the passage that answers it, or with none: then it should be refused. */
function SaveCase({ question, passage }: { question: string; passage?: Passage }) {
  const [said, setSaid] = useState("");
  const save = () =>
    api.post("/api/v1/evaluation/cases", { body: { question, document_id: passage?.document_id, quote: passage?.text.slice(0, 4000) } }).then(
      () => setSaid("Saved"),
      (error) => setSaid(asProblem(error).message),
    );
  if (said) return <span role="status">{said}</span>;
  return <button class={passage ? "plain" : ""} onClick={save}>{passage ? "Save as case" : "Save as a case that must be refused"}</button>;
}

function Results({ found, question }: { found: Found; question: string }) {
  const columns = legs(found.passages);
  return (
    <>
      <p class="muted">
        Confidence {percent(found.confidence, 0)}. {Object.entries(found.timings_ms).map(([name, ms]) => `${name} ${duration(ms)}`).join(", ")}
      </p>
      <Table
        caption="Passages, best first"
        columns={[
          { title: "Document", cell: (row: Passage) => <>{row.document}{row.page !== null && <span class="muted">, p. {row.page}</span>}</> },
          { title: "Text", text: true, cell: (row) => <>{row.text.slice(0, 220)}{row.text.length > 220 && "…"} {row.flags?.map((flag) => <Badge tone="warn">{flag}</Badge>)}</> },
          { title: "Score", right: true, cell: (row) => row.score.toFixed(3) },
          ...(can("answers") ? [{ title: "Evaluation", cell: (row: Passage) => <SaveCase question={question} passage={row} /> }] : []),
          ...columns.map((leg) => ({ title: leg, right: true, cell: (row: Passage) => row.scores[leg]?.toFixed(3) ?? "—" })),
        ]}
        rows={found.passages}
        name={(row) => row.chunk_id}
        link={(row) => href(`/documents/${row.document_id}`, { version: row.version, start: row.start, end: row.end })}
        none={{ title: "Nothing was found", text: "No passage that you may read fits this question." }}
      />
      {can("answers") && <div><SaveCase question={question} /></div>}
      {found.explain && <Explained explain={found.explain} />}
    </>
  );
}

export function Retrieval() {
  const query = useQuery();
  const [found, setFound] = useState<Found>();
  const [error, setError] = useState<ReturnType<typeof asProblem> | null>(null);
  const [busy, setBusy] = useState(false);
  const search = async (q: string, collection: string, k: string) => {
    setBusy(true);
    setError(null);
    await api.post("/api/v1/search", { body: { query: q, collection: collection || null, k: Number(k || 8), explain: true } }).then(setFound, (caught) => setError(asProblem(caught)));
    setBusy(false);
  };
  const ask = (event: SubmitEvent) => {
    event.preventDefault();
    const data = new FormData(event.currentTarget as HTMLFormElement);
    const text = (name: string) => String(data.get(name) ?? "").trim();
    setQuery({ q: text("q"), collection: text("collection") || null, k: text("k") === "8" ? null : text("k") });
    void search(text("q"), text("collection"), text("k"));
  };
  // A shared address shows what its sender saw.
  useEffect(() => void (query.get("q") && search(query.get("q")!, query.get("collection") ?? "", query.get("k") ?? "")), []);
  return (
    <Page title="Retrieval test">
      <form class="card row" onSubmit={ask} style={{ alignItems: "end" }}>
        <div class="field grow"><label for="q">Question</label><input id="q" name="q" required maxLength={4000} defaultValue={query.get("q") ?? ""} /></div>
        <div class="field"><label for="collection">Collection</label><input id="collection" name="collection" placeholder="all" defaultValue={query.get("collection") ?? ""} /></div>
        <div class="field"><label for="k">Passages</label><input id="k" name="k" type="number" min="1" max="100" defaultValue={query.get("k") ?? "8"} /></div>
        <button class="primary" disabled={busy}>{busy ? "Searching…" : "Search"}</button>
      </form>
      {error && <Failure error={error} />}
      {found && <Results key={query.get("q")} found={found} question={query.get("q") ?? ""} />}
      {!found && !error && <p class="muted">Each passage is shown with the score that every leg of the search gave it.</p>}
    </Page>
  );
}
