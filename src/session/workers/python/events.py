

# --- events -------------------------------------------------------------------------------------
# Frames that the running code sends before its answer, from any of its threads.

PIECE = 4096


def write_pieces(data):
    """Writes all of `data` or nothing, whatever the user's signal handlers raise meanwhile; that is raised
    at the end. Writes of 4 096 bytes go whole or not at all, and `extend` counts them without a step of the
    interpreter in between: the number of those that are done is always known."""
    view = memoryview(data)
    pieces = [view[i:i + PIECE] for i in range(0, len(data), PIECE)]
    done, raised = [], None
    while len(done) < len(pieces):
        try:
            rest = pieces[len(done):]
            done.extend(map(posix.write, (replies,) * len(rest), rest))
        except OSError:
            die()
        except BaseException as error:
            if not done:
                # The frame has not begun; and where the stack is full, no attempt would succeed.
                raise
            raised = error
    if sum(done) != len(data):
        refuse(b"its output took a part of a frame")
    if raised is not None:
        raise raised


def send_event(kind, flags, first, second=b""):
    """Sends an event of the running request; a RuntimeError if there is none (any more). Anything
    that would interrupt the main thread in here waits until the frame is out."""
    global events_used, masked, questions
    if in_child:
        raise RuntimeError("a forked child cannot speak for the session")
    if 4 + len(first) + len(second) > frame_cap:
        raise ValueError("%d bytes are over the session's frame cap of %d" % (len(second), frame_cap))
    on_main = _thread.get_ident() == MAIN_THREAD
    if on_main and masked:
        raise RuntimeError("a signal handler cannot send while its thread is sending")
    events_used = True
    try:
        if on_main:
            masked = True
        with writing:
            if not current:
                raise RuntimeError("no request is running that this could belong to")
            write_pieces(frame(kind, flags, current, first, second))
            if kind == INPUT:
                # Counted before anything that waits can strike.
                questions += 1
    finally:
        if on_main:
            masked = False
            if held:
                late_strike()


def late_strike():
    """Does what an interrupt would have done that came while `masked`."""
    global held
    request, held = held, 0
    if request == current and interrupted != request:
        strike()


def prepare_request(flags):
    """What only some requests need before they run."""
    global cpu_before, questions
    questions = 0
    if flags & MEASURE:
        cpu_before = own("time").process_time()
    if inline:
        # What came before `current` was set has raised no signal that counts.
        on_signal(0, None)
    if flags & ANSWERS_INPUT:
        offer_input()


def finish_request(flags, request):
    """The frames before the answer of such a request."""
    global incoming
    if incoming:
        incoming, remuda.attachments = {}, {}
    if flags & MEASURE:
        used = max(0.0, own("time").process_time() - cpu_before)
        return frame(USAGE, 0, request, b'{"cpu_seconds":%.6f}' % used)
    return b""


def progress(fraction, message=None):
    """Tells the host how far the running code is: a number from 0 to 1, or None, and a few words."""
    if fraction is not None:
        fraction = float(fraction)
        if fraction != fraction:
            raise ValueError("a fraction of progress is a number")
        fraction = min(1.0, max(0.0, fraction))
    if message is not None:
        message = text_bytes(str(message)).decode()
    send_event(PROGRESS, 0, dump_json({"fraction": fraction, "message": message}))


def attach(name, data):
    """Sends bytes to the host under a name, beside the result: `execution.attachments` there."""
    if not isinstance(name, str) or not name:
        raise TypeError("an attachment is named by a string")
    if isinstance(data, str):
        data = data.encode()
    send_event(ATTACHMENT, 0, dump_json({"name": text_bytes(name).decode()}), bytes(data))


def take_attachment(request, options, data):
    """Keeps the bytes that come before their request."""
    global incoming, incoming_for
    if request != incoming_for or not incoming:
        incoming, incoming_for = {}, request
    incoming[own("json").loads(options)["name"]] = data
    remuda.attachments = incoming


remuda.progress, remuda.attach = progress, attach
