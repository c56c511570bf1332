// All that is known of one session, in a row below its own, and what can be done with it.

import { confirmKill, confirmOrder, steps } from "./kills.js";
import { filterByLabel } from "./list.js";
import { allow } from "./wire.js";
import { bytes, button, facts, make, processOf, quoted, shown, when } from "./words.js";

/** The longest text of a snapshot that is shown. */
const LONGEST_SNAPSHOT = 4_000;

/** A row for details: `show` fills it. */
export function details(columns) {
  const known = make("div");
  const actions = make("div", "bar");
  const cell = make("td", "", known, actions);
  cell.colSpan = columns;
  const row = make("tr", "detail", cell);
  const opened = new Set();
  let now = null;
  let said = "";
  const one = () => ({ sessions: [now] });
  const buttons = [
    button("Kill …", () => confirmKill(one()), "danger"),
    ...["pause", "drain", "resume", "protect", "unprotect"].map((verb) =>
      button(verb[0].toUpperCase() + verb.slice(1), () => confirmOrder(one(), verb)),
    ),
    button("", () => confirmKill({ app: now.app_name }), "danger"),
  ];
  actions.append(...buttons);
  const showAccess = () => buttons.forEach((target) => allow(target, true));
  showAccess();
  const show = (session) => {
    now = session;
    const { beat_age_seconds, duration_seconds, last_heartbeat, ...lasting } = session;
    // Only what has changed is written again, so that a text selection survives.
    const text = JSON.stringify(lasting);
    if (text !== said) {
      said = text;
      known.replaceChildren(...described(session, opened));
      buttons.at(-1).textContent = `Kill all of ${quoted(session.app_name)} …`;
    }
  };
  return { row, show, showAccess };
}

function described(session, opened) {
  const labels = Object.entries(session.labels ?? {}).map(([name, value]) => {
    const filter = button(`${shown(name)} = ${shown(value)}`, () => filterByLabel(name, value), "label");
    filter.title = "Show all with this label";
    return filter;
  });
  const parts = [
    facts([
      ["Session", shown(session.session_id)],
      ["App", shown(session.app_name, 2_000)],
      ["User", shown(session.user_id ?? "", 2_000)],
      ["Started", when(session.start_time)],
      ["Process", processOf(session)],
      ["Version", shown(session.version ?? "")],
      ["Memory", bytes(session.memory_bytes)],
      ["Status", shown(session.status)],
      ["Task", shown(session.current_task ?? "", 2_000)],
      ["Labels", labels.length === 0 ? null : make("span", "", ...labels)],
    ]),
  ];
  if (session.kill != null) {
    parts.push(make("p", "", `Kill ${shown(session.kill.kill_id)}: `, steps(session.kill)));
  }
  for (const [name, snapshot] of Object.entries(session.attached ?? {})) {
    const lines = JSON.stringify(snapshot, null, 1).slice(0, LONGEST_SNAPSHOT).split("\n");
    const text = make("pre", "", lines.map((line) => shown(line, LONGEST_SNAPSHOT)).join("\n"));
    text.tabIndex = 0;
    const fold = make("details", "", make("summary", "", `Attached: ${shown(name)}`), text);
    fold.open = opened.has(name);
    fold.addEventListener("toggle", () => (fold.open ? opened.add(name) : opened.delete(name)));
    parts.push(fold);
  }
  return parts;
}
