

# --- loop ---------------------------------------------------------------------------------------

own_modules = set()      # imported by the worker itself, at times of its own


def own(name):
    """A module that the worker needs, kept apart from those that the user imports."""
    if name in sys.modules:
        # Waits where another thread is still importing it.
        return __import__(name)
    before = set(sys.modules)
    try:
        module = __import__(name)
    except ImportError:
        module = import_by_warm_path(name)
    own_modules.update(set(sys.modules) - before)
    return module


def import_by_warm_path(name):
    """Where user code has taken away the way to the standard library."""
    users = sys.__dict__.get("path"), sys.__dict__.get("meta_path")
    sys.path, _, sys.meta_path = map(list, warm["items"])
    try:
        return __import__(name)
    finally:
        sys.path, sys.meta_path = users


def idle_work():
    """Uses the time before the first request for what later requests need. Whoever asks within
    the first milliseconds is served first."""
    import select
    patience = 0.005
    while deferred and not select.select([requests], [], [], patience)[0]:
        patience = 0
        name = deferred.pop(0)
        if name == "late":
            load()
            continue
        own(name)
        if name == "_struct":
            use_struct()
    if not deferred:
        compile("0", "<remuda worker>", "eval")


BROKEN_FRAME = b"the host sent a frame that is none"


def check_short(data):
    """A body always has the length of its first part: no use waiting for one that cannot, or that
    would be too long."""
    if len(data) >= HEADER and not 4 <= int.from_bytes(data[:4], "little") <= frame_cap:
        refuse(BROKEN_FRAME)


def serve():
    global answer_kept
    pending = b""
    read = posix.read
    while True:
        if deferred and not pending:
            idle_work()
        while len(pending) < HEADER + 4:
            data = read(requests, 4096)
            if not data:
                die()
            pending = pending + data if pending else data
            if len(pending) < HEADER + 4:
                check_short(pending)
        size, kind, flags, zero, request, length = unpack_head(pending)
        end = HEADER + size
        if zero or length + 4 > size or size > frame_cap:
            # Acting on a part of it could be anything; what follows cannot be found.
            refuse(BROKEN_FRAME)
        if len(pending) < end:
            pending = read_body(pending, end)
        if len(pending) == end:
            second = pending[20 + length:]
            first, pending = pending[20:20 + length] if length else b"", b""
        else:
            first, second, pending = pending[20:20 + length], pending[20 + length:end], pending[end:]
        if kind == EXECUTE or kind == CALL:
            if flags & ONLY_IF_CLEAN:
                if not is_clean:
                    # The host knows it from the answer to the reset before.
                    continue
                flags -= ONLY_IF_CLEAN
            answer = execute(kind, request, flags, first, second)
            if answer_kept:
                answer, answer_kept = answer_kept + answer, b""
            send(answer)
        elif kind == RESET:
            load()
            answer = answer_reset(request, flags)
            if is_clean and flags & REQUEST_IS_HERE:
                # Sent now, it would wake the host for nothing, in the middle of this.
                try:
                    if flag_view is None:
                        map_flag()
                    flag_view[1] = request
                except Exception:
                    # User code has left no memory or no descriptor for a map, or has hidden `mmap`; or see there.
                    posix.pwrite(flag_fd, request.to_bytes(8, sys.byteorder), 8)
                answer_kept = answer
            else:
                send(answer)
        else:
            answer = answer_other(kind, flags, request, first, second)
            if answer:
                send(answer)


def answer_other(kind, flags, request, first, second):
    """The answer to whatever does not run user code, if it has one."""
    if kind == PING:
        return frame(PONG, 0, request, b"")
    load()
    if kind == RESET:
        return answer_reset(request, 0)
    if kind == WARM:
        return warm_up(request, first, second)
    if kind == SHUTDOWN:
        leave()
    if kind == ATTACHMENT:
        return take_attachment(request, first, second)
    if kind == INSPECT:
        return inspect(request, first)
    if kind == FREEZE and not inline:
        return freeze_once(request) if flags & ONCE else freeze(request)
    if kind == INPUT_REPLY or kind == CANCEL:
        # Nobody waits for it any more; and where cancels come in line, they were heard already.
        return None
    return frame(ERROR, 0, request, minimal_error("ProtocolError", "unknown kind"))


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


def start(code=None):
    """Runs the worker; `code` is what `load()` will load, if that is not here already."""
    global late
    late = code
    take_channels()
    receive_go()
    prepare_interpreter()
    send(frame(READY, 0, 0, ready()))
    take_warm_state()
    try:
        serve_inline() if inline else serve()
    except BaseException as error:
        if in_child:
            leave_child(1)
        posix.write(kept[2], text_bytes("remuda worker: " + brief(error) + "\n"))
        posix._exit(70)
