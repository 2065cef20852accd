/** One request: where its time and its money went, and why it went where it went. */
import { api, can } from "../api";
import type { Schemas } from "../api";
import { duration, exact, exactMoney } from "../format";
import { Badge, Card, Copy, Empty, Facts, Loaded, Page, Status } from "../parts/basic";
import { Table } from "../parts/table";
import { useResource } from "../resource";
import { href } from "../router";
import { moment } from "../time";

type Detail = Schemas["RequestDetail"];
type Passage = Schemas["PassageOfAnswer"];

interface Span {
  name: string;
  start_ms: number;
  duration_ms: number;
}

interface Verdict {
  target: string;
  rank: number | null;
  reason: string;
}

export interface Decision {
  strategy?: string;
  targets?: Verdict[];
  complexity?: { level: number; because: string[] } | null;
}

const LINES: Record<string, string> = { input: "Prompt", cached_input: "Prompt from cache", output: "Answer", computing: "Computing" };

export function Waterfall({ spans, total }: { spans: Span[]; total: number }) {
  if (!spans.length) return <Empty title="No steps were recorded">The request ended before its first step.</Empty>;
  const ordered = [...spans].sort((a, b) => a.start_ms - b.start_ms);
  const whole = Math.max(total, ...ordered.slice(-1).map((span) => span.start_ms + span.duration_ms), 0.001);
  return (
    <div class="waterfall" role="table" aria-label="Steps of the request" tabIndex={0}>
      {ordered.map((span) => (
        <div class="span" role="row">
          <span role="rowheader" class="small">{span.name}</span>
          <span role="cell" class="track" title={`from ${span.start_ms} ms for ${span.duration_ms} ms`}>
            <span style={{ left: `${Math.min(99.5, (span.start_ms / whole) * 100)}%`, width: `${Math.min(100, (span.duration_ms / whole) * 100)}%` }} />
          </span>
          <span role="cell" class="right small">{duration(span.duration_ms)}</span>
        </div>
      ))}
    </div>
  );
}

export function Why({ decision }: { decision: Decision }) {
  const targets = [...(decision.targets ?? [])].sort((a, b) => (a.rank ?? 99) - (b.rank ?? 99));
  return (
    <>
      <p class="muted">
        Strategy {decision.strategy ?? "—"}
        {decision.complexity && `; complexity ${decision.complexity.level}: ${decision.complexity.because.join(", ") || "nothing special"}`}
      </p>
      <Table
        caption="Targets in the order in which they are tried"
        columns={[
          { title: "Turn", cell: (row: Verdict) => (row.rank === null ? "left out" : String(row.rank)) },
          { title: "Target", cell: (row) => row.target },
          { title: "Why", text: true, cell: (row) => row.reason },
        ]}
        rows={targets}
        name={(row) => row.target}
        none={{ title: "No decision was recorded" }}
      />
    </>
  );
}

function Costs({ request }: { request: Detail }) {
  const lines = Object.entries(request.cost_lines);
  if (!lines.length) return <Empty title="Nothing was charged">Only answers are charged.</Empty>;
  const sum = lines.reduce((total, [, amount]) => total + amount, 0);
  return (
    <Facts rows={[...lines.map(([name, amount]): [string, string] => [LINES[name] ?? name, exactMoney(amount)]), ["Sum", <strong data-sum>{exactMoney(sum)}</strong>]]} />
  );
}

/** The endpoint under which answers from documents stand in the request log. */
const ANSWERS = "answers";

function Source({ of: source }: { of: Passage }) {
  if (source.title === null) return <span class="muted">A document that is gone</span>;
  const place = { version: source.version, start: source.start, end: source.end };
  return can("documents:read") ? <a href={href(`/documents/${source.document_id}`, place)}>{source.title}</a> : <>{source.title}</>;
}

/** What the model was given to answer from, and what of it the answer quotes. */
function Evidence({ id }: { id: string }) {
  const evidence = useResource((signal) => api.get("/api/v1/answers/{answer_id}/evidence", { path: { answer_id: id }, signal }), [id]);
  if (evidence.error?.status === 404) return <Empty title="Not for you to see">The answer read documents of a matter that you are not a member of, or it was not kept.</Empty>;
  return (
    <Loaded of={evidence}>
      {(found) => (
        <div class="stack tight">
          {found.refused && <p><Badge tone="warn">Refused</Badge> <span class="muted">No verified quote was found for it.</span></p>}
          {found.flags.length > 0 && <p><Badge tone="warn">A passage spoke to the model</Badge> <span class="muted">{found.flags.join(", ")}</span></p>}
          <Table
            caption="Passages that the model was given"
            columns={[
              { title: "Document", text: true, cell: (row: Passage) => <Source of={row} /> },
              { title: "Version", right: true, cell: (row) => String(row.version) },
              { title: "Section", text: true, cell: (row) => row.section?.join(" › ") || (row.chunk_id === null ? "from earlier in the conversation" : "—") },
              { title: "Quoted", cell: (row) => (row.cited ? <Badge tone="ok">Quoted</Badge> : "—") },
            ]}
            rows={found.sources}
            name={(row) => `${row.document_id} ${row.chunk_id}`}
            none={{ title: "No passages", text: "Nothing was found that could answer the question." }}
          />
        </div>
      )}
    </Loaded>
  );
}

export function RequestPage({ id }: { id: string }) {
  const request = useResource((signal) => api.get("/api/v1/requests/{request_id}", { path: { request_id: id }, signal }), [id]);
  return (
    <Page title="Request" actions={<a class="button" href={href("/requests")}>All requests</a>}>
      <Loaded of={request}>
        {(found) => (
          <>
            <Card>
              <Facts
                rows={[
                  ["Id", <code>{found.id}</code>],
                  ["Time", moment(found.created_at)],
                  ["Model → served by", `${found.model} → ${found.target || "nobody"}`],
                  ["Endpoint", `${found.endpoint}${found.streamed ? ", streamed" : ""}`],
                  ["Status", <Status value={found.status} />],
                  ...(found.error ? [["Error", found.error] as [string, string]] : []),
                  ["Tokens", `${exact(found.prompt_tokens)} in (${exact(found.cached_tokens)} cached), ${exact(found.completion_tokens)} out`],
                  ["First token", found.first_delta_ms ? duration(found.first_delta_ms) : "—"],
                  ["Total", duration(found.total_ms)],
                ]}
              />
            </Card>
            <Card title="Where the time went"><Waterfall spans={found.spans as unknown as Span[]} total={found.total_ms} /></Card>
            <div class="two">
              <Card title="Why this route"><Why decision={found.routing as Decision} /></Card>
              <Card title="Cost"><Costs request={found} /></Card>
            </div>
            {found.endpoint === ANSWERS && <Card title="Evidence"><Evidence id={id} /></Card>}
            <Card title="Raw" actions={<Copy text={JSON.stringify(found, null, 2)} label="Copy JSON" />}>
              <details><summary>Show JSON</summary><pre>{JSON.stringify(found, null, 2)}</pre></details>
            </Card>
          </>
        )}
      </Loaded>
    </Page>
  );
}
