"""A way to another machine as the tests see it: runs a command with pipes for its three streams and
copies bytes. No signal and no descriptor passes; the command runs in a session of its own, in another
directory, with another environment. With `--shell` the one further argument goes to a shell, as with ssh.
"""

import os
import signal
import subprocess
import sys
import threading

command = sys.argv[1:]
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
    while data := os.read(source, 1000):
        while data:
            data = data[os.write(target, data):]
    os.close(target)


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
