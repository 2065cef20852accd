/** The range and the zone that every page shows; both are in the URL. */
import { place, useQuery } from "./router";

const HOUR = 3_600_000;
export const RANGES: Record<string, [string, number]> = {
  "1h": ["Last hour", HOUR],
  "6h": ["Last 6 hours", 6 * HOUR],
  "24h": ["Last 24 hours", 24 * HOUR],
  "7d": ["Last 7 days", 7 * 24 * HOUR],
  "30d": ["Last 30 days", 30 * 24 * HOUR],
  "90d": ["Last 90 days", 90 * 24 * HOUR],
};
export const LOCAL = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

function valid(zone: string): boolean {
  try {
    new Intl.DateTimeFormat("en", { timeZone: zone });
    return true;
  } catch {
    return false;
  }
}

export function zoneOf(query: URLSearchParams): string {
  const given = query.get("tz")?.replace(/^ /, "+"); // a + in a query is a space
  return given && valid(given) ? given : LOCAL;
}

export const zone = () => zoneOf(new URLSearchParams(place.get().search));
export const useZone = () => zoneOf(useQuery());

export interface Range {
  name: string;
  /** Milliseconds from its start until now. */
  length: number;
}

export function useRange(): Range {
  const name = useQuery().get("range") ?? "24h";
  const known = RANGES[name] ? name : "24h";
  return { name: known, length: RANGES[known]![1] };
}

/** The range as the API takes it, `back` ranges earlier. */
export function bounds(range: Range, back = 0): { start: string; end: string } {
  const end = Date.now() - back * range.length;
  return { start: new Date(end - range.length).toISOString(), end: new Date(end).toISOString() };
}

const formats = new Map<string, Intl.DateTimeFormat>();
function format(name: string, options: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
  const timeZone = zone();
  const key = `${name} ${timeZone}`;
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat("en-GB", { ...options, timeZone, hourCycle: "h23" }));
  return formats.get(key)!;
}

type When = string | number | Date;
const CLOCK: Intl.DateTimeFormatOptions = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
const DAY: Intl.DateTimeFormatOptions = { year: "numeric", month: "2-digit", day: "2-digit" };
export const clock = (at: When) => format("clock", CLOCK).format(new Date(at));

/** 2026-11-20 */
export function day(at: When): string {
  const parts = Object.fromEntries(format("day", DAY).formatToParts(new Date(at)).map((part) => [part.type, part.value]));
  return `${parts.year}-${parts.month}-${parts.day}`;
}

/** 2026-11-20 14:03:22 */
export const moment = (at: When | null | undefined) => (at ? `${day(at)} ${clock(at)}` : "—");

/** 14:03:22 today, with the day before that. */
export const brief = (at: When) => (day(at) === day(Date.now()) ? clock(at) : moment(at).slice(0, 16));

export function ago(at: When | null | undefined): string {
  if (!at) return "never";
  const seconds = (Date.now() - new Date(at).getTime()) / 1000;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}
