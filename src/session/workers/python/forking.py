

# --- template -----------------------------------------------------------------------------------
# After *freeze* this process runs no request any more, or none before it has forked once. It waits on
# `control` for *fork*: each child is a session with channels of its own. A child stays a zombie until the
# host is done with its number (*reap*): nobody else can get it before.

forked = {}              # process numbers of children by the request that made them
condemned = []           # of those that the host is done with, and that have not ended yet
ready_frame = b""        # what a child says first
on_child = None          # the handler of SIGCHLD that the warm-up left
silenced = {}            # where fds 1 and 2 led before a fork, during it


def obstacles(who):
    """Why copies of this process would share what cannot be shared."""
    found = []
    threads = remaining_threads()
    if threads > 1:
        found.append("%d threads run; a fork copies only one, and their locks stay held for ever" % threads)
    running = children()
    if running:
        found.append("%s left child processes (%s)" % (who, ", ".join(map(str, running))))
    if any(_signal.getitimer(timer)[0] for timer in TIMERS):
        found.append("%s left a timer running" % who)
    if event_loop is not None:
        found.append("%s left an event loop, whose descriptors all sessions would share" % who)
        return found
    for fd in sorted(open_fds() - {0, 1, 2}):
        if shares_badly(fd):
            found.append("%s left descriptor %s open, which all sessions would share" % (who, name_of_fd(fd)))
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
    found = obstacles("the warm-up")
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


def freeze_once(request):
    """Is a template for one fork, or answers why it cannot be. What follows is the next request: here, and in
    the copy that has been made."""
    global frozen, once, ready_frame, control_bytes
    flush_output()
    if event_loop is not None and not tasks_of_loop():
        clean_loop()
    try:
        found = obstacles("its code")
        answer = frame(FROZEN, 0, request, dump_json({"obstacles": found}))
        if found:
            return answer
        ready_frame = frame(READY, 0, 0, ready(True))
        silence()
        socket = own("_socket").socket(1, 1, 0, control)
    except (OSError, ImportError):
        # A look, and what is imported for it, need some.
        end_silence()
        return frame(FROZEN, 0, request, b'{"obstacles":["its code has left no descriptors"]}')
    try:
        frozen = once = True
        fcntl.fcntl(control, fcntl.F_SETFL, posix.O_RDWR)
        while control_bytes:
            # The handler has read a part of a frame; it is of a request that has ended.
            control_bytes += read_exactly(control, 1)
            if len(control_bytes) == HEADER + int.from_bytes(control_bytes[:4], "little"):
                control_bytes = b""
        send(answer)
        kind = REAP
        while kind is not None and kind != FORK:
            kind = serve_control(socket)
        if kind is None:
            reseed()
            return None
    finally:
        socket.detach()
    end_silence()
    fcntl.fcntl(control, fcntl.F_SETFL, posix.O_RDWR | posix.O_NONBLOCK | fcntl.FASYNC)
    frozen = once = False
    # What came before the signal was on.
    on_signal(0, None)
    return None


def silence():
    """What hooks print at the fork goes nowhere: nobody reads it meanwhile, and a full pipe would stop them."""
    for fd in (1, 2):
        if identity(fd) is not None:
            silenced[fd] = posix.dup(fd)
            posix.dup2(kept[0], fd)


def end_silence():
    flush_output()
    while silenced:
        fd, spare = silenced.popitem()
        posix.dup2(spare, fd)
        posix.close(spare)


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
        if control in ready:
            kind = serve_control(socket)
            if kind is None:
                # The descriptor is one of the session's now.
                socket.detach()
                serve()
            elif kind == FORK:
                # For the next child: here it keeps nobody waiting.
                reseed()


def serve_control(socket):
    """One frame of the host: returns its kind; None in the child that it made."""
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
        return kind if fork_session(socket, header[5], request, fds, body) else None
    for fd in fds:
        posix.close(fd)
    if kind == REAP:
        let_go(request)
    return kind


def let_go(request):
    """The host is done with a child."""
    pid = forked.pop(request, None)
    condemned[:] = [pid for pid in (*condemned, *((pid,) if pid else ())) if not has_ended(pid)]


def has_ended(pid):
    try:
        return posix.waitpid(pid, posix.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def fork_session(socket, flags, request, fds, body):
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
            become_session(fds, numbers, directory, flags & WITH_FILES)
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


def become_session(fds, numbers, directory, with_files):
    """The child's start. The host goes on as soon as *ready* is there, so this does the rest meanwhile: it
    gives up what is the template's and takes its own channels, which come to lie where those of the
    template were. Fd 0 is empty already."""
    global PID, leads_group, in_child, forking, frozen, flag_view, control_bytes, reply_bytes, session_id
    global current, last_request, interrupted, polled, asked, held, questions, stopped, handling, again
    global incoming_for, once
    try:
        if directory:
            move_into(directory, with_files)
        if once:
            # Before the parent runs on.
            part_from_parent(fds)
    except BaseException as error:
        # Fd 2 is the parent's yet.
        posix.write(fds[2], text_bytes("remuda worker: " + brief(error)[:1000] + "\n"))
        posix._exit(70)
    posix.write(fds[4], ready_frame)
    flush_output()
    move_into_group(0)
    PID, in_child, forking, leads_group = posix.getpid(), False, False, True
    places = control, 1, 2, requests, replies, flag_fd, kept[1], kept[2]
    for fd, place in zip((*fds, fds[1], fds[2]), places):
        posix.dup2(fd, place, place < 3)
    for fd in (*fds, *warm.pop("proc", ()), *silenced.values()):
        posix.close(fd)
    silenced.clear()
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
    warm.update(fds=tuple(map(identity, range(3))), children=frozenset())
    if once:
        once = False
    else:
        part_from_parent(())
    if open_fds() == warm["open"]:
        accept_fds()
    else:
        # The copy of a live session has what its user opened: the next reset looks closer.
        warm.update(free_fd=-1, fd_count=warm["fd_count"] and -1)


def part_from_parent(channels):
    """Has its own place in each file that is open to read."""
    for fd in open_fds() - {0, 1, 2, *channels}:
        if posix.fstat(fd).st_mode & 0o170000 == 0o100000:
            own_fd = posix.open("/proc/self/fd/%d" % fd, fcntl.fcntl(fd, fcntl.F_GETFL) | posix.O_CLOEXEC)
            posix.lseek(own_fd, posix.lseek(fd, 0, 1), 0)
            posix.dup2(own_fd, fd, posix.get_inheritable(fd))
            posix.close(own_fd)


def move_into(directory, with_files):
    """Goes to the place in this directory where the parent is in its own; to the same place if it is outside."""
    global own_directory
    old, here = own_directory, current_directory()
    posix.chdir(directory)
    own_directory = posix.getcwd()
    if with_files and own_directory != old:
        copy_files(old, own_directory)
    warm["cwd"] = moved(warm["cwd"], old)
    try:
        posix.chdir(moved(here, old))
    except OSError:
        # It was made by the warm-up of a template, or is gone.
        warm["cwd"] = own_directory


def current_directory():
    try:
        return posix.getcwd()
    except OSError:
        return own_directory


def moved(path, old):
    return own_directory + path[len(old):] if path == old or path.startswith(old + "/") else path


def copy_files(source, target):
    """Files, directories and links; what is something else (a socket, a named pipe) is left out."""
    with posix.scandir(source) as entries:
        for entry in entries:
            place = target + "/" + entry.name
            if entry.is_symlink():
                posix.symlink(posix.readlink(entry.path), place)
            elif entry.is_dir(follow_symlinks=False):
                posix.mkdir(place, 0o700)
                copy_files(entry.path, place)
                keep_status(entry, place)
            elif entry.is_file(follow_symlinks=False):
                copy_file(entry.path, place)
                keep_status(entry, place)


def copy_file(source, target):
    source = posix.open(source, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    try:
        target = posix.open(target, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
        try:
            while posix.sendfile(target, source, None, 1 << 30):
                pass
        finally:
            posix.close(target)
    finally:
        posix.close(source)


def keep_status(entry, place):
    status = entry.stat(follow_symlinks=False)
    posix.chmod(place, status.st_mode & 0o7777)
    posix.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))


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
