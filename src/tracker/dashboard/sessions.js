// The table of tracked sessions: one page of them, filtered and sorted.
//
// Rows are kept by id over refreshes, so focus, selection and scrolling stay where they are. Only
// what is on the screen can be selected: nobody kills what they do not see.

import { details } from "./details.js";
import { confirmKill, confirmOrder } from "./kills.js";
import { isFresh, reload } from "./live.js";
import { allow, ask } from "./wire.js";
import { bytes, counted, duration, element, make, processOf, quoted, setText, short, shown } from "./words.js";

/** So many apps are offered to choose from; others are found by typing. */
const MOST_APPS = 500;

/** Entries by session id: { session, row, box, cells, opener, detail }. */
const rows = new Map();
/** Ids of the selected sessions. */
const selected = new Set();
/** The apps that were seen. */
const apps = new Set();
/** What is asked for; the filters are read from their fields. */
const view = { sort: "-start_time", page: 0 };
/** When the page's own clock showed that the rows came. */
let fetched = 0;

// ---- reading

/** Brings the table up to date. */
export async function loadSessions() {
  const { sessions, total } = await wantedPage();
  fetched = performance.now();
  show(sessions);
  showPlace(sessions.length, total);
}

/** How a session's rows are compared, by the name of the column. */
const SORTED_BY = {
  start_time: (session) => session.start_time,
  state: (session) => stateOf(session),
  app_name: (session) => session.app_name,
  user_id: (session) => session.user_id,
  current_task: (session) => session.current_task,
  progress: (session) => session.progress,
  memory_bytes: (session) => session.memory_bytes,
  last_heartbeat: (session) => session.last_heartbeat,
};

async function wantedPage() {
  const { sessions } = await ask("GET", "sessions");
  if (!Array.isArray(sessions)) {
    throw new Error("it sent no list of sessions");
  }
  sessions.forEach((session) => apps.size < MOST_APPS && apps.add(session.app_name));
  const found = sessions.filter(isWanted);
  const [key, way] = view.sort.startsWith("-") ? [view.sort.slice(1), -1] : [view.sort, 1];
  const value = SORTED_BY[key];
  found.sort((one, other) => way * compare(value(one), value(other)));
  const size = Number(element("size").value);
  view.page = Math.min(view.page, Math.max(0, Math.ceil(found.length / size) - 1));
  return { sessions: found.slice(view.page * size, (view.page + 1) * size), total: found.length };
}

function isWanted(session) {
  const [text, state, app] = ["q", "state", "app"].map((id) => element(id).value);
  if ((state !== "" && stateOf(session) !== state) || (app !== "" && session.app_name !== app)) {
    return false;
  }
  const { session_id, app_name, user_id, current_task, host, pid, version } = session;
  const all = [session_id, app_name, user_id, current_task, host, pid, version, ...Object.entries(session.labels ?? {}).flat()];
  return all.some((part) => part != null && String(part).toLowerCase().includes(text.toLowerCase()));
}

function compare(one, other) {
  if (one == null || other == null) {
    return (one == null) - (other == null);
  }
  return typeof one === "number" ? one - other : String(one).localeCompare(String(other));
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
  showApps();
  showSelection();
}

const CELLS = [
  ["state", "state"],
  ["orders", "state"],
  ["app", "text"],
  ["user", "text"],
  ["task", "text long"],
  ["progress", "number"],
  ["memory", "number roomy"],
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

/** Where in the whole list this page is. */
function showPlace(count, total) {
  const first = view.page * Number(element("size").value);
  const filtered = ["q", "state", "app"].some((id) => element(id).value !== "");
  setText(element("place"), count === 0 ? "" : `${first + 1}–${first + count} of ${total}${filtered ? " that match" : ""}`);
  element("previous").disabled = view.page === 0;
  element("next").disabled = first + count >= total;
  element("none").hidden = count > 0 || filtered;
  element("no-match").hidden = count > 0 || !filtered;
}

// ---- selection and the app

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
  const app = element("app").value;
  for (const [names, possible] of [
    [["kill-selected", "order-selected"], selected.size > 0],
    [["kill-app", "order-app"], app !== ""],
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
  setText(element("kill-app"), app === "" ? "Kill all of an app …" : `Kill all of ${quoted(app)} …`);
  for (const { detail } of rows.values()) {
    detail?.showAccess();
  }
}

/** The selected ones, as a target; who has been asked to stop is selected no more. */
const chosen = () => ({
  sessions: [...selected].map((id) => rows.get(id).session),
  asked: (session) => selected.delete(session.session_id),
});

/** Keeps the list of apps and the choice in it. */
function showApps() {
  const list = element("app");
  const names = [...apps].sort((one, other) => one.localeCompare(other));
  const there = [...list.options].slice(1).map((option) => option.value);
  if (names.length !== there.length || names.some((name, place) => name !== there[place])) {
    const value = list.value;
    list.replaceChildren(list.options[0], ...names.map((name) => new Option(shown(name, 80), name)));
    list.value = value;
  }
}

// ---- wiring

function viewFromStart() {
  view.page = 0;
  reload();
}

function sortBy(key) {
  view.sort = view.sort === key ? `-${key}` : key;
  for (const head of document.querySelectorAll("[data-sort]")) {
    const way = view.sort === head.dataset.sort ? "ascending" : view.sort === `-${head.dataset.sort}` ? "descending" : null;
    if (way === null) {
      head.closest("th").removeAttribute("aria-sort");
    } else {
      head.closest("th").setAttribute("aria-sort", way);
    }
  }
  viewFromStart();
}

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
  let typing = null;
  element("q").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(viewFromStart, 200);
  });
  for (const name of ["state", "app", "size"]) {
    element(name).addEventListener("change", viewFromStart);
  }
  element("app").addEventListener("change", showSelection);
  for (const head of document.querySelectorAll("[data-sort]")) {
    head.addEventListener("click", () => sortBy(head.dataset.sort));
  }
  for (const [name, step] of [["previous", -1], ["next", 1]]) {
    element(name).addEventListener("click", () => {
      view.page += step;
      reload();
    });
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
  element("kill-app").addEventListener("click", () => confirmKill({ app: element("app").value }));
  element("order-selected").addEventListener("click", () => confirmOrder(chosen(), element("verb-selected").value));
  element("order-app").addEventListener("click", () => confirmOrder({ app: element("app").value }, element("verb-app").value));
}
