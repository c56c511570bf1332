// Kills and orders: what they would hit is shown first, and what became of the request is said.
//
// They are aimed at `{ sessions }`, rows that the reader has chosen, at `{ app }`, all of an app, or at
// `{ label }`, all with a label, which is a name and a value.

import { allOf } from "./list.js";
import { reload } from "./live.js";
import { ask, forEach, reason } from "./wire.js";
import { counted, element, groupName, latency, make, processOf, quoted, setText, short, shown, when } from "./words.js";

/** So many are named one by one; the others are counted. */
const LISTED = 20;
/** The most sessions of a group with a name that no path can carry. */
const MOST_BY_ID = 1_000;

/** What the open dialog is about: { target, act, generation }. */
let open = null;

// ---- paths

/** A browser takes these out of a path, however they are written. */
const isUnspeakable = ({ app, label = [] }) => [app, ...label].some((part) => part === "." || part === "..");

const ofSession = (id, verb) => `sessions/${encodeURIComponent(id)}/${verb}`;

function ofGroup({ app, label }, verb) {
  const path = app === undefined ? ["labels", ...label] : ["apps", app];
  return `${path.map(encodeURIComponent).join("/")}/${verb}-all`;
}

/** Sessions of a group that no path can name are asked one by one. */
async function resolved(target) {
  if (target.sessions !== undefined || !isUnspeakable(target)) {
    return target;
  }
  return { sessions: await allOf(target, MOST_BY_ID), isGroup: true };
}

const whom = (target) => (target.sessions === undefined ? `all ${groupName(target)}` : counted(target.sessions.length, "session"));

function report(text) {
  setText(element("report"), text);
}

// ---- the kill dialog

/** Asks whether to kill, and shows what that would hit. */
export function confirmKill(target) {
  open = { target, generation: null };
  setText(element("confirm-title"), `Kill ${whom(target)}?`);
  element("kill-fields").hidden = false;
  element("reason").value = "";
  element("embargo").value = "";
  element("embargo-row").hidden = target.app === undefined || isUnspeakable(target);
  element("force").checked = false;
  element("force-row").hidden = true;
  show();
  return preview(open);
}

/** Asks whether to give an order that reaches far. */
export function confirmOrder(target, verb) {
  if (target.sessions !== undefined && verb !== "drain") {
    return order(target, verb);
  }
  const what = {
    pause: "They take no new task until they are resumed.",
    drain: "They finish their task, take no other, and leave.",
    resume: "They go on as if they had never been paused or drained.",
    protect: "No kill of all of an app or a label will reach them.",
    unprotect: "A kill of all of their app or label will reach them again.",
  }[verb];
  open = { target, verb };
  setText(element("confirm-title"), `${verb[0].toUpperCase()}${verb.slice(1)} ${whom(target)}?`);
  element("kill-fields").hidden = true;
  setText(element("confirm-text"), what);
  element("confirm-lists").replaceChildren();
  setText(element("confirm-yes"), `${verb[0].toUpperCase()}${verb.slice(1)}`);
  element("confirm-yes").disabled = false;
  show();
  return Promise.resolve();
}

function show() {
  setText(element("confirm-trouble"), "");
  if (!element("confirm").open) {
    element("confirm").showModal();
  }
  element("confirm-no").focus();
}

/** Fills the dialog with what a kill would hit; until then it cannot be confirmed. */
async function preview(about) {
  const yes = element("confirm-yes");
  yes.disabled = true;
  setText(yes, "Kill");
  setText(element("confirm-text"), "Looking at what that would hit …");
  element("confirm-lists").replaceChildren();
  try {
    const target = await resolved(about.target);
    if (target.isGroup) {
      // As the tracker does it.
      target.sessions = target.sessions.filter((session) => !session.protected);
    }
    const found = target.sessions === undefined ? await previewOfGroup(target) : await previewOfEach(target.sessions);
    if (open !== about) {
      return;
    }
    Object.assign(about, { resolved: target, generation: found.generation });
    showPreview(found);
    setText(yes, `Kill ${found.count}`);
    // An app without sessions may still get an embargo.
    yes.disabled = found.count === 0 && target.app === undefined;
  } catch (error) {
    if (open === about) {
      setText(element("confirm-text"), "");
      setText(element("confirm-trouble"), `What it would hit is not known: ${reason(error)}.`);
    }
  }
}

async function previewOfGroup(target) {
  const found = await ask("POST", ofGroup(target, "kill"), { dry_run: true });
  return { ...found, count: found.sessions.length, isOne: false };
}

/** The previews of the first ones as one. */
async function previewOfEach(sessions) {
  const ids = new Set(sessions.map((session) => session.session_id));
  const looked = sessions.slice(0, LISTED);
  const answers = await forEach(looked, (session) => ask("POST", ofSession(session.session_id, "kill"), { dry_run: true }));
  const failed = answers.find((answer) => answer.status === "rejected" && answer.reason.status !== 404);
  if (failed !== undefined) {
    throw failed.reason;
  }
  const previews = answers.filter((answer) => answer.status === "fulfilled").map((answer) => answer.value);
  const neighbours = previews.flatMap((one) => one.neighbours).filter((neighbour) => !ids.has(neighbour.session_id));
  const distinct = new Map(neighbours.map((neighbour) => [`${neighbour.session_id} ${neighbour.pool}`, neighbour]));
  const guarded = sessions.slice(LISTED).filter((session) => session.protected).map((session) => session.session_id);
  return {
    sessions: previews.flatMap((one) => one.sessions),
    count: sessions.length - (looked.length - previews.length),
    gone: looked.length - previews.length,
    protected: [...previews.flatMap((one) => one.protected), ...guarded],
    neighbours: [...distinct.values()],
    isOne: true,
  };
}

function showPreview(found) {
  const { sessions, count, gone = 0, neighbours, generation, isOne } = found;
  const guarded = found.protected.length;
  const words = [`${counted(count, "session")} would be asked to stop.`];
  if (gone > 0) {
    words.push(`${gone} ${gone === 1 ? "is" : "are"} gone already.`);
  }
  if (guarded > 0) {
    words.push(isOne ? `${guarded} of them protected: only force reaches those.` : `${guarded} protected would go on.`);
  }
  setText(element("confirm-text"), words.join(" "));
  element("force-row").hidden = !(isOne && guarded > 0);
  const lists = [list("", sessions.map(described), count - sessions.length)];
  if (!isOne && guarded > 0) {
    lists.push(list("Protected, would go on:", found.protected.map(short)));
  }
  if (neighbours.length > 0) {
    const said = neighbours.map((one) => `${short(one.session_id)} of ${quoted(one.app_name)}, in the same pool ${quoted(one.pool)}`);
    lists.push(list("Neighbours in shared pools, would go on:", said));
  }
  if (generation !== undefined) {
    lists.push(make("p", "quiet", `Exactly these or nobody (generation ${shown(generation)}).`));
  }
  element("confirm-lists").replaceChildren(...lists);
}

function described(session) {
  const { session_id, app_name, user_id, current_task, kill_requested, leases = [] } = session;
  const words = [short(session_id), `of ${quoted(app_name)}`];
  if (user_id != null) {
    words.push(`· user ${quoted(user_id)}`);
  }
  if (current_task != null) {
    words.push(`· task ${quoted(current_task)}`);
  }
  if (processOf(session) !== "") {
    words.push(`· process ${processOf(session)}`);
  }
  if (kill_requested) {
    words.push("· asked to stop already");
  }
  const held = leases.slice(0, LISTED).map((lease) => {
    const holder = lease.holder == null ? "" : `, held by ${shown(JSON.stringify(lease.holder), 100)}`;
    return `worker ${lease.pid ?? "?"} of pool ${quoted(lease.pool)}${holder}`;
  });
  return leases.length === 0 ? words.join(" ") : [words.join(" "), list("", held, leases.length - held.length)];
}

/** A list with what stands above it and how many more there are. */
function list(title, lines, more = 0) {
  const items = lines.slice(0, LISTED).map((line) => make("li", "", ...[line].flat()));
  const left = more + Math.max(0, lines.length - LISTED);
  if (left > 0) {
    items.push(make("li", "quiet", `and ${left} more`));
  }
  return make("div", "", ...(title === "" ? [] : [make("p", "", title)]), make("ul", "", ...items));
}

// ---- doing it

async function confirmed() {
  const about = open;
  if (about === null || element("confirm-yes").disabled) {
    return;
  }
  if (about.verb !== undefined) {
    close();
    await order(about.target, about.verb);
    return;
  }
  element("confirm-yes").disabled = true;
  const request = { requested_by: element("by").value.trim() || "dashboard" };
  const why = element("reason").value.trim();
  if (why !== "") {
    request.reason = why;
  }
  try {
    const isGroup = about.resolved.sessions === undefined;
    report(isGroup ? await killGroup(about, request) : await killEach(about.resolved, { ...request, force: element("force").checked }));
    close();
  } catch (error) {
    if (error.reason === "stale_generation" && open === about) {
      await preview(about);
      setText(element("confirm-trouble"), "Nobody was killed: the sessions were others by then. This is what it would hit now.");
      element("confirm-no").focus();
      return;
    }
    setText(element("confirm-trouble"), `Nobody was killed: ${reason(error)}.`);
    element("confirm-yes").disabled = false;
    return;
  }
  await reload();
}

async function killGroup({ resolved: target, generation }, request) {
  const embargo = element("embargo").value === "" ? {} : { embargo_seconds: Number(element("embargo").value) };
  const killed = await ask("POST", ofGroup(target, "kill"), { ...request, ...embargo, generation });
  const guarded = killed.protected?.length ?? 0;
  const words = [`${killed.killed_count} ${groupName(target)} asked to stop.`];
  if (guarded > 0) {
    words.push(`${guarded} protected ${guarded === 1 ? "goes" : "go"} on.`);
  }
  if (embargo.embargo_seconds > 0) {
    words.push(`Whoever comes within ${embargo.embargo_seconds} s is killed at once.`);
  }
  return words.join(" ");
}

async function killEach({ sessions, asked }, request) {
  const results = await forEach(sessions, (session) => ask("POST", ofSession(session.session_id, "kill"), request));
  results.forEach((result, place) => result.status === "fulfilled" && asked?.(sessions[place]));
  return told(results, "asked to stop");
}

async function order(target, verb) {
  const done = { pause: "told to pause", drain: "told to drain", resume: "told to resume", protect: "protected now", unprotect: "protected no more" }[verb];
  try {
    const whole = await resolved(target);
    if (whole.sessions !== undefined) {
      const { sessions } = whole;
      report(told(await forEach(sessions, (session) => ask("POST", ofSession(session.session_id, verb))), done));
    } else {
      const { session_ids } = await ask("POST", ofGroup(whole, verb));
      report(`${session_ids.length} ${groupName(whole)} ${done}.`);
    }
  } catch (error) {
    report(`Nobody was ${done}: ${reason(error)}.`);
  }
  await reload();
}

/** What became of many requests: how many succeeded, and why others did not. */
function told(results, done) {
  const refusals = new Map();
  for (const result of results.filter((one) => one.status === "rejected")) {
    const why = result.reason.status === 404 ? "gone already" : reason(result.reason);
    refusals.set(why, (refusals.get(why) ?? 0) + 1);
  }
  const succeeded = results.filter((result) => result.status === "fulfilled").length;
  const rest = [...refusals].map(([why, count]) => ` ${count} not: ${why}.`);
  return `${succeeded} of ${results.length} ${done}.${rest.join("")}`;
}

function close() {
  open = null;
  element("confirm").close();
}

// ---- receipts

/** How far a kill is, step by step. */
export function steps(kill) {
  const made = ["requested", "delivered", "stopping", "confirmed", "expired"]
    .filter((step) => kill[`${step}_at`] != null)
    .map((step) => {
      const after = step === "requested" ? when(kill.requested_at) : `+${latency(kill[`${step}_seconds`])}`;
      const item = make("li", step === kill.state ? "reached" : "", `${step} ${after}`);
      item.title = when(kill[`${step}_at`]);
      return item;
    });
  const ended = kill.state === "confirmed" || kill.state === "expired";
  return make("ol", "steps", ...made, ...(ended ? [] : [make("li", "quiet", "…")]));
}

export function startKills() {
  element("confirm-no").addEventListener("click", close);
  element("confirm").addEventListener("close", () => {
    // It is told late: the dialog may be open again, about something else.
    if (!element("confirm").open) {
      open = null;
    }
  });
  element("confirm-form").addEventListener("submit", (event) => {
    event.preventDefault();
    confirmed();
  });
}
