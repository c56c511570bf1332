

# --- input --------------------------------------------------------------------------------------
# Only once a host offers to answer are `input`, `sys.stdin` and `getpass` ours; for requests without
# the offer they go on to do what they do on an empty stdin.

END_OF_INPUT = 1
NO_ANSWER = 2


def offer_input():
    if stream_of_input is None:
        builtins = own("builtins")
        getpass = own("getpass")
        plain_input, plain_getpass = builtins.input, getpass.getpass

        def input(prompt="", /):
            """Asks the host for a line: EOFError at the end of input, TimeoutError if nobody answers in time."""
            if request_flags & ANSWERS_INPUT and current and sys.stdin is stream_of_input:
                return ask(str(prompt), False)
            return plain_input(prompt)

        def ask_secret(prompt="Password: ", stream=None, **_more):
            """Asks the host for a line that should not be shown."""
            if request_flags & ANSWERS_INPUT and current:
                return ask(str(prompt), True)
            return plain_getpass(prompt, stream)

        builtins.input = warm["builtins"]["input"] = input
        warm["builtin_values"] = list(warm["builtins"].values())
        getpass.getpass = ask_secret
        renew_input()
    if sys.stdin is plain_stdin:
        sys.stdin = stream_of_input


def renew_input():
    """A stream that holds nothing of what was read before."""
    global stream_of_input
    import io
    stream_of_input = io.TextIOWrapper(io.BufferedReader(Questions()), encoding="utf-8", errors="replace")
    warm["streams"] = (stream_of_input, *warm["streams"][1:])


def ask(prompt, secret):
    """The line that the host answers with, without its end."""
    global asking
    if asking:
        raise RuntimeError("a question is waiting for its answer already")
    if _thread.get_ident() != MAIN_THREAD:
        raise RuntimeError("only the main thread can ask for input in a remuda session")
    flush_output()
    number = current
    head = dump_json({"prompt": text_bytes(prompt).decode(), "secret": secret})
    try:
        asking = True
        given_up = questions
        send_question(head)
        for _ in range(given_up):
            # The host ends a question that was given up as soon as it sees the next one.
            next_reply(number)
        flags, line = next_reply(number)
    finally:
        asking = False
    if flags == END_OF_INPUT:
        raise EOFError("end of input")
    if flags == NO_ANSWER:
        raise TimeoutError("nobody answered in time")
    return line.decode("utf-8", "replace")


asking = False           # some code waits in `ask`


def send_question(head):
    """The user's signal handlers wait: what they raise must not come between a frame and its count."""
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, WATCHED_SIGNALS)
    try:
        send_event(INPUT, 0, head)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def next_reply(number):
    """Waits for the next *input reply* to this request; an interrupt or a signal ends the waiting, never
    the reading of a frame in its middle."""
    global masked, questions
    while True:
        wait_for_request()
        masked = True
        try:
            mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, WATCHED_SIGNALS)
            try:
                kind, flags, request, second = read_reply()
                found = kind == INPUT_REPLY and request == number
                if found:
                    questions -= 1
            finally:
                _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        finally:
            masked = False
            if held:
                late_strike()
        if found:
            return flags, second


def wait_for_request():
    """Where another thread was given the signal of a cancel, `control` ends this one's sleep."""
    if inline:
        wait_inline()
        return
    select = own("select").select
    while requests not in select([requests, control], [], [])[0]:
        on_signal(0, None)


def read_reply():
    global reply_bytes
    if inline:
        kind, flags, request, _, second = take_frame()
        return kind, flags, request, second
    while True:
        missing = HEADER + 4 - len(reply_bytes)
        if missing <= 0:
            size, kind, flags, _, request, length = unpack_head(reply_bytes)
            missing = HEADER + size - len(reply_bytes)
            if missing <= 0:
                second, reply_bytes = reply_bytes[20 + length:], b""
                return kind, flags, request, second
        data = posix.read(requests, missing)
        if not data:
            die()
        reply_bytes += data


class Questions(own("io").RawIOBase):
    """What `sys.stdin` reads: a question without a prompt for each line, or the real fd 0."""

    name, mode = "<stdin>", "rb"

    def readable(self):
        return True

    def fileno(self):
        return 0

    def isatty(self):
        return False

    def readinto(self, buffer):
        if not (request_flags & ANSWERS_INPUT and current):
            data = posix.read(0, len(buffer))
            buffer[:len(data)] = data
            return len(data)
        if not self.rest:
            try:
                self.rest = ask("", False).encode() + b"\n"
            except EOFError:
                return 0
        data, self.rest = self.rest[:len(buffer)], self.rest[len(buffer):]
        buffer[:len(data)] = data
        return len(data)

    rest = b""
