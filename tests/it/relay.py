"""A way to another machine as the tests see it: runs a command with pipes for its three streams and
copies bytes. No signal and no descriptor passes; the command runs in a session of its own, in another
directory, with another environment. With `--shell` the one further argument goes to a shell, as with ssh.
With `--bad FILE` it is a bad link as long as that file is there: slow, a few bytes at a time, and every now
and then it breaks in the middle of a piece.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time

command = sys.argv[1:]
bad = None
if command[0] == "--bad":
    bad, command = command[1], command[2:]
if command[0] == "--shell":
    assert len(command) == 2, command
    command = ["sh", "-c", command[1]]
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
far = subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    start_new_session=True, env={"PATH": os.environ["PATH"], "FAR": "yes"},
)


def copy(source, target):
    # Few bytes at a time: frames arrive in pieces.
    try:
        while data := os.read(source, 1000):
            while data:
                data = data[os.write(target, trouble(target, data)):]
    except BrokenPipeError:
        # Whoever read it has ended, and says why on another stream.
        pass
    os.close(target)


def trouble(target, data):
    """What of the bytes passes at once."""
    if bad is None or not os.path.exists(bad):
        return data
    time.sleep(random.random() / 5000)
    piece = data[:random.randint(1, len(data)) if len(data) < 1000 else 1000]
    # In the middle of a frame, but seldom in that of the start, which is long.
    if len(data) < 1000 and random.random() < 0.01:
        os.write(target, piece[:len(piece) // 2])
        os._exit(1)
    return piece


threads = [
    threading.Thread(target=copy, args=(far.stdout.fileno(), 1)),
    threading.Thread(target=copy, args=(far.stderr.fileno(), 2)),
]
# The host may close its end while the other side goes on.
threading.Thread(target=copy, args=(0, os.dup(far.stdin.fileno())), daemon=True).start()
far.stdin.close()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
os._exit(far.wait() % 256)
