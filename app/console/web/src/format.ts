/** Numbers as people read them. "—" is unknown, "0" is zero. */
const whole = new Intl.NumberFormat("en");
type Maybe = number | null | undefined;

export const exact = (value: Maybe) => (value === null || value === undefined ? "—" : whole.format(value));

/** 842, 12.3 k, 1.2 M */
export function count(value: Maybe): string {
  if (value === null || value === undefined) return "—";
  if (Math.abs(value) < 10 && !Number.isInteger(value)) return value.toFixed(1);
  if (Math.abs(value) < 10_000) return whole.format(Math.round(value));
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]] as const) {
    if (Math.abs(value) >= size) return `${(value / size).toFixed(value / size < 100 ? 1 : 0)} ${unit}`;
  }
  return String(value);
}

/** 842 ms, 1.24 s, 3 min 5 s */
export function duration(ms: Maybe): string {
  if (ms === null || ms === undefined) return "—";
  if (ms < 1) return ms === 0 ? "0 ms" : "< 1 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(2)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

/** Micro-dollars: $0, $0.000042, $1.24, $1,240.00 */
export function money(micros: Maybe): string {
  if (micros === null || micros === undefined) return "—";
  if (micros === 0) return "$0";
  const dollars = micros / 1e6;
  const digits = Math.abs(dollars) < 0.01 ? 6 : Math.abs(dollars) < 1 ? 4 : 2;
  return `${dollars < 0 ? "−" : ""}$${Math.abs(dollars).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })}`;
}

export const exactMoney = (micros: Maybe) => (micros === null || micros === undefined ? "—" : `$${(micros / 1e6).toFixed(6)}`);
export const percent = (share: Maybe, digits = 1) => (share === null || share === undefined || Number.isNaN(share) ? "—" : `${(share * 100).toFixed(digits)} %`);

/** 842 B, 12.3 kB, 1.2 MB */
export function bytes(value: number): string {
  if (value < 1000) return `${value} B`;
  return value < 1e6 ? `${(value / 1e3).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;
}

export const plural = (number: number, one: string, many = `${one}s`) => `${exact(number)} ${number === 1 ? one : many}`;
