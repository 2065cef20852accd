/** The small parts that every page is made of. */
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import type { Problem } from "../api";
import { away } from "../api";

type Children = { children?: ComponentChildren };
export type Tone = "ok" | "warn" | "bad" | "neutral";
const SIGNS: Record<Tone, string> = { ok: "✓", warn: "!", bad: "✕", neutral: "•" };

export function Page({ title, actions, children }: Children & { title: string; actions?: ComponentChildren }) {
  return (
    <>
      <div class="page-head">
        <h1 class="grow">{title}</h1>
        {actions}
      </div>
      <div class="stack">{children}</div>
    </>
  );
}

export function Card({ title, actions, children }: Children & { title?: string; actions?: ComponentChildren }) {
  return (
    <section class="card">
      {title && (
        <div class="card-head">
          <h2>{title}</h2>
          {actions}
        </div>
      )}
      {children}
    </section>
  );
}

/** Status is a sign and a word, never colour alone. */
export function Badge({ tone, children }: Children & { tone: Tone }) {
  return (
    <span class={`badge ${tone}`}>
      <span aria-hidden="true">{SIGNS[tone]}</span>
      {children}
    </span>
  );
}

const TONES: Record<string, Tone> = {
  stop: "ok", tool_calls: "ok", ready: "ok", succeeded: "ok", active: "ok", closed: "ok", live: "ok", length: "warn",
  cancelled: "neutral", content_filter: "warn", pending: "warn", running: "warn", queued: "warn", half_open: "warn",
  failed: "bad", open: "bad", revoked: "neutral", expired: "neutral", disabled: "neutral",
};

export const Status = ({ value }: { value: string }) => <Badge tone={TONES[value] ?? "bad"}>{value.replaceAll("_", " ")}</Badge>;

export function Tile({ label, value, exact, note }: { label: string; value: string; exact?: string; note?: ComponentChildren }) {
  const word = /^[A-Z][a-z]+ [a-z]+$/.test(value);
  return (
    <div class="card tile">
      <div class="muted small">{label}</div>
      <div class={word ? "value word" : "value"} title={exact}>{value}</div>
      <div class="muted small">{note ?? " "}</div>
    </div>
  );
}

/** How a figure compares with the range before. `better`: which way is good news. */
export function Delta({ now, before, better }: { now: number | null; before: number | null; better?: "up" | "down" }) {
  if (now === null || before === null || before === 0) return <>no comparison</>;
  const share = (now - before) / before;
  const good = better && Math.abs(share) >= 0.005 ? (share > 0 === (better === "up") ? "ok" : "bad") : "";
  const sign = share > 0 ? "▲" : share < 0 ? "▼" : "=";
  return <span class={good}>{sign} {Math.abs(share * 100).toFixed(share < 1 ? 1 : 0)} % than before</span>;
}

interface EmptyProps extends Children {
  title: string;
  action?: ComponentChildren;
}

export function Empty({ title, children, action }: EmptyProps) {
  return (
    <div class="empty">
      <h3>{title}</h3>
      {children && <p>{children}</p>}
      {action}
    </div>
  );
}

export function Failure({ error, retry }: { error: Problem; retry?: () => void }) {
  const title = error.message === away ? "The server does not answer" : error.status === 403 ? "Not allowed" : error.status === 404 ? "Not found" : "This could not be loaded";
  return (
    <div class="empty" role="alert">
      <h3>{title}</h3>
      <p>{error.message}</p>
      {retry && <button onClick={retry}>Try again</button>}
    </div>
  );
}

interface LoadedProps<T> {
  of: { data: T | undefined; error: Problem | null; reload(): void };
  children: (data: T) => ComponentChildren;
}

/** Data, or why there is none yet. Data that could not be refreshed is shown below the reason. */
export function Loaded<T>({ of, children }: LoadedProps<T>) {
  if (of.data === undefined) return of.error ? <Failure error={of.error} retry={of.reload} /> : <p class="muted" aria-busy="true">Loading…</p>;
  return (
    <>
      {of.error && <p class="banner error" role="alert">{of.error.message} What you see may be old.</p>}
      {children(of.data)}
    </>
  );
}

export function copy(text: string): boolean {
  if (navigator.clipboard && isSecureContext) {
    void navigator.clipboard.writeText(text);
    return true;
  }
  // On plain http there is no clipboard API.
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "hidden";
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

export function Copy({ text, label = "Copy" }: { text: string; label?: string }) {
  const [done, setDone] = useState<boolean | null>(null);
  const act = () => {
    setDone(copy(text));
    setTimeout(() => setDone(null), 2_000);
  };
  return <button type="button" onClick={act}>{done === null ? label : done ? "Copied" : "Select and copy"}</button>;
}

export function Bar({ parts, label }: { parts: { share: number; color: string }[]; label: string }) {
  return (
    <div class="bar" role="img" aria-label={label} title={label}>
      {parts.map(({ share, color }) => <span style={{ width: `${Math.min(100, share * 100)}%`, background: color }} />)}
    </div>
  );
}

export function Facts({ rows }: { rows: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {rows.map(([name, value]) => (
        <>
          <dt>{name}</dt>
          <dd>{value ?? "—"}</dd>
        </>
      ))}
    </dl>
  );
}

export function Segmented<T extends string>({ value, options, onChange, label }: { value: T; options: Record<T, string>; onChange(value: T): void; label: string }) {
  return (
    <div class="segmented" role="group" aria-label={label}>
      {(Object.entries(options) as [T, string][]).map(([name, text]) => (
        <button type="button" aria-pressed={name === value} onClick={() => onChange(name)}>{text}</button>
      ))}
    </div>
  );
}

export function download(name: string, text: string, type = "text/csv"): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
