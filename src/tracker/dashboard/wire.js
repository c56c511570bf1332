// Talking to the tracker: requests, their refusals, and the access token.
//
// The token is kept for this tab only and sent as a header field, so no other page can use it.

import { element, setText } from "./words.js";

const REQUEST_TIMEOUT = 10_000;
const KEPT = "remuda-token";

/** The tracker has answered, but with no. */
export class Refused extends Error {
  constructor(status, body) {
    super(typeof body.detail === "string" ? body.detail : `status ${status}`);
    this.status = status;
    this.reason = body.reason;
  }
}

let token = recall();
/** The answer to the question for a token that is on the screen. */
let asking = null;
/** Somebody has closed the question without an answer: it is not put again by itself. */
let declined = false;
/** Why this token may only look, if it may only look. */
let readOnly = null;
/** The token of which it is known whether it may only look. */
let tried = null;
const listeners = [];

// ---- requests

/** One exchange; the answer's JSON. Asks for a token where one is needed. */
export async function ask(method, path, body) {
  const json = body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await send(path, { method, ...json })).json();
}

/** A request with the token; an answer that is a success. `limit` makes the signal that ends each attempt. */
export async function send(path, options, limit = () => AbortSignal.timeout(REQUEST_TIMEOUT)) {
  const used = token;
  const authorization = used === null ? {} : { Authorization: `Bearer ${used}` };
  const answer = await fetch(path, {
    ...options,
    cache: "no-store",
    headers: { Accept: "application/json", ...options.headers, ...authorization },
    signal: limit(),
  });
  if (answer.ok) {
    return answer;
  }
  const refused = new Refused(answer.status, await answer.json().catch(() => ({})));
  if (answer.status === 401 && (used !== token || (await newToken(used !== null)))) {
    return send(path, options, limit);
  }
  if (answer.status === 403 && refused.reason === "forbidden" && options.method === "POST") {
    setReadOnly(refused.message);
  }
  throw refused;
}

export function reason(error) {
  if (error.name === "TimeoutError") {
    return "no answer in 10 s";
  }
  return error instanceof TypeError ? "the connection fails" : error.message;
}

/** Does something for each of many, a few at a time; like `Promise.allSettled`. */
export async function forEach(items, action) {
  const results = new Array(items.length);
  let next = 0;
  const worker = async () => {
    while (next < items.length) {
      const place = next;
      next += 1;
      [results[place]] = await Promise.allSettled([action(items[place])]);
    }
  };
  await Promise.all(Array.from({ length: 6 }, worker));
  return results;
}

// ---- what the token may do

/** Calls back when it becomes known that the token may only look, or that another one may more. */
export function onAccess(listener) {
  listeners.push(listener);
}

/** Finds out whether the token may act, once: what only those may read who may act tells it. */
export async function tryAccess() {
  if (token === null || tried === token) {
    return;
  }
  const used = token;
  try {
    await ask("GET", "audit?limit=1");
  } catch (error) {
    if (error.status !== 403 || error.reason !== "forbidden") {
      return;
    }
    setReadOnly(error.message);
  }
  tried = used;
}

function setReadOnly(why) {
  if (readOnly !== why) {
    readOnly = why;
    listeners.forEach((listener) => listener());
  }
}

/** Sets whether a button can be used, and says why if the token is the reason. */
export function allow(target, possible) {
  target.disabled = !possible || readOnly !== null;
  target.title = readOnly ?? "";
}

export function showAccess() {
  element("read-only").hidden = readOnly === null;
  setText(element("read-only"), readOnly === null ? "" : `You may look, but not act: ${readOnly}.`);
  element("forget").hidden = token === null;
  element("give").hidden = !declined;
}

// ---- the question for a token

/** Whether there is a new token. */
function newToken(wasRefused) {
  if (declined) {
    return Promise.resolve(false);
  }
  asking ??= question(wasRefused).finally(() => {
    asking = null;
  });
  return asking;
}

function question(wasRefused) {
  const dialog = element("token");
  const field = element("token-text");
  field.value = "";
  setText(element("token-refused"), wasRefused ? "The tracker does not take this token." : "");
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        // Other signs cannot travel in a header field.
        const given = dialog.returnValue === "given" ? field.value.replace(/[^!-~]/g, "") : "";
        field.value = "";
        declined = given === "";
        if (!declined) {
          keep(given);
        }
        showAccess();
        resolve(!declined);
      },
      { once: true },
    );
  });
}

/** Puts the question again after it was closed. */
export function askAgain() {
  declined = false;
  showAccess();
}

export function forget() {
  keep(null);
  declined = false;
  showAccess();
}

function keep(given) {
  token = given;
  readOnly = null;
  listeners.forEach((listener) => listener());
  try {
    if (given === null) {
      sessionStorage.removeItem(KEPT);
    } else {
      sessionStorage.setItem(KEPT, given);
    }
  } catch {
    // A browser that stores nothing asks again when the page is loaded again.
  }
}

function recall() {
  try {
    return sessionStorage.getItem(KEPT);
  } catch {
    return null;
  }
}
