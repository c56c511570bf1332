

# --- cancelling ---------------------------------------------------------------------------------
# A cancel arrives on the control channel, which raises SIGIO; a SIGINT only says "look there". The
# frame names its request, so a late one can never hit the next request.

control_bytes = b""
handling = False
again = False
leads_group = posix.getpgrp() == PID


def on_signal(_number, _frame):
    global handling, again, held
    again = True
    if handling or frozen:
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
        if masked:
            held = current
        else:
            strike()


def strike():
    """Interrupts the running request: its task if the event loop waits, else the code itself."""
    global interrupted, stopped
    stopped = True
    if not leads_group:
        # The host could not signal the programs that the code runs: they are in the group of a wrapper.
        interrupt_descendants()
    if loop_task is not None and cancel_task():
        return
    interrupted = current
    raise KeyboardInterrupt


def read_control():
    """Reads what the control channel holds; returns whether the running request is to be interrupted."""
    global control_bytes
    if inline:
        return read_inline()
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
            if control_bytes[4] == CANCEL:
                hit = note_cancel(int.from_bytes(control_bytes[8:16], "little"), control_bytes[5]) or hit
            elif control_bytes[4] == REAP:
                let_go(int.from_bytes(control_bytes[8:16], "little"))
            control_bytes = control_bytes[HEADER + size:]


def note_cancel(request, attempt):
    """Whether this *cancel* is to interrupt the running request."""
    global asked
    if request == current:
        asked = request
        # Code that polls may end in its own way, and a task too; the second attempt does not ask any more.
        return interrupted != request and (attempt > 0 or (polled != request and not task_was_cancelled))
    if request > last_request:
        early.add(request)
    return False


def listen_for_cancels():
    _signal.signal(_signal.SIGIO, on_signal)
    _signal.signal(_signal.SIGINT, on_signal)


task_was_cancelled = False
flag_view = None         # the request that shall stop; the last reset that was done without an answer so far
own_fds = set()          # opened by the worker after the start


def cancelled():
    """True once the host has asked the running code to stop: end in good order, now.

    Costs about as much as a list look-up; call it in every loop. Code that has called it once is
    not interrupted by KeyboardInterrupt before half of its grace has passed.
    """
    global stopped, polled
    polled = current
    if flag_view is None and not inline:
        map_flag()
    # `asked` answers where no flag is mapped, and where KeyboardInterrupt came first and was caught.
    if current and (asked == current or not inline and flag_view[0] == current):
        stopped = True
        return True
    return False


def map_flag():
    global flag_view
    mmap = own("mmap").mmap
    # The map keeps a descriptor of its own, the lowest that is free: out of the way, as with `move_up`.
    taken = [posix.dup(flag_fd)]
    try:
        while taken[-1] < FIRST_OWN_FD:
            taken.append(posix.dup(flag_fd))
        posix.close(taken.pop())
        # All of the file: that of an older host has no place for the second number.
        flag_view = memoryview(mmap(flag_fd, 0)).cast("Q")
    finally:
        for fd in taken:
            posix.close(fd)
    flag = identity(flag_fd)
    own_fds.update(fd for fd in open_fds() if identity(fd) == flag)
