/** Filters of a list: they live in the URL, so that a reload or a shared link shows the same. */
import { setQuery, useQuery } from "../router";

export interface FilterSpec {
  name: string;
  label: string;
  options?: Record<string, string>;
}

export function useFilters(names: string[]): Record<string, string> {
  const query = useQuery();
  return Object.fromEntries(names.map((name) => [name, query.get(name) ?? ""]));
}

export const clearFilters = (names: string[]) => setQuery(Object.fromEntries(names.map((name) => [name, null])));

export function Filters({ specs }: { specs: FilterSpec[] }) {
  const query = useQuery();
  return (
    <form class="row" role="search" onSubmit={(event) => event.preventDefault()}>
      {specs.map(({ name, label, options }) =>
        options ? (
          <select key={name} aria-label={label} value={query.get(name) ?? ""} onChange={(event) => setQuery({ [name]: event.currentTarget.value })}>
            <option value="">{label}: all</option>
            {Object.entries(options).map(([value, text]) => <option value={value}>{text}</option>)}
          </select>
        ) : (
          <input key={name} aria-label={label} placeholder={label} defaultValue={query.get(name) ?? ""} onChange={(event) => setQuery({ [name]: event.currentTarget.value.trim() })} />
        ),
      )}
    </form>
  );
}
