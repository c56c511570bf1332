// Which sessions are asked for: filters, order, and the place in the list.

import { reload } from "./live.js";
import { ask } from "./wire.js";
import { element, setText, shown } from "./words.js";

/** So many apps are offered to choose from; others are found by typing. */
const MOST_APPS = 500;
/** One answer may hold less than a page because the tracker has looked for long enough. */
const MOST_ANSWERS = 5;
const FILTERS = ["q", "state", "app", "label"];

let sort = "-start_time";
/** Where the pages up to this one begin: { cursor, first }. */
let places = [{ cursor: null, first: 0 }];
let next = null;
/** The label that was picked from a session: in its text nobody sees where a name with a colon ends. */
let picked = { text: null, pair: null };
/** The apps that were seen. */
const apps = new Set();

// ---- reading

/** The sessions that the filters, the order and the place in the list ask for. */
export async function wantedSessions() {
  const size = Number(element("size").value);
  const asked = new URLSearchParams({ sort });
  for (const name of FILTERS) {
    if (element(name).value !== "") {
      asked.set(name, element(name).value);
    }
  }
  const found = [];
  const place = places.at(-1);
  const { first } = place;
  let { cursor } = place;
  let total = null;
  for (let answers = 0; answers < MOST_ANSWERS; answers += 1) {
    asked.set("limit", size - found.length);
    if (cursor !== null) {
      asked.set("cursor", cursor);
    }
    const page = await ask("GET", `sessions?${asked}`);
    if (!Array.isArray(page.sessions)) {
      throw new Error("it sent no list of sessions");
    }
    found.push(...page.sessions);
    total ??= page.total ?? null;
    cursor = page.next_cursor ?? null;
    if (cursor === null || found.length >= size) {
      break;
    }
  }
  found.forEach((session) => apps.size < MOST_APPS && apps.add(session.app_name));
  showApps();
  // Whoever has gone elsewhere meanwhile is about to be shown that.
  if (places.at(-1) === place) {
    next = cursor === null ? null : { cursor, first: first + found.length };
    showPlace(first, found.length, total);
  }
  return found;
}

/** Every session of an app or with a label, at most so many. */
export async function allOf(target, most) {
  const filter = target.app === undefined ? { label: `${target.label[0]}:${target.label[1]}` } : { app: target.app };
  const asked = new URLSearchParams({ ...filter, limit: 1_000 });
  const found = [];
  for (;;) {
    const { sessions, next_cursor } = await ask("GET", `sessions?${asked}`);
    found.push(...sessions);
    if (next_cursor == null || found.length >= most) {
      return found.slice(0, most);
    }
    asked.set("cursor", next_cursor);
  }
}

/** Where in the whole list this page is. */
function showPlace(first, count, total) {
  const isFiltered = FILTERS.some((id) => element(id).value !== "");
  const all = total === null ? (next === null ? "" : " of more") : ` of ${total}`;
  const more = next === null ? "" : "nothing so far: the next page looks on";
  setText(element("place"), count === 0 ? more : `${first + 1}–${first + count}${all}${isFiltered ? " that match" : ""}`);
  element("previous").disabled = places.length === 1;
  element("next").disabled = next === null;
  const isEmpty = count === 0 && next === null && places.length === 1;
  element("none").hidden = !isEmpty || isFiltered;
  element("no-match").hidden = !isEmpty || !isFiltered;
}

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

// ---- what can be acted on as a whole

/** The chosen app, or the label if no app is chosen; null if the filters name neither. */
export function chosenGroup() {
  const [app, label] = [element("app").value, element("label").value];
  if (app !== "") {
    return { app };
  }
  if (label === picked.text) {
    return { label: picked.pair };
  }
  const colon = label.indexOf(":");
  return colon < 1 ? null : { label: [label.slice(0, colon), label.slice(colon + 1)] };
}

/** Filters by exactly this label. */
export function filterByLabel(name, value) {
  picked = { text: `${name}:${value}`, pair: [name, value] };
  element("label").value = picked.text;
  fromStart();
}

// ---- wiring

function fromStart() {
  places = [{ cursor: null, first: 0 }];
  return reload();
}

function sortBy(key) {
  sort = sort === key ? `-${key}` : key;
  for (const head of document.querySelectorAll("[data-sort]")) {
    const way = { [head.dataset.sort]: "ascending", [`-${head.dataset.sort}`]: "descending" }[sort];
    if (way === undefined) {
      head.closest("th").removeAttribute("aria-sort");
    } else {
      head.closest("th").setAttribute("aria-sort", way);
    }
  }
  fromStart();
}

export function startList() {
  let typing = null;
  for (const name of ["q", "label"]) {
    element(name).addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(fromStart, 250);
    });
  }
  for (const name of ["state", "app", "size"]) {
    element(name).addEventListener("change", fromStart);
  }
  for (const head of document.querySelectorAll("[data-sort]")) {
    head.addEventListener("click", () => sortBy(head.dataset.sort));
  }
  element("previous").addEventListener("click", () => {
    places.pop();
    reload();
  });
  element("next").addEventListener("click", () => {
    if (next === null) {
      return;
    }
    places.push(next);
    next = null;
    reload();
  });
}
