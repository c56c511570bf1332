

# --- running code -------------------------------------------------------------------------------

TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
IS_COROUTINE = 0x80       # inspect.CO_COROUTINE


def compile_cell(source):
    """(body, trailing expression, whether one awaits, text, file name); a part that is missing is None."""
    global cell_number, code_cache, older_code
    entry = older_code.get(source)
    if entry is None:
        cell_number += 1
        filename = f"<cell {cell_number}>"
        # As text: a PEP 263 cookie means nothing in what arrives as UTF-8.
        text = source.decode()
        try:
            last = compile(text, filename, "eval", TOP_LEVEL_AWAIT, True)
            entry = None, last, last.co_flags & IS_COROUTINE, text, filename
        except SyntaxError:
            # Not an expression alone. Its own errors come below, without this one as their context.
            pass
        if entry is None:
            entry = split_cell(text, filename)
        if len(source) > CACHED_SOURCE_SIZE:
            return entry
    # Two generations: dropping the older one whole is cheaper than dropping one source at a time.
    if len(code_cache) >= CACHED_SOURCES:
        older_code, code_cache = code_cache, {}
    code_cache[source] = entry
    return entry


def split_cell(text, filename):
    import _ast
    if text[:1] == "\ufeff":
        text = text[1:]
    tree = compile(text, filename, "exec", _ast.PyCF_ONLY_AST | TOP_LEVEL_AWAIT, True)
    last = None
    if tree.body and isinstance(tree.body[-1], _ast.Expr):
        last = compile(_ast.Expression(tree.body.pop().value), filename, "eval", TOP_LEVEL_AWAIT, True)
    body = compile(tree, filename, "exec", TOP_LEVEL_AWAIT, True) if tree.body else None
    flags = (body.co_flags if body else 0) | (last.co_flags if last else 0)
    return body, last, flags & IS_COROUTINE, text, filename


def run(kind, source, options):
    """Runs user code, the only place from which it is called, and returns its value."""
    global executions
    if kind == CALL:
        load()
        return run_call(source)
    if options:
        load()
        return run_script(options, source)
    body, last, awaits, text, _ = code_cache.get(source) or compile_cell(source)
    if slots:
        number = executions = executions + 1
        In[number] = text
        if number > slots:
            oldest = number - slots
            In.pop(oldest, None)
            Out.pop(oldest, None)
    if awaits:
        load()
        value = run_awaiting(body, last)
    else:
        if body is not None:
            exec(body, namespace)
        if last is None:
            return None
        value = eval(last, namespace)
    if value is not None:
        namespace["_"] = value
        if slots:
            Out[number] = value
    return value


plain_stdin, own_streams = sys.stdin, (sys.stdout, sys.stderr)
flush_stdout, flush_stderr = sys.stdout.flush, sys.stderr.flush


def flush_output():
    """True if the streams are the worker's own, and open."""
    try:
        flush_stdout()
        flush_stderr()
        if sys.stdout is own_streams[0] and sys.stderr is own_streams[1]:
            return True
    except Exception:
        pass
    # A stream was closed, or user code put another in its place.
    for stream in (*own_streams, getattr(sys, "stdout", None), getattr(sys, "stderr", None)):
        try:
            stream.flush()
        except Exception:
            pass
    return False


def flush_at_last():
    """As `flush_output` where the request has failed already: a stream of the user's may raise anything."""
    try:
        flush_output()
    except BaseException:
        pass


threads_left = 0         # how many threads ran when the last answer was made


def execute(kind, request, flags, options, source):
    """Runs one request and returns its answer. Nothing can be interrupted before `current` is set or
    after it is cleared, and a request is interrupted at most once: the outer `except` is enough."""
    global current, last_request, stopped, interrupted, request_flags, threads_left
    stopped = False
    request_flags = flags
    try:
        try:
            last_request = current = request
            if flags or inline or incoming:
                load()
                prepare_request(flags)
            if early and request in early:
                early.discard(request)
                interrupted, stopped = request, True
                raise KeyboardInterrupt
            value = run(kind, source, options)
            if in_child:
                leave_child(0)
            if "matplotlib.pyplot" in sys.modules:
                load()
                show_figures()
            answer_flags, first, second = encode_value(value)
            flush_output()
            current = 0
        finally:
            current = 0
        kind = RESULT
    except BaseException as error:
        current = 0
        if in_child:
            fail_child(error)
        kind, answer_flags, second = ERROR, 0, b""
        first = describe(error)
        flush_at_last()
    if events_used:
        close_request()
    threads_left = _thread._count()
    if stopped:
        answer_flags |= STOPPED
    if flags or incoming:
        return finish_request(flags, request) + frame(kind, answer_flags, request, first, second)
    return frame(kind, answer_flags, request, first, second)


def describe(error):
    """The first part of an *error* frame."""
    try:
        load()
        forget_figures()
        return encode_error(error)
    except BaseException as failure:
        return minimal_error(type_name(type(error)), type_name(type(failure)))


def close_request():
    """Waits for a thread that is sending an event: `current` is 0, so no other will begin. A thread
    sets `events_used` before it looks at `current`, this one clears `current` before it looks at
    `events_used`: one of them sees the other."""
    while True:
        try:
            with writing:
                return
        except BaseException:
            # A handler of the user's that raises: the request is over, there is nobody to tell.
            pass


def after_fork_in_child():
    """A child of user code must never answer for its parent."""
    global in_child, current
    if forking:
        return
    in_child, current = True, 0
    for fd in (control, requests, replies, *kept, *warm.get("proc", ())):
        try:
            posix.close(fd)
        except OSError:
            pass
    _signal.signal(_signal.SIGIO, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def leave_child(status):
    flush_output()
    posix._exit(status)


def fail_child(error):
    """A forked child fell out of the user's code with an exception."""
    if isinstance(error, SystemExit):
        leave_child(error.code if type(error.code) is int else 0 if error.code is None else 1)
    try:
        load()
        sys.stderr.write(format_trace(error))
    except BaseException:
        pass
    leave_child(1)
