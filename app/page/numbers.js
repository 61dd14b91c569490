// Numbers, times and sizes as people read them.

export const NONE = "–";

/** Four digits that matter. */
export function figure(value) {
  if (value === null || value === undefined) return NONE;
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return whole(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e7) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

export const whole = (value) => value?.toLocaleString("en").replaceAll(",", " ") ?? NONE;

export const percent = (share) => (share === null || share === undefined ? NONE : `${Number((100 * share).toPrecision(3))} %`);

export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  const rounded = Math.round(value); // before it is parted, or there would be a minute of 60 s
  if (rounded < 60) return `${rounded} s`;
  const minutes = Math.floor(rounded / 60);
  return minutes < 60 ? `${minutes} min ${rounded % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  const steps = ["B", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  for (; Math.round(value) >= 1024 && step < steps.length - 1; step++) value /= 1024;
  return `${value.toFixed(step && value < 9.95 ? 1 : 0)} ${steps[step]}`;
}

/** A moment, to the minute, in the reader's own time. */
export function moment(text) {
  if (!text) return NONE;
  const two = (number) => String(number).padStart(2, "0");
  const date = new Date(text);
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

/** Counts of values in equal bins from low to high. */
export function binned(values, bins, low, high) {
  const counts = new Array(bins).fill(0);
  for (const value of values) {
    const place = Math.floor(((value - low) / (high - low || 1)) * bins);
    counts[Math.min(Math.max(place, 0), bins - 1)]++;
  }
  return counts;
}
