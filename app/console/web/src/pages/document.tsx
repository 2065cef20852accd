/** A document's text by pages, with the cited passage marked at exactly its characters. */
import { useEffect, useRef, useState } from "preact/hooks";
import { api, can } from "../api";
import type { Schemas } from "../api";
import { bytes, exact } from "../format";
import { Badge, Card, Facts, Loaded, Page, Segmented, Status } from "../parts/basic";
import { FormDialog } from "../parts/dialog";
import { useResource } from "../resource";
import { href, setQuery, useQuery } from "../router";
import { moment } from "../time";

type Document = Schemas["DocumentView"];

interface Sheet {
  number: number | null;
  start: number;
  end: number;
}

/** Offsets count code points, as the API does; strings here count UTF-16 units. */
export function units(text: string): (offset: number) => number {
  // Without characters beyond the first plane both are the same.
  if (!/[\ud800-\udbff]/.test(text)) return (offset) => offset;
  const at: number[] = [];
  for (let unit = 0; unit < text.length; unit += text.codePointAt(unit)! > 0xffff ? 2 : 1) at.push(unit);
  at.push(text.length);
  return (offset) => at[Math.min(offset, at.length - 1)]!;
}

/** Every character belongs to one sheet: what stands between two pages goes with the first. */
function sheetsOf(text: Schemas["TextView"], length: number): Sheet[] {
  if (!text.pages.length) return [{ number: null, start: 0, end: length }];
  return text.pages.map((page, number) => ({ number: page.number!, start: number ? page.start! : 0, end: text.pages[number + 1]?.start ?? length }));
}

function Text({ text, sheet, from, to }: { text: string; sheet: Sheet; from: number; to: number }) {
  const start = Math.max(sheet.start, from);
  const end = Math.min(sheet.end, to);
  if (start >= end) return <>{text.slice(sheet.start, sheet.end)}</>;
  return <>{text.slice(sheet.start, start)}<mark>{text.slice(start, end)}</mark>{text.slice(end, sheet.end)}</>;
}

function Sheets({ view, from, to, image }: { view: Schemas["TextView"]; from: number; to: number; image: boolean }) {
  const holder = useRef<HTMLDivElement>(null);
  const unit = units(view.text);
  const sheets = sheetsOf(view, view.text.length);
  useEffect(() => holder.current?.querySelector("mark")?.scrollIntoView({ block: "center" }), [view, from, to]);
  const path = (page: number) => `/api/v1/documents/${view.document_id}/versions/${view.version}/pages/${page}.png${to > from ? `?start=${from}&end=${to}` : ""}`;
  return (
    <div ref={holder}>
      {sheets.map((sheet) => (
        <article class="sheet" id={`page-${sheet.number ?? 1}`}>
          {sheet.number !== null && <h2>Page {sheet.number}</h2>}
          {image && sheet.number !== null ? (
            <img src={path(sheet.number)} alt={`Page ${sheet.number} as it looks`} loading="lazy" style={{ maxWidth: "100%" }} />
          ) : (
            <div class="text"><Text text={view.text} sheet={{ ...sheet, start: sheets.length > 1 ? unit(sheet.start) : 0, end: sheet.end === view.text.length ? sheet.end : unit(sheet.end) }} from={unit(from)} to={unit(to)} /></div>
          )}
        </article>
      ))}
    </div>
  );
}

function Known({ document }: { document: Document }) {
  const { metadata } = document;
  const facts = { Type: metadata.document_type, "Governing law": metadata.governing_law, Agreed: metadata.agreement_date, Effective: metadata.effective_date, Expires: metadata.expiry_date };
  const rows = Object.entries(facts).filter(([, fact]) => fact);
  const link = (fact: Schemas["FactView"]) => <a href={href(`/documents/${document.id}`, { version: document.current_version, start: fact.start, end: fact.end })}>{fact.value}</a>;
  if (!rows.length && !metadata.parties.length) return <p class="muted">Nothing was recognised.</p>;
  return <Facts rows={[...metadata.parties.map((fact): [string, preact.ComponentChildren] => ["Party", link(fact)]), ...rows.map(([name, fact]): [string, preact.ComponentChildren] => [name, link(fact!)])]} />;
}

function Versions({ document, chosen }: { document: Document; chosen: number | null }) {
  return (
    <ul class="stack tight" style={{ margin: 0, padding: 0, listStyle: "none" }}>
      {document.versions.map((version) => (
        <li class="stack tight">
          <div class="row">
            <a href={href(`/documents/${document.id}`, { version: version.version })} aria-current={version.version === chosen ? "true" : undefined}>Version {version.version}</a>
            {version.version === document.current_version ? <Badge tone="ok">current</Badge> : <Status value={version.status} />}
          </div>
          <div class="muted small break">{version.filename}, {bytes(version.size)}, {moment(version.created_at)}</div>
          {version.error && <div class="bad">{version.error}</div>}
        </li>
      ))}
    </ul>
  );
}

function NewVersion({ id, filed }: { id: string; filed: () => void }) {
  const [open, setOpen] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  const act = async () => {
    const file = input.current?.files?.[0];
    if (!file) throw new Error("Choose a file.");
    const form = new FormData();
    form.set("file", file);
    await api.put("/api/v1/documents/{document_id}", { path: { document_id: id }, form });
    filed();
  };
  return (
    <>
      <button onClick={() => setOpen(true)}>New version</button>
      {open && <FormDialog title="File a new version" submit="File" fields={[]} act={act} close={() => setOpen(false)}><input ref={input} type="file" aria-label="File" /></FormDialog>}
    </>
  );
}

export function DocumentPage({ id }: { id: string }) {
  const query = useQuery();
  const version = Number(query.get("version")) || null;
  const [from, to] = [Number(query.get("start") ?? 0), Number(query.get("end") ?? 0)];
  const image = query.get("as") === "image";
  const path = { document_id: id };
  const document = useResource((signal) => api.get("/api/v1/documents/{document_id}", { path, signal }), [id]);
  const text = useResource((signal) => api.get("/api/v1/documents/{document_id}/text", { path, query: { version }, signal }), [id, version]);
  const paged = Boolean(text.data?.pages.length);
  const actions = (
    <span class="row">
      {paged && <Segmented label="Show pages" value={image ? "image" : "text"} options={{ text: "Text", image: "As it looks" }} onChange={(value) => setQuery({ as: value === "image" ? "image" : null })} />}
      {can("documents:write") && <NewVersion id={id} filed={document.reload} />}
    </span>
  );
  return (
    <Page title={document.data?.title ?? "Document"} actions={actions}>
      <div class="viewer">
        <Loaded of={text}>{(found) => <Sheets view={found} from={from} to={to} image={image} />}</Loaded>
        <aside class="side">
          <Loaded of={document}>
            {(found) => (
              <>
                <Card title="Document">
                  <Facts rows={[["Collection", found.collection], ["Matters", found.labels.join(", ") || "everybody"], ["Status", <Status value={found.status} />], ["Pages", exact(text.data?.pages.length || null)], ...(to > from ? [["Marked", `characters ${exact(from)}–${exact(to)}`] as [string, string]] : [])]} />
                </Card>
                <Card title="What it says of itself"><Known document={found} /></Card>
                <Card title="Versions"><Versions document={found} chosen={text.data?.version ?? null} /></Card>
              </>
            )}
          </Loaded>
        </aside>
      </div>
    </Page>
  );
}
