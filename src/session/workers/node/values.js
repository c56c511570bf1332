
// --- values and errors --------------------------------------------------------------------------

const REPR_CAP = 64 << 10;
const TEXT_CAP = 256 << 10;
/** Deeper JSON is refused by many readers, the host's among them. */
const DEEPEST = 100;

function cut(text, cap) {
  return text.length > cap ? `${text.slice(0, cap)}… (length ${text.length})` : text;
}

function repr(value) {
  try {
    return cut(util.inspect(value, { maxStringLength: REPR_CAP }), REPR_CAP);
  } catch (error) {
    return `<${typeof value}, its inspection failed: ${brief(error)}>`;
  }
}

function brief(error) {
  try {
    return String(error);
  } catch {
    return typeof error;
  }
}

/** Why JSON would not carry the value as it is; null if it would. */
function notJson(value, above, where) {
  const at = where ? ` at ${where.length > 80 ? `${where.slice(0, 80)}…` : where}` : '';
  switch (typeof value) {
    case 'string':
    case 'boolean':
      return null;
    case 'number':
      return Number.isFinite(value) && !Object.is(value, -0) ? null : `${Object.is(value, -0) ? '-0' : value}${at} is no JSON number`;
    case 'object':
      break;
    default:
      return `${typeof value}${at} has no JSON`;
  }
  if (value === null) return null;
  if (above.has(value)) return `a cycle${at}`;
  if (above.size >= DEEPEST) return `more than ${DEEPEST} levels${at}`;
  const list = Array.isArray(value);
  const proto = Object.getPrototypeOf(value);
  // A plain object of any realm: its prototype is the root of its chain.
  if (!list && proto !== null && !(Object.getPrototypeOf(proto) === null && Object.hasOwn(proto, 'isPrototypeOf'))) {
    return `${proto.constructor?.name || 'an object of a class'}${at} is no plain object`;
  }
  if (typeof value.toJSON === 'function') return `an object with toJSON${at}`;
  above.add(value);
  if (list) {
    for (let i = 0; i < value.length; i++) {
      const reason = notJson(value[i], above, `${where}[${i}]`);
      if (reason !== null) return reason;
    }
  } else {
    for (const key of Object.keys(value)) {
      const reason = notJson(value[key], above, `${where}.${key}`);
      if (reason !== null) return reason;
    }
  }
  above.delete(value);
  return null;
}

const inTypedArray = Object.getOwnPropertyDescriptors(Object.getPrototypeOf(Uint8Array.prototype));
const [bufferOf, offsetOf, lengthOf] = ['buffer', 'byteOffset', 'byteLength'].map((name) => inTypedArray[name].get);

/** What a byte array holds, whatever its class says; nothing if its buffer was given away. */
function bytesOf(array) {
  const length = lengthOf.call(array);
  return length === 0 ? NOTHING : new Uint8Array(bufferOf.call(array), offsetOf.call(array), length);
}

/** Flags and the two parts of a *result*. */
function encodeValue(value) {
  if (value === undefined) return [0, NOTHING, NOTHING];
  const second = Buffer.from(repr(value));
  const room = frameCap - second.length - 64;
  try {
    if (util.types.isUint8Array(value)) {
      const bytes = bytesOf(value);
      if (bytes.length <= room) return [HAS_VALUE | IS_BYTES, bytes, second];
      return [HAS_VALUE | TOO_LARGE, Buffer.from(String(bytes.length)), second];
    }
    const reason = notJson(value, new Set(), '');
    if (reason !== null) return [HAS_VALUE | NOT_JSON, Buffer.from(reason), second];
    const text = Buffer.from(JSON.stringify(value));
    if (text.length <= room) return [HAS_VALUE | IS_JSON, text, second];
    return [HAS_VALUE | TOO_LARGE, Buffer.from(String(text.length)), second];
  } catch (error) {
    return [HAS_VALUE | NOT_JSON, Buffer.from(cut(brief(error), REPR_CAP)), second];
  }
}

/** The request was cancelled. */
class Interrupted extends Error {}
Interrupted.prototype.name = 'Interrupted';

/** What `process.exit` throws. */
class ProcessExit extends Error {
  constructor(code) {
    super(`process.exit(${code})`);
    this.exitCode = code;
  }
}
ProcessExit.prototype.name = 'ProcessExit';

/** A stack without the worker's own frames and what lies below them. */
function stackOf(error) {
  const lines = String(error.stack).split('\n');
  const ours = lines.findIndex((line) => /^\s+at .*(\(node:inspector|remuda-worker)/.test(line));
  const kept = ours < 0 ? lines : lines.slice(0, ours);
  const text = kept.join('\n');
  const cause = util.types.isNativeError(error.cause) && error.cause !== error ? `\n[cause]: ${stackOf(error.cause)}` : '';
  return text + cause;
}

/** Type, message and traceback of whatever was thrown. */
function describe(thrown, place) {
  if (!util.types.isNativeError(thrown) && !(thrown instanceof Error)) {
    const type = thrown === null ? 'null' : typeof thrown === 'object' ? thrown.constructor?.name || 'object' : typeof thrown;
    const message = typeof thrown === 'string' ? thrown : repr(thrown);
    return { type, message, traceback: `Uncaught ${repr(thrown)}` };
  }
  const made = thrown.constructor?.name;
  const type = String(thrown.name === 'Error' && made ? made : thrown.name);
  const message = String(thrown.message);
  return { type, message, traceback: place ? `${place}\n${stackOf(thrown)}` : stackOf(thrown) };
}

const LIMITS = { EMFILE: 'open_files', EFBIG: 'file_size', ENOMEM: 'data' };

/** The first part of an *error*. */
function encodeError(thrown, place) {
  let report;
  try {
    report = describe(thrown, place);
    if (thrown instanceof ProcessExit) report.exit_code = thrown.exitCode;
    const limit = LIMITS[thrown?.code] ?? (report.message === 'Array buffer allocation failed' ? 'data' : undefined);
    if (limit) report.limit = limit;
  } catch (failure) {
    report = { type: 'Error', message: `could not be described: ${brief(failure)}`, traceback: '' };
  }
  for (const name of ['type', 'message', 'traceback']) report[name] = cut(report[name], TEXT_CAP);
  return json(report);
}
