// What the tracker tells as it happens: a stream of events, read with `fetch` because only that can
// carry a token. After a break it goes on behind the last event.

import { Refused, send } from "./wire.js";

/** The tracker says something every 15 s. */
const SILENCE = 45_000;
const FIRST_PAUSE = 1_000;
const LONGEST_PAUSE = 30_000;

/** Who hears of each event, and of their beginning and end. */
let listener = { told: () => {}, changed: () => {} };
/** Ends the stream under way, or the pause before the next one; null while nobody listens. */
let following = null;
let isOpen = false;
let lastId = null;

/** Whether events come. */
export const isLive = () => isOpen;

export function listen(wanted) {
  listener = wanted;
}

/** Follows the events until `rest`. */
export async function follow() {
  if (following !== null) {
    return;
  }
  const controller = new AbortController();
  following = controller;
  let pause = FIRST_PAUSE;
  while (following === controller) {
    const began = performance.now();
    try {
      await stream(controller);
    } catch (error) {
      if (error instanceof Refused) {
        // It has no stream to give now, or no token is known.
        pause = LONGEST_PAUSE;
      }
    }
    if (following !== controller) {
      return;
    }
    setOpen(false);
    if (performance.now() - began > LONGEST_PAUSE) {
      pause = FIRST_PAUSE;
    }
    await waited(pause, controller.signal);
    pause = Math.min(2 * pause, LONGEST_PAUSE);
  }
}

/** Hears no more. */
export function rest() {
  following?.abort();
  following = null;
  setOpen(false);
}

/** Does not wait for the end of a pause: the tracker answers, or there is another token. */
export function followAtOnce() {
  if (following !== null && !isOpen) {
    rest();
    follow();
  }
}

function setOpen(open) {
  if (isOpen !== open) {
    isOpen = open;
    listener.changed();
  }
}

/** One stream until it ends; one that says nothing for long is dead. */
async function stream(controller) {
  const silent = new AbortController();
  const end = AbortSignal.any([controller.signal, silent.signal]);
  const die = () => silent.abort();
  let watch = setTimeout(die, SILENCE);
  try {
    const headers = { Accept: "text/event-stream", ...(lastId === null ? {} : { "Last-Event-ID": lastId }) };
    const answer = await send("events", { headers }, () => end);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    setOpen(true);
    let begun = "";
    for (;;) {
      const { done, value } = await reader.read();
      clearTimeout(watch);
      if (done) {
        return;
      }
      watch = setTimeout(die, SILENCE);
      const lines = (begun + value).split("\n");
      begun = lines.pop();
      lines.forEach(readLine);
    }
  } finally {
    clearTimeout(watch);
  }
}

/** A line `field: value`. The data of an event tell all that its other lines do. */
function readLine(line) {
  const [, field, value] = /^([a-z]+): ?(.*?)\r?$/.exec(line) ?? [];
  if (field === "id") {
    lastId = value;
  } else if (field === "data") {
    listener.told(value);
  }
}

function waited(pause, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, pause);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
