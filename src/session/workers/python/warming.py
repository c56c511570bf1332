

# --- calls, scripts, warm-up --------------------------------------------------------------------

def run_call(source):
    call = own("json").loads(source)
    function = resolve(call["function"])
    return function(*call["args"], **call["kwargs"], **incoming)


def resolve(path):
    """The function that `package.module:Class.method` names."""
    module, colon, name = path.partition(":")
    if not colon:
        module, _, name = path.rpartition(".")
    if not module or not name:
        raise ValueError("%r does not name a function as module:function does" % path)
    target = __import__(module, fromlist=["*"]) if module != "__main__" else main
    for part in name.split("."):
        target = getattr(target, part)
    return target


def run_script(options, source):
    """Runs a file as `python FILE ARGS` does: in an empty namespace, with its directory on the path."""
    import os
    options = own("json").loads(options)
    path = os.path.abspath(options["file"])
    namespace.clear()
    namespace.update(warm["namespace"])
    namespace["__file__"] = path
    sys.argv[:] = [options["file"], *options["args"]]
    sys.path.insert(0, os.path.dirname(path))
    text = source.decode()
    # As text: a PEP 263 cookie means nothing in what arrives as UTF-8.
    exec(compile(text[1:] if text[:1] == "\ufeff" else text, path, "exec", 0, True), namespace)


def warm_up(request, options, source):
    """Imports the modules of `options`, runs `source`, then takes the warm state."""
    report = []
    for name in own("json").loads(options):
        before, started, entry = resident_bytes(), perf_counter(), {"module": name}
        try:
            __import__(name)
        except Exception as error:
            entry["error"] = brief(error)
        entry["milliseconds"] = (perf_counter() - started) * 1000
        if before is not None:
            entry["bytes"] = max(0, (resident_bytes() or 0) - before)
        report.append(entry)
    failure = None
    if source:
        answer = execute(EXECUTE, request, 0, b"", source)
        if answer[4] == ERROR:
            failure = answer
    forget_history()
    namespace.pop("_", None)
    take_warm_state()
    warm.update(children=frozenset(children()), loop=event_loop, tasks=frozenset(tasks_of_loop()))
    if failure is not None:
        return failure
    return frame(WARMED, 0, request, dump_json(report))


def resident_bytes():
    try:
        fd = posix.open("/proc/self/statm", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            return int(posix.read(fd, 200).split()[1]) * posix.sysconf("SC_PAGE_SIZE")
        finally:
            posix.close(fd)
    except OSError:
        return None


def forget_history():
    global executions
    executions = 0
    In.clear()
    Out.clear()
