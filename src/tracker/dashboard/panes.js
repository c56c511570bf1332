// What else there is to see: kills and their receipts, the history, the audit, the tracker itself.

import { steps } from "./kills.js";
import { reload } from "./live.js";
import { ask } from "./wire.js";
import { counted, duration, element, facts, latency, make, processOf, quoted, setText, short, shown, when } from "./words.js";

/** Rows of a page. */
const PAGE = 50;

/** Writes a table's body again, if it is another one. */
function showRows(body, rows) {
  const fresh = make("tbody", "", ...rows);
  if (fresh.textContent !== body.textContent || fresh.rows.length !== body.rows.length) {
    body.replaceChildren(...fresh.rows);
  }
}

function row(...cells) {
  const made = make("tr");
  for (const [text, style] of cells) {
    made.append(make("td", style, text ?? ""));
  }
  return made;
}

/** Who has asked for something and why, as they said themselves. */
const said = (entry) => [entry.requested_by, entry.reason].filter((part) => part != null).map((part) => shown(part)).join(": ");

/** Who has asked for something, as the tracker knows it: by the token, or else by the address. */
const known = ({ token, role, address } = {}) => [token ?? role, address].filter((part) => part != null).map((part) => shown(part)).join(" from ");

/** Pages of a list that goes on with `before`: buttons to newer and older ones. */
function pager(name, path, filters) {
  /** What the pages up to this one began with. */
  let starts = [null];
  const toStart = () => {
    starts = [null];
    reload();
  };
  let next = null;
  element(`${name}-newer`).addEventListener("click", () => {
    starts.pop();
    reload();
  });
  element(`${name}-older`).addEventListener("click", () => {
    starts.push(next);
    reload();
  });
  for (const filter of filters) {
    element(filter).addEventListener("change", toStart);
  }
  return async (parameters) => {
    const asked = new URLSearchParams({ limit: PAGE, ...parameters });
    if (starts.at(-1) !== null) {
      asked.set("before", starts.at(-1));
    }
    const answer = await ask("GET", `${path}?${asked}`);
    next = answer.next_before ?? null;
    element(`${name}-newer`).disabled = starts.length === 1;
    element(`${name}-older`).disabled = next === null;
    return answer;
  };
}

// ---- kills

let killsPage = null;

export async function loadKills() {
  const parameters = element("kills-open").checked ? { open: 1 } : {};
  if (element("kills-app").value !== "") {
    parameters.app = element("kills-app").value;
  }
  const { kills } = await killsPage(parameters);
  const rows = kills.map((kill) => {
    const made = row(
      [shown(kill.kill_id), "number"],
      [shown(kill.app_name), "text"],
      [short(kill.session_id), "id"],
      [shown(kill.state), kill.state === "confirmed" ? "running" : "asked"],
      [steps(kill), ""],
      [said(kill), "text"],
      [known(kill.asked_by ?? undefined), "text"],
      [shown(kill.scope), ""],
      [shown(kill.told), "number"],
    );
    made.cells[2].title = shown(kill.session_id);
    return made;
  });
  showRows(element("kills-rows"), rows);
  element("kills-none").hidden = rows.length > 0;
}

// ---- the history

let historyPage = null;

export async function loadHistory() {
  const app = element("history-app").value;
  const { history } = await historyPage(app === "" ? {} : { app });
  const rows = history.map((entry) => {
    const why = { left: "left", killed: "killed", silent: "lost to silence", cleaned_up: "cleaned up" }[entry.reason];
    const kill = entry.kill == null ? "" : `kill ${entry.kill.kill_id} ${entry.kill.state}${entry.kill.reason == null ? "" : `: ${entry.kill.reason}`}`;
    const made = row(
      [when(entry.end_time), "process"],
      [shown(entry.app_name), "text"],
      [short(entry.session_id), "id"],
      [shown(entry.user_id ?? ""), "text"],
      [shown(why ?? entry.reason ?? entry.outcome), entry.outcome === "lost" ? "stale" : ""],
      [shown(kill), "text"],
      [shown(entry.current_task ?? ""), "text"],
      [when(entry.start_time), "process wide"],
      [duration(entry.duration_seconds), "number"],
      [processOf(entry), "process wide"],
      [shown(entry.version ?? ""), "text wide"],
    );
    made.cells[2].title = shown(entry.session_id);
    return made;
  });
  showRows(element("history-rows"), rows);
  element("history-none").hidden = rows.length > 0;
}

// ---- the audit

let auditPage = null;

export async function loadAudit() {
  const action = element("audit-action").value;
  let found = { audit: [] };
  try {
    found = await auditPage(action === "" ? {} : { action });
  } catch (error) {
    if (error.status !== 403) {
      throw error;
    }
  }
  const rows = found.audit.map((entry) => {
    const named = [
      entry.session_id == null ? null : short(entry.session_id),
      entry.app_name == null ? null : `all of ${quoted(entry.app_name)}`,
      entry.label == null ? null : `all with ${quoted(entry.label)}`,
    ];
    return row(
      [when(entry.time), "process"],
      [shown(entry.action).replaceAll("_", " "), ""],
      [named.find((part) => part !== null) ?? "", "text"],
      [shown(entry.result).replaceAll("_", " "), entry.result === "done" ? "running" : "asked"],
      [shown(entry.sessions), "number"],
      [known(entry.asked_by ?? undefined), "text"],
      [said(entry), "text"],
    );
  });
  showRows(element("audit-rows"), rows);
  element("audit-none").hidden = rows.length > 0;
}

// ---- the tracker

/** The head of the page, and the tracker's pane. */
export async function loadTracker() {
  const state = await ask("GET", "tracker");
  showSummary(state);
  showNotice(state);
  const lasting = [
    ["Version", shown(state.version)],
    ["Running for", duration(state.uptime_seconds)],
    ["Sessions", `${state.sessions}, ${state.stale} of them stale`],
    ["Mass silence", state.mass_silence == null ? "none" : silence(state.mass_silence)],
    ["Restart grace", state.restart_grace_seconds > 0 ? `nobody is called stale for ${duration(state.restart_grace_seconds)}` : "over"],
    ["Kills since the start", `${state.kills.requested} requested, ${state.kills.open} open, ${state.kills.expired} expired`],
  ];
  const there = element("tracker-facts");
  const fresh = facts(lasting);
  if (fresh.textContent !== there.textContent) {
    there.replaceChildren(fresh);
  }
  showRows(
    element("latency-rows"),
    ["delivered", "stopping", "confirmed"].map((step) => {
      const { count, p50_seconds, p99_seconds } = state.kills[step];
      return row([step, ""], [shown(count), "number"], [latency(p50_seconds) || "–", "number"], [latency(p99_seconds) || "–", "number"]);
    }),
  );
  const embargoes = state.embargoes.map((one) =>
    row([shown(one.app_name), "text"], [duration(one.left_seconds), "number"], [shown(one.requested_by ?? ""), "text"], [shown(one.reason ?? ""), "text"]),
  );
  showRows(element("embargo-rows"), embargoes);
  element("embargo-none").hidden = embargoes.length > 0;
}

/** Whether the database takes changes: without that nobody can be killed. */
export async function loadReadiness() {
  let word = "It takes changes.";
  try {
    await ask("GET", "readyz");
  } catch (error) {
    if (error.status !== 503) {
      throw error;
    }
    word = `It takes no changes: ${shown(error.message)}`;
  }
  setText(element("ready"), word);
}

function showSummary(state) {
  const parts = [counted(state.sessions, "session")];
  if (state.stale > 0) {
    parts.push(`${state.stale} stale`);
  }
  if (state.kills.open > 0) {
    parts.push(`${counted(state.kills.open, "kill")} open`);
  }
  if (state.embargoes.length > 0) {
    parts.push(counted(state.embargoes.length, "embargo").replace(/os$/, "oes"));
  }
  setText(element("summary"), parts.join(" · "));
}

const silence = ({ stale, sessions, since_seconds, ends_in_seconds }) =>
  `${stale} of ${sessions} fell silent ${duration(since_seconds)} ago; nobody is removed for ${duration(ends_in_seconds)}`;

/** What changes how the lists are to be read. Without seconds: screen readers would read each one aloud. */
function showNotice(state) {
  const words = [];
  if (state.mass_silence != null) {
    words.push("Nearly all sessions have fallen silent at once: the network or the tracker may be the cause. Nobody is removed for now.");
  }
  if (state.restart_grace_seconds > 0 && state.sessions > 0) {
    words.push("The tracker has just started: nobody is called stale yet.");
  }
  if (state.embargoes.length > 0) {
    words.push(`New sessions are killed at once: ${state.embargoes.slice(0, 5).map((one) => quoted(one.app_name)).join(", ")}.`);
  }
  setText(element("notice"), words.join(" "));
  element("notice").hidden = words.length === 0;
}

export function startPanes() {
  killsPage = pager("kills", "kills", ["kills-open", "kills-app"]);
  auditPage = pager("audit", "audit", ["audit-action"]);
  historyPage = pager("history", "history", ["history-app"]);
}
