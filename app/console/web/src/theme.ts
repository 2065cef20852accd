/** Light, dark, or as the system says. */
import { createStore } from "./store";

export type Choice = "system" | "light" | "dark";
const KEY = "precedent-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

export const choice = createStore<Choice>((localStorage.getItem(KEY) as Choice | null) ?? "system");
export const theme = createStore<"light" | "dark">("light");

function apply(): void {
  const wanted = choice.get() === "system" ? (dark.matches ? "dark" : "light") : (choice.get() as "light" | "dark");
  document.documentElement.dataset.theme = wanted;
  theme.set(wanted);
}

export function choose(value: Choice): void {
  localStorage.setItem(KEY, value);
  choice.set(value);
  apply();
}

dark.addEventListener("change", apply);
apply();
