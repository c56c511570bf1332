

# --- start --------------------------------------------------------------------------------------

def move_up(fd):
    """Out of the way of code that closes or reuses small numbers."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FD)
    posix.close(fd)
    return high


def take_channels():
    """Moves the protocol away from fds 0 to 2 and gives user code an empty stdin."""
    global control, kept, own_directory
    own_directory = posix.getcwd()
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


def read_exactly(fd, size):
    data = b""
    while len(data) < size:
        more = posix.read(fd, size - len(data))
        if not more:
            die()
        data += more
    return data


def refuse(reason):
    posix.write(2, b"remuda worker: " + reason + b"\n")
    posix._exit(78)


def read_numbers(body):
    """Version, session number, frame cap and history slots, as in *go*; zero for what did not come."""
    length = min(int.from_bytes(body[:4], "little"), len(body) - 4)
    return [int.from_bytes(body[i:i + 8], "little") if i < 4 + length else 0 for i in (4, 12, 20, 28)]


def receive_go():
    global requests, replies, flag_fd, frame_cap, session_id, slots
    header, ancillary = b"", ()
    if posix.fstat(control).st_mode & 0o170000 == 0o140000:
        import _socket
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, control)
        header, ancillary, _, _ = socket.recvmsg(HEADER, _socket.CMSG_SPACE(12), _socket.MSG_CMSG_CLOEXEC)
        socket.detach()
        if not header:
            die()
    header += read_exactly(control, HEADER - len(header))
    size = int.from_bytes(header[:4], "little")
    if header[4] != GO or not 20 <= size <= 4096:
        refuse(b"the host did not begin with a go frame")
    body = read_exactly(control, size)
    version, session_id, frame_cap, slots = read_numbers(body)
    if version != VERSION:
        refuse(b"this host speaks another version of the protocol")
    if not ancillary:
        load()
        take_stdio()
        return
    fds = ancillary[0][2]
    requests, replies, flag_fd = (move_up(int.from_bytes(fds[i:i + 4], sys.byteorder)) for i in (0, 4, 8))
    if not leads_group:
        load()
    listen_for_cancels()
    fcntl.fcntl(control, fcntl.F_SETOWN, PID)
    flags = fcntl.fcntl(control, fcntl.F_GETFL)
    fcntl.fcntl(control, fcntl.F_SETFL, flags | posix.O_NONBLOCK | fcntl.FASYNC)
    # What came before the signal was on.
    posix.kill(PID, _signal.SIGIO)


def prepare_interpreter():
    for stream in own_streams:
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    for stream in (plain_stdin, *own_streams):
        follow(stream)
    if hasattr(sys, "monitoring"):
        sys.monitoring.use_tool_id = use_tool_id
    users_signal.__getattr__ = show_signals
    sys.modules["_signal"] = users_signal
    fill_namespace()
    sys.modules["__main__"] = main
    sys.argv[:] = [""]
    # Figures are sent as images; without this, matplotlib looks for a screen.
    sys.modules["os"].environ.setdefault("MPLBACKEND", "agg")
    sys.addaudithook = addaudithook
    remuda.cancelled = cancelled
    remuda.session_id = session_id
    remuda.attachments = {}
    remuda.__getattr__ = load_for
    sys.modules["remuda"] = remuda
    posix.register_at_fork(after_in_child=after_fork_in_child)


def fill_namespace():
    namespace.update(__name__="__main__", __builtins__=sys.modules["builtins"], __doc__=None)
    if slots:
        namespace["In"], namespace["Out"] = In, Out


def ready(of_child=False):
    """What this worker, or a child that a template makes of it, can do. *forked* tells the child's number."""
    features = ["execute", "call", "warm", "reset", "inspect", "input", "attachments"]
    if not inline or inline_signals:
        features.append("interrupt")
    if (leads_group or of_child) and not inline:
        features.append("sigint")
    if not inline and hasattr(posix, "pidfd_open"):
        features.extend(("fork", "branch"))
    if not inline:
        features.append("only_if_clean")
    return (
        '{"protocol":%d,%s"language":"python","version":"%s","features":["%s"]}'
        % (VERSION, "" if of_child else '"pid":%d,' % PID, sys.version.split()[0], '","'.join(features))
    ).encode()


# All that can be caught, but those that the worker itself handles.
WATCHED_SIGNALS = tuple(sorted(
    {int(number) for number in _signal.valid_signals()}
    - {_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGIO, _signal.SIGINT}
))


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


def lowest_free_fd():
    fd = posix.dup(0)
    posix.close(fd)
    return fd


def open_fds():
    """Numbers of all open descriptors but those of the worker."""
    listed = set(map(int, posix.listdir("/proc/self/fd")))
    own = {control, requests, replies, flag_fd, *kept, *own_fds, *loop_fds}
    # The listing needed one too; it is closed again.
    return {fd for fd in listed - own if identity(fd) is not None}


HOOKS = ("displayhook", "excepthook", "unraisablehook", "breakpointhook", "addaudithook")
plain_addaudithook = sys.addaudithook
audit_hooks = 0


def addaudithook(hook, /):
    """The original, counted: nothing takes such a hook away again."""
    global audit_hooks
    audit_hooks += 1
    plain_addaudithook(hook)


users_signal = type(sys)("_signal")
signals_used = "signal" in sys.modules  # or whoever could set a timer or a handler


def show_signals(name):
    """`__getattr__` of what user code finds as `_signal`, and `signal` takes all from: empty so far."""
    global signals_used
    signals_used = True
    del users_signal.__getattr__
    users_signal.__dict__.update(_signal.__dict__)
    return getattr(users_signal, name)


plain_use_tool_id = sys.monitoring.use_tool_id if hasattr(sys, "monitoring") else None
tools = set()            # used since the warm state; what they watch outlives their use


def use_tool_id(tool, name, /):
    """The original, noted for the next reset."""
    plain_use_tool_id(tool, name)
    tools.add(tool)


followed = []            # the worker's own streams, with what `reconfigure` has set and shows nowhere
attributes = []          # what lies over their methods
reconfigured = 0         # how often that was done


def follow(stream):
    plain, hidden = stream.reconfigure, {"newline": "\n"}

    def reconfigure(**changes):
        """The original, noted for the next reset."""
        global reconfigured
        reconfigured += 1
        plain(**changes)
        hidden.update({name: changes[name] for name in hidden if name in changes})

    stream.reconfigure = reconfigure
    followed.append((stream, plain, hidden))
    attributes.append(stream.__dict__)


def settings(stream, hidden):
    shown = ("encoding", "errors", "line_buffering", "write_through")
    try:
        return {**hidden, **{name: getattr(stream, name) for name in shown}}
    except ValueError:
        # Detached.
        return None


def take_warm_state():
    """Remembers what a reset goes back to."""
    import os
    import builtins
    import gc
    umask = posix.umask(0o077)
    posix.umask(umask)
    wakeup_fd = _signal.set_wakeup_fd(-1)
    if wakeup_fd != -1:
        _signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
    names = builtins.__dict__
    tools.clear()
    warm.update(
        namespace=dict(namespace), threads=_thread._count(), cwd=posix.getcwd(), umask=umask,
        environ=dict(os.environ), environ_object=os.environ, environ_data=dict(raw_environ()),
        lists=(sys.path, sys.argv, sys.meta_path), items=(sys.path[:], sys.argv[:], sys.meta_path[:]),
        modules=frozenset(sys.modules),
        builtins=dict(names), builtin_values=list(names.values()),
        streams=(sys.stdin, sys.stdout, sys.stderr), hooks=tuple(getattr(sys, name) for name in HOOKS),
        fds=tuple(map(identity, range(3))), recursion=sys.getrecursionlimit(), switch=sys.getswitchinterval(),
        signals=list(map(_signal.getsignal, WATCHED_SIGNALS)), mask=_signal.pthread_sigmask(_signal.SIG_BLOCK, ()),
        gc=(gc.isenabled(), gc.get_threshold(), list(gc.callbacks)), nice=posix.nice(0), audit_hooks=audit_hooks,
        reconfigured=reconfigured, attributes=list(map(dict, attributes)),
        settings=[settings(stream, hidden) for stream, _, hidden in followed],
        asyncgens=sys.get_asyncgen_hooks(), wakeup_fd=wakeup_fd,
        children=frozenset(), loop=None, tasks=frozenset(),
        open=open_fds(), free_fd=lowest_free_fd(), fd_count=posix.stat("/proc/self/fd").st_size,
    )
