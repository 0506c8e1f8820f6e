// Numbers as people read them.
const WHOLE = new Intl.NumberFormat("en");

export const count = (value: number): string => WHOLE.format(Math.round(value));

export function size(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${bytes >= 100 || !unit ? Math.round(bytes) : bytes.toPrecision(3)} ${units[unit]}`;
}

export function tokens(value: number): string {
  if (value < 10_000) return count(value);
  if (value < 1_000_000) return `${(value / 1000).toFixed(value < 100_000 ? 1 : 0)}k`;
  return `${(value / 1_000_000).toFixed(2)}M`;
}

export function percent(share: number): string {
  const value = 100 * share;
  if (value > 0 && value < 0.01) return "< 0.01 %";
  return `${value >= 10 ? Math.round(value) : value.toPrecision(2)} %`;
}

export function seconds(value: number): string {
  if (value < 60) return `${Math.max(1, Math.round(value))} s`;
  if (value < 3600) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

export const many = (value: number, one: string): string => `${count(value)} ${one}${value === 1 ? "" : "s"}`;
