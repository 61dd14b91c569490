// The view of a fit under way, or ended.

import { callJson, getJson } from "./api.js";
import { lossChart } from "./charts.js";
import { alertPlace, atMostEvery, disabledFor, h, heading, panel, stat, tell } from "./element.js";
import { follow } from "./events.js";
import { figure, percent, seconds, whole } from "./numbers.js";
import { linkTo } from "./router.js";

const ENDED = ["succeeded", "failed", "cancelled"];
const MOST_POINTS = 500; // of the loss, as in app/jobs/attempt.py
const REDRAW_MS = 1000; // between two pictures of it

export async function show(content, [id], signal) {
  const path = `jobs/${encodeURIComponent(id)}`;
  let job = await getJson(path, { signal });
  const cancel = h("button", { type: "button", class: "danger", onclick: () => disabledFor(cancel, end) }, "Cancel");
  const actions = h("span", { class: "actions" });
  const alert = alertPlace();
  const told = h("p", { role: "status", "aria-live": "polite" });
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Iterations of the most" });
  const figures = h("dl", { class: "figures" });
  const chart = lossChart(signal);
  let points = job.loss_history;
  const redraw = atMostEvery(REDRAW_MS, () => chart.show(...columns(points)));
  content.append(heading(`Fit of ${job.name}`, cancel, actions), alert,
    h("section", { class: "panel", "aria-label": "Progress" }, told, bar), figures, panel("Loss", chart.element),
    panel("Parameters", h("dl", { class: "facts" }, Object.entries(job.parameters).flatMap(([name, value]) =>
      [h("dt", {}, name), h("dd", {}, String(value ?? "–"))]))));
  draw();
  redraw();
  if (ENDED.includes(job.state)) return;
  watch();

  async function watch() {
    try {
      take(await follow(id, { signal, onprogress, onback: async () => take(await getJson(path, { signal })) }));
      actions.querySelector("a")?.focus();
    } catch (error) {
      tell(alert, error);
    }
  }

  function onprogress({ state = "running", ...progress }, attempts) {
    const before = job.progress.iteration;
    if (attempts === job.attempts && progress.iteration <= before) { // known, as it is of a fit that waits for its turn
      if (state === job.state) return;
      progress = job.progress;
    }
    job = { ...job, state, progress, attempts };
    if (progress.iteration < before) points = points.filter(([iteration]) => iteration < progress.iteration); // it began anew
    if (progress.loss !== null) points = thinned([...points, [progress.iteration, progress.loss]]);
    draw();
    redraw();
  }

  /** Another record of it, with the losses until then. */
  function take(record) {
    job = record;
    points = job.loss_history;
    draw();
    redraw();
  }

  async function end() {
    try {
      job = await callJson("POST", `${path}/cancel`, { signal });
      draw();
    } catch (error) {
      tell(alert, error);
    }
  }

  function draw() {
    const { progress, state } = job;
    const hasEnded = ENDED.includes(state);
    const words = h("span", { class: `state ${state}` }, state);
    const rest = state === "running" ? `: iteration ${whole(progress.iteration)} of at most ${whole(progress.max_iter)}`
      + (progress.eta_seconds ? `, at most ${seconds(progress.eta_seconds)} to go` : "")
      : state === "queued" ? ": it waits for its turn"
      : state === "succeeded" ? ` after ${whole(progress.iteration)} iterations, in ${seconds(progress.seconds)}`
        + (progress.iteration === progress.max_iter && !job.parameters.online ? ": all that it was given, so that it may not have settled" : "") : "";
    told.replaceChildren(words, rest, job.attempts > 1 ? ` (attempt ${job.attempts}: it was interrupted)` : "");
    bar.value = state === "succeeded" ? 1 : progress.iteration / progress.max_iter;
    figures.replaceChildren(
      stat("Iteration", whole(progress.iteration)), stat("Loss", figure(progress.loss)),
      stat("Relative error", percent(progress.relative_error)), stat("KKT residual", figure(progress.kkt_residual)),
      stat("Time", seconds(progress.seconds)), stat("To go, at most", hasEnded ? "–" : seconds(progress.eta_seconds)));
    cancel.hidden = hasEnded;
    if (!hasEnded) return;
    if (state === "succeeded") {
      const name = `${job.name}@${job.version}`;
      actions.replaceChildren(h("a", { class: "button primary", href: linkTo("dictionaries", name) }, `Look at ${name}`));
    } else {
      actions.replaceChildren(h("a", { class: "button", href: "#/fit" }, "Back to the form"));
    }
    if (job.error) tell(alert, Object.assign(new Error(job.error.detail), job.error));
  }
}

/** Every second point, once there are too many; the last always stays. */
const thinned = (points) => (points.length > MOST_POINTS ? points.filter((_, at) => at % 2 === 0 || at === points.length - 1) : points);

const columns = (points) => [points.map(([x]) => x), points.map(([, y]) => y)];
