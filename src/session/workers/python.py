"""remuda's Python worker: one interpreter that runs requests from its host.

The host starts it with `-c STUB`, sends this file as marshalled code, then a *go* frame with the
data channels. docs/worker-protocol.md describes the frames; the names here follow it.

Order of the file: constants, channels, cancelling, values, errors, running code, reset, start, loop.
Until *ready* is sent only built-in modules are imported: an `import json` would double the start.
"""

import _signal
import _thread
import fcntl
import posix
import sys
from time import perf_counter

# --- frames -------------------------------------------------------------------------------------

VERSION = 1
HEADER = 16
(GO, READY, WARM, WARMED, EXECUTE, CALL, RESULT, ERROR, CANCEL, RESET, CLEAN, PING, PONG, SHUTDOWN) = range(1, 15)

# Flags of *result* and *error*.
HAS_VALUE = 1    # the second part is the value's repr
IS_JSON = 2      # the first part is the value as JSON
NOT_JSON = 4     # the first part says why there is no JSON
TOO_LARGE = 8    # the first part is the size that JSON would have had
STOPPED = 16     # the code noticed that it was cancelled

FIRST_OWN_FD = 20
REPR_CAP = 64 << 10
CACHED_SOURCES = 128
CACHED_SOURCE_SIZE = 64 << 10

# --- state --------------------------------------------------------------------------------------

PID = posix.getpid()
control = requests = replies = flag_fd = -1
kept = ()                # private duplicates of fds 0, 1, 2, to mend what user code closes
frame_cap = 64 << 20
session_id = 0

current = 0              # id of the running request; 0 when none may be interrupted
interrupted = 0          # id of the last request that was interrupted: once is enough
polled = 0               # id of the last request that asked `cancelled()`
early = set()            # cancelled before they started
stopped = False          # the running request noticed its cancel
in_child = False         # this is a child that user code forked

main = type(sys)("__main__")
namespace = main.__dict__
warm = {}                # what a reset goes back to
code_cache = {}
cell_number = 0
deferred = ["json", "traceback", "linecache"]  # imported when idle, or when first needed


def frame(kind, flags, request, first, second=b""):
    """Header and two-part body: u32 length of the first part, first part, second part."""
    size = 4 + len(first) + len(second)
    return b"".join((
        size.to_bytes(4, "little"), bytes((kind, flags, 0, 0)), request.to_bytes(8, "little"),
        len(first).to_bytes(4, "little"), first, second,
    ))


def send(data):
    written = posix.write(replies, data)
    if written != len(data):
        view = memoryview(data)
        while written < len(data):
            written += posix.write(replies, view[written:])


def text_bytes(text):
    """UTF-8 that never fails: lone surrogates become escapes."""
    return text.encode("utf-8", "backslashreplace")


def dump_json(value):
    import json
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def die():
    """The host is gone: take the whole process group along."""
    try:
        posix.kill(-PID, 9)
    except OSError:
        pass
    posix.kill(PID, 9)
    posix._exit(9)


# --- cancelling ---------------------------------------------------------------------------------
# A cancel arrives on the control socket, which raises SIGIO; a SIGINT only says "look there". The
# frame names its request, so a late one can never hit the next request.

control_bytes = b""
handling = False
again = False


def on_signal(_number, _frame):
    global handling, again, interrupted, stopped
    again = True
    if handling:
        return
    hit = False
    while again:
        # `again` is looked at after `handling` is cleared: a signal in between is not lost.
        handling, again = True, False
        try:
            hit = read_control() or hit
        except BaseException:
            # A full stack, or a handler of the user's, may raise in there: look again later.
            handling = False
            posix.kill(PID, _signal.SIGIO)
            raise
        handling = False
    if hit:
        interrupted, stopped = current, True
        raise KeyboardInterrupt


def read_control():
    """Reads what the control socket holds; returns whether the running request is to be interrupted."""
    global control_bytes
    hit = False
    while True:
        try:
            data = posix.read(control, 4096)
        except BlockingIOError:
            return hit
        except OSError:
            die()
        if not data:
            die()
        control_bytes += data
        while len(control_bytes) >= HEADER:
            size = int.from_bytes(control_bytes[:4], "little")
            if len(control_bytes) < HEADER + size:
                break
            kind, attempt = control_bytes[4], control_bytes[5]
            request = int.from_bytes(control_bytes[8:16], "little")
            control_bytes = control_bytes[HEADER + size:]
            if kind != CANCEL:
                continue
            if request == current:
                # Code that polls may end in its own way; the second attempt does not ask any more.
                if interrupted != request and (attempt > 0 or polled != request):
                    hit = True
            elif request > last_request:
                early.add(request)


def listen_for_cancels():
    _signal.signal(_signal.SIGIO, on_signal)
    _signal.signal(_signal.SIGINT, on_signal)


flag_view = None


def cancelled():
    """True once the host has asked the running code to stop: end in good order, now.

    Costs about as much as a list look-up; call it in every loop. Code that has called it once is
    not interrupted by KeyboardInterrupt before half of its grace has passed.
    """
    global flag_view, stopped, polled
    polled = current
    if flag_view is None:
        import mmap
        flag_view = memoryview(mmap.mmap(flag_fd, 8, prot=mmap.PROT_READ)).cast("Q")
    # `interrupted` answers where KeyboardInterrupt came first and was caught.
    if current and (flag_view[0] == current or interrupted == current):
        stopped = True
        return True
    return False


# --- values -------------------------------------------------------------------------------------

def encode_value(value):
    """Flags and the two parts of a *result*."""
    kind = type(value)
    if value is None:
        return 0, b"", b""
    if kind is int and -(1 << 63) <= value < 1 << 64:
        text = repr(value).encode()
        return HAS_VALUE | IS_JSON, text, text
    try:
        if kind is str:
            from _json import encode_basestring
            first = encode_basestring(value).encode("utf-8")
        elif kind is bool:
            first = b"true" if value else b"false"
        else:
            first = dump_json(value)
        flags = HAS_VALUE | IS_JSON
        if len(first) + REPR_CAP + 64 > frame_cap:
            flags, first = HAS_VALUE | TOO_LARGE, str(len(first)).encode()
    except Exception as error:
        flags, first = HAS_VALUE | NOT_JSON, text_bytes(brief(error))[:REPR_CAP]
    return flags, first, text_bytes(safe_repr(value))


def safe_repr(value):
    try:
        if type(value) in (str, bytes) and len(value) > REPR_CAP:
            return repr(value[:REPR_CAP]) + "… (length %d)" % len(value)
        text = repr(value)
        if len(text) > REPR_CAP:
            text = text[:REPR_CAP] + "… (length %d)" % len(text)
        return text
    except Exception as error:
        return "<%s object, its repr failed: %s>" % (type(value).__name__, brief(error))


def brief(error):
    try:
        return "%s: %s" % (type(error).__name__, error)
    except Exception:
        return type(error).__name__


# --- errors -------------------------------------------------------------------------------------

def encode_error(error):
    """The first part of an *error* frame."""
    kind, message, code = type(error).__name__, "", None
    try:
        message = str(error)
    except Exception:
        message = "<its message failed>"
    if isinstance(error, SystemExit):
        status = error.code
        code = 0 if status is None else status if type(status) is int and abs(status) < 1 << 31 else 1
    try:
        trace = format_trace(error)
    except Exception as failure:
        trace = "%s: %s (no traceback: %s)" % (kind, message, brief(failure))
    strings = [part.encode("utf-8", "backslashreplace").decode() for part in (kind, message, trace)]
    if sum(map(len, strings)) > 1 << 20:
        strings = [part[:1 << 18] for part in strings]
    return dump_json(dict(zip(("type", "message", "traceback"), strings), exit_code=code))


def format_trace(error):
    import linecache
    import traceback
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    # Cells are no files: lend `linecache` the sources of those that the traceback names.
    names, step = set(), trace
    while step is not None:
        names.add(step.tb_frame.f_code.co_filename)
        step = step.tb_next
    lent = [(name, source) for source, (_, _, name) in code_cache.items() if name in names]
    for name, source in lent:
        lines = source.decode("utf-8", "replace").splitlines(True)
        linecache.cache[name] = (len(source), None, lines, name)
    try:
        lines = traceback.format_exception(type(error), error, trace)
    finally:
        for name, _ in lent:
            linecache.cache.pop(name, None)
    # Exceptions that came before (`__context__`) may start in our frames too.
    return "".join(line for line in lines if '"<remuda worker>"' not in line)


# --- running code -------------------------------------------------------------------------------

def compile_cell(source):
    """(body, trailing expression, file name) of a piece of code; each of the first two may be None."""
    global cell_number
    entry = code_cache.pop(source, None)
    if entry is None:
        cell_number += 1
        filename = "<cell %d>" % cell_number
        entry = (*split_cell(source, filename), filename)
        if len(source) > CACHED_SOURCE_SIZE:
            return entry
        if len(code_cache) >= CACHED_SOURCES:
            del code_cache[next(iter(code_cache))]
    code_cache[source] = entry
    return entry


def split_cell(source, filename):
    try:
        return None, compile(source, filename, "eval", 0, True)
    except SyntaxError:
        # Not an expression alone. Its own errors come below, without this one as their context.
        pass
    import _ast
    tree = compile(source, filename, "exec", _ast.PyCF_ONLY_AST, True)
    last = None
    if tree.body and isinstance(tree.body[-1], _ast.Expr):
        last = compile(_ast.Expression(tree.body.pop().value), filename, "eval", 0, True)
    body = compile(tree, filename, "exec", 0, True) if tree.body else None
    return body, last


def prepare_script(file, args):
    """Makes the namespace and `sys` look as they do for `python FILE ARGS`; returns the whole path."""
    import os
    path = os.path.abspath(file)
    namespace.clear()
    namespace.update(warm["namespace"])
    namespace["__file__"] = path
    sys.argv[:] = [file, *args]
    sys.path.insert(0, os.path.dirname(path))
    return path


def resolve(path):
    """The function that `package.module:Class.method` names."""
    module, colon, name = path.partition(":")
    if not colon:
        module, _, name = path.rpartition(".")
    if not module or not name:
        raise ValueError("%r does not name a function as module:function does" % path)
    target = __import__(module, fromlist=["*"]) if module != "__main__" else main
    for part in name.split("."):
        target = getattr(target, part)
    return target


def run(kind, source, options):
    """Runs user code, the only place from which it is called, and returns its value."""
    if kind == CALL:
        import json
        call = json.loads(source)
        return resolve(call["function"])(*call["args"], **call["kwargs"])
    if options:
        import json
        options = json.loads(options)
        path = prepare_script(options["file"], options["args"])
        exec(compile(source, path, "exec", 0, True), namespace)
        return None
    body, last, _ = compile_cell(source)
    if body is not None:
        exec(body, namespace)
    return eval(last, namespace) if last is not None else None


own_streams = (sys.stdout, sys.stderr)


def flush_output():
    for stream in own_streams:
        try:
            stream.flush()
        except Exception:
            pass
    # What user code put in their place, if it did.
    for name, own in zip(("stdout", "stderr"), own_streams):
        stream = getattr(sys, name, None)
        if stream is not own:
            try:
                stream.flush()
            except Exception:
                pass


def execute(kind, request, options, source):
    """Runs one request and returns its answer. Nothing can be interrupted before `current` is set or
    after it is cleared, and a request is interrupted at most once: the outer `except` is enough."""
    global current, last_request, stopped, interrupted
    stopped = False
    try:
        try:
            last_request = current = request
            if request in early:
                early.discard(request)
                interrupted, stopped = request, True
                raise KeyboardInterrupt
            value = run(kind, source, options)
            if in_child:
                leave_child(0)
            answer = (RESULT, *encode_value(value))
            flush_output()
            current = 0
        finally:
            current = 0
    except BaseException as error:
        current = 0
        if in_child:
            fail_child(error)
        flush_output()
        try:
            answer = (ERROR, 0, encode_error(error), b"")
        except BaseException as failure:
            answer = (ERROR, 0, minimal_error(type(error).__name__, type(failure).__name__), b"")
    kind, flags, first, second = answer
    return frame(kind, flags | STOPPED if stopped else flags, request, first, second)


def minimal_error(kind, failure):
    """An *error* body made without imports, for when memory or the import system is gone."""
    plain = "".join(c for c in kind if c.isalnum() or c == "_").encode("ascii", "replace").decode()
    text = '{"type":"%s","message":"could not be described: %s","traceback":""}' % (plain, failure)
    return text.encode()


def after_fork_in_child():
    """A child of user code must never answer for its parent."""
    global in_child, current
    in_child, current = True, 0
    for fd in (control, requests, replies, *kept):
        try:
            posix.close(fd)
        except OSError:
            pass
    _signal.signal(_signal.SIGIO, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def leave_child(status):
    flush_output()
    posix._exit(status)


def fail_child(error):
    """A forked child fell out of the user's code with an exception."""
    if isinstance(error, SystemExit):
        leave_child(error.code if type(error.code) is int else 0 if error.code is None else 1)
    try:
        sys.stderr.write(format_trace(error))
    except BaseException:
        pass
    leave_child(1)


# --- reset --------------------------------------------------------------------------------------

# All that can be caught, but those that the worker itself handles.
WATCHED_SIGNALS = tuple(sorted(
    {int(number) for number in _signal.valid_signals()}
    - {_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGIO, _signal.SIGINT}
))
TIMERS = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)


def identity(fd):
    try:
        status = posix.fstat(fd)
        return status.st_dev, status.st_ino
    except OSError:
        return None


def raw_environ():
    """The environment as bytes: comparing through `os.environ` would decode every variable."""
    import os
    return getattr(os.environ, "_data", os.environ)


def take_warm_state():
    """Remembers what a reset goes back to."""
    import os
    import builtins
    import gc
    umask = posix.umask(0o077)
    posix.umask(umask)
    warm.update(
        namespace=dict(namespace), threads=_thread._count(), cwd=posix.getcwd(), umask=umask,
        environ=dict(os.environ), environ_object=os.environ, environ_data=dict(raw_environ()),
        path=list(sys.path), argv=list(sys.argv), builtins=dict(builtins.__dict__),
        streams=(sys.stdin, sys.stdout, sys.stderr), hooks=(sys.displayhook, sys.excepthook),
        fds=tuple(map(identity, range(3))), recursion=sys.getrecursionlimit(),
        signals=tuple(map(_signal.getsignal, WATCHED_SIGNALS)), meta_path=list(sys.meta_path),
        mask=_signal.pthread_sigmask(_signal.SIG_BLOCK, ()), nice=posix.nice(0), switch=sys.getswitchinterval(),
        gc=(gc.isenabled(), gc.get_threshold()),
    )


def reset():
    """Brings the warm state back; returns the reasons why only a new process would be clean."""
    import os
    import builtins
    import gc
    # Whatever of the last user could still go off comes first.
    for timer in TIMERS:
        _signal.setitimer(timer, 0)
    if "faulthandler" in sys.modules:
        sys.modules["faulthandler"].cancel_dump_traceback_later()
    taint = []
    if _thread._count() > warm["threads"]:
        taint.append("threads")
    try:
        while posix.waitpid(-1, posix.WNOHANG)[0]:
            pass
        taint.append("children")
    except ChildProcessError:
        pass
    sys.settrace(None)
    sys.setprofile(None)
    for number, handler in zip(WATCHED_SIGNALS, warm["signals"]):
        if handler is not None and _signal.getsignal(number) is not handler:
            _signal.signal(number, handler)
    listen_for_cancels()
    _signal.pthread_sigmask(_signal.SIG_SETMASK, warm["mask"])
    flush_output()
    namespace.clear()
    namespace.update(warm["namespace"])
    sys.modules["__main__"] = main
    for fd, known, spare in zip(range(3), warm["fds"], kept):
        if identity(fd) != known:
            posix.dup2(spare, fd)
    sys.stdin, sys.stdout, sys.stderr = warm["streams"]
    sys.displayhook, sys.excepthook = warm["hooks"]
    if any(stream.closed for stream in warm["streams"]):
        taint.append("closed streams")
    sys.path[:] = warm["path"]
    sys.argv[:] = warm["argv"]
    sys.meta_path[:] = warm["meta_path"]
    sys.setrecursionlimit(warm["recursion"])
    sys.setswitchinterval(warm["switch"])
    enabled, threshold = warm["gc"]
    gc.set_threshold(*threshold)
    (gc.enable if enabled else gc.disable)()
    if posix.nice(0) != warm["nice"]:
        taint.append("priority")
    posix.umask(warm["umask"])
    try:
        moved = posix.getcwd() != warm["cwd"]
    except OSError:
        moved = True
    if moved:
        try:
            posix.chdir(warm["cwd"])
        except OSError:
            taint.append("working directory")
    if os.environ is not warm["environ_object"] or raw_environ() != warm["environ_data"]:
        os.environ = warm["environ_object"]
        os.environ.clear()
        os.environ.update(warm["environ"])
    if builtins.__dict__ != warm["builtins"]:
        builtins.__dict__.clear()
        builtins.__dict__.update(warm["builtins"])
    return taint


# --- start --------------------------------------------------------------------------------------

def move_up(fd):
    """Out of the way of code that closes or reuses small numbers."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FD)
    posix.close(fd)
    return high


def take_channels():
    """Moves the protocol away from fds 0 to 2 and gives user code an empty stdin."""
    global control, kept
    control = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FD)
    null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    posix.dup2(null, 0)
    posix.close(null)
    kept = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FD) for fd in range(3))
    for name in posix.listdir("/proc/self/fd"):
        # Whatever else is open came from a part of the host that forgot to protect it.
        if int(name) > 2 and int(name) not in (control, *kept):
            try:
                posix.close(int(name))
            except OSError:
                pass


def receive_go():
    global requests, replies, flag_fd, frame_cap, session_id
    import _socket
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, control)
    header, ancillary, _, _ = socket.recvmsg(HEADER, _socket.CMSG_SPACE(12), _socket.MSG_CMSG_CLOEXEC)
    if len(header) < HEADER:
        die()
    size = int.from_bytes(header[:4], "little")
    body = socket.recv(size, _socket.MSG_WAITALL)
    socket.detach()
    if header[4] != GO or len(body) != size or not ancillary:
        posix.write(2, b"remuda worker: the host did not begin with a go frame and its channels\n")
        posix._exit(78)
    fds = ancillary[0][2]
    requests, replies, flag_fd = (move_up(int.from_bytes(fds[i:i + 4], sys.byteorder)) for i in (0, 4, 8))
    version, session_id, frame_cap = (int.from_bytes(body[i:i + 8], "little") for i in (4, 12, 20))
    if version != VERSION:
        posix.write(2, b"remuda worker: this host speaks another version of the protocol\n")
        posix._exit(78)
    listen_for_cancels()
    fcntl.fcntl(control, fcntl.F_SETOWN, PID)
    flags = fcntl.fcntl(control, fcntl.F_GETFL)
    fcntl.fcntl(control, fcntl.F_SETFL, flags | posix.O_NONBLOCK | fcntl.FASYNC)
    # What came before the signal was on.
    posix.kill(PID, _signal.SIGIO)


def prepare_interpreter():
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    namespace.update(__name__="__main__", __builtins__=__builtins__, __doc__=None)
    sys.modules["__main__"] = main
    sys.argv[:] = [""]
    module = type(sys)("remuda", "What a program can ask of the remuda session that it runs in.")
    module.cancelled = cancelled
    module.session_id = session_id
    sys.modules["remuda"] = module
    posix.register_at_fork(after_in_child=after_fork_in_child)


def warm_up(request, options, source):
    """Imports the modules of `options`, runs `source`, then takes the warm state."""
    import json
    report = []
    for name in json.loads(options):
        started, entry = perf_counter(), {"module": name}
        try:
            __import__(name)
        except Exception as error:
            entry["error"] = brief(error)
        entry["milliseconds"] = (perf_counter() - started) * 1000
        report.append(entry)
    failure = None
    if source:
        answer = execute(EXECUTE, request, b"", source)
        if answer[4] == ERROR:
            failure = answer
    take_warm_state()
    if failure is not None:
        return failure
    return frame(WARMED, 0, request, dump_json(report))


# --- loop ---------------------------------------------------------------------------------------

last_request = 0


def idle_work():
    """Uses the time before the first request for what later requests need. Whoever asks within
    the first milliseconds is served first."""
    import select
    patience = 0.005
    while deferred and not select.select([requests], [], [], patience)[0]:
        patience = 0
        __import__(deferred.pop(0))
    if not deferred:
        compile("0", "<remuda worker>", "eval")


def serve():
    pending = b""
    from_bytes, read = int.from_bytes, posix.read
    while True:
        if deferred and not pending:
            idle_work()
        while len(pending) < HEADER:
            data = read(requests, 4096)
            if not data:
                die()
            pending = pending + data if pending else data
        size = from_bytes(pending[:4], "little")
        end = HEADER + size
        if len(pending) < end:
            pending = read_body(pending, end)
        kind, request = pending[4], from_bytes(pending[8:16], "little")
        split = HEADER + 4 + from_bytes(pending[16:20], "little")
        first, second = pending[20:split], pending[split:end]
        pending = pending[end:]
        if kind == EXECUTE or kind == CALL:
            answer = execute(kind, request, first, second)
        elif kind == RESET:
            taint = reset()
            answer = frame(CLEAN, 0, request, dump_json(taint) if taint else b"[]")
        elif kind == WARM:
            answer = warm_up(request, first, second)
        elif kind == PING:
            answer = frame(PONG, 0, request, b"")
        elif kind == SHUTDOWN:
            leave()
        else:
            answer = frame(ERROR, 0, request, minimal_error("ProtocolError", "unknown kind"))
        send(answer)


def read_body(pending, end):
    parts, have = [pending], len(pending)
    while have < end:
        data = posix.read(requests, min(end - have, 1 << 20))
        if not data:
            die()
        parts.append(data)
        have += len(data)
    return b"".join(parts)


def leave():
    """Ends as a program ends, within the grace that the host gives."""
    try:
        import atexit
        atexit._run_exitfuncs()
    except BaseException:
        pass
    flush_output()
    posix._exit(0)


def start():
    take_channels()
    receive_go()
    prepare_interpreter()
    version = sys.version.split()[0]
    send(frame(READY, 0, 0, (
        '{"protocol":%d,"pid":%d,"language":"python","version":"%s",'
        '"features":["execute","call","warm","reset","interrupt","sigint"]}' % (VERSION, PID, version)
    ).encode()))
    take_warm_state()
    try:
        serve()
    except BaseException as error:
        if in_child:
            leave_child(1)
        posix.write(2, text_bytes("remuda worker: " + brief(error) + "\n"))
        posix._exit(70)


start()
