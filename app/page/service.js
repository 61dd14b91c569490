// The view of the service's state: workers, queue, rates, jobs. Looked at anew every few seconds.

import { Problem, call, callJson, getJson, parsed, problemOf } from "./api.js";
import { alertPlace, disabledFor, h, heading, panel, stat, tell } from "./element.js";
import { bytes, figure, moment, percent, seconds, whole } from "./numbers.js";
import { linkTo } from "./router.js";
import { Table } from "./table.js";

const LOOK_MS = 2000;
const JOBS = 100; // of the newest
const COUNTERS = ["dictserve_requests_total", "dictserve_rows_total"];
const NO_TOKEN = [401, 403]; // or one that does not do
const ENDED = ["succeeded", "failed", "cancelled"];
const AWAY = { jobs: "the jobs' database", store: "the object store" }; // as /readyz names them

export async function show(content, _, signal) {
  const [alert, wrong] = [alertPlace(), alertPlace()]; // of a look, until the next one; of what was done in the table
  const state = h("p", { role: "status" });
  const figures = h("dl", { class: "figures" });
  const why = h("p", { class: "muted" });
  const unread = h("p", { class: "alert" }); // without its role: it would be read out with each look
  const older = h("p", { class: "muted" });
  const workers = table("Workers", "workers", [
    { title: "Device", value: (w) => w.device },
    { title: "Process", isNumber: true, value: (w) => w.pid, cell: (w) => w.pid ?? "starting" },
    { title: "Fitting", value: (w) => (w.is_fitting ? "yes" : "no") },
    { title: "Heard of", isNumber: true, value: (w) => w.heartbeat_age_seconds, cell: (w) => `${seconds(w.heartbeat_age_seconds)} ago` },
    { title: "Restarts", isNumber: true, value: (w) => w.restarts },
    { title: "The one before", value: (w) => w.last_end, cell: (w) => w.last_end ?? "–" },
    { title: "Device memory", isNumber: true, value: (w) => w.device_allocated_bytes, cell: (w) =>
      (w.device_total_bytes ? `${bytes(w.device_allocated_bytes)} of ${bytes(w.device_total_bytes)}` : "– (no GPU)") },
    { title: "Prepared", isNumber: true, value: (w) => w.cached_dictionaries, cell: (w) => `${w.cached_dictionaries ?? 0}, ${bytes(w.cached_bytes ?? 0)}` },
  ]);
  const jobs = table("Jobs, newest first", "jobs", [
    { title: "Dictionary", value: (j) => j.name, cell: (j) => h("a", { href: linkTo("jobs", j.id) }, j.name + (j.version ? `@${j.version}` : "")) },
    { title: "State", value: (j) => j.state, cell: (j) => h("span", { class: `state ${j.state}` }, j.state) },
    { title: "Progress", isNumber: true, value: (j) => j.progress.iteration, cell: (j) => `${whole(j.progress.iteration)} of ${whole(j.progress.max_iter)}` },
    { title: "Time", isNumber: true, value: (j) => j.progress.seconds, cell: (j) => seconds(j.progress.seconds) },
    { title: "Made", value: (j) => j.created_at, cell: (j) => moment(j.created_at) },
    { title: "Action", cell: (j) => h("button", { type: "button", class: "quiet", "aria-label": `${ENDED.includes(j.state) ? "Remove the record of" : "Cancel"} the fit of ${j.name}`,
      onclick: (event) => end(j, event.target) }, ENDED.includes(j.state) ? "remove" : "cancel") },
  ]);
  content.append(heading("Service"), alert, h("section", { class: "panel", "aria-label": "State" }, state, figures, why),
    panel("Workers", workers.element), panel("Jobs", wrong, unread, jobs.element, older));
  let before = null;
  let isRefused = false;
  let looking = null;
  let told = "";
  let timer;
  signal.addEventListener("abort", () => clearInterval(timer));
  await watch();

  async function watch() {
    timer = setInterval(() => document.hidden || looking || tryLook(), LOOK_MS);
    await tryLook();
  }

  async function tryLook() {
    try {
      await look();
    } catch (error) {
      if (signal.aborted) return;
      tell(alert, error);
      if (!NO_TOKEN.includes(error.status)) return;
      clearInterval(timer); // else the dialog for a token, which was closed, would come again and again
      alert.append(h("p", {}, h("button", { type: "button", onclick: () => {
        alert.replaceChildren();
        watch();
      } }, "Try again")));
    }
  }

  function look() {
    looking ??= all().finally(() => { looking = null; });
    return looking;
  }

  async function all() {
    // One after the other: of two at once, one that fails would leave the other trying, and so would each look anew.
    // Only the first is tried until it is answered: what the others lack must not hold up what is told of the workers.
    const { status, workers: each, away = [] } = await call("GET", "readyz", { signal, read: readiness });
    alert.replaceChildren();
    state.replaceChildren(h("span", { class: `state ${status === "ready" ? "succeeded" : "failed"}` }, status),
      `: ${each.length === 1 ? "one worker" : `${each.length} workers`}`, without(away));
    fill(workers, each);
    const now = isRefused ? null : await counted();
    if (COUNTERS.some((name) => now?.figures[name] < before?.figures[name])) before = null; // the service began anew
    if (now) figures.replaceChildren(...drawn(now, before));
    before = now;
    await listed();
  }

  /** The newest jobs; where they cannot be read, which is said, those that were read before stay. */
  async function listed() {
    try {
      const list = await getJson(`jobs?limit=${JOBS}`, { signal, repeatable: false });
      unread.textContent = "";
      if (changed(list.jobs)) fill(jobs, list.jobs);
      older.textContent = list.next ? `These are the newest ${JOBS}.` : "";
    } catch (error) {
      if (!(error instanceof Problem) || !error.status || NO_TOKEN.includes(error.status)) throw error;
      unread.textContent = `${jobs.element.hidden ? "No jobs" : "As last read"}: /jobs says “${error.message}”.`;
    }
  }

  function changed(list) { // a table that is drawn anew takes the focus from whoever is in it
    const text = JSON.stringify(list);
    const is = text !== told;
    told = text;
    return is;
  }

  /** The figures of /metrics; none where they cannot be read, which is said. Where they may not, that is the end of it. */
  async function counted() {
    try {
      const told = await call("GET", "metrics", { signal, repeatable: false, read: metrics });
      why.textContent = "";
      return { at: performance.now(), figures: told };
    } catch (error) {
      if (!(error instanceof Problem) || !error.status || error.status === 401) throw error;
      why.textContent = `No rates: /metrics says “${error.message}”.`;
      isRefused = NO_TOKEN.includes(error.status);
      return null;
    }
  }

  /** Cancel a fit or, where the table says that it has ended, remove its record. One that ends meanwhile keeps it. */
  async function end(job, button) {
    const path = `jobs/${encodeURIComponent(job.id)}`;
    wrong.replaceChildren();
    await disabledFor(button, async () => {
      try {
        if (ENDED.includes(job.state)) await call("DELETE", path, { signal });
        else await callJson("POST", `${path}/cancel`, { signal });
        await tryLook();
      } catch (error) {
        tell(wrong, error);
      }
    }, jobs.element.querySelector("[role=region]"));
  }
}

/** What /readyz tells, which it does with 503 as well where no worker takes work. */
async function readiness(answer) {
  const told = parsed(await answer.clone().text());
  if (!Array.isArray(told?.workers)) throw await problemOf(answer);
  return told;
}

async function metrics(answer) {
  const told = summed(answer.ok ? await answer.clone().text() : "");
  if (!Object.keys(told).length) throw await problemOf(answer);
  return told;
}

/** What is away, in words behind the workers. */
function without(away) {
  const words = away.map((name) => AWAY[name] ?? name).join(" and ");
  return words && `; ${words} ${away.length === 1 ? "is" : "are"} away`;
}

/** A table that is hidden until it is filled: of what could not be read it would say that there is none. */
function table(caption, what, columns) {
  const made = new Table({ caption, what, columns, rows: [], page: 25 });
  made.element.hidden = true;
  return made;
}

function fill(made, rows) {
  made.renew(rows);
  made.element.hidden = false;
}

/** Sums over the labels of each figure in Prometheus' text. */
function summed(text) {
  const sums = {};
  for (const line of text.split("\n")) {
    const match = /^(dictserve_\w+)(?:\{.*\})? (\S+)$/.exec(line);
    if (match) sums[match[1]] = (sums[match[1]] ?? 0) + Number(match[2]);
  }
  return sums;
}

function drawn({ at, figures: now }, before) {
  const rate = (name) => (before ? `${figure(Number((1000 * (now[name] - (before.figures[name] ?? 0)) / (at - before.at)).toFixed(1)))} /s` : "…");
  const free = now.dictserve_store_free_bytes;
  return [
    stat("Requests", rate("dictserve_requests_total"), `${whole(now.dictserve_requests_total)} since it started, this page's among them.`),
    stat("Rows solved", rate("dictserve_rows_total"), `${whole(now.dictserve_rows_total)} since it started.`),
    stat("Queue", `${whole(now.dictserve_queue_rows)} rows`, `${bytes(now.dictserve_queue_bytes)} of requests and answers wait for a worker.`),
    stat("Workers' memory", bytes(now.dictserve_worker_resident_bytes), "Of the machine, not of a GPU."),
    stat("Room in the store", free === undefined ? "–" : bytes(free), free === undefined ? "It cannot be read." : `${percent(free / now.dictserve_store_size_bytes)} of its file system.`),
  ];
}
