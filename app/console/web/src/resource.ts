/** Data of the API in components: loaded when what it depends on changes, and again on demand. */
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { Problem, away } from "./api";
import { useEvents } from "./live";

export interface Resource<T> {
  data: T | undefined;
  error: Problem | null;
  busy: boolean;
  reload(): void;
  set(data: T): void;
}

export function asProblem(error: unknown): Problem {
  return error instanceof Problem ? error : new Problem(0, error instanceof Error ? error.message : away, "", null);
}

const GATHER_MS = 200;
const aborted = (error: unknown) => error instanceof DOMException && error.name === "AbortError";

/** What was loaded stays while it is loaded again, and where that fails beside the error. */
export function useResource<T>(load: (signal: AbortSignal) => Promise<T>, deps: unknown[]): Resource<T> {
  const [state, setState] = useState<{ data?: T; error: Problem | null; busy: boolean }>({ error: null, busy: true });
  const [round, setRound] = useState(0);
  const known = useRef<string>("");
  const key = JSON.stringify(deps);
  useEffect(() => {
    const controller = new AbortController();
    const fresh = known.current !== key;
    known.current = key;
    setState((before) => ({ data: fresh ? undefined : before.data, error: null, busy: true }));
    load(controller.signal).then(
      (data) => controller.signal.aborted || setState({ data, error: null, busy: false }),
      (error) => aborted(error) || controller.signal.aborted || setState((before) => ({ data: before.data, error: asProblem(error), busy: false })),
    );
    return () => controller.abort();
  }, [key, round]);
  const reload = useCallback(() => setRound((number) => number + 1), []);
  useEvents("reset", reload);
  return { data: state.data, error: state.error, busy: state.busy, reload, set: (data) => setState({ data, error: null, busy: false }) };
}

/** Reload at most every `ms` while events of the topic come. */
export function useReloadOn(topic: string, resource: { reload(): void }, ms = 2_000): void {
  const waiting = useRef<number | undefined>(undefined);
  useEvents(topic, () => {
    waiting.current ??= window.setTimeout(() => {
      waiting.current = undefined;
      resource.reload();
    }, ms);
  });
  useEffect(() => () => clearTimeout(waiting.current), []);
}

export interface Listing<T> {
  rows: T[] | undefined;
  error: Problem | null;
  busy: boolean;
  /** Loads the next page; null on the last. */
  more: (() => void) | null;
  reload(): void;
  /** Put a new row first, or replace the one with the same id. */
  put(row: T): void;
}

/** A list that grows by the server's cursors. */
export function useListing<T extends { id?: unknown }>(
  load: (cursor: string | null, signal: AbortSignal) => Promise<{ rows: T[]; next: string | null }>,
  deps: unknown[],
): Listing<T> {
  const first = useResource((signal) => load(null, signal), deps);
  const [state, setState] = useState<{ of: unknown; rows: T[]; next: string | null; busy: boolean; error: Problem | null }>();
  const current = first.data && state?.of === first.data ? state : undefined;
  useEffect(() => {
    if (first.data) setState({ of: first.data, rows: first.data.rows, next: first.data.next, busy: false, error: null });
  }, [first.data]);
  const more = () => {
    if (!current || current.busy || !current.next) return;
    setState({ ...current, busy: true });
    load(current.next, new AbortController().signal).then(
      (page) => setState((now) => (now && now.of === current.of ? { ...now, rows: [...now.rows, ...page.rows], next: page.next, busy: false, error: null } : now)),
      (error) => setState((now) => (now ? { ...now, busy: false, error: asProblem(error) } : now)),
    );
  };
  const waiting = useRef<T[]>([]);
  const flush = () => {
    const fresh = new Map(waiting.current.splice(0).map((row) => [row.id, row]));
    setState((now) => {
      if (!now) return now;
      const known = now.rows.map((one) => fresh.get(one.id) ?? one);
      const here = new Set(now.rows.map(({ id }) => id));
      return { ...now, rows: [...[...fresh.values()].filter(({ id }) => !here.has(id)).reverse(), ...known] };
    });
  };
  // Under load many rows come at once: they are shown together.
  const put = (row: T) => {
    if (waiting.current.push(row) === 1) setTimeout(flush, GATHER_MS);
  };
  return {
    rows: current?.rows ?? first.data?.rows,
    error: first.error ?? current?.error ?? null,
    busy: first.busy || Boolean(current?.busy),
    more: (current?.next ?? first.data?.next) ? more : null,
    reload: first.reload,
    put,
  };
}
