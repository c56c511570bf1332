

# --- one pair of streams ------------------------------------------------------------------------
# *go* brought no descriptors: every frame travels on what were fds 0 and 1. `control` is then the stream
# of requests too, and cancels come among them. While a request runs (`current`), only the handler of SIGIO
# reads, and leaves in `frames_in` what is not for it; whoever else wants a frame then calls the handler.
# Otherwise only the main loop reads, and the handler does nothing. So `inbox` has one owner at a time.


def take_stdio():
    global inline, requests, replies, kept, own_streams, flush_stdout, flush_stderr
    inline = True
    requests, replies = control, kept[1]
    # A child that writes to fd 1 must not come between frames.
    posix.dup2(2, 1, True)
    kept = (kept[0], fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FD), kept[2])
    own_streams = sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = tuple(
        own("io").TextIOWrapper(FrameOutput(number), line_buffering=True) for number in (1, 2))
    flush_stdout, flush_stderr = sys.stdout.flush, sys.stderr.flush
    start_signals()


def start_signals():
    """Has cancels heard while code runs. Streams that cannot tell (a file) leave only the host's kill."""
    global inline_signals
    listen_for_cancels()
    try:
        fcntl.fcntl(control, fcntl.F_SETOWN, PID)
        flags = fcntl.fcntl(control, fcntl.F_GETFL)
        fcntl.fcntl(control, fcntl.F_SETFL, flags | fcntl.FASYNC)
        inline_signals = fcntl.fcntl(control, fcntl.F_GETFL) & fcntl.FASYNC != 0
    except OSError:
        inline_signals = False


def readable(timeout):
    """Whether a read would not wait. The stream itself stays blocking: others may share it."""
    return bool(own("select").select([control], [], [], timeout)[0])


def fill_inbox():
    """Adds to `inbox` what one read finds; the end of input is the end."""
    try:
        data = posix.read(control, 1 << 16)
    except OSError:
        die()
    if not data:
        die()
    inbox.extend(data)


def read_inline():
    """The handler's part. What arrives while no request runs is the main loop's."""
    if not current:
        return False
    hit = False
    while True:
        hit = sort_inbox() or hit
        if not readable(0):
            return hit
        fill_inbox()


def sort_inbox():
    """Moves whole frames out of `inbox`: cancels are acted upon, the others wait in `frames_in`."""
    hit = False
    while len(inbox) >= HEADER:
        check_short(inbox)
        if len(inbox) < HEADER + 4:
            break
        size, kind, flags, zero, request, length = unpack_head(inbox)
        if zero or length + 4 > size or size > frame_cap:
            refuse(BROKEN_FRAME)
        end = HEADER + size
        if len(inbox) < end:
            break
        first, second = bytes(inbox[20:20 + length]), bytes(inbox[20 + length:end])
        del inbox[:end]
        if kind == CANCEL:
            hit = note_cancel(request, flags) or hit
        else:
            frames_in.append((kind, flags, request, first, second))
    return hit


def wait_inline():
    """Until a frame is there, for code that waits for input. SIGIO is off, or the handler would take the
    bytes that `readable` waits for. (Another thread may still be given the signal: hence the time-out.)"""
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGIO,))
    try:
        while not frames_in:
            readable(0.05)
            on_signal(0, None)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def take_frame():
    return frames_in.pop(0)


def serve_inline():
    while True:
        # No request runs: the handler leaves everything to this.
        while not frames_in:
            if deferred and not inbox:
                idle_work()
            fill_inbox()
            sort_inbox()
        kind, flags, request, first, second = take_frame()
        if kind == EXECUTE or kind == CALL:
            answer = execute(kind, request, flags, first, second)
        else:
            answer = answer_other(kind, flags, request, first, second)
        if answer:
            send(answer)


class FrameOutput(own("io").BufferedIOBase):
    """What `sys.stdout` and `sys.stderr` write to: *output* frames. It keeps nothing back."""

    mode = "wb"

    def __init__(self, number):
        self.number = number
        self.name = "<stdout>" if number == 1 else "<stderr>"

    def writable(self):
        return True

    def fileno(self):
        return self.number

    def write(self, data):
        if self.closed:
            raise ValueError("write to closed file")
        data = bytes(data)
        size = min(1 << 20, frame_cap - 4)
        for start in range(0, len(data), size):
            piece = data[start:start + size]
            if in_child or not current:
                # No request to which it could belong: the host reads what comes on fd 2.
                while piece:
                    piece = piece[posix.write(2, piece):]
                continue
            send_event(OUTPUT, self.number - 1, b"", piece)
        return len(data)
