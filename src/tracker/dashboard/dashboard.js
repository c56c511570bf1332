// The page of the tracker: a table of all sessions that refreshes itself, and two ways to kill.
//
// Everything that comes from the tracker is set as text, never as markup. Rows are kept by id over
// refreshes, so focus, selection and scrolling stay where they are.
"use strict";

const REQUEST_TIMEOUT = 10_000;
const REMEMBERED = "remuda-refresh-seconds";
const LISTED = 20;

const element = (id) => document.getElementById(id);

/** Rows by session id: { session, row, box, cells, fetched }. */
const rows = new Map();
/** Ids of the selected sessions. */
const selected = new Set();
let timer = null;
/** The refresh that is under way; whoever wants another one waits for it. */
let refreshing = null;
let lastAnswer = null;

// ---- talking to the tracker

async function ask(method, path) {
  const answer = await fetch(path, {
    method,
    cache: "no-store",
    headers: { Accept: "application/json" },
    signal: AbortSignal.timeout(REQUEST_TIMEOUT),
  });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    throw new Error(typeof body.detail === "string" ? body.detail : `status ${answer.status}`);
  }
  return body;
}

/** Brings the table up to date, then waits for the next time. */
function refresh() {
  refreshing ??= load().finally(() => {
    refreshing = null;
    schedule();
  });
  return refreshing;
}

/** Brings the table up to date with what has just been done: a refresh under way may be older. */
async function reload() {
  await refreshing;
  await refresh();
}

async function load() {
  try {
    const { sessions } = await ask("GET", "sessions");
    if (!Array.isArray(sessions)) {
      throw new Error("it sent no list of sessions");
    }
    lastAnswer = Date.now();
    element("trouble").hidden = true;
    show(sessions);
  } catch (error) {
    const since = lastAnswer === null ? "" : ` What you see is from ${new Date(lastAnswer).toLocaleTimeString()}.`;
    // Said once per trouble: screen readers would read each change aloud.
    setText(element("trouble"), `The tracker does not answer (${reason(error)}).${since}`);
    element("trouble").hidden = false;
  }
}

function reason(error) {
  return error.name === "TimeoutError" ? "no answer in 10 s" : error.message;
}

/** Plans the next refresh; none while nobody looks. */
function schedule() {
  clearTimeout(timer);
  const seconds = Number(element("interval").value);
  if (seconds > 0 && !document.hidden) {
    timer = setTimeout(refresh, seconds * 1000);
  }
}

// ---- the table

function show(sessions) {
  const fetched = performance.now();
  const body = element("sessions");
  const present = new Set(sessions.map((session) => session.session_id));
  for (const [id, entry] of rows) {
    if (!present.has(id)) {
      if (entry.row.contains(document.activeElement)) {
        // Removing the focus would send it to the top of the page.
        element("select-all").focus();
      }
      entry.row.remove();
      rows.delete(id);
      selected.delete(id);
    }
  }
  let place = body.firstElementChild;
  for (const session of sessions) {
    const entry = rows.get(session.session_id) ?? newRow(session.session_id);
    Object.assign(entry, { session, fetched });
    fill(entry);
    if (entry.row === place) {
      place = place.nextElementSibling;
    } else {
      body.insertBefore(entry.row, place);
    }
  }
  element("none").hidden = sessions.length > 0;
  showApps(sessions);
  showSelection();
  showSummary();
}

function newRow(id) {
  const row = document.createElement("tr");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.addEventListener("change", () => select(id, box.checked));
  row.insertCell().append(box);
  const head = document.createElement("th");
  head.scope = "row";
  head.className = "id";
  head.textContent = id.slice(0, 8);
  head.title = id;
  row.append(head);
  const cells = {};
  for (const [name, style] of [
    ["app", "text"],
    ["user", "text"],
    ["status", "status"],
    ["task", "text"],
    ["beat", "number"],
    ["duration", "number"],
    ["process", "process"],
    ["details", "text details"],
  ]) {
    cells[name] = row.insertCell();
    cells[name].className = style;
  }
  row.addEventListener("click", (event) => {
    // A click on the row selects it; one that ends a text selection does not.
    if (event.target !== box && String(getSelection()) === "") {
      select(id, !selected.has(id));
    }
  });
  const entry = { row, box, cells, session: null, fetched: 0 };
  rows.set(id, entry);
  return entry;
}

function fill(entry) {
  const { session, cells, box } = entry;
  box.setAttribute("aria-label", `Select session ${session.session_id.slice(0, 8)} of ${session.app_name}`);
  setText(cells.app, session.app_name);
  setText(cells.user, session.user_id ?? "");
  const [word, style] = status(session);
  setText(cells.status, word);
  cells.status.className = `status ${style}`;
  setText(cells.task, session.current_task ?? "");
  setText(cells.process, [session.host, session.pid].filter((part) => part != null).join(" · "));
  setText(cells.details, details(session));
  showAges(entry);
}

/** What the session does, in words with a sign: colour alone tells nothing. */
function status(session) {
  const own = session.is_stale ? "stale" : String(session.status);
  const sign = { running: "▶ ", idle: "○ ", stale: "⚠ " }[own] ?? "";
  if (session.kill_requested) {
    return [`✕ kill requested (${own})`, "asked"];
  }
  return [sign + own, own === "running" || own === "stale" ? own : ""];
}

function details(session) {
  const labels = Object.entries(session.labels ?? {}).map(([name, value]) => `${name}=${value}`);
  const attached = Object.entries(session.attached ?? {}).map(([name, value]) => `${name}: ${shortened(JSON.stringify(value))}`);
  return [...labels, ...attached].join(" ");
}

function shortened(text) {
  return text.length > 120 ? `${text.slice(0, 119)}…` : text;
}

function showAges({ session, cells, fetched }) {
  const since = (performance.now() - fetched) / 1000;
  const beat = session.beat_age_seconds ?? (Date.now() - Date.parse(session.last_heartbeat)) / 1000 - since;
  setText(cells.beat, `${duration(beat + since)} ago`);
  setText(cells.duration, duration(session.duration_seconds + since));
}

function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (!Number.isFinite(whole)) {
    return "?";
  }
  if (whole < 120) {
    return `${whole} s`;
  }
  const minutes = Math.floor(whole / 60);
  if (minutes < 120) {
    return `${minutes} min ${whole % 60} s`;
  }
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Changes the text only if it is another one, so that a selection in it survives. */
function setText(target, text) {
  if (target.textContent !== text) {
    target.textContent = text;
  }
}

function showSummary() {
  const sessions = [...rows.values()].map((entry) => entry.session);
  const counted = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
  const parts = [counted(sessions.length, "session"), counted(new Set(sessions.map((session) => session.app_name)).size, "app")];
  const stale = sessions.filter((session) => session.is_stale).length;
  const asked = sessions.filter((session) => session.kill_requested).length;
  if (stale > 0) {
    parts.push(`${stale} stale`);
  }
  if (asked > 0) {
    parts.push(`${asked} asked to stop`);
  }
  setText(element("summary"), parts.join(" · "));
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

function showSelection() {
  for (const [id, { row, box }] of rows) {
    box.checked = selected.has(id);
    row.classList.toggle("chosen", box.checked);
  }
  const all = element("select-all");
  all.checked = rows.size > 0 && selected.size === rows.size;
  all.indeterminate = selected.size > 0 && !all.checked;
  const button = element("kill-selected");
  // A focused button that is disabled would lose the focus to the top of the page.
  if (selected.size === 0 && document.activeElement === button) {
    element("select-all").focus();
  }
  button.disabled = selected.size === 0;
  setText(button, selected.size > 0 ? `Kill selected (${selected.size})` : "Kill selected");
}

/** Keeps the list of apps and the choice in it. */
function showApps(sessions) {
  const list = element("app");
  const names = [...new Set(sessions.map((session) => session.app_name))].sort((one, other) => one.localeCompare(other));
  const shown = [...list.options].map((option) => option.value);
  if (names.length !== shown.length || names.some((name, place) => name !== shown[place])) {
    const chosen = list.value;
    list.replaceChildren(...names.map((name) => new Option(name, name)));
    list.value = names.includes(chosen) ? chosen : (names[0] ?? "");
  }
  list.disabled = names.length === 0;
  element("kill-app").disabled = names.length === 0;
}

// ---- kills

function report(text) {
  setText(element("report"), text);
}

async function killSelected() {
  const ids = [...selected];
  const results = await Promise.allSettled(ids.map((id) => ask("POST", `sessions/${encodeURIComponent(id)}/kill`)));
  const failed = results.filter((result) => result.status === "rejected");
  const asked = ids.length - failed.length;
  const trouble = failed.length > 0 ? ` ${failed.length} could not be asked: ${reason(failed[0].reason)}.` : "";
  report(`${asked} of ${ids.length} selected asked to stop.${trouble}`);
  results.forEach((result, place) => result.status === "fulfilled" && selected.delete(ids[place]));
  await reload();
}

function confirmKillAll() {
  const app = element("app").value;
  const victims = [...rows.values()].map((entry) => entry.session).filter((session) => session.app_name === app);
  setText(element("confirm-text"), `${victims.length} of “${app}” are listed now; all that are registered when you confirm will be asked to stop.`);
  const lines = victims.slice(0, LISTED).map((session) => {
    const parts = [session.session_id.slice(0, 8), session.user_id, session.current_task].filter((part) => part != null);
    return parts.join(" · ");
  });
  if (victims.length > LISTED) {
    lines.push(`and ${victims.length - LISTED} more`);
  }
  element("confirm-list").replaceChildren(
    ...lines.map((line) => {
      const item = document.createElement("li");
      item.textContent = line;
      return item;
    }),
  );
  const dialog = element("confirm");
  dialog.dataset.app = app;
  dialog.returnValue = "";
  dialog.showModal();
  element("confirm-no").focus();
}

/** Asks all sessions of an app to stop and returns how many there are. */
async function askAll(app) {
  if (app !== "." && app !== "..") {
    return (await ask("POST", `apps/${encodeURIComponent(app)}/kill-all`)).killed_count;
  }
  // A browser takes these out of a path, however they are written: each session is asked by its id.
  const { sessions } = await ask("GET", "sessions");
  const ids = sessions.filter((session) => session.app_name === app).map((session) => session.session_id);
  await Promise.all(ids.map((id) => ask("POST", `sessions/${encodeURIComponent(id)}/kill`)));
  return ids.length;
}

async function killAll(app) {
  try {
    const count = await askAll(app);
    report(`${count} of “${app}” asked to stop.`);
  } catch (error) {
    report(`“${app}” could not be asked to stop: ${reason(error)}.`);
  }
  await reload();
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

element("refresh").addEventListener("click", reload);
element("interval").addEventListener("change", (event) => {
  remember(event.target.value);
  schedule();
});
element("select-all").addEventListener("change", (event) => {
  for (const id of rows.keys()) {
    if (event.target.checked) {
      selected.add(id);
    } else {
      selected.delete(id);
    }
  }
  showSelection();
});
element("kill-selected").addEventListener("click", killSelected);
element("kill-app").addEventListener("click", confirmKillAll);
element("confirm-no").addEventListener("click", () => element("confirm").close());
element("confirm-yes").addEventListener("click", () => {
  element("confirm").close();
  killAll(element("confirm").dataset.app);
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
setInterval(() => {
  if (!document.hidden) {
    rows.forEach(showAges);
  }
}, 1000);

recall();
refresh();
