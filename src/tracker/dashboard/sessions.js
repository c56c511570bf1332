// The table of tracked sessions: one page of them, filtered and sorted.
//
// Rows are kept by id over refreshes, so focus, selection and scrolling stay where they are. Only
// what is on the screen can be selected: nobody kills what they do not see.

import { details } from "./details.js";
import { confirmKill, confirmOrder } from "./kills.js";
import { chosenGroup, startList, wantedSessions } from "./list.js";
import { isFresh } from "./live.js";
import { allow } from "./wire.js";
import { bytes, duration, element, groupName, make, processOf, setText, short, shown } from "./words.js";

/** Entries by session id: { session, row, box, cells, opener, detail }. */
const rows = new Map();
/** Ids of the selected sessions. */
const selected = new Set();
/** When the page's own clock showed that the rows came. */
let fetched = 0;

/** Brings the table up to date. */
export async function loadSessions() {
  const sessions = await wantedSessions();
  fetched = performance.now();
  show(sessions);
}

// ---- the table

function show(sessions) {
  const body = element("sessions-rows");
  const present = new Set(sessions.map((session) => session.session_id));
  for (const [id, entry] of rows) {
    if (!present.has(id)) {
      if (entry.row.contains(document.activeElement) || entry.detail?.row.contains(document.activeElement)) {
        // Removing the focus would send it to the top of the page.
        element("select-all").focus();
      }
      entry.detail?.row.remove();
      entry.row.remove();
      rows.delete(id);
      selected.delete(id);
    }
  }
  let place = body.firstElementChild;
  const put = (row) => {
    if (row === place) {
      place = place.nextElementSibling;
    } else {
      body.insertBefore(row, place);
    }
  };
  for (const session of sessions) {
    const entry = rows.get(session.session_id) ?? newRow(session.session_id);
    entry.session = session;
    fill(entry);
    put(entry.row);
    if (entry.detail !== null) {
      entry.detail.show(session);
      put(entry.detail.row);
    }
  }
  showSelection();
}

const CELLS = [
  ["state", "state"],
  ["orders", "state"],
  ["app", "text"],
  ["user", "text"],
  ["task", "text long"],
  ["progress", "number"],
  ["memory", "number wide"],
  ["process", "process roomy"],
  ["version", "text wide"],
  ["labels", "text wide"],
  ["beat", "number"],
  ["since", "number"],
];

function newRow(id) {
  const row = document.createElement("tr");
  const box = make("input");
  box.type = "checkbox";
  box.addEventListener("change", () => select(id, box.checked));
  row.insertCell().append(box);
  const opener = make("button", "id", short(id));
  opener.type = "button";
  opener.title = "Details and actions";
  opener.setAttribute("aria-expanded", "false");
  opener.addEventListener("click", () => toggleDetails(id));
  const head = make("th", "", opener);
  head.scope = "row";
  head.title = id;
  row.append(head);
  const cells = {};
  for (const [name, style] of CELLS) {
    cells[name] = row.insertCell();
    cells[name].className = style;
  }
  row.addEventListener("click", (event) => {
    // A click on the row selects it; one that ends a text selection does not.
    if (!event.target.closest("input, button") && String(getSelection()) === "") {
      select(id, !selected.has(id));
    }
  });
  const entry = { row, box, cells, opener, detail: null, session: null };
  rows.set(id, entry);
  return entry;
}

function fill(entry) {
  const { session, cells, box } = entry;
  box.setAttribute("aria-label", `Select session ${short(session.session_id)} of ${shown(session.app_name, 80)}`);
  setParts(cells.state, state(session));
  setText(cells.app, shown(session.app_name));
  setText(cells.user, shown(session.user_id ?? ""));
  setText(cells.task, shown(session.current_task ?? ""));
  setProgress(cells.progress, session.progress);
  setText(cells.memory, bytes(session.memory_bytes));
  setText(cells.process, processOf(session));
  setText(cells.version, shown(session.version ?? "", 60));
  const labels = Object.entries(session.labels ?? {}).map(([name, value]) => `${shown(name, 60)}=${shown(value, 60)}`);
  setText(cells.labels, shown(labels.join(" ")));
  const orders = (session.verbs ?? []).map((verb) => [shown(verb, 20), "asked"]);
  setParts(cells.orders, session.protected ? [...orders, ["protected", ""]] : orders);
  showAges(entry);
}

/** Its life in one word. */
const stateOf = (session) => session.state ?? (session.is_stale ? "stale" : session.status);

/** What it does, in words with a sign: colour alone tells nothing. */
function state(session) {
  const word = stateOf(session);
  const sign = { running: "▶", idle: "○", late: "◔", stale: "⚠" }[word] ?? "•";
  const own = session.status === word || session.status === "stale" ? "" : ` (${shown(session.status, 40)})`;
  const parts = [[`${sign} ${shown(word, 40)}${own}`, ["running", "late", "stale"].includes(word) ? word : ""]];
  if (session.kill_requested) {
    parts.push([`✕ kill ${shown(session.kill?.state ?? "requested", 20)}`, "asked"]);
  }
  return parts;
}

/** Puts lines into a cell, each with a class, unless they are there already. */
function setParts(cell, parts) {
  const there = [...cell.children].map((part) => [part.textContent, part.className]);
  if (JSON.stringify(there) !== JSON.stringify(parts)) {
    cell.replaceChildren(...parts.map(([text, style]) => make("div", style, text)));
  }
}

function setProgress(cell, progress) {
  if (progress == null) {
    cell.replaceChildren();
    return;
  }
  if (cell.firstElementChild === null) {
    cell.append(make("progress"), make("span"));
  }
  const [bar, text] = cell.children;
  bar.value = progress;
  bar.setAttribute("aria-label", "Progress of the task");
  setText(text, `${Math.round(progress * 100)} %`);
}

/** Lets ages grow while what is known is fresh. */
export function showAllAges() {
  if (isFresh()) {
    rows.forEach(showAges);
  }
}

function showAges({ session, cells }) {
  const since = (performance.now() - fetched) / 1000;
  const beat = session.beat_age_seconds ?? (Date.now() - Date.parse(session.last_heartbeat)) / 1000 - since;
  setText(cells.beat, `${duration(beat + since)} ago`);
  setText(cells.since, `${duration(session.duration_seconds + since)} ago`);
}

function toggleDetails(id) {
  const entry = rows.get(id);
  if (entry.detail === null) {
    entry.detail = details(entry.row.cells.length);
    entry.detail.show(entry.session);
    entry.row.after(entry.detail.row);
  } else {
    entry.detail.row.remove();
    entry.detail = null;
  }
  entry.opener.setAttribute("aria-expanded", String(entry.detail !== null));
}

// ---- selection

function select(id, on) {
  if (on) {
    selected.add(id);
  } else {
    selected.delete(id);
  }
  showSelection();
}

/** Shows what is selected, and what can be done with it and with the chosen app. */
export function showSelection() {
  for (const [id, { row, box }] of rows) {
    box.checked = selected.has(id);
    row.classList.toggle("chosen", box.checked);
  }
  const all = element("select-all");
  all.checked = rows.size > 0 && selected.size === rows.size;
  all.indeterminate = selected.size > 0 && !all.checked;
  const group = chosenGroup();
  for (const [names, possible] of [
    [["kill-selected", "order-selected"], selected.size > 0],
    [["kill-group", "order-group"], group !== null],
  ]) {
    for (const name of names) {
      // A focused button that is disabled would lose the focus to the top of the page.
      if (!possible && document.activeElement === element(name)) {
        all.focus();
      }
      allow(element(name), possible);
    }
  }
  setText(element("kill-selected"), selected.size > 0 ? `Kill selected (${selected.size}) …` : "Kill selected …");
  setText(element("kill-group"), group === null ? "Kill all of an app …" : `Kill all ${groupName(group)} …`);
  for (const { detail } of rows.values()) {
    detail?.showAccess();
  }
}

/** The selected ones, as a target; who has been asked to stop is selected no more. */
const chosen = () => ({
  sessions: [...selected].map((id) => rows.get(id).session),
  asked: (session) => selected.delete(session.session_id),
});

// ---- wiring

/** Up and down go from row to row, Delete asks about killing the selected or this one. */
function onKey(event) {
  const row = event.target.closest("tr");
  const control = event.target.closest("input, button");
  if (row === null || control === null || row.classList.contains("detail")) {
    return;
  }
  const place = [...row.querySelectorAll("input, button")].indexOf(control);
  const all = [...element("sessions-rows").querySelectorAll("tr:not(.detail)")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step !== undefined) {
    event.preventDefault();
    all[all.indexOf(row) + step]?.querySelectorAll("input, button")[place]?.focus();
  } else if (event.key === "Delete") {
    const own = [...rows.values()].find((entry) => entry.row === row);
    confirmKill(selected.size > 0 ? chosen() : { sessions: [own.session] });
  }
}

export function startSessions() {
  startList();
  for (const name of ["app", "label"]) {
    element(name).addEventListener("input", showSelection);
  }
  element("select-all").addEventListener("change", (event) => {
    selected.clear();
    if (event.target.checked) {
      [...rows.keys()].forEach((id) => selected.add(id));
    }
    showSelection();
  });
  element("sessions-rows").addEventListener("keydown", onKey);
  element("kill-selected").addEventListener("click", () => confirmKill(chosen()));
  element("kill-group").addEventListener("click", () => confirmKill(chosenGroup()));
  element("order-selected").addEventListener("click", () => confirmOrder(chosen(), element("verb-selected").value));
  element("order-group").addEventListener("click", () => confirmOrder(chosenGroup(), element("verb-group").value));
}
