
// --- the reader thread --------------------------------------------------------------------------
// Reads frames while the main thread is busy, hands requests over, and acts on *cancel* and on the
// end of input by itself.

function reader() {
  const fs = require('fs');
  const inspector = require('inspector');
  const net = require('net');
  const { workerData } = require('worker_threads');
  const { cells, port, frameCap, kinds, fd } = workerData;
  const [USER, OURS, STOPPING] = [0, 1, 2];
  const [GATE, CURRENT, CANCELLED, POLLED, MAIL] = [0, 1, 2, 3, 4];
  const session = new inspector.Session();
  session.connectToMainThread();

  /** The last request that was handed over. The host sends the next only when it has its answer. */
  let latest = 0n;
  let stopping = 0n;
  const early = new Set();
  /** When each child was interrupted: again after a while, for one that was only just starting. */
  const interrupted = new Map();

  /** A request's number as the cells hold it; never 0. */
  const mark = (id) => Number(id % 0x7FFFFFFEn) + 1;

  function tell(message, transfer) {
    port.postMessage(message, transfer);
    Atomics.add(cells, MAIL, 1);
    Atomics.notify(cells, MAIL);
  }

  function cancel(id, attempt) {
    if (id !== latest) {
      if (id > latest) early.add(id);
      return;
    }
    Atomics.store(cells, CANCELLED, mark(id));
    // Code that polls may end in its own way; the second attempt does not ask any more.
    if (attempt === 0 && stopping !== id && Atomics.load(cells, POLLED) === mark(id)) return;
    // At each of the repeated frames: a child may have been about to start.
    interruptChildren();
    if (stopping === id) return;
    stopping = id;
    // An idle event loop ends the request itself, with no termination.
    tell({ stop: id });
    setTimeout(terminate, 3, id);
  }

  /** Ends what the main thread runs, as soon as that is user code of this request. */
  function terminate(id) {
    if (latest !== id || Atomics.load(cells, CURRENT) !== mark(id)) return;
    if (Atomics.compareExchange(cells, GATE, USER, STOPPING) !== USER) {
      setTimeout(terminate, 1, id);
      return;
    }
    session.post('Runtime.terminateExecution', () => {
      Atomics.store(cells, GATE, OURS);
      Atomics.notify(cells, GATE);
      tell({ stopped: id });
    });
    // Where the main thread went idle meanwhile, this is what the termination ends.
    tell({});
  }

  /** SIGINT to the children of user code: the main thread may be waiting for one. */
  function interruptChildren() {
    const parents = new Map();
    for (const name of fs.readdirSync('/proc')) {
      if (!/^\d+$/.test(name)) continue;
      try {
        const stat = fs.readFileSync(`/proc/${name}/stat`, 'latin1');
        parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(')') + 1).split(' ')[2]));
      } catch {
        // It has ended meanwhile.
      }
    }
    for (const pid of parents.keys()) {
      let above = parents.get(pid);
      while (above > 1 && above !== process.pid) above = parents.get(above);
      if (above !== process.pid || performance.now() - (interrupted.get(pid) ?? -Infinity) < 50) continue;
      interrupted.set(pid, performance.now());
      try {
        process.kill(pid, 'SIGINT');
      } catch {
        // It has ended meanwhile.
      }
    }
  }

  function die(reason) {
    if (reason) fs.writeSync(2, `remuda worker: ${reason}\n`);
    try {
      const group = Number(fs.readFileSync('/proc/self/stat', 'latin1').split(')').pop().split(' ')[3]);
      if (group === process.pid) process.kill(-group, 'SIGKILL');
    } catch {
      // Nobody is left to be told.
    }
    process.kill(process.pid, 'SIGKILL');
  }

  let chunks = [];
  let have = 0;
  let need = 16;

  function read(chunk) {
    chunks.push(chunk);
    have += chunk.length;
    if (have < need) return;
    let bytes = chunks.length === 1 ? chunk : Buffer.concat(chunks, have);
    for (need = 16; bytes.length >= need; need = 16) {
      const size = bytes.readUInt32LE(0);
      if (size < 4 || size > frameCap || bytes.readUInt16LE(6) !== 0) {
        die('the host sent a broken header');
        return;
      }
      need = 16 + size;
      if (bytes.length < need) break;
      take(bytes.subarray(0, need));
      bytes = bytes.subarray(need);
    }
    chunks = bytes.length > 0 ? [bytes] : [];
    have = bytes.length;
  }

  function take(bytes) {
    const kind = bytes[4], flags = bytes[5];
    const id = bytes.readBigUInt64LE(8);
    const split = 20 + bytes.readUInt32LE(16);
    if (split > bytes.length) {
      die('the host sent a broken body');
      return;
    }
    if (kind === kinds.CANCEL) {
      cancel(id, flags);
      return;
    }
    if (kind === kinds.EXECUTE || kind === kinds.CALL || kind === kinds.WARM) {
      latest = id;
      interrupted.clear();
      if (early.has(id)) Atomics.store(cells, CANCELLED, mark(id));
      early.clear();
    }
    // The main thread would wait for its debugger before it leaves.
    if (kind === kinds.SHUTDOWN) session.disconnect();
    // Copies: the chunk belongs to the socket.
    const first = new Uint8Array(bytes.subarray(20, split));
    const second = new Uint8Array(bytes.subarray(split));
    tell({ kind, flags, id, first, second }, [first.buffer, second.buffer]);
  }

  tell({ started: true });
  const socket = new net.Socket({ fd, readable: true, writable: false });
  socket.on('data', read);
  socket.on('error', () => die());
  socket.on('close', () => die());
}
