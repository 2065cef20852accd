/** Where we are: the path below /console and the query, which holds filters, sort and range. */
import { useMemo } from "preact/hooks";
import { createStore } from "./store";

const BASE = "/console";

interface Place {
  path: string;
  search: string;
  hash: string;
}

function here(): Place {
  return { path: location.pathname.slice(BASE.length) || "/", search: location.search, hash: location.hash };
}

export const place = createStore<Place>(here());
addEventListener("popstate", () => place.set(here()));

/** What every page keeps: range, zone and tenant. */
const LASTING = ["range", "tz", "tenant"];

export function href(path: string, query: Record<string, string | number | null | undefined> = {}): string {
  const now = new URLSearchParams(place.get().search);
  const next = new URLSearchParams();
  for (const name of LASTING) if (now.has(name)) next.set(name, now.get(name)!);
  for (const [name, value] of Object.entries(query)) if (value !== null && value !== undefined && value !== "") next.set(name, String(value));
  return `${BASE}${path === "/" ? "" : path}${next.size ? `?${next}` : ""}`;
}

export function navigate(to: string, replace = false): void {
  history[replace ? "replaceState" : "pushState"](null, "", to);
  place.set(here());
}

/** Change some of the query and keep the rest; null takes a name out. */
export function setQuery(changes: Record<string, string | null>, replace = true): void {
  const next = new URLSearchParams(place.get().search);
  for (const [name, value] of Object.entries(changes)) value ? next.set(name, value) : next.delete(name);
  navigate(`${location.pathname}${next.size ? `?${next}` : ""}${location.hash}`, replace);
}

export function useQuery(): URLSearchParams {
  const { search } = place.use();
  return useMemo(() => new URLSearchParams(search), [search]);
}

/** Links of ours change the page without loading it. */
document.addEventListener("click", (event) => {
  const link = (event.target as Element).closest?.("a[href]") as HTMLAnchorElement | null;
  const plain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
  if (!link || !plain || link.target || link.download || link.origin !== location.origin) return;
  if (!(link.pathname === BASE || link.pathname.startsWith(`${BASE}/`))) return;
  event.preventDefault();
  if (link.hash && link.pathname === location.pathname && link.search === location.search) {
    document.getElementById(link.hash.slice(1))?.focus();
    return;
  }
  const samePage = link.pathname === location.pathname;
  navigate(link.href);
  if (!samePage) {
    scrollTo(0, 0);
    document.querySelector("main")?.focus();
  }
});
