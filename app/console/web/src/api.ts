/** The REST API, typed by its OpenAPI document. */
import type { components, paths } from "./api.gen";
import { createStore } from "./store";

export type Schemas = components["schemas"];
export type Session = Schemas["CurrentSession"];
type Method = "get" | "post" | "put" | "patch" | "delete";
type Having<M extends Method> = { [P in keyof paths]: paths[P][M] extends { responses: unknown } ? P : never }[keyof paths];
type Json<R> = R extends { content: { "application/json": infer T } } ? T : undefined;
type Success<O> = O extends { responses: infer R } ? Json<R[Extract<keyof R, 200 | 201 | 202 | 204>]> : never;
type Query<O> = O extends { parameters: { query?: infer Q } } ? Q : undefined;
type Body<O> = O extends { requestBody: { content: { "application/json": infer B } } } ? B : undefined;

interface Options<O> {
  path?: Record<string, string>;
  query?: Query<O>;
  body?: Body<O>;
  form?: FormData;
  signal?: AbortSignal;
}

/** Who is logged in: undefined while nobody knows, null for nobody. */
export const session = createStore<Session | null | undefined>(undefined);
/** The tenant that an operator looks at, where it is not their own. */
export const actingTenant = createStore<string | null>(null);

/** An error as the API tells it (RFC 9457). `param` names the field at fault. */
export class Problem extends Error {
  constructor(readonly status: number, detail: string, readonly code: string, readonly param: string | null) {
    super(detail);
  }
}

export const away = "The server does not answer.";

export function headers(changing: boolean): Record<string, string> {
  const tenant = actingTenant.get();
  const token = session.get()?.csrf_token;
  return {
    ...(changing && token ? { "x-csrf-token": token } : {}),
    ...(tenant ? { "x-precedent-tenant": tenant } : {}),
  };
}

export async function problemOf(response: Response): Promise<Problem> {
  const body = (await response.json().catch(() => ({}))) as Record<string, unknown>;
  const error = (body.error ?? body) as Record<string, unknown>;
  const detail = String(error.detail ?? error.message ?? `The server answered ${response.status}.`);
  if (response.status === 401) session.set(null);
  return new Problem(response.status, detail, String(error.code ?? ""), (error.param as string | null) ?? null);
}

export async function send(path: string, init: RequestInit): Promise<Response> {
  const changing = (init.method ?? "GET") !== "GET";
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers: { ...headers(changing), ...(init.headers as Record<string, string>) } });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Problem(0, away, "away", null);
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

function address(path: string, named: Record<string, string> = {}, query: object = {}): string {
  const filled = path.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(named[name] ?? ""));
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") search.set(name, String(value));
  }
  return search.size ? `${filled}?${search}` : filled;
}

async function call<M extends Method, P extends Having<M>>(method: M, path: P, options: Options<paths[P][M]> = {}): Promise<Success<paths[P][M]>> {
  const json = options.body === undefined ? undefined : JSON.stringify(options.body);
  const init: RequestInit = { method: method.toUpperCase() };
  if (options.signal) init.signal = options.signal;
  if (json !== undefined) Object.assign(init, { body: json, headers: { "content-type": "application/json" } });
  if (options.form) init.body = options.form;
  const response = await send(address(path as string, options.path, options.query ?? {}), init);
  const text = await response.text();
  return (text ? JSON.parse(text) : undefined) as Success<paths[P][M]>;
}

export const api = {
  get: <P extends Having<"get">>(path: P, options?: Options<paths[P]["get"]>) => call("get", path, options),
  post: <P extends Having<"post">>(path: P, options?: Options<paths[P]["post"]>) => call("post", path, options),
  put: <P extends Having<"put">>(path: P, options?: Options<paths[P]["put"]>) => call("put", path, options),
  patch: <P extends Having<"patch">>(path: P, options?: Options<paths[P]["patch"]>) => call("patch", path, options),
  delete: <P extends Having<"delete">>(path: P, options?: Options<paths[P]["delete"]>) => call("delete", path, options),
};

/** Names of the models that can be asked: in Anthropic's shape the list leaves embedding models out. */
export async function chatModels(signal: AbortSignal): Promise<string[]> {
  const response = await send("/v1/models", { signal, headers: { "anthropic-version": "2023-06-01" } });
  return ((await response.json()) as { data: { id: string }[] }).data.map(({ id }) => id);
}

export function can(...scopes: string[]): boolean {
  const held = session.get()?.scopes ?? [];
  const acting = actingTenant.get() !== null;
  const content = ["chat", "answers", "documents:read", "documents:write"];
  return scopes.some((scope) => held.includes(scope) && !(acting && content.includes(scope)));
}
