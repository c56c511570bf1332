// remuda's Node worker: one context that runs requests from its host. docs/worker-protocol.md
// describes the frames; the names here follow it.
//
// These files are joined in this order and run as one function: start (names, channels, the gate),
// reader (the thread that listens to the host), values, context (where user code lives), requests,
// state (reset and inspection), serve. `sh` has put the protocol on fds 3 and 4, so that fds 0 to 2
// may be used and closed by anybody.
(function (require, load, readExactly) {
'use strict';

const fs = require('fs');
const inspector = require('inspector');
const Module = require('module');
const path = require('path');
const util = require('util');
const vm = require('vm');
const { Console } = require('console');
const threading = require('worker_threads');
const { Writable } = require('stream');
const { pathToFileURL } = require('url');
// User code may put others in the place of these.
const { MessageChannel, Worker, receiveMessageOnPort } = threading;
const { readFileSync, readdirSync, readlinkSync, writeSync } = fs;
const { clearImmediate, clearInterval, clearTimeout, setImmediate, setInterval, setTimeout } = globalThis;
const { emitWarning, exit: leaveProcess, kill, nextTick } = process;

const VERSION = 1;
const [GO, READY, WARM, WARMED, EXECUTE, CALL, RESULT, ERROR, CANCEL, RESET, CLEAN, PING, PONG, SHUTDOWN,
  OUTPUT, DISPLAY, PROGRESS, INPUT, INPUT_REPLY, ATTACHMENT, INSPECT, INSPECTED, USAGE] =
  Array.from({ length: 23 }, (_, i) => i + 1);

// Flags of *result* and *error*.
const HAS_VALUE = 1, IS_JSON = 2, NOT_JSON = 4, TOO_LARGE = 8, STOPPED = 16, IS_BYTES = 32;
// Flags of *execute* and *call*.
const ANSWERS_INPUT = 1, MEASURE = 2;

const REQUESTS_FD = 3, REPLIES_FD = 4;
const NOTHING = Buffer.alloc(0);
const O_CLOEXEC = 0o2000000;

// --- the gate -----------------------------------------------------------------------------------
// What the main thread and the reader thread share. A request that is cancelled in a busy loop is
// ended by `Runtime.terminateExecution`, which ends whatever runs on the main thread. The gate keeps
// it from hitting anything but user code:
//
//   USER     user code runs, or could: the reader may take the gate
//   OURS     code of the worker runs, or no request does: the reader keeps away
//   STOPPING the reader has sent a termination that has not been consumed yet
//
// Only the main thread goes between USER and OURS, only the reader to STOPPING and from there to
// OURS, and it does so after V8 has said that the termination is over. Main code that finds STOPPING
// waits there: it is ended by that very termination, or wakes up when it has ended something else.
// So no termination outlives its request, and none cuts a frame in two.

const USER = 0, OURS = 1, STOPPING = 2;
const GATE = 0, CURRENT = 1, CANCELLED = 2, POLLED = 3, MAIL = 4;
const cells = new Int32Array(new SharedArrayBuffer(20));
cells[GATE] = OURS;

/** Keeps terminations away; true if the caller must `release`, false if they were kept away already. */
function claim() {
  for (;;) {
    const found = Atomics.compareExchange(cells, GATE, USER, OURS);
    if (found !== STOPPING) return found === USER;
    Atomics.wait(cells, GATE, STOPPING);
  }
}

function release() {
  Atomics.store(cells, GATE, USER);
}

// --- frames -------------------------------------------------------------------------------------

let frameCap = 64 << 20;
let sessionId = 0;
let historySlots = 0;
/** The request under way: `{ id, flags, noticed, … }`; null between requests. */
let active = null;

const nap = new Int32Array(new SharedArrayBuffer(4));

function writeAll(fd, bytes) {
  for (let at = 0; at < bytes.length;) {
    try {
      at += writeSync(fd, bytes, at, bytes.length - at);
    } catch (error) {
      // The reader has made the socket non-blocking, in both directions: wait for a slow host.
      if (error.code === 'EAGAIN') Atomics.wait(nap, 0, 0, 0.1);
      else if (fd === REPLIES_FD) die();
      else return;
    }
  }
}

/** A request's number as the cells hold it: see the reader. */
const mark = (id) => Number(id % 0x7FFFFFFEn) + 1;

/** Writes a whole frame: only where no termination can come. */
function send(kind, flags, id, first = NOTHING, second = NOTHING) {
  const small = second.length < 8192;
  const head = Buffer.allocUnsafe(20 + first.length + (small ? second.length : 0));
  head.writeUInt32LE(4 + first.length + second.length, 0);
  head.writeUInt32LE(kind | flags << 8, 4);
  head.writeBigUInt64LE(id, 8);
  head.writeUInt32LE(first.length, 16);
  head.set(first, 20);
  if (small) head.set(second, 20 + first.length);
  writeAll(REPLIES_FD, head);
  if (!small) writeAll(REPLIES_FD, second);
}

/** JSON that every reader takes: lone surrogates are replaced. */
function json(value) {
  const text = JSON.stringify(value).replace(/\\(?:\\|ud[89a-f][0-9a-f]{2})/g, (found) => (found.length > 2 ? '\ufffd' : found));
  return Buffer.from(text);
}

/** Sends an event of the request under way; false if there is none. */
function event(kind, flags, first, second) {
  const ours = claim();
  try {
    if (active === null) return false;
    if (first.length + second.length + 4 > frameCap) throw new RangeError('it is larger than a frame may be');
    send(kind, flags, active.id, first, second);
    return true;
  } finally {
    if (ours) release();
  }
}

/** What code prints. Between requests no frame may be sent: then fd 2 shows it as late output. */
function print(stream, bytes) {
  const most = Math.min(1 << 20, frameCap - 64);
  for (let at = 0; at < bytes.length; at += most) {
    const part = bytes.subarray(at, at + most);
    if (!event(OUTPUT, stream, NOTHING, part)) writeAll(2, part);
  }
}

/** The host is gone: takes the process group along, or what can be taken where it is another's. */
function die() {
  try {
    const group = Number(readFileSync('/proc/self/stat', 'latin1').split(')').pop().split(' ')[3]);
    if (group === process.pid) kill.call(process, -group, 'SIGKILL');
  } catch {
    // Nobody is left to be told.
  }
  kill.call(process, process.pid, 'SIGKILL');
  for (;;) Atomics.wait(nap, 0, 0);
}
