
// --- requests -----------------------------------------------------------------------------------

/** Attachments of the request that comes next. */
let attached = new Map();

/** Starts a request: `job` runs user code and sees to it that `settle` or `finish` is called. */
function begin(message, job) {
  active = { id: message.id, flags: message.flags, noticed: false, attachments: attached, abort: null, asked: Promise.resolve() };
  attached = new Map();
  answered = null;
  Atomics.store(cells, POLLED, 0);
  Atomics.store(cells, CURRENT, mark(active.id));
  if (Atomics.load(cells, CANCELLED) === mark(active.id)) {
    interrupted(active.id);
    return;
  }
  listenForErrors();
  release();
  job(active.id);
}

/** User code may have removed the listeners, and an error without one ends the process. */
function listenForErrors() {
  for (const name of ['uncaughtException', 'unhandledRejection']) {
    if (!process.listeners(name).includes(uncaught)) process.on(name, uncaught);
  }
}

/** The answer: encoded while user code (a `toJSON`, an inspection hook) may still be ended. */
function settle(id, ok, value, place) {
  if (active?.id !== id) return;
  const [kind, flags, first, second] = ok
    ? [RESULT, ...encodeValue(value)]
    : [ERROR, 0, encodeError(value, place), NOTHING];
  if (ok) showResult(value);
  // Its child was interrupted, or its `signal` was heard: it did not end of its own.
  else if (Atomics.load(cells, CANCELLED) === mark(id)) active.noticed = true;
  claimed(id, () => finish(kind, flags, first, second));
}

/** Runs `end` if the request is still under way and no termination is. */
function claimed(id, end) {
  if (claim() && active?.id === id) end();
}

/** Sends the answer. The gate stays closed until the next request. */
function finish(kind, flags, first, second) {
  const { id, flags: wishes, noticed } = active;
  if (wishes & MEASURE) {
    const { user, system } = process.cpuUsage(active.cpu);
    send(USAGE, 0, id, json({ cpu_seconds: (user + system) / 1e6 }));
  }
  active = null;
  listenForErrors();
  Atomics.store(cells, CURRENT, 0);
  send(kind, noticed ? flags | STOPPED : flags, id, first, second);
  // What the inspector holds of the result; after the answer, nobody waits for it.
  ask('Runtime.releaseObjectGroup', { objectGroup: 'console' });
}

/** Ends the request with an error of its own. The gate is closed. */
function interrupted(id) {
  active.noticed = true;
  clearTimers(id);
  finish(ERROR, 0, encodeError(new Interrupted('the request was cancelled')), NOTHING);
}

/** The host cancels and the event loop is free to hear of it: nothing needs to be terminated. */
function stop(id) {
  if (active?.id !== id) return;
  active.abort?.abort(new Interrupted('the request was cancelled'));
  claimed(id, () => interrupted(id));
}

function execute(message) {
  const script = message.first.length > 0 ? JSON.parse(message.first.toString()) : null;
  begin(message, (id) => {
    active.cpu = process.cpuUsage();
    const source = message.second.toString();
    if (script !== null) {
      runScript(id, source, script);
      return;
    }
    const mine = context;
    const number = ++mine.cells;
    if (historySlots > 0) {
      mine.slots.push(number);
      setSlot('In', number, source);
    }
    evaluate(source, `cell-${number}`, (ok, value, place) => {
      if (ok && value !== undefined) {
        mine.last = value;
        if (historySlots > 0) setSlot('Out', number, value);
      }
      while (mine.slots.length > historySlots) dropSlots(mine.slots.shift());
      settle(id, ok, value, place);
    });
  });
}

function setSlot(name, number, value) {
  try {
    const list = context.global[name];
    if (Array.isArray(list)) list[number] = value;
  } catch {
    // User code has put something else there.
  }
}

function dropSlots(number) {
  for (const name of ['In', 'Out']) {
    try {
      const list = context.global[name];
      if (Array.isArray(list)) delete list[number];
    } catch {
      // As above.
    }
  }
}

/** As `node FILE ARGS` would, in the context that is there: no value, and its names stay. */
function runScript(id, source, { file, args }) {
  const whole = path.resolve(file);
  process.argv = [process.execPath, whole, ...args];
  const { global } = context;
  global.require = Module.createRequire(whole);
  global.__filename = whole;
  global.__dirname = path.dirname(whole);
  evaluate(source.replace(/^#!/, '//'), whole.replace(/\s/g, '_'), (ok, value, place) => settle(id, ok, ok ? undefined : value, place));
}

const userRequire = Module.createRequire(`${process.cwd()}/`);

/** A module by its name or path, whichever kind it is. */
async function importAny(name) {
  let file;
  try {
    file = userRequire.resolve(name);
  } catch (error) {
    // A package may be made for `import` alone.
    if (error.code !== 'ERR_PACKAGE_PATH_NOT_EXPORTED') throw error;
    return load(name);
  }
  try {
    return userRequire(name);
  } catch (error) {
    if (error.code !== 'ERR_REQUIRE_ESM') throw error;
    return load(pathToFileURL(file).href);
  }
}

const DOTTED = /^[\p{ID_Start}$_][\p{ID_Continue}$]*(\.[\p{ID_Start}$_][\p{ID_Continue}$]*)*$/u;

/** The function that `module:name.method`, `__main__:name` or `name` stands for, bound to its object. */
async function resolve(name) {
  const colon = name.lastIndexOf(':');
  const module = colon < 0 ? '__main__' : name.slice(0, colon);
  const inside = name.slice(colon + 1);
  if (!module || !DOTTED.test(inside)) throw new TypeError(`'${name}' does not name a function as module:function does`);
  let found, owner;
  if (module === '__main__') {
    const body = inside.includes('.') ? `[${inside}, ${inside.slice(0, inside.lastIndexOf('.'))}]` : `[${inside}]`;
    [found, owner] = await new Promise((done, fail) => {
      evaluate(body, 'call', (ok, value) => (ok ? done(value) : fail(value)));
    });
  } else {
    found = await importAny(module);
    for (const part of inside.split('.')) [found, owner] = [found?.[part], found];
  }
  if (typeof found !== 'function') throw new TypeError(`'${name}' is no function`);
  return (...args) => found.apply(owner, args);
}

function call(message) {
  const { function: name, args, kwargs } = JSON.parse(message.second.toString());
  begin(message, (id) => {
    active.cpu = process.cpuUsage();
    (async () => {
      const options = { ...kwargs };
      if (active.attachments.size > 0) options.attachments = Object.fromEntries(active.attachments);
      const target = await resolve(name);
      const all = Object.keys(options).length > 0 ? [...args, options] : args;
      return target(...all);
    })().then((value) => settle(id, true, value), (error) => settle(id, false, error));
  });
}

// --- what user code can ask of its session ------------------------------------------------------

/** Forms of a bundle as frames carry them. */
function sendDisplay(bundle, isResult) {
  const types = [], forms = [];
  for (const [type, form] of Object.entries(bundle)) {
    const bytes = util.types.isUint8Array(form) ? form
      : Buffer.from(typeof form === 'string' ? form : JSON.stringify(form) ?? String(form));
    types.push([type, bytes.length]);
    forms.push(bytes);
  }
  event(DISPLAY, 0, json(isResult ? { types, result: true } : { types }), Buffer.concat(forms));
}

/** Shows the trailing expression's value if it says how. */
function showResult(value) {
  try {
    const hook = value?.[SHOW];
    if (typeof hook === 'function') sendDisplay(hook.call(value), true);
  } catch (error) {
    print(1, Buffer.from(`the value could not be displayed: ${brief(error)}\n`));
  }
}

function display(thing) {
  const hook = thing?.[SHOW];
  if (typeof hook === 'function') {
    sendDisplay(hook.call(thing), false);
    return;
  }
  const bundle = thing !== null && typeof thing === 'object' && Object.keys(thing).length > 0
    && Object.keys(thing).every((key) => /^[\w.+-]+\/[\w.+-]+$/.test(key));
  sendDisplay(bundle ? thing : { 'text/plain': repr(thing) }, false);
}

function askForInput(prompt, options) {
  if (active === null || !(active.flags & ANSWERS_INPUT)) return false;
  return event(INPUT, 0, json({ prompt: String(prompt ?? ''), secret: Boolean(options?.secret) }), NOTHING);
}

/** The line of an *input reply*, null at the end of input. */
function lineOf({ flags, second }) {
  if (flags & 2) throw Object.assign(new Error('nobody answered in time'), { code: 'ETIMEDOUT' });
  return flags & 1 ? null : Buffer.from(second).toString();
}

/** Called with the reply that an `input()` of the request under way waits for. */
let answered = null;

function input(prompt, options) {
  if (active === null) return Promise.resolve(null);
  const { id, asked } = active;
  // One question at a time.
  const answer = asked.then(() => new Promise((done, fail) => {
    if (active?.id !== id || !askForInput(prompt, options)) {
      done(null);
      return;
    }
    answered = (reply) => {
      // One that comes after its request has ended is nobody's.
      if (reply.id !== id) return;
      answered = null;
      try {
        done(lineOf(reply));
      } catch (error) {
        fail(error);
      }
    };
  }));
  active.asked = answer.catch(() => {});
  return answer;
}

function inputSync(prompt, options) {
  if (answered !== null) throw new Error('another input() waits for its answer');
  if (!askForInput(prompt, options)) return null;
  for (;;) {
    const mail = Atomics.load(cells, MAIL);
    const message = receiveMessageOnPort(port)?.message;
    if (message?.kind === INPUT_REPLY && message.id === active.id) return lineOf(message);
    // A `stop` comes back as a termination of this wait.
    if (message === undefined) Atomics.wait(cells, MAIL, mail);
  }
}

function makeApi() {
  return {
    sessionId,
    cancelled() {
      if (active === null) return false;
      Atomics.store(cells, POLLED, mark(active.id));
      if (Atomics.load(cells, CANCELLED) !== mark(active.id)) return false;
      active.noticed = true;
      return true;
    },
    get signal() {
      if (active === null) return new AbortController().signal;
      active.abort ??= new AbortController();
      return active.abort.signal;
    },
    progress(fraction = null, message = null) {
      const number = fraction === null ? null : Number(fraction);
      event(PROGRESS, 0, json({ fraction: Number.isFinite(number) ? number : null, message: message === null ? null : String(message) }), NOTHING);
    },
    display,
    attach(name, bytes) {
      const data = typeof bytes === 'string' ? Buffer.from(bytes)
        : ArrayBuffer.isView(bytes) ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength) : new Uint8Array(bytes);
      event(ATTACHMENT, 0, json({ name: String(name) }), data);
    },
    get attachments() {
      return Object.fromEntries(active?.attachments ?? []);
    },
    input,
    inputSync,
    import: importAny,
  };
}
