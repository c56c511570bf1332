// When the page is brought up to date, and what it says of how fresh it is.
//
// A hidden page rests. What is not known to be fresh is never shown as if it were.

import { follow, followAtOnce, isLive, listen, rest } from "./events.js";
import { element, setText } from "./words.js";
import { Refused, reason } from "./wire.js";

/** However much happens, the lists are read no more often than this. */
const SOONEST = 1_000;
const REMEMBERED = "remuda-refresh-seconds";

let loader = () => Promise.resolve();
let timer = null;
/** A refresh because of an event. */
let soon = null;
let lastBegan = 0;
/** The refresh that is under way; whoever wants another one waits for it. */
let refreshing = null;
/** When the last answer came, and when the first one after it did not. */
let lastAnswer = null;
let missedSince = null;

/** Says what brings the visible part of the page up to date. */
export function setLoader(wanted) {
  loader = wanted;
}

/** Brings the page up to date, then waits for the next time. */
export function refresh() {
  clearTimeout(soon);
  soon = null;
  lastBegan = performance.now();
  refreshing ??= load().finally(() => {
    refreshing = null;
    schedule();
  });
  return refreshing;
}

/** Brings the page up to date with what has just been done: a refresh under way may be older. */
export async function reload() {
  await refreshing;
  await refresh();
}

/** Brings the page up to date because something has happened. */
export function refreshSoon() {
  soon ??= setTimeout(reload, Math.max(50, lastBegan + SOONEST - performance.now()));
}

async function load() {
  try {
    await loader();
    lastAnswer = Date.now();
    if (missedSince !== null) {
      missedSince = null;
      followAtOnce();
    }
    element("trouble").hidden = true;
  } catch (error) {
    missedSince ??= Date.now();
    const since = lastAnswer === null ? "" : ` What you see is from ${new Date(lastAnswer).toLocaleTimeString()}.`;
    const what = error instanceof Refused ? "refuses" : "does not answer";
    // Said once per trouble: screen readers would read each change aloud.
    setText(element("trouble"), `The tracker ${what} (${reason(error)}).${since}`);
    element("trouble").hidden = false;
  }
  showFreshness();
}

const interval = () => Number(element("interval").value);

/** Plans the next refresh, because beats are no events; none while nobody looks. */
function schedule() {
  clearTimeout(timer);
  if (interval() > 0 && !document.hidden) {
    timer = setTimeout(refresh, interval() * 1000);
    follow();
  } else {
    rest();
  }
}

// ---- how fresh it is

/** Whether what is shown may be taken for what is. */
export function isFresh() {
  const age = lastAnswer === null ? Infinity : Date.now() - lastAnswer;
  return missedSince === null && age < Math.max(3 * interval(), 30) * 1000;
}

export function showFreshness() {
  const [word, style] = freshness();
  const shown = element("live");
  setText(shown, word);
  shown.className = style;
  element("main").classList.toggle("old", lastAnswer !== null && !isFresh());
}

function freshness() {
  if (missedSince !== null) {
    return [`✕ offline since ${new Date(missedSince).toLocaleTimeString()}`, "bad"];
  }
  if (lastAnswer === null) {
    return ["connecting …", ""];
  }
  if (!isFresh()) {
    return [`⚠ as of ${new Date(lastAnswer).toLocaleTimeString()}`, "bad"];
  }
  if (isLive()) {
    return ["● live", "running"];
  }
  return [interval() > 0 ? "◐ polling" : "◌ by hand", ""];
}

// ---- wiring

function remember(seconds) {
  try {
    localStorage.setItem(REMEMBERED, seconds);
  } catch {
    // A browser that stores nothing forgets the choice with the page.
  }
}

function recall() {
  try {
    const seconds = localStorage.getItem(REMEMBERED);
    if ([...element("interval").options].some((option) => option.value === seconds)) {
      element("interval").value = seconds;
    }
  } catch {
    // See above.
  }
}

/** `told` hears of every event. */
export function start(told) {
  recall();
  element("refresh").addEventListener("click", reload);
  element("interval").addEventListener("change", (event) => {
    remember(event.target.value);
    schedule();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      schedule();
    } else {
      showFreshness();
      refresh();
    }
  });
  // Also when they end: that tells early that the tracker is gone.
  listen({
    told: (event) => {
      told(event);
      refreshSoon();
    },
    changed: () => {
      showFreshness();
      if (!document.hidden) {
        refreshSoon();
      }
    },
  });
  refresh();
}
