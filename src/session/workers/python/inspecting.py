

# --- inspect ------------------------------------------------------------------------------------

LISTED = 1000
WORKERS_NAMES = frozenset(("In", "Out", "_"))


def inspect(request, options):
    """Answers what is in the namespace, or what differs from the warm state."""
    try:
        what = own("json").loads(options or b"{}").get("what")
        if what == "names":
            answer = names()
        elif what == "fingerprint":
            answer = fingerprint()
        else:
            raise ValueError("there is no %r to inspect" % (what,))
        return frame(INSPECTED, 0, request, dump_json(answer))
    except BaseException as error:
        return frame(ERROR, 0, request, describe(error))


def is_shown(name):
    return type(name) is str and name not in WORKERS_NAMES and not (name[:2] == "__" == name[-2:])


def plain(text):
    return text_bytes(text).decode()


def names():
    found, before = [], warm["namespace"]
    for name, value in list(namespace.items()):
        if is_shown(name):
            try:
                size = sys.getsizeof(value)
            except BaseException:
                size = None
            made_warm = name in before and before[name] is value
            found.append({
                "name": plain(name), "type": plain(type_name(type(value))), "size": size, "warm": made_warm})
    return found


def fingerprint():
    before = warm["namespace"]
    differing = [name for name in {**before, **namespace} if is_shown(name) and (
        name not in namespace or name not in before or namespace[name] is not before[name])]
    environ, known = dict(raw_environ()), warm["environ_data"]
    variables = [
        name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else plain(name)
        for name in {**known, **environ} if environ.get(name) != known.get(name)]
    try:
        cwd = posix.getcwd()
        cwd = plain(cwd) if cwd != warm["cwd"] else None
    except OSError:
        cwd = "(gone)"
    modules = [name for name in list(sys.modules) if name not in warm["modules"] and name not in own_modules]
    return {
        "globals": sorted(map(plain, differing))[:LISTED],
        "modules": sorted(map(plain, modules))[:LISTED],
        "environment": sorted(variables)[:LISTED],
        "cwd": cwd,
        "threads": max(0, _thread._count() - warm["threads"]),
        "children": len(set(children()) - warm["children"]),
        "fds": [name_of_fd(fd) for fd in sorted(left_fds())][:LISTED],
    }


def name_of_fd(fd):
    try:
        return "%d -> %s" % (fd, plain(posix.readlink("/proc/self/fd/%d" % fd)))
    except OSError:
        return str(fd)
