/** Every page: where it is, who sees it. */
import type { ComponentType } from "preact";
import { can } from "./api";
import { Audit } from "./pages/audit";
import { Cache } from "./pages/cache";
import { DocumentPage } from "./pages/document";
import { Documents } from "./pages/documents";
import { Engine } from "./pages/engine";
import { Health } from "./pages/health";
import { Keys } from "./pages/keys";
import { Overview } from "./pages/overview";
import { Playground } from "./pages/playground";
import { RequestPage } from "./pages/request";
import { Requests } from "./pages/requests";
import { Retrieval } from "./pages/retrieval";
import { Routing } from "./pages/routing";
import { Tenants } from "./pages/tenants";
import { Usage } from "./pages/usage";
import { Users } from "./pages/users";

export interface Entry {
  path: string;
  title: string;
  group?: "Operate" | "Gateway" | "Knowledge" | "Engine" | "Admin";
  /** Any of these rights opens it. */
  scopes: string[];
  view: ComponentType<{ id: string }>;
}

export const PAGES: Entry[] = [
  { path: "/", title: "Overview", group: "Operate", scopes: ["usage"], view: Overview },
  { path: "/requests", title: "Requests", group: "Operate", scopes: ["usage"], view: Requests },
  { path: "/requests/:id", title: "Request", scopes: ["usage"], view: RequestPage },
  { path: "/playground", title: "Playground", group: "Operate", scopes: ["chat", "answers"], view: Playground },
  { path: "/keys", title: "Keys", group: "Gateway", scopes: ["keys"], view: Keys },
  { path: "/usage", title: "Usage", group: "Gateway", scopes: ["usage"], view: Usage },
  { path: "/routing", title: "Models and routes", group: "Gateway", scopes: ["operator", "chat"], view: Routing },
  { path: "/cache", title: "Semantic cache", group: "Gateway", scopes: ["admin"], view: Cache },
  { path: "/documents", title: "Documents", group: "Knowledge", scopes: ["documents:read"], view: Documents },
  { path: "/documents/:id", title: "Document", scopes: ["documents:read"], view: DocumentPage },
  { path: "/retrieval", title: "Retrieval test", group: "Knowledge", scopes: ["documents:read"], view: Retrieval },
  { path: "/engine", title: "Engine", group: "Engine", scopes: ["usage"], view: Engine },
  { path: "/tenants", title: "Tenants and budgets", group: "Admin", scopes: ["usage", "operator"], view: Tenants },
  { path: "/users", title: "Users and roles", group: "Admin", scopes: ["admin"], view: Users },
  { path: "/audit", title: "Audit", group: "Admin", scopes: ["admin"], view: Audit },
  { path: "/health", title: "Health and settings", group: "Admin", scopes: ["usage", "operator"], view: Health },
];

export const visible = () => PAGES.filter(({ group, scopes }) => group && can(...scopes));

export function match(path: string): { entry: Entry; id: string } | null {
  const parts = path.replace(/\/$/, "").split("/");
  for (const entry of PAGES) {
    const names = entry.path.replace(/\/$/, "").split("/");
    if (names.length !== parts.length) continue;
    if (names.every((name, at) => name.startsWith(":") || name === parts[at])) return { entry, id: names.at(-1) === ":id" ? parts.at(-1)! : "" };
  }
  return null;
}
