"""remuda's Python worker: one interpreter that runs requests from its host.

docs/worker-protocol.md describes the frames; the names here follow it. The files of this directory are
one program in one namespace, compiled as two pieces of code (src/session/runtime/python.rs has the
order): what a start and a plain request need, and what `load()` adds later. Until *ready* is sent only
built-in modules are imported: an `import json` would double the start. Python 3.9 to 3.13.

Invariants:
- Only the main thread reads requests and answers. Other threads send events, under `writing`.
- `current` is set while user code may be interrupted, and only then.
- A frame is never left half sent or half read because something was raised (see `send_event`).
"""

import _signal
import _thread
import fcntl
import posix
import sys
from time import perf_counter


def private(module):
    """A copy: user code may put something else in the place of what a module holds."""
    copy = type(sys)(module.__name__)
    copy.__dict__.update(module.__dict__)
    return copy


_signal, _thread, fcntl, posix = map(private, (_signal, _thread, fcntl, posix))

# --- frames -------------------------------------------------------------------------------------

VERSION = 1
HEADER = 16
(GO, READY, WARM, WARMED, EXECUTE, CALL, RESULT, ERROR, CANCEL, RESET, CLEAN, PING, PONG, SHUTDOWN,
 OUTPUT, DISPLAY, PROGRESS, INPUT, INPUT_REPLY, ATTACHMENT, INSPECT, INSPECTED, USAGE, FREEZE, FROZEN,
 FORK, FORKED, REAP) = range(1, 29)

# Flags of *execute* and *call*.
ANSWERS_INPUT = 1
MEASURE = 2
ONLY_IF_CLEAN = 4
# Flags of *freeze* and *fork*.
ONCE = 1
WITH_FILES = 1
# Flags of *reset*.
REQUEST_FOLLOWS = 1
REQUEST_IS_HERE = 2
# Flags of *result* and *error*.
HAS_VALUE = 1    # the second part is the value's repr
IS_JSON = 2      # the first part is the value as JSON
NOT_JSON = 4     # the first part says why there is no JSON
TOO_LARGE = 8    # the first part is the size that JSON would have had
STOPPED = 16     # the code noticed that it was cancelled
IS_BYTES = 32    # the first part is the value, a byte string

FIRST_OWN_FD = 20
REPR_CAP = 64 << 10
CACHED_SOURCES = 64     # in each of two generations
CACHED_SOURCE_SIZE = 64 << 10

# --- state --------------------------------------------------------------------------------------

PID = posix.getpid()
MAIN_THREAD = _thread.get_ident()
control = requests = replies = flag_fd = -1
inline = False           # everything travels on one pair of streams: see stdio.py
inline_signals = False   # cancels are heard while code runs
inbox = bytearray()      # what arrived on that stream
frames_in = []           # the frames in it that wait for the main loop
kept = ()                # private duplicates of fds 0, 1, 2, to mend what user code closes
frame_cap = 64 << 20
slots = 0                # entries that `In` and `Out` keep
session_id = 0
own_directory = ""       # where the session was started

current = 0              # number of the running request; 0 when none may be interrupted
last_request = 0
request_flags = 0        # of the running request
interrupted = 0          # number of the last request that was interrupted: once is enough
polled = 0               # number of the last request that asked `cancelled()`
asked = 0                # number of the last request that was cancelled while it ran
early = set()            # cancelled before they started
is_clean = True          # the last reset, if there was one, undid everything
answer_kept = b""        # the answer to a reset that travels with the next one
stopped = False          # the running request noticed its cancel
masked = False           # the main thread is inside a frame: an interrupt waits
held = 0                 # number of the request whose interrupt waits
in_child = False         # this is a child that user code forked
forking = False          # a session is being made by fork
frozen = False           # this is a template, for good or for one fork
once = False             # for one fork

writing = _thread.allocate_lock()
events_used = False      # some thread may be sending an event: see `close_request`

main = type(sys)("__main__")
namespace = main.__dict__
remuda = type(sys)("remuda", "What a program can ask of the remuda session that it runs in.")
warm = {}                # what a reset goes back to
code_cache, older_code = {}, {}
cell_number = 0          # names the cells in tracebacks
In, Out = {}, {}         # sources and values by execution, the last `slots` of each
executions = 0           # since the start or the last reset
incoming = {}            # attachments of the request that runs or comes next
incoming_for = 0         # its number
questions = 0            # *input* frames of the running request that have no reply yet
reply_bytes = b""        # a part of a frame that was read while code waits for input
stream_of_input = None   # our `sys.stdin`, once a host has offered to answer
cpu_before = 0.0         # processor time before the running request
event_loop = None        # the session's, once a request has awaited
loop_fds = set()         # of the event loop
loop_task = None         # the task of the running request, while the event loop runs it
deferred = ["_struct", "late", "json", "traceback", "linecache"]  # done when idle, or when first needed


def frame(kind, flags, request, first, second=b""):
    """Header and two-part body: u32 length of the first part, first part, second part."""
    size = 4 + len(first) + len(second)
    return b"".join((
        size.to_bytes(4, "little"), bytes((kind, flags, 0, 0)), request.to_bytes(8, "little"),
        len(first).to_bytes(4, "little"), first, second,
    ))


def unpack_head(data):
    """Length, kind, flags, zero, request number and length of the first part."""
    number = int.from_bytes
    return (number(data[:4], "little"), data[4], data[5], data[6] | data[7] << 8,
            number(data[8:16], "little"), number(data[16:20], "little"))


def use_struct():
    """Quicker ways to do the same, once `_struct` is there: in many builds it is a file to load."""
    global frame, unpack_head
    from _struct import Struct
    head = Struct("<IBBHQI")
    pack, unpack_head = head.pack, head.unpack_from

    def frame(kind, flags, request, first, second=b""):
        length = len(first)
        return pack(4 + length + len(second), kind, flags, 0, request, length) + first + second


def send(data):
    written = posix.write(replies, data)
    if written != len(data):
        view = memoryview(data)
        while written < len(data):
            written += posix.write(replies, view[written:])


def text_bytes(text):
    """UTF-8 that never fails: lone surrogates become escapes, and what a subclass says is not asked."""
    return str.encode(text, "utf-8", "backslashreplace")


encode_json = None


def dump_json(value):
    global encode_json
    if encode_json is None:
        encode_json = own("json").JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
    return encode_json(value).encode("utf-8")


late = None              # the second piece of code, marshalled, until it is loaded


def load():
    """Adds what a plain request does not need. The code holds no state, so that an interrupt or a
    second thread in the middle of this does no harm."""
    global late
    code = late
    if code is not None:
        import marshal
        exec(marshal.loads(code), globals())
        late = None


def load_for(name):
    """`__getattr__` of the module `remuda`: most programs never ask."""
    if late is not None and not name.startswith("__"):
        load()
        if name in remuda.__dict__:
            return remuda.__dict__[name]
    raise AttributeError("module 'remuda' has no attribute %r" % name)


def die():
    """The host is gone: take the whole process group along."""
    try:
        posix.kill(0, 9)
    except OSError:
        pass
    posix.kill(PID, 9)
    posix._exit(9)
