# The second piece of code: it holds functions, classes and constants, no state (see `load`).

# --- errors -------------------------------------------------------------------------------------

import errno

LIMITS = {errno.EMFILE: "open_files", errno.EFBIG: "file_size"}


def encode_error(error):
    """The first part of an *error* frame."""
    kind, message, more = type_name(type(error)), "", {}
    try:
        message = str(error)
    except Exception:
        message = "<its message failed>"
    if isinstance(error, SystemExit):
        status = error.code
        more["exit_code"] = (
            0 if status is None else status if type(status) is int and abs(status) < 1 << 31 else 1)
    limit = "data" if isinstance(error, MemoryError) else None
    if isinstance(error, OSError):
        limit = LIMITS.get(error.errno)
    if limit:
        more["limit"] = limit
    try:
        trace = format_trace(error)
    except Exception as failure:
        trace = "%s: %s (no traceback: %s)" % (kind, message, brief(failure))
    strings = [text_bytes(part).decode() for part in (kind, message, trace)]
    if sum(map(len, strings)) > 1 << 20:
        strings = [part[:1 << 18] for part in strings]
    return dump_json(dict(zip(("type", "message", "traceback"), strings), **more))


def own_trace(error):
    """The traceback without the frames that lead to the user's code: ours and, for code that awaits,
    those of the event loop between them."""
    trace = step = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    while step is not None:
        if step.tb_frame.f_code is run_parts.__code__:
            return step.tb_next
        step = step.tb_next
    return trace


def format_trace(error):
    linecache, traceback = own("linecache"), own("traceback")
    trace = own_trace(error)
    # Cells are no files: lend `linecache` the sources of those that the traceback names.
    names, step = set(), trace
    while step is not None:
        names.add(step.tb_frame.f_code.co_filename)
        step = step.tb_next
    known = (*older_code.values(), *code_cache.values())
    lent = [(name, text) for _, _, _, text, name in known if name in names]
    for name, text in lent:
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    try:
        lines = traceback.format_exception(type(error), error, trace)
    finally:
        for name, _ in lent:
            linecache.cache.pop(name, None)
    # Exceptions that came before (`__context__`) may start in our frames too.
    return "".join(line for line in lines if '"<remuda worker>"' not in line)
