

# --- reset --------------------------------------------------------------------------------------
# On a loaded machine the caches are cold when a reset begins: a call that takes 0.2 microseconds in a
# loop takes 1 to 3 then, and one that raises or formats takes 10. So it asks for little, each thing in
# one way, and looks closer only where that shows a difference.

import builtins
import gc
import os

# `faulthandler` has another way for these.
FATAL_SIGNALS = {_signal.SIGSEGV, _signal.SIGFPE, _signal.SIGABRT, _signal.SIGBUS, _signal.SIGILL}
TIMERS = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)
unread = bytearray(4)
NOTHING_UNREAD = bytes(4)


def answer_reset(request, flags):
    global is_clean
    taint = reset(flags & REQUEST_FOLLOWS)
    is_clean = not taint
    return frame(CLEAN, 0, request, dump_json(taint) if taint else b"[]")


def reset(request_follows):
    """Brings the warm state back; returns the reasons why only a new process would be clean.

    If a request follows, the host takes whatever is in the pipes for its output: nothing of the last
    user's may get there. What a finalizer prints goes nowhere then, and a child that has ended since,
    perhaps with a last word, counts as one that runs."""
    # Else nobody can have set a timer, or changed what a signal does.
    signals = signals_used or "faulthandler" in sys.modules
    if signals:
        # Whatever of the last user could still go off comes first.
        stop_timers()
        # Who drives coroutines has one of those modules, too.
        sys.set_asyncgen_hooks(*warm["asyncgens"])
    if "proc" not in warm:
        open_proc()
    if request_follows and warm["plain_fds"]:
        posix.dup2(kept[0], 1)
        posix.dup2(kept[0], 2)
    taint = []
    if event_loop is not None and clean_loop():
        taint.append("tasks")
    if _thread._count() > warm["threads"]:
        taint.append("threads")
    # What watches each step of this has perhaps said something by now.
    watched = sys.gettrace() is not None or sys.getprofile() is not None or len(tools) > 0
    if watched:
        stop_watching()
    if "threading" in sys.modules:
        unhook_threads(sys.modules["threading"])
    if signals:
        reset_signals()
    if audit_hooks != warm["audit_hooks"]:
        taint.append("audit hooks")
    if executions:
        forget_history()
    namespace.clear()
    namespace.update(warm["namespace"])
    sys.modules["__main__"] = main
    if stream_of_input is not None:
        renew_input()
    path, argv, finders = warm["lists"]
    try:
        # A look is cheaper than putting back.
        changed = sys.path is not path or sys.argv is not argv or sys.meta_path is not finders or (
            sys.stdin, sys.stdout, sys.stderr
        ) != warm["streams"] or (
            sys.displayhook, sys.excepthook, sys.unraisablehook, sys.breakpointhook, sys.addaudithook
        ) != warm["hooks"]
    except Exception:
        changed = True
    if changed:
        sys.path, sys.argv, sys.meta_path = path, argv, finders
        sys.stdin, sys.stdout, sys.stderr = warm["streams"]
        sys.displayhook, sys.excepthook, sys.unraisablehook, sys.breakpointhook, sys.addaudithook = warm["hooks"]
    path[:], argv[:], finders[:] = warm["items"]
    if reconfigured != warm["reconfigured"] or attributes != warm["attributes"]:
        restore_streams(taint)
    sys.setrecursionlimit(warm["recursion"])
    sys.setswitchinterval(warm["switch"])
    enabled, threshold, callbacks = warm["gc"]
    gc.set_threshold(*threshold)
    (gc.enable if enabled else gc.disable)()
    gc.callbacks[:] = callbacks
    if posix.getpriority(posix.PRIO_PROCESS, 0) != warm["nice"]:
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
    environ = os.environ
    if environ is not warm["environ_object"] or getattr(environ, "_data", environ) != warm["environ_data"]:
        os.environ = warm["environ_object"]
        os.environ.clear()
        os.environ.update(warm["environ"])
        own("time").tzset()
    # Without the names, which takes half the time: whatever is set or deleted shows here, too (but not that
    # the last one was renamed).
    if list(builtins.__dict__.values()) != warm["builtin_values"]:
        builtins.__dict__.clear()
        builtins.__dict__.update(warm["builtins"])
    # After the finalizers of all that was held above, while what they say goes nowhere. They start threads
    # and programs, too.
    try:
        all_open = flush_output() and not sys.stdin.closed
    except Exception:
        all_open = False
    if not all_open and any(map(is_closed, warm["streams"])):
        taint.append("closed streams")
    heard = signals or watched or not warm["plain_fds"] or threads_left > warm["threads"]
    if _thread._count() > warm["threads"] and "threads" not in taint:
        taint.append("threads")
    if warm["plain_fds"]:
        # Without a look: where they are what they were, this changes nothing.
        posix.dup2(kept[0], 0)
        posix.dup2(kept[1], 1)
        posix.dup2(kept[2], 2)
    else:
        mend_fds()
    # What was held above is closed by now.
    if fds_differ() and left_fds():
        gc.collect()
        flush_output()
        heard = True
        if left_fds():
            taint.append("open descriptors")
        else:
            accept_fds()
        if _thread._count() > warm["threads"] and "threads" not in taint:
            taint.append("threads")
    if may_have_children() and left_children(request_follows):
        taint.append("children")
    # Last: whatever ended in the middle of this has said what it had to say. Children are seen even when
    # they have ended, unless somebody has changed a handler.
    if request_follows and heard and output_waits():
        taint.append("output")
    return taint


def unhook_threads(threading):
    """For threads that start later."""
    try:
        if threading._trace_hook is not None or threading._profile_hook is not None:
            threading.settrace(None)
            threading.setprofile(None)
    except AttributeError:
        # Another module by that name.
        pass


def restore_streams(taint):
    global reconfigured
    try:
        for (stream, plain, hidden), known, now, before in zip(
            followed, warm["settings"], attributes, warm["attributes"]
        ):
            now.clear()
            now.update(before)
            if settings(stream, hidden) != known:
                plain(**known)
                hidden.update({name: known[name] for name in hidden})
        reconfigured = warm["reconfigured"]
    except Exception:
        # One that was read from cannot change its encoding any more.
        taint.append("changed streams")


def stop_watching():
    sys.settrace(None)
    sys.setprofile(None)
    if not tools:
        return
    monitoring = sys.monitoring
    events = [event for event in vars(monitoring.events).values() if isinstance(event, int) and event]
    for tool in tools:
        if monitoring.get_tool(tool) is None:
            # Freed, but it may go on.
            plain_use_tool_id(tool, "remuda")
        monitoring.set_events(tool, 0)
        for event in events:
            monitoring.register_callback(tool, event, None)
        monitoring.free_tool_id(tool)
    tools.clear()


def stop_timers():
    # `alarm` sets the first of them.
    for timer in TIMERS:
        _signal.setitimer(timer, 0)
    if "faulthandler" in sys.modules:
        faulthandler = sys.modules["faulthandler"]
        faulthandler.cancel_dump_traceback_later()
        for number in WATCHED_SIGNALS:
            if number not in FATAL_SIGNALS:
                faulthandler.unregister(number)


def reset_signals():
    if list(map(_signal.getsignal, WATCHED_SIGNALS)) != warm["signals"]:
        for number, handler in zip(WATCHED_SIGNALS, warm["signals"]):
            if handler is not None and _signal.getsignal(number) is not handler:
                _signal.signal(number, handler)
    # Now that no handler of the user's is left for what was held back.
    _signal.pthread_sigmask(_signal.SIG_SETMASK, warm["mask"])
    # Without a look: `siginterrupt` changes what shows nowhere.
    listen_for_cancels()
    _signal.set_wakeup_fd(warm["wakeup_fd"], warn_on_full_buffer=False)
    # asyncio, or a program that shares them, may have left it so that writing to a full one fails.
    for fd in kept[1:]:
        posix.set_blocking(fd, True)


def is_closed(stream):
    try:
        # What the warm-up has put in the place of a stream may not know.
        return getattr(stream, "closed", False)
    except Exception:
        # Detached from what it read or wrote.
        return True


def open_proc():
    """Opens what the cheap looks read, at the first reset of this process: by path they cost three times
    as much."""
    opened = []
    try:
        for path in ("/proc/self/task/%d/children" % PID, "/proc/self/fd"):
            opened.append(move_up(posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)))
    except OSError:
        # A kernel that does not tell: each reset looks closer.
        pass
    own_fds.update(opened)
    if warm["fd_count"]:
        warm["fd_count"] += len(opened)
    warm.update(proc=tuple(opened), plain_fds=tuple(map(identity, kept)) == warm["fds"])


def may_have_children():
    """The cheap look: the list of the main thread, which inherits from the threads that end."""
    try:
        return warm["threads"] > 0 or posix.pread(warm["proc"][0], 1, 0) != b""
    except (OSError, IndexError):
        return True


def output_waits():
    """Whether a pipe to the host holds anything; the host has emptied it before the reset."""
    if "pipes" not in warm:
        # Not before: what the user did to imports is undone by now.
        warm["fionread"] = own("termios").FIONREAD
        warm["pipes"] = tuple(filter(is_pipe, kept[1:]))
    for fd in warm["pipes"]:
        fcntl.ioctl(fd, warm["fionread"], unread)
        if unread != NOTHING_UNREAD:
            return True
    return False


def is_pipe(fd):
    """Else a wrapper has put something there that the host does not read."""
    try:
        fcntl.ioctl(fd, warm["fionread"], unread)
        return True
    except OSError:
        return False


def left_children(request_follows):
    """Whether children run that the warm-up did not start; those that have ended are reaped, or count."""
    if forked or condemned:
        # The host's copies of this process are not the user's, and the host has them reaped.
        others = set(children()) - warm["children"]
        return not all(not request_follows and has_ended(pid) for pid in others)
    try:
        if request_follows and not warm["children"]:
            posix.waitid(posix.P_ALL, 0, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
            return True
        while not request_follows and posix.waitpid(-1, posix.WNOHANG)[0]:
            pass
        return not warm["children"].issuperset(children())
    except ChildProcessError:
        return False


def mend_fds():
    for fd, known, spare in zip(range(3), warm["fds"], kept):
        if identity(fd) != known:
            posix.dup2(spare, fd)


def fds_differ():
    """The cheap look: the count of open descriptors where the kernel tells (Linux 6.2 on), else the lowest
    free number, which whatever is opened takes."""
    try:
        if warm["fd_count"]:
            return posix.fstat(warm["proc"][1]).st_size != warm["fd_count"]
        return lowest_free_fd() != warm["free_fd"]
    except (OSError, IndexError):
        return True


def left_fds():
    """Descriptors that were not open in the warm state."""
    left = open_fds() - warm["open"]
    if not left:
        accept_fds()
    return left


def accept_fds():
    """What differs now is the worker's own (the map of the flag): no reason to look again."""
    warm["free_fd"], warm["fd_count"] = lowest_free_fd(), posix.stat("/proc/self/fd").st_size


def children():
    """Process numbers of the children, those that are not reaped yet included, but for the copies that the host
    has had made."""
    condemned[:] = [pid for pid in condemned if not has_ended(pid)]
    copies = {*forked.values(), *condemned}
    return [pid for pid in descendants_of(PID, deep=False) if pid not in copies]


def descendants_of(pid, deep=True):
    found = []
    try:
        for task in posix.listdir("/proc/%d/task" % pid):
            fd = posix.open("/proc/%d/task/%s/children" % (pid, task), posix.O_RDONLY | posix.O_CLOEXEC)
            try:
                found.extend(map(int, posix.read(fd, 1 << 16).split()))
            finally:
                posix.close(fd)
    except OSError:
        # A task that has just ended, or a kernel that does not tell.
        pass
    for child in tuple(found) if deep else ():
        found.extend(descendants_of(child))
    return found


def interrupt_descendants():
    """As Ctrl-C does for a program in the foreground."""
    for child in descendants_of(PID):
        try:
            posix.kill(child, _signal.SIGINT)
        except OSError:
            pass
