/** Signing in: a password, the firm's provider, or a one-time link. */
import { useEffect, useState } from "preact/hooks";
import { api, session } from "./api";
import { Form } from "./parts/dialog";
import type { FieldSpec } from "./parts/dialog";
import { useResource } from "./resource";
import { navigate, place } from "./router";

export async function refreshSession(): Promise<void> {
  try {
    session.set(await api.get("/api/v1/session"));
  } catch {
    session.set(null);
  }
}

const FIELDS: FieldSpec[] = [
  { name: "email", label: "E-mail address", kind: "email", required: true, autocomplete: "username" },
  { name: "password", label: "Password", kind: "password", required: true, autocomplete: "current-password" },
];

/** The token of a link stands behind the #, which is never sent anywhere by itself. */
async function redeem(token: string): Promise<void> {
  await api.post("/api/v1/session/link", { body: { token } });
  navigate("/console", true);
  await refreshSession();
}

export function Login() {
  const { path, hash } = place.use();
  const [problem, setProblem] = useState("");
  const methods = useResource((signal) => api.get("/api/v1/session/methods", { signal }), []);
  const token = path === "/sign-in" ? hash.slice(1) : "";
  useEffect(() => {
    document.title = "Sign in · Precedent";
    if (token) redeem(token).catch((error: Error) => setProblem(error.message));
  }, [token]);
  const enter = async (values: Record<string, unknown>) => {
    await api.post("/api/v1/session", { body: { email: String(values.email ?? ""), password: String(values.password ?? "") } });
    if (path === "/sign-in") navigate("/console", true);
    await refreshSession();
  };
  return (
    <main class="login">
      <div class="card stack">
        <h1>Sign in to Precedent</h1>
        {problem && <p class="bad" role="alert">{problem}</p>}
        {methods.error && <p class="bad" role="alert">{methods.error.message}</p>}
        <Form fields={FIELDS} submit="Sign in" act={enter} />
        {methods.data?.oidc && <a class="button" href="/api/v1/session/oidc" target="_self">Sign in with your organisation</a>}
      </div>
    </main>
  );
}
