

# --- template -----------------------------------------------------------------------------------
# After *freeze* this process runs no request any more. It waits on `control` for *fork*: each child is a
# session with channels of its own. A child stays a zombie until the host is done
# with its number (*reap*): nobody else can get it before.

forked = {}              # process numbers of children by the request that made them
condemned = []           # of those that the host is done with, and that have not ended yet
ready_frame = b""        # what a child says first
on_child = None          # the handler of SIGCHLD that the warm-up left


def obstacles():
    """Why copies of this process would share what cannot be shared."""
    found = []
    threads = remaining_threads()
    if threads > 1:
        found.append("%d threads run; a fork copies only one, and their locks stay held for ever" % threads)
    running = children()
    if running:
        found.append("the warm-up left child processes (%s)" % ", ".join(map(str, running)))
    if any(_signal.getitimer(timer)[0] for timer in TIMERS):
        found.append("the warm-up left a timer running")
    if event_loop is not None:
        found.append("the warm-up left an event loop, whose descriptors all sessions would share")
        return found
    for fd in sorted(open_fds() - {0, 1, 2}):
        if shares_badly(fd):
            found.append("the warm-up left descriptor %s open, which all sessions would share" % name_of_fd(fd))
    return found


def remaining_threads():
    """How many run. Python says that a thread has ended while the kernel is still busy with its end."""
    given_up = perf_counter() + 0.5
    while True:
        threads = len(posix.listdir("/proc/self/task"))
        if threads == 1 or _thread._count() or perf_counter() > given_up:
            return threads
        own("time").sleep(0.001)


def shares_badly(fd):
    """Connections, pipes, and files that are written to: their state is one for all copies."""
    kind = posix.fstat(fd).st_mode & 0o170000
    writes = fcntl.fcntl(fd, fcntl.F_GETFL) & (posix.O_WRONLY | posix.O_RDWR)
    return not (kind in (0o020000, 0o040000) or kind == 0o100000 and not writes)


def freeze(request):
    """Makes a template of this process, or answers why it cannot be one."""
    global frozen, on_child, ready_frame
    import gc
    prepare_requests()
    flush_output()
    found = obstacles()
    answer = frame(FROZEN, 0, request, dump_json({"obstacles": found}))
    if found:
        return answer
    frozen = True
    on_child = _signal.getsignal(_signal.SIGCHLD)
    if on_child is not None:
        # Nobody else waits for children.
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    # `control` is read by the loop below, not by a handler; but children have handlers at once.
    listen_for_cancels()
    fcntl.fcntl(control, fcntl.F_SETFL, posix.O_RDWR)
    # Nobody reads what the hooks of the warm-up print at each fork: a full pipe would stop them.
    posix.dup2(kept[0], 1)
    posix.dup2(kept[0], 2)
    name_process(b"remuda-template")
    reseed()
    ready_frame = frame(READY, 0, 0, ready(True))
    # What is here stays for good: a collection in a child would else touch, and so copy, every page.
    gc.collect()
    gc.freeze()
    send(answer)
    serve_forks()


def prepare_requests():
    """Does now what a worker does when it is idle or first needs it: it is done once then, and shared."""
    global cell_number
    while deferred:
        name = deferred.pop(0)
        if name != "late":
            own(name)
        if name == "_struct":
            use_struct()
    for name in ("select", "_socket"):
        own(name)
    number = cell_number
    for source in (b"1+1", b"import sys\nsys"):
        # The compiler makes its types the first time.
        compile_cell(source)
        code_cache.pop(source, None)
    cell_number = number


def name_process(name):
    """For `ps` and `top`."""
    try:
        fd = posix.open("/proc/self/comm", posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(fd, name)
        finally:
            posix.close(fd)
    except OSError:
        pass


def serve_forks():
    """Until the host is gone; in a child, requests follow."""
    select = own("select")
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    waiting.register(requests, select.POLLIN)
    socket = own("_socket").socket(1, 1, 0, control)
    while True:
        ready = [fd for fd, _ in waiting.poll(50 if condemned else None)]
        condemned[:] = [pid for pid in condemned if not has_ended(pid)]
        if requests in ready:
            answer_as_template()
        if control in ready and not serve_control(socket):
            # The descriptor is one of the session's now.
            socket.detach()
            serve()


def serve_control(socket):
    """One frame of the host. False in the child that it made."""
    size = own("_socket").CMSG_SPACE(24)
    header, ancillary, _, _ = socket.recvmsg(HEADER, size, own("_socket").MSG_CMSG_CLOEXEC)
    if not header:
        die()
    header += read_exactly(control, HEADER - len(header))
    check_short(header)
    length, kind = int.from_bytes(header[:4], "little"), header[4]
    request = int.from_bytes(header[8:16], "little")
    body = read_exactly(control, length)
    fds = [int.from_bytes(data[i:i + 4], sys.byteorder) for _, _, data in ancillary for i in range(0, len(data), 4)]
    if kind == FORK:
        return fork_session(socket, request, fds, body)
    for fd in fds:
        posix.close(fd)
    if kind == REAP and request in forked:
        pid = forked.pop(request)
        if not has_ended(pid):
            condemned.append(pid)
    return True


def has_ended(pid):
    try:
        return posix.waitpid(pid, posix.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def fork_session(socket, request, fds, body):
    """Forks, and answers with a descriptor of the child, made before anything could reap it. What the child
    has to do is little: each page that it touches is copied first."""
    global forking
    pid, pidfd, rights = -1, -1, []
    numbers = read_numbers(body)
    directory = body[4 + int.from_bytes(body[:4], "little"):]
    try:
        if len(fds) != 6:
            raise OSError("the descriptors of its channels did not come along")
        forking = True
        pid = posix.fork()
        if pid == 0:
            become_session(fds, numbers, directory)
            return False
        forked[request] = pid
        move_into_group(pid)
        pidfd = posix.pidfd_open(pid, 0)
        answer = frame(FORKED, 0, request, b'{"pid":%d}' % pid)
        rights = [(1, own("_socket").SCM_RIGHTS, pidfd.to_bytes(4, sys.byteorder))]
    except Exception as error:
        if pid == 0:
            # This is the child, which ends with what it says of that.
            raise
        answer = frame(ERROR, 0, request, dump_json(
            {"type": type_name(type(error)), "message": str(error), "traceback": ""}))
    forking = False
    socket.sendmsg([answer], rights)
    for fd in fds:
        posix.close(fd)
    if pidfd >= 0:
        posix.close(pidfd)
    # For the next child: here it keeps nobody waiting.
    reseed()
    return True


def reseed():
    """`random` and the like see to it themselves, by `os.register_at_fork`. What is not loaded is not
    loaded for this."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def move_into_group(pid):
    """Parent and child do the same: whoever comes first."""
    try:
        posix.setpgid(pid, pid)
    except OSError:
        pass


def become_session(fds, numbers, directory):
    """The child's start. The host goes on as soon as *ready* is there, so this does the rest meanwhile: it
    gives up what is the template's and takes its own channels, which come to lie where those of the
    template were. Fd 0 is empty already."""
    global PID, leads_group, in_child, forking, frozen, flag_view, control_bytes, reply_bytes, session_id
    global current, last_request, interrupted, polled, asked, held, questions, stopped, handling, again
    global incoming_for
    try:
        if directory:
            posix.chdir(directory)
    except OSError as error:
        # Fd 2 is the template's yet, and nobody reads it.
        posix.write(fds[2], text_bytes("remuda worker: " + brief(error) + "\n"))
        posix._exit(70)
    posix.write(fds[4], ready_frame)
    flush_output()
    move_into_group(0)
    PID, in_child, forking, leads_group = posix.getpid(), False, False, True
    places = control, 1, 2, requests, replies, flag_fd, kept[1], kept[2]
    for fd, place in zip((*fds, fds[1], fds[2]), places):
        posix.dup2(fd, place, place < 3)
    for fd in (*fds, *warm.pop("proc", ())):
        posix.close(fd)
    session_id = remuda.session_id = numbers[1]
    control_bytes = reply_bytes = b""
    current = last_request = interrupted = polled = asked = held = questions = incoming_for = 0
    stopped = handling = again = False
    flag_view = None
    for known in (own_fds, forked, condemned, early):
        known.clear()
    if on_child is not None:
        _signal.signal(_signal.SIGCHLD, on_child)
    fcntl.fcntl(control, fcntl.F_SETOWN, PID)
    fcntl.fcntl(control, fcntl.F_SETFL, posix.O_RDWR | posix.O_NONBLOCK | fcntl.FASYNC)
    frozen = False
    # What came before the signal was on.
    on_signal(0, None)
    name_process(b"remuda-%d" % session_id)
    warm.update(
        cwd=posix.getcwd(), fds=tuple(map(identity, range(3))), children=frozenset(), open=open_fds(),
        free_fd=lowest_free_fd(), fd_count=posix.stat("/proc/self/fd").st_size,
    )


def answer_as_template():
    """A template answers that it is there, and leaves when it is asked to; it runs nothing."""
    header = posix.read(requests, HEADER)
    if not header:
        die()
    header += read_exactly(requests, HEADER - len(header))
    check_short(header)
    kind, request = header[4], int.from_bytes(header[8:16], "little")
    read_exactly(requests, int.from_bytes(header[:4], "little"))
    if kind == PING:
        send(frame(PONG, 0, request, b""))
    elif kind == SHUTDOWN:
        leave()
    else:
        send(frame(ERROR, 0, request, minimal_error("ProtocolError", "a template runs nothing")))
