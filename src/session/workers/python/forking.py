

# --- template -----------------------------------------------------------------------------------
# After *freeze* this process runs no request any more. It waits on `control` for *fork*: each child is a
# session with channels of its own, and goes on in `serve`. A child stays a zombie until the host is done
# with its number (*reap*): nobody else can get it before.

forked = {}              # process numbers of children by the request that made them
condemned = []           # of those that the host is done with, and that have not ended yet
on_child = None          # the handler of SIGCHLD that the warm-up left


def obstacles():
    """Why copies of this process would share what cannot be shared."""
    found = []
    threads = len(posix.listdir("/proc/self/task"))
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


def shares_badly(fd):
    """Connections, pipes, and files that are written to: their state is one for all copies."""
    kind = posix.fstat(fd).st_mode & 0o170000
    writes = fcntl.fcntl(fd, fcntl.F_GETFL) & (posix.O_WRONLY | posix.O_RDWR)
    return not (kind in (0o020000, 0o040000) or kind == 0o100000 and not writes)


def freeze(request):
    """Makes a template of this process, or answers why it cannot be one."""
    import gc
    while deferred:
        name = deferred.pop(0)
        if name == "late":
            continue
        own(name)
        if name == "_struct":
            use_struct()
    own("select"), own("_socket")
    flush_output()
    found = obstacles()
    answer = frame(FROZEN, 0, request, dump_json({"obstacles": found}))
    if found:
        return answer
    # What is here stays for good: a collection in a child would else touch, and so copy, every page.
    gc.collect()
    gc.freeze()
    quiet_control()
    name_process(b"remuda-template")
    send(answer)
    serve_forks()


def quiet_control():
    """`control` is read by the loop below, not by a handler: nothing here needs to be interrupted. And
    nobody else waits for children."""
    global on_child
    on_child = _signal.getsignal(_signal.SIGCHLD)
    if on_child is not None:
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    flags = fcntl.fcntl(control, fcntl.F_GETFL)
    fcntl.fcntl(control, fcntl.F_SETFL, flags & ~(posix.O_NONBLOCK | fcntl.FASYNC))
    for number in (_signal.SIGIO, _signal.SIGINT):
        _signal.signal(number, _signal.SIG_IGN)


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
    """Until the host is gone; in a child this returns, which is then a session that waits for *go*."""
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
            # The descriptor is the parent's; here it is closed already.
            socket.detach()
            become_session()
            return


def serve_control(socket):
    """One frame of the host. False in the child that it made."""
    size = own("_socket").CMSG_SPACE(12)
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
        return fork_session(socket, request, fds, body[4 + int.from_bytes(body[:4], "little"):])
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


def fork_session(socket, request, fds, directory):
    """Forks, and answers with a descriptor of the child, made before anything could reap it."""
    global forking
    pid, pidfd, rights = -1, -1, []
    try:
        if len(fds) != 3:
            raise OSError("the descriptors of its channels did not come along")
        forking = True
        pid = posix.fork()
        if pid == 0:
            take_place(fds, directory)
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
    for fd in fds:
        posix.close(fd)
    socket.sendmsg([answer], rights)
    if pidfd >= 0:
        posix.close(pidfd)
    return True


def move_into_group(pid):
    """The child does the same: whoever comes first."""
    try:
        posix.setpgid(pid, pid)
    except OSError:
        pass


def take_place(fds, directory):
    """In the child: gives up everything of the template's and takes its own channels."""
    global PID, leads_group, in_child, forking, flag_view, control_bytes, reply_bytes, incoming_for
    global current, last_request, interrupted, polled, asked, held, questions, stopped, handling, again
    move_into_group(0)
    PID, in_child, forking = posix.getpid(), False, False
    leads_group = posix.getpgrp() == PID
    if on_child is not None:
        _signal.signal(_signal.SIGCHLD, on_child)
    for fd in (control, requests, replies, flag_fd, *kept, *warm.pop("proc", ())):
        posix.close(fd)
    for number, fd in enumerate(fds):
        posix.dup2(fd, number)
        posix.close(fd)
    forked.clear()
    condemned.clear()
    flag_view = None
    own_fds.clear()
    early.clear()
    control_bytes = reply_bytes = b""
    current = last_request = interrupted = polled = asked = held = questions = incoming_for = 0
    stopped = handling = again = False
    if directory:
        posix.chdir(directory)


def become_session():
    """The child's start: as that of any worker, but everything is warm."""
    move_channels()
    receive_go()
    reseed()
    remuda.session_id = session_id
    send(frame(READY, 0, 0, ready()))
    name_process(b"remuda-%d" % session_id)
    warm.update(
        cwd=posix.getcwd(), fds=tuple(map(identity, range(3))), children=frozenset(), open=open_fds(),
        free_fd=lowest_free_fd(), fd_count=posix.stat("/proc/self/fd").st_size,
    )
    serve()


def reseed():
    """`random` and the like see to it themselves, by `os.register_at_fork`. What is not loaded is not
    loaded for this: it would cost a child more than everything else."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


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
