/** What happens, as it happens: one event source per tab, which comes back by itself and gets what it missed. */
import { useEffect, useRef } from "preact/hooks";
import { actingTenant } from "./api";
import { createStore } from "./store";

export interface Live {
  state: "connecting" | "live" | "stale" | "paused";
  /** When something last came, in milliseconds; 0: never. */
  asOf: number;
}

type Handler = (data: unknown, id: string) => void;
const TOPICS = ["request", "config", "engine", "metrics", "job", "budget", "beat", "reset"];
const STALE_MS = 3_500; // samples come every second at least
const RETRY_MS = 1_500;
export const live = createStore<Live>({ state: "connecting", asOf: 0 });
const handlers = new Map<string, Set<Handler>>();
let source: EventSource | null = null;
let lastSeen = 0;
let lastId = "";

function received(topic: string, event: MessageEvent<string>): void {
  lastSeen = Date.now();
  lastId = event.lastEventId || lastId;
  if (live.get().state !== "live") live.set({ state: "live", asOf: lastSeen });
  const data: unknown = JSON.parse(event.data);
  for (const handler of [...(handlers.get(topic) ?? [])]) handler(data, event.lastEventId);
}

function open(): void {
  const query = new URLSearchParams();
  const tenant = actingTenant.get();
  if (tenant) query.set("x-precedent-tenant", tenant);
  if (lastId) query.set("last_event_id", lastId);
  const opened = new EventSource(`/api/v1/events?${query}`);
  source = opened;
  for (const topic of TOPICS) opened.addEventListener(topic, (event) => received(topic, event as MessageEvent<string>));
  // A refused connection is retried by the browser; an error status is not.
  opened.onerror = () => {
    if (opened.readyState === EventSource.CLOSED && source === opened) setTimeout(() => source === opened && open(), RETRY_MS);
  };
}

export function connect(): void {
  disconnect();
  live.set({ state: "connecting", asOf: lastSeen });
  open();
}

export function disconnect(): void {
  source?.close();
  source = null;
}

export function restart(): void {
  lastId = "";
  connect();
}

export function pause(): void {
  disconnect();
  live.set({ state: "paused", asOf: lastSeen });
}

setInterval(() => {
  const { state } = live.get();
  if (state === "live" && Date.now() - lastSeen > STALE_MS) live.set({ state: "stale", asOf: lastSeen });
}, 500);

/** Call `handler` for each event of a topic while the component is shown. */
export function useEvents<T>(topic: string, handler: (data: T) => void): void {
  const latest = useRef(handler);
  latest.current = handler;
  useEffect(() => {
    const mine: Handler = (data) => latest.current(data as T);
    if (!handlers.has(topic)) handlers.set(topic, new Set());
    handlers.get(topic)!.add(mine);
    return () => void handlers.get(topic)!.delete(mine);
  }, [topic]);
}
