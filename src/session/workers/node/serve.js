
// --- serving ------------------------------------------------------------------------------------

let port;

function receive(message) {
  // An empty message is sent to be ended by a termination that met no user code.
  const ours = claim();
  if (ours) release();
  if (message.stop !== undefined) return stop(message.stop);
  if (message.stopped !== undefined) {
    // The gate is closed: the reader left it so.
    if (active?.id === message.stopped) interrupted(message.stopped);
    return undefined;
  }
  // What the reader thread keeps open belongs to the warm state.
  if (message.started) takeWarmState();
  if (message.kind === undefined) return undefined;
  message.first = Buffer.from(message.first);
  message.second = Buffer.from(message.second);
  try {
    return serve(message);
  } catch (error) {
    // Only between requests: what runs user code answers for itself.
    if (message.id > 0 && active === null) send(ERROR, 0, message.id, encodeError(error));
    return undefined;
  }
}

function serve(message) {
  switch (message.kind) {
    case EXECUTE: return execute(message);
    case CALL: return call(message);
    case WARM: return warmUp(message);
    case RESET: return reset(message);
    case PING: return send(PONG, 0, message.id);
    case SHUTDOWN: return leaveProcess.call(process, 0);
    case ATTACHMENT: return attached.set(String(JSON.parse(message.first.toString()).name), message.second);
    case INPUT_REPLY: return answered?.(message);
    case INSPECT: return send(INSPECTED, 0, message.id, json(inspect(message)));
    default: throw new TypeError(`this worker does not take frames of kind ${message.kind}`);
  }
}

function receiveGo() {
  const header = readExactly(16);
  const size = header.readUInt32LE(0);
  const body = size >= 28 && size <= 4096 && header[4] === GO ? readExactly(size) : null;
  if (body === null || body.readUInt32LE(4) !== VERSION) {
    writeAll(2, Buffer.from('remuda worker: the host did not begin with a go frame of version 1\n'));
    leaveProcess.call(process, 78);
  }
  const number = (i) => Number(body.readBigUInt64LE(4 + 8 * i));
  sessionId = number(1);
  frameCap = number(2);
  historySlots = size >= 36 ? number(3) : 0;
}

function listen() {
  const channel = new MessageChannel();
  port = channel.port1;
  port.on('message', receive);
  const kinds = { CANCEL, EXECUTE, CALL, WARM, SHUTDOWN };
  const workerData = { cells, port: channel.port2, frameCap, kinds, fd: REQUESTS_FD };
  const thread = new Worker(`(${reader})()`, { eval: true, workerData, transferList: [channel.port2], execArgv: [], env: {} });
  thread.on('error', (error) => {
    writeAll(2, Buffer.from(`remuda worker: ${brief(error)}\n`));
    die();
  });
}

receiveGo();
const features = ['execute', 'call', 'warm', 'reset', 'inspect', 'input', 'attachments', 'interrupt'];
send(READY, 0, 0n, json({ protocol: VERSION, pid: process.pid, language: 'node', version: process.versions.node, features }));
prepareProcess();
createContext();
listen();
})
