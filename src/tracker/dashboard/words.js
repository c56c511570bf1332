// How things are written on the page, and the few ways to put text into it.
//
// Everything that comes from the tracker is set as text, never as markup.

export const element = (id) => document.getElementById(id);

/** Signs that would hide or reorder what stands beside them: controls, and what turns the direction. */
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u200b\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** A text of the tracker's as people may see it: hidden signs are spelled, and it is not endless. */
export function shown(text, most = 300) {
  const spelled = String(text).replace(HIDDEN, (sign) => `\\u{${sign.codePointAt(0).toString(16)}}`);
  return spelled.length > most ? `${spelled.slice(0, most - 1)}…` : spelled;
}

/** A name inside a sentence: whatever its direction, the words around it stay in their places. */
export function quoted(name) {
  return `“\u2068${shown(name, 80)}\u2069”`;
}

/** Whom a kill or an order of many means. */
export function groupName({ app, label }) {
  return app === undefined ? `with ${quoted(`${label[0]}: ${label[1]}`)}` : `of ${quoted(app)}`;
}

/** The beginning of an id is enough for people. */
export const short = (id) => shown(id).slice(0, 8);

/** Changes the text only if it is another one, so that a selection in it survives. */
export function setText(target, text) {
  if (target.textContent !== text) {
    target.textContent = text;
  }
}

/** A new element with a class and a text or children. */
export function make(name, style = "", ...content) {
  const made = document.createElement(name);
  if (style !== "") {
    made.className = style;
  }
  made.append(...content);
  return made;
}

/** A new button that does something. */
export function button(text, action, style = "") {
  const made = make("button", style, text);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

/** A list of terms and what they are; those without a value are left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value != null && value !== "");
  return make("dl", "facts", ...known.map(([term, value]) => make("div", "", make("dt", "", term), make("dd", "", value))));
}

export function counted(count, what) {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (!Number.isFinite(whole)) {
    return "?";
  }
  if (whole < 120) {
    return `${whole} s`;
  }
  const minutes = Math.floor(whole / 60);
  if (minutes < 120) {
    return minutes < 10 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  }
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A time of a step, which may be very short. */
export function latency(seconds) {
  if (seconds == null) {
    return "";
  }
  return seconds < 1 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : seconds < 10 ? `${seconds.toFixed(1)} s` : duration(seconds);
}

export function bytes(count) {
  if (count == null) {
    return "";
  }
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, count)) / 10));
  const value = count / 1024 ** step;
  return `${step > 0 && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[step]}`;
}

/** A moment of the tracker's in the reader's own time; today's without the day. */
export function when(text) {
  const moment = new Date(text);
  if (Number.isNaN(moment.getTime())) {
    return "";
  }
  const today = moment.toDateString() === new Date().toDateString();
  return today ? moment.toLocaleTimeString() : moment.toLocaleString();
}

/** Where a session's process is. */
export function processOf({ host, pid }) {
  return [host, pid].filter((part) => part != null).map((part) => shown(part)).join(":");
}
