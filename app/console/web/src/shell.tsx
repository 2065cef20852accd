/** What stands around every page: navigation, range and zone, whether figures are live. */
import { useEffect, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { actingTenant, api, can, session } from "./api";
import { connect, disconnect, live, pause, restart } from "./live";
import { match, visible } from "./pages";
import { Badge, Empty } from "./parts/basic";
import { Dialog } from "./parts/dialog";
import { useResource } from "./resource";
import { href, navigate, place, setQuery, useQuery } from "./router";
import { choice, choose } from "./theme";
import type { Choice } from "./theme";
import { LOCAL, RANGES, clock, useRange, useZone } from "./time";

const GROUPS = ["Operate", "Gateway", "Knowledge", "Engine", "Admin"] as const;

function Nav({ open, path }: { open: boolean; path: string }) {
  const pages = visible();
  const here = (to: string) => (to === "/" ? path === "/" : path === to || path.startsWith(`${to}/`));
  return (
    <nav class={open ? "nav open" : "nav"} aria-label="Pages" id="nav">
      <a class="brand" href={href("/")}>
        <svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="6" fill="var(--accent)" /><path d="M10 24V8h7.5a5.2 5.2 0 0 1 0 10.4H13V24z" fill="none" stroke="var(--on-accent)" stroke-width="3" stroke-linejoin="round" /></svg>
        Precedent
      </a>
      {GROUPS.filter((group) => pages.some((page) => page.group === group)).map((group) => (
        <>
          <h2>{group}</h2>
          <ul>
            {pages.filter((page) => page.group === group).map((page) => (
              <li><a href={href(page.path)} aria-current={here(page.path) ? "page" : undefined}>{page.title}</a></li>
            ))}
          </ul>
        </>
      ))}
    </nav>
  );
}

function TenantSwitcher() {
  const tenants = useResource((signal) => api.get("/api/v1/tenants", { signal }), []);
  const own = session.get()!;
  const chosen = actingTenant.use() ?? own.tenant_id;
  return (
    <select aria-label="Tenant" value={chosen} onChange={(event) => setQuery({ tenant: event.currentTarget.value === own.tenant_id ? null : event.currentTarget.value }, false)}>
      {(tenants.data?.tenants ?? [{ id: own.tenant_id, name: own.tenant }]).map(({ id, name }) => <option value={id}>{name}</option>)}
    </select>
  );
}

function Times() {
  const range = useRange();
  const zone = useZone();
  const zones = [...new Set([zone, LOCAL, "UTC", "Europe/London", "Europe/Berlin", "America/New_York", "America/Los_Angeles", "Asia/Kolkata", "Asia/Singapore", "Asia/Tokyo", "Australia/Sydney"])];
  return (
    <>
      <select aria-label="Time range" value={range.name} onChange={(event) => setQuery({ range: event.currentTarget.value })}>
        {Object.entries(RANGES).map(([name, [text]]) => <option value={name}>{text}</option>)}
      </select>
      <select aria-label="Time zone" value={zone} onChange={(event) => setQuery({ tz: event.currentTarget.value === LOCAL ? null : event.currentTarget.value })}>
        {zones.map((name) => <option value={name}>{name}</option>)}
      </select>
    </>
  );
}

function LiveBadge() {
  const { state, asOf } = live.use();
  const text = {
    live: "Live",
    paused: `Paused${asOf ? ` at ${clock(asOf)}` : ""}`,
    connecting: asOf ? `Reconnecting – data as of ${clock(asOf)}` : "Connecting…",
    stale: `Reconnecting – data as of ${clock(asOf)}`,
  }[state];
  const tone = state === "live" ? "ok" : state === "paused" ? "neutral" : "warn";
  return (
    <span class="live">
      <span role="status"><Badge tone={tone}>{text}</Badge></span>
      <button class="plain" onClick={state === "paused" ? connect : pause} aria-label={state === "paused" ? "Resume live updates" : "Pause live updates"}>{state === "paused" ? "▶" : "❚❚"}</button>
    </span>
  );
}

function Palette({ close }: { close: () => void }) {
  const [text, setText] = useState("");
  const found = visible().filter(({ title }) => title.toLowerCase().includes(text.toLowerCase()));
  const go = (path: string) => (close(), navigate(href(path)));
  const moved = (event: KeyboardEvent) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    const links = [...(event.currentTarget as Element).querySelectorAll<HTMLElement>("input, a")];
    links[(links.indexOf(document.activeElement as HTMLElement) + (event.key === "ArrowDown" ? 1 : links.length - 1)) % links.length]?.focus();
  };
  return (
    <Dialog title="Go to" close={close} kind="palette">
      <div onKeyDown={moved}>
        <form onSubmit={(event) => (event.preventDefault(), found[0] && go(found[0].path))}>
          <input aria-label="Go to page" placeholder="Go to…" autofocus onInput={(event) => setText(event.currentTarget.value)} />
        </form>
        <ul>{found.map((page) => <li><a href={href(page.path)} onClick={close}>{page.title}<span class="muted small">{page.group}</span></a></li>)}</ul>
        {!found.length && <Empty title="No page is called that" />}
      </div>
    </Dialog>
  );
}

async function leave(): Promise<void> {
  disconnect();
  await api.delete("/api/v1/session");
  session.set(null);
}

export function Shell() {
  const { path } = place.use();
  const query = useQuery();
  const who = session.use()!;
  const [menu, setMenu] = useState(false);
  const [palette, setPalette] = useState(false);
  const tenant = can("operator") ? query.get("tenant") : null;
  actingTenant.set(tenant);
  const found = match(path);
  useEffect(() => {
    restart();
    return disconnect;
  }, [tenant, who.user_id]);
  useEffect(() => {
    document.title = `${found?.entry.title ?? "Not found"} · Precedent`;
    setMenu(false);
  }, [path]);
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "k") {
        event.preventDefault();
        setPalette(true);
      }
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
  // A member has no overview: the first page that they may see is theirs.
  if (path === "/" && !can("usage")) {
    const first = visible()[0];
    if (first) navigate(href(first.path), true);
    return null;
  }
  let content: ComponentChildren;
  if (!found) content = <Empty title="There is no such page" action={<a href={href("/")}>Go to the overview</a>} />;
  else if (!can(...found.entry.scopes)) content = <Empty title="Your role does not open this page">{found.entry.title} needs other rights than {who.role}.</Empty>;
  else content = <found.entry.view key={`${path} ${tenant}`} id={found.id} />;
  return (
    <div class="shell">
      <a class="skip" href="#main">Skip to content</a>
      <Nav open={menu} path={path} />
      <div>
        <header class="top">
          <button class="menu" aria-expanded={menu} aria-controls="nav" aria-label="Menu" onClick={() => setMenu(!menu)}>☰</button>
          {can("operator") ? <TenantSwitcher /> : <strong>{who.tenant}</strong>}
          <Times />
          <span class="grow" />
          <LiveBadge />
          <button class="wide-only" onClick={() => setPalette(true)} aria-label="Go to page" title="Ctrl K or ⌘ K">⌘K</button>
          <select aria-label="Theme" value={choice.use()} onChange={(event) => choose(event.currentTarget.value as Choice)}>
            <option value="system">System</option>
            <option value="light">Light</option>
            <option value="dark">Dark</option>
          </select>
          <button onClick={leave}>Sign out</button>
        </header>
        <main id="main" tabIndex={-1}>{content}</main>
      </div>
      {palette && <Palette close={() => setPalette(false)} />}
    </div>
  );
}
