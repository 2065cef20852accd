/** One table for every list: real rows, keyboard, three empty states, more by cursor. */
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import type { Problem } from "../api";
import { Empty, Failure } from "./basic";

export interface Column<T> {
  title: string;
  cell: (row: T) => ComponentChildren;
  /** Numbers stand on the right. */
  right?: boolean;
  /** What may be long and wrap. */
  text?: boolean;
  /** The exact value, on hover. */
  hint?: (row: T) => string;
}

interface Props<T> {
  caption: string;
  columns: Column<T>[];
  rows: T[] | undefined;
  name: (row: T) => string;
  error?: Problem | null;
  busy?: boolean;
  more?: (() => void) | null;
  reload?: () => void;
  /** Where a row leads: an address, or what opens it. */
  link?: (row: T) => string;
  open?: (row: T) => void;
  /** Whether a filter is set: then nothing found is not the same as nothing there. */
  filtered?: boolean;
  clear?: () => void;
  none: { title: string; text?: ComponentChildren; action?: ComponentChildren };
}

/** j and k move through the rows of the first table that has any, as in mail programs. */
function useKeys(body: { current: HTMLElement | null }) {
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      const typing = (event.target as Element).closest?.("input, textarea, select, dialog");
      if (typing || event.ctrlKey || event.metaKey || (event.key !== "j" && event.key !== "k")) return;
      const rows = [...(body.current?.querySelectorAll<HTMLElement>("[data-row]") ?? [])];
      const at = rows.findIndex((row) => row.contains(document.activeElement));
      const next = event.key === "j" ? rows[Math.min(rows.length - 1, at + 1)] : rows[Math.max(0, at - 1)];
      next?.querySelector<HTMLElement>("a, button")?.focus();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

function Opener<T>({ row, link, open, children }: { row: T; children: ComponentChildren } & Pick<Props<T>, "link" | "open">) {
  if (link) return <a href={link(row)}>{children}</a>;
  if (open) return <button type="button" class="link" onClick={() => open(row)}>{children}</button>;
  return <>{children}</>;
}

function clicked(event: MouseEvent) {
  const target = event.target as Element;
  if (target.closest("a, button, input, select") || getSelection()?.toString()) return;
  (event.currentTarget as Element).querySelector<HTMLElement>("a, button.link")?.click();
}

export function Table<T>({ caption, columns, rows, name, error, busy, more, reload, link, open, filtered, clear, none }: Props<T>) {
  const body = useRef<HTMLTableSectionElement>(null);
  useKeys(body);
  if (error && !rows) return <Failure error={error} retry={reload} />;
  if (!rows) return <p class="muted" aria-busy="true">Loading…</p>;
  if (!rows.length) {
    return filtered ? (
      <Empty title="Nothing matches" action={clear && <button onClick={clear}>Clear filters</button>}>There are entries, but none with these filters in this range.</Empty>
    ) : (
      <Empty title={none.title} action={none.action}>{none.text}</Empty>
    );
  }
  return (
    <div class="table-wrap" tabIndex={0} role="region" aria-label={caption}>
      {error && <p class="banner error" role="alert">{error.message} What you see may be old.</p>}
      <table>
        <caption class="hidden">{caption}</caption>
        <thead>
          <tr>{columns.map((column) => <th scope="col" class={column.right ? "right" : ""}>{column.title}</th>)}</tr>
        </thead>
        <tbody ref={body}>
          {rows.map((row) => (
            <tr key={name(row)} data-row={name(row)} class={link || open ? "open" : ""} onClick={link || open ? clicked : undefined}>
              {columns.map((column, number) => (
                <td class={column.right ? "right" : column.text ? "text" : "nowrap"} title={column.hint?.(row)}>
                  {number ? column.cell(row) : <Opener row={row} link={link} open={open}>{column.cell(row)}</Opener>}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {more && <div class="more"><button onClick={more} disabled={busy}>{busy ? "Loading…" : "Show more"}</button></div>}
    </div>
  );
}
