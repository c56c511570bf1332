

# --- await --------------------------------------------------------------------------------------
# One event loop for the session. It runs while a request awaits, and only then: tasks that a request
# leaves behind go on when a later one awaits.


def run_awaiting(body, last):
    """Runs code with an `await` at its top level and returns the trailing value."""
    global event_loop, loop_task, task_was_cancelled, interrupted
    asyncio = sys.modules.get("asyncio") or __import__("asyncio")
    if event_loop is None or event_loop.is_closed():
        loop_fds.clear()
        before = open_fds()
        event_loop = asyncio.new_event_loop()
        loop_fds.update(open_fds() - before)
    asyncio.set_event_loop(event_loop)
    task_was_cancelled = False
    task = event_loop.create_task(run_parts(body, last))
    try:
        loop_task = task
        return event_loop.run_until_complete(task)
    except asyncio.CancelledError:
        if task_was_cancelled:
            raise KeyboardInterrupt from None
        raise
    finally:
        if task_was_cancelled:
            # That was its interrupt, whatever it made of it.
            interrupted = current
        loop_task, task_was_cancelled = None, False
        if not task.done():
            # The interrupt hit something else that the loop was running.
            abandon(task)
        elif not task.cancelled():
            # Looked at, or the loop would complain of an exception that nobody retrieved.
            task.exception()


async def run_parts(body, last):
    value = None
    for code in (body, last):
        if code is not None:
            value = eval(code, namespace)
            if code.co_flags & IS_COROUTINE:
                value = await value
    return value if last is not None else None


def abandon(task):
    """Lets a cancelled task end, once; what it answers is not wanted."""
    task.cancel()
    try:
        event_loop.run_until_complete(task)
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt) and type(error).__name__ != "CancelledError":
            complain("ending a cancelled task", error)


def cancel_task():
    """From the signal handler: cancels the task while the loop waits. False while it runs code, which
    KeyboardInterrupt stops; and if the task was cancelled before and has not ended."""
    global task_was_cancelled
    task = loop_task
    if task_was_cancelled or task.done() or runs_code(sys._getframe()):
        return False
    task_was_cancelled = True
    event_loop.call_soon_threadsafe(task.cancel)
    return True


def runs_code(step):
    """Whether `step` was called, over the signal handler, by more than the loop itself. An exception in
    the middle of the loop's own work could lose a task: `asyncio` then knows it, but never runs it."""
    while step.f_code in (cancel_task.__code__, strike.__code__, on_signal.__code__, late_strike.__code__):
        step = step.f_back
    while step is not None and step.f_code is not run_awaiting.__code__:
        if step.f_globals.get("__name__", "").partition(".")[0] not in ("asyncio", "selectors"):
            return True
        step = step.f_back
    return False


def tasks_of_loop():
    return sys.modules["asyncio"].all_tasks(event_loop) if event_loop is not None else set()


def clean_loop():
    """For a reset: ends what a user left in the loop, and the loop unless the warm-up made it. Returns
    whether something would not end."""
    loop, asyncio = event_loop, sys.modules["asyncio"]
    is_warm = loop is warm["loop"]
    if loop.is_running():
        return True
    if loop.is_closed():
        forget_loop()
        return is_warm
    stuck = False
    try:
        tasks = asyncio.all_tasks(loop) - warm["tasks"]
        if tasks:
            for task in tasks:
                task.cancel()
            _, pending = loop.run_until_complete(asyncio.wait(tasks, timeout=0.1))
            stuck = bool(pending)
        if not is_warm:
            loop.run_until_complete(loop.shutdown_asyncgens())
            executor = getattr(loop, "_default_executor", None)
            loop.close()
            forget_loop()
            asyncio.set_event_loop(None)
            if executor is not None:
                await_threads()
    except BaseException:
        stuck = True
    return stuck


def forget_loop():
    """Its descriptors are closed: their numbers are the user's."""
    global event_loop
    event_loop = None
    loop_fds.clear()


def await_threads():
    """Those of `to_thread` have been told to end; one that still works is not waited for long."""
    given_up = perf_counter() + 0.1
    while _thread._count() > warm["threads"] and perf_counter() < given_up:
        own("time").sleep(0.0005)
