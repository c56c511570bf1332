// What has happened since the page was opened, newest first, as far as the tracker told it.

import { isLive } from "./events.js";
import { element, latency, make, quoted, setText, short, shown, when } from "./words.js";

const KEPT = 200;

/** The last events as they came, oldest first. */
const events = [];
/** How many were shown last, of all that ever came. */
let shownUntil = -1;
let came = 0;

export function note(text) {
  events.push(text);
  came += 1;
  if (events.length > KEPT) {
    events.shift();
  }
}

/** Writes the list again if there is more. */
export async function showLog() {
  setText(element("log-live"), isLive() ? "" : "Events do not come at the moment: some may be missing here.");
  if (shownUntil === came) {
    return;
  }
  shownUntil = came;
  element("log-rows").replaceChildren(...events.toReversed().map(row));
  element("log-none").hidden = events.length > 0;
}

function row(text) {
  const event = parsed(text);
  const made = make("tr");
  const kind = shown(event.kind ?? "?", 40).replaceAll("_", " ");
  for (const [part, style] of [
    [when(event.time), "process"],
    [kind, ["kill_requested", "kill_expired", "stale", "embargo", "mass_silence", "store_failing", "reset"].includes(event.kind) ? "asked" : ""],
    [shown(event.app_name ?? ""), "text"],
    [short(event.session_id ?? ""), "id"],
    [described(event), "text"],
  ]) {
    made.append(make("td", style, part));
  }
  made.cells[3].title = shown(event.session_id ?? "");
  return made;
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

function described(event) {
  const parts = [
    ["kill", event.kill_id],
    ["by", event.requested_by],
    ["because", event.reason],
    ["order", event.verb],
    ["status", event.status],
    ["task", event.current_task],
    ["user", event.user_id],
    ["why", event.ended],
    ["after", event.kind === "embargo" || event.seconds == null ? null : latency(event.seconds)],
    ["for", event.kind === "embargo" ? latency(event.seconds) : null],
    ["stale", event.stale],
    ["of", event.sessions],
  ];
  const plain = ["kill", "after", "for", "stale", "of"];
  const known = parts.filter(([, value]) => value != null);
  return known.map(([name, value]) => `${name} ${plain.includes(name) ? shown(value) : quoted(value)}`).join(" · ");
}
