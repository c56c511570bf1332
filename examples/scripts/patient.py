"""Works for ten seconds and stops early, in good order, when it is asked to.

    patient.py [SECONDS]        SECONDS defaults to 10

Inside a session `remuda.cancelled()` tells that a Ctrl-C, a kill or a time limit wants this program to end; asking
costs next to nothing. Under a plain `python3` there is no such module, and Ctrl-C does the same by raising
KeyboardInterrupt.
"""

import sys
import time

try:
    from remuda import cancelled
except ImportError:
    def cancelled():
        return False


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    end = time.monotonic() + seconds
    steps = 0
    try:
        while time.monotonic() < end and not cancelled():
            time.sleep(0.02)  # one small piece of work
            steps += 1
            if steps % 100 == 0:
                print("still at it")
    except KeyboardInterrupt:
        pass
    if time.monotonic() >= end:
        print("done")
        return 0
    print("asked to stop: put everything back in its place")
    return 1


if __name__ == "__main__":
    sys.exit(main())
