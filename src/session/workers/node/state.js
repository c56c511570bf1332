
// --- reset and inspection -----------------------------------------------------------------------

const MOST = 1000;
/** What a reset goes back to. */
let warm = null;
/** Warm-up code that a reset runs again, and whether it completed. */
let warmCode = '', warmCompleted = true;

function children() {
  return countOf('ProcessWrap');
}

/** What keeps the event loop busy, by kind; timers are known by themselves. */
function resources() {
  const counts = new Map();
  for (const name of process.getActiveResourcesInfo()) counts.set(name, (counts.get(name) ?? 0) + 1);
  return counts;
}

function countOf(kind) {
  return resources().get(kind) ?? 0;
}

function descriptors() {
  const open = new Map();
  for (const name of readdirSync('/proc/self/fd')) {
    try {
      open.set(name, readlinkSync(`/proc/self/fd/${name}`));
    } catch {
      // That of the listing itself.
    }
  }
  return open;
}

/** Descriptors of user code. Node's own are event loops and a spare `/dev/null` for sockets. */
function newDescriptors() {
  const found = [];
  for (const [number, target] of descriptors()) {
    if (warm.descriptors.get(number) === target || target.startsWith('anon_inode:') || target === '/dev/null') continue;
    found.push(`${number} -> ${target}`);
  }
  return found;
}

function listeners() {
  return new Map(process.eventNames().map((name) => [name, process.rawListeners(name)]));
}

function takeWarmState() {
  warm = {
    cwd: process.cwd(), env: { ...process.env }, umask: process.umask(), title: process.title, argv: [...process.argv],
    modules: new Set(Object.keys(require.cache)), globals: Object.getOwnPropertyDescriptors(globalThis),
    process: Object.getOwnPropertyDescriptors(process), inspection: { ...util.inspect.defaultOptions },
    names: new Set(userNames()), listeners: listeners(), resources: resources(), descriptors: descriptors(),
  };
}

function lexicalNames() {
  return [...new Set(ask('Runtime.globalLexicalScopeNames', { executionContextId: context.id }).names)];
}

function userNames() {
  const own = Object.getOwnPropertyNames(context.global).filter((name) => !context.base.has(name));
  return [...new Set([...own, ...lexicalNames()])];
}

function warmUp(message) {
  const modules = message.first.length > 0 ? JSON.parse(message.first.toString()) : [];
  const code = message.second.toString();
  begin(message, (id) => {
    active.cpu = process.cpuUsage();
    (async () => {
      const report = [];
      for (const module of modules) {
        const entry = { module };
        const before = process.memoryUsage.rss();
        const started = performance.now();
        try {
          await importAny(module);
          entry.bytes = Math.max(0, process.memoryUsage.rss() - before);
        } catch (error) {
          entry.error = cut(brief(error), TEXT_CAP);
        }
        entry.milliseconds = performance.now() - started;
        report.push(entry);
      }
      return report;
    })().then((report) => {
      const end = (ok, value, place) => {
        const body = ok ? json(report) : encodeError(value, place);
        claimed(id, () => {
          if (code) [warmCode, warmCompleted] = [code, ok];
          takeWarmState();
          finish(ok ? WARMED : ERROR, 0, body, NOTHING);
        });
      };
      if (code) evaluate(code, 'warm-up', end);
      else end(true);
    });
  });
}

/** Brings the warm state back; answers with the reasons why only a new process would be clean. */
function reset(message) {
  const taint = [];
  clearTimers();
  for (const [name] of listeners()) {
    const known = warm.listeners.get(name) ?? [];
    for (const listener of process.rawListeners(name)) {
      if (!known.includes(listener)) process.removeListener(name, listener);
    }
  }
  for (const [kind, count] of resources()) {
    if (count > (warm.resources.get(kind) ?? 0)) taint.push(kind === 'ProcessWrap' ? 'children' : kind === 'Timeout' ? 'timers' : `open handles: ${kind}`);
  }
  if (threads.size > 0) taint.push('threads');
  const opened = newDescriptors();
  if (opened.length > 0) taint.push(`open descriptors: ${opened.slice(0, 10).join(', ')}`);
  for (const file of Object.keys(require.cache)) {
    if (!warm.modules.has(file)) delete require.cache[file];
  }
  for (const name of Object.getOwnPropertyNames(globalThis)) {
    if (!Object.hasOwn(warm.globals, name)) delete globalThis[name];
  }
  for (const name of Object.keys(process.env)) {
    if (!Object.hasOwn(warm.env, name)) delete process.env[name];
  }
  for (const [name, value] of Object.entries(warm.env)) {
    if (process.env[name] !== value) process.env[name] = value;
  }
  restoreProcess();
  process.argv = [...warm.argv];
  process.umask(warm.umask);
  if (process.title !== warm.title) process.title = warm.title;
  process.exitCode = undefined;
  try {
    process.chdir(warm.cwd);
  } catch {
    taint.push('working directory');
  }
  createContext();
  const answer = (ok) => {
    if (ok !== warmCompleted) taint.push('the warm-up code ended in another way when it ran again');
    send(CLEAN, 0, message.id, json(taint));
  };
  if (warmCode) evaluate(warmCode, 'warm-up', answer);
  else answer(warmCompleted);
}

/** What user code has put in the place of `process.exit` and the like, and of what it prints with. */
function restoreProcess() {
  for (const [name, found] of Object.entries(Object.getOwnPropertyDescriptors(process))) {
    // `_events` and its like are Node's own.
    if (found.configurable && !name.startsWith('_') && !Object.hasOwn(warm.process, name)) delete process[name];
  }
  for (const [name, known] of Object.entries(warm.process)) {
    const found = Object.getOwnPropertyDescriptor(process, name);
    const same = found && Object.is(found.value, known.value) && found.get === known.get;
    if (!same && known.configurable && !name.startsWith('_')) Object.defineProperty(process, name, known);
  }
  prepareStreams();
  util.inspect.defaultOptions = warm.inspection;
}

function inspect(message) {
  const { what } = JSON.parse(message.first.toString());
  if (what === 'names') return names();
  if (what === 'fingerprint') return fingerprint();
  throw new TypeError(`'${what}' cannot be inspected`);
}

function names() {
  const values = new Map();
  const lexical = lexicalNames();
  // Each may be in its dead zone.
  const reads = lexical.map((name) => `(()=>{try{return ${name}}catch{}})()`).join();
  ask('Runtime.evaluate', { expression: `globalThis[Symbol.for('remuda.take')]([${reads}])`, contextId: context.id });
  lexical.forEach((name, i) => values.set(name, taken[i]));
  taken = undefined;
  for (const name of userNames()) {
    if (values.has(name)) continue;
    const known = Object.getOwnPropertyDescriptor(context.global, name);
    values.set(name, known && 'value' in known ? known.value : undefined);
  }
  return [...values].slice(0, MOST).map(([name, value]) => (
    { name, type: typeName(value), size: sizeOf(value), warm: warm.names.has(name) }
  ));
}

function typeName(value) {
  if (value === null) return 'null';
  if (typeof value === 'function') return /^class\b/.test(Function.prototype.toString.call(value)) ? 'class' : 'function';
  if (typeof value !== 'object') return typeof value;
  try {
    return String(value.constructor?.name || 'object');
  } catch {
    return 'object';
  }
}

function sizeOf(value) {
  if (typeof value === 'string') return Buffer.byteLength(value);
  if (ArrayBuffer.isView(value) || util.types.isAnyArrayBuffer(value)) return value.byteLength;
  return null;
}

function fingerprint() {
  const env = new Set([...Object.keys(process.env), ...Object.keys(warm.env)]);
  const directory = process.cwd();
  const lists = {
    globals: userNames().filter((name) => !warm.names.has(name)),
    modules: Object.keys(require.cache).filter((file) => !warm.modules.has(file)),
    environment: [...env].filter((name) => process.env[name] !== warm.env[name]),
    fds: newDescriptors(),
  };
  for (const name of Object.keys(lists)) lists[name] = lists[name].slice(0, MOST);
  return { ...lists, cwd: directory === warm.cwd ? null : directory, threads: threads.size, children: children() };
}
