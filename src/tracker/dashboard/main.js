// The page of the tracker: which part of it is shown, and what is wired to what.

import { followAtOnce, rest } from "./events.js";
import { startKills } from "./kills.js";
import { reload, setLoader, showFreshness, start } from "./live.js";
import { note, showLog } from "./log.js";
import { loadAudit, loadHistory, loadKills, loadReadiness, loadTracker, startPanes } from "./panes.js";
import { loadSessions, showAllAges, showSelection, startSessions } from "./sessions.js";
import { askAgain, forget, onAccess, showAccess, tryAccess } from "./wire.js";
import { element } from "./words.js";

/** What each part of the page reads beside the tracker's state. */
const PANES = {
  sessions: loadSessions,
  kills: loadKills,
  history: loadHistory,
  events: showLog,
  audit: loadAudit,
  tracker: loadReadiness,
};

/** The part that the address names. */
function pane() {
  const named = location.hash.slice(1);
  return Object.hasOwn(PANES, named) ? named : "sessions";
}

function showPane() {
  for (const name of Object.keys(PANES)) {
    element(`pane-${name}`).hidden = name !== pane();
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === pane()) {
      link.setAttribute("aria-current", "page");
    } else {
      link.removeAttribute("aria-current");
    }
  }
}

addEventListener("hashchange", () => {
  showPane();
  reload();
});
onAccess(() => {
  showAccess();
  showSelection();
});
element("give").addEventListener("click", () => {
  askAgain();
  followAtOnce();
  reload();
});
element("forget").addEventListener("click", () => {
  forget();
  // What comes by the old token ends.
  rest();
  reload();
});
element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  element("token").close("given");
});
setInterval(() => {
  if (!document.hidden) {
    showFreshness();
    showAllAges();
  }
}, 1000);

startSessions();
startKills();
startPanes();
showPane();
showAccess();
setLoader(() => Promise.all([loadTracker(), PANES[pane()](), tryAccess()]));
start(note);
