
// --- the context of user code -------------------------------------------------------------------
// Code runs as in the console of a browser: V8's own REPL mode, reached through the inspector of
// this thread. It knows top-level await and lets `const`, `let` and `class` be declared again.

const session = new inspector.Session();
session.connect();

/** A command of the inspector that is answered at once. */
function ask(method, params) {
  let failure, answer;
  session.post(method, params, (error, reply) => { failure = error; answer = reply; });
  if (failure) throw new Error(`${method}: ${failure.message}`);
  return answer;
}

const TAKE = Symbol.for('remuda.take');
const SHOW = Symbol.for('remuda.display');
let taken;
let context;
/** Threads that user code has started. */
const threads = new Set();

/** Names that Node gives its programs, as far as a new context has none of its own. */
const nodeNames = Object.getOwnPropertyNames(globalThis).filter(
  // `node -e` has a name for each module too.
  (name) => ['process', 'crypto', 'console'].includes(name) || !Module.builtinModules.includes(name),
).filter((name) => !['globalThis', 'global', 'require', 'module', 'exports', '__filename', '__dirname'].includes(name));

function createContext() {
  const options = {};
  // Older versions of Node cannot `import()` in such a context: `remuda.import` is for them.
  const loader = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER;
  if (loader) options.importModuleDynamically = loader;
  let id;
  const listen = (message) => { id = Math.max(id ?? 0, message.params.context.id); };
  let made;
  try {
    made = vm.createContext(vm.constants?.DONT_CONTEXTIFY ?? {}, options);
    session.on('Runtime.executionContextCreated', listen);
    ask('Runtime.enable');
    ask('Runtime.disable');
  } finally {
    session.removeListener('Runtime.executionContextCreated', listen);
  }
  const global = vm.runInContext('globalThis', made);
  context = { id, global, take: null, cells: 0, slots: [] };
  furnish(global);
  ask('Runtime.releaseObjectGroup', { objectGroup: 'worker' });
  const expression = "globalThis[Symbol.for('remuda.take')]";
  context.take = ask('Runtime.evaluate', { expression, contextId: id, objectGroup: 'worker' }).result.objectId;
  context.base = new Set(Object.getOwnPropertyNames(global));
}

function furnish(global) {
  const hidden = (name, value) =>
    Object.defineProperty(global, name, { value, writable: true, configurable: true, enumerable: false });
  for (const name of nodeNames) {
    if (Object.hasOwn(global, name)) {
      bridge(global[name], globalThis[name]);
      continue;
    }
    const known = Object.getOwnPropertyDescriptor(globalThis, name);
    if (!known) continue;
    if ('value' in known) Object.defineProperty(global, name, known);
    else {
      const set = (value) => hidden(name, value);
      Object.defineProperty(global, name, { get: () => globalThis[name], set, configurable: true, enumerable: known.enumerable });
    }
  }
  hidden('global', global);
  hidden('console', console);
  hidden('require', userRequire);
  hidden('module', { exports: {} });
  hidden('exports', {});
  hidden('remuda', makeApi());
  hidden('In', []);
  hidden('Out', []);
  context.last = undefined;
  const mine = context;
  Object.defineProperty(global, '_', { get: () => mine.last, set: (value) => hidden('_', value), configurable: true });
  Object.defineProperty(global, TAKE, { value: (value) => { taken = value; } });
}

/**
 * Makes `instanceof` in the context hold for objects of Node's own realm, where `fs` and the other
 * modules make their errors, arrays and buffers.
 */
function bridge(theirs, ours) {
  if (typeof theirs !== 'function' || typeof ours !== 'function' || !theirs.prototype || theirs === ours) return;
  const plain = Function.prototype[Symbol.hasInstance];
  const value = function (object) {
    return plain.call(this, object) || (this === theirs && plain.call(ours, object));
  };
  Object.defineProperty(theirs, Symbol.hasInstance, { value, configurable: true, writable: true });
}

/** Runs a piece of code; `done(ok, value, place)` is called when its value is there. */
function evaluate(source, name, done) {
  const params = {
    expression: `${source}\n//# sourceURL=${name}`, contextId: context.id, replMode: true, awaitPromise: true, objectGroup: 'console',
  };
  const { take } = context;
  session.post('Runtime.evaluate', params, (error, reply) => {
    if (error) {
      // A termination comes here too: the reader tells about that.
      done(false, new Error(`the code could not be run: ${error.message}`));
      return;
    }
    const thrown = reply.exceptionDetails;
    const object = thrown ? thrown.exception : reply.result;
    let value;
    try {
      value = object.objectId ? fetchValue(take, object.objectId) : plainValue(object);
    } catch (failure) {
      done(false, failure);
      return;
    }
    const place = thrown && object.className === 'SyntaxError' && !/^\s+at [^(]*(cell-|\/)/m.test(object.description.split(' (node:inspector')[0])
      ? `${name}:${thrown.lineNumber + 1}:${thrown.columnNumber + 1}` : '';
    done(!thrown, value, place);
  });
}

/** A value that the inspector tells as it is. */
function plainValue({ type, value, unserializableValue }) {
  if (type === 'bigint') return BigInt(unserializableValue.slice(0, -1));
  return type === 'number' && value === undefined ? Number(unserializableValue) : value;
}

/** The object that the inspector speaks of. No name is looked up on the way: user code may have its own. */
function fetchValue(take, objectId) {
  taken = undefined;
  ask('Runtime.callFunctionOn', { objectId: take, functionDeclaration: 'function (value) { this(value) }', arguments: [{ objectId }] });
  const value = taken;
  taken = undefined;
  return value;
}

// --- what user code finds -----------------------------------------------------------------------

/**
 * A stream whose `write` is done when it returns. It bypasses what `Writable` keeps between calls:
 * code that is cancelled in the middle of a write would leave that in disorder.
 */
function outputStream(number) {
  const stream = new Writable({ decodeStrings: true, write: (chunk, _, done) => { print(number, chunk); done(); } });
  stream.fd = number + 1;
  stream.write = function write(chunk, encoding, done) {
    const callback = typeof encoding === 'function' ? encoding : done;
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk, typeof encoding === 'string' ? encoding : 'utf8') : chunk;
    if (!util.types.isUint8Array(bytes)) throw new TypeError('a stream takes strings and byte arrays');
    print(number, bytes);
    if (typeof callback === 'function') nextTick(callback);
    return true;
  };
  return stream;
}

/** What user code prints with: made anew for each user, who may have changed it. */
function prepareStreams() {
  const streams = [outputStream(0), outputStream(1)];
  ['stdout', 'stderr'].forEach((name, i) => {
    Object.defineProperty(process, name, { get: () => streams[i], configurable: true, enumerable: true });
  });
  // The built-in console keeps the arguments of old messages for a debugger.
  globalThis.console = new Console({ stdout: streams[0], stderr: streams[1], ignoreErrors: false });
}

function countThreads() {
  const plain = threading.Worker;
  threading.Worker = class Worker extends plain {
    constructor(...args) {
      super(...args);
      threads.add(this);
      this.once('exit', () => threads.delete(this));
    }
  };
  // For those that `import` it.
  Module.syncBuiltinESMExports();
}

function prepareProcess() {
  closeForeign();
  prepareStreams();
  countThreads();
  process.exit = (code) => { throw new ProcessExit(exitCode(code ?? process.exitCode)); };
  process.emitWarning = function (warning, ...rest) {
    // Said about our own choice, once, when user code first calls `import()`.
    if (!String(warning).startsWith('vm.USE_MAIN_CONTEXT_DEFAULT_LOADER')) emitWarning.call(process, warning, ...rest);
  };
  process.argv = [process.execPath];
  process.execArgv = [];
  Object.assign(globalThis, timers);
  globalThis.queueMicrotask = (callback) => {
    if (typeof callback !== 'function') throw new TypeError('queueMicrotask takes a function');
    defer(callback);
  };
  listenForErrors();
}

/** Whatever children would inherit came from a part of the host that forgot to protect it. Node's own
    descriptors, and ours, are close-on-exec. */
function closeForeign() {
  for (const name of readdirSync('/proc/self/fdinfo')) {
    const fd = Number(name);
    if (fd <= REPLIES_FD) continue;
    try {
      const flags = /^flags:\s*([0-7]+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'));
      if (flags && !(parseInt(flags[1], 8) & O_CLOEXEC)) fs.closeSync(fd);
    } catch {
      // It is closed already: the one that listed the directory.
    }
  }
}

function exitCode(code) {
  const number = Number(code ?? 0);
  return Number.isInteger(number) ? number & 255 : 1;
}

/** Errors that no request owns: the worker lives, the user is told. */
function uncaught(error) {
  if (error instanceof ProcessExit && active !== null) {
    settle(active.id, false, error);
    return;
  }
  print(1, Buffer.from(`Uncaught ${cut(describe(error).traceback, TEXT_CAP)}\n`));
}

// Timers call back through a microtask, and keep terminations away until then: Node's bookkeeping around
// a timer's own call would not survive one. (One between the removal of a list of timers from its two
// tables has Node look for that list for ever.)

function defer(callback) {
  Promise.resolve().then(() => {
    try {
      callback();
    } catch (error) {
      nextTick(() => { throw error; });
    }
  });
}

/** Timers that have not fired, and the request that made each. */
const pending = new Map();

function timer(make, once) {
  const made = function (callback, ...rest) {
    if (typeof callback !== 'function') return make(callback, ...rest);
    const handle = make(function (...args) {
      if (once) pending.delete(handle);
      const id = active?.id, claimed = claim();
      defer(() => {
        if (claimed && active?.id === id) release();
        callback.apply(handle, args);
      });
    }, ...rest);
    pending.set(handle, active?.id ?? 0);
    return handle;
  };
  Object.defineProperty(made, 'name', { value: make.name });
  if (make[util.promisify.custom]) made[util.promisify.custom] = make[util.promisify.custom];
  return made;
}

function clearer(clear) {
  return function (handle) {
    for (const known of typeof handle === 'object' ? [handle] : pending.keys()) {
      // A timer may be named by its number.
      if (known === handle || Number(known) === Number(handle)) pending.delete(known);
    }
    return clear(handle);
  };
}

const timers = {
  setTimeout: timer(setTimeout, true), setInterval: timer(setInterval, false), setImmediate: timer(setImmediate, true),
  clearTimeout: clearer(clearTimeout), clearInterval: clearer(clearInterval), clearImmediate: clearer(clearImmediate),
};

/** Clears the timers that one request has made, or all. */
function clearTimers(request) {
  for (const [handle, maker] of pending) {
    if (request !== undefined && maker !== request) continue;
    pending.delete(handle);
    clearTimeout(handle);
    clearImmediate(handle);
  }
}
