// A job's progress as it comes: server-sent events read by fetch, since only that can send the token.

import { Problem, call, notice, pause } from "./api.js";

const QUIET_SECONDS = 40; // without so much as a keep-alive: the connection is taken for lost

/**
 * Follow a job to its end; resolves to its last record. After an interruption it goes on behind what has been told.
 *
 * There is no stream while the tab is hidden: a browser has six connections to a host for all of its tabs, and as many
 * tabs that follow fits would leave none for anything else.
 *
 * onprogress: called with each `progress`, and the number of the attempt that it is of.
 * onback: awaited once the tab is shown again, before the fit is followed on.
 */
export async function follow(id, { signal, onprogress, onback, waiting = notice }) {
  let last = "";
  for (let tries = 0; ; tries++) {
    if (document.hidden) {
      await shown(signal);
      await onback();
    }
    try {
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const answer = await call("GET", `jobs/${encodeURIComponent(id)}/events`, { signal, headers, waiting });
      waiting("");
      for await (const event of eventsOf(answer.body)) {
        tries = 0;
        last = event.id ?? last;
        if (event.event === "end") return JSON.parse(event.data);
        if (event.event === "progress") onprogress(JSON.parse(event.data), Number(last.split("-")[0]));
      }
    } catch (error) {
      if (signal.aborted || (error instanceof Problem && error.status)) throw error;
    }
    if (signal.aborted) throw new DOMException("left", "AbortError");
    if (document.hidden) continue;
    const lost = { title: "The connection was lost", message: "the fit goes on all the same" };
    await pause(Math.min(1 + tries, 10), lost, signal, waiting);
  }
}

/** Resolves once a hidden tab is shown; not at all where the view is left before. */
function shown(signal) {
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", resolve, { signal, once: true });
  });
}

/**
 * Events of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html), as objects of their fields; to
 * its end, or until the tab is hidden.
 */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const end = () => reader.cancel().catch(() => {});
  const hide = () => document.hidden && end();
  document.addEventListener("visibilitychange", hide);
  let text = "";
  try {
    hide();
    for (;;) {
      const { done, value } = await within(QUIET_SECONDS, reader.read());
      if (done) return;
      text = (text + value).replaceAll("\r\n", "\n");
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        yield Object.fromEntries(event.split("\n").map((line) => {
          const at = line.indexOf(":");
          return [line.slice(0, at), line.slice(at + 1).trimStart()];
        }));
      }
    }
  } finally {
    document.removeEventListener("visibilitychange", hide);
    end();
  }
}

function within(seconds, promise) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error("quiet")), 1000 * seconds); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
