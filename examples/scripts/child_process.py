"""Starts child processes, feeds one, reads another, and waits for both.

What a child writes on its own stdout belongs to the script's output; a child that is still there when the script is
stopped ends with it.
"""

import subprocess
import sys
import textwrap

SORTER = textwrap.dedent(
    """
    import sys
    lines = sys.stdin.read().split()
    print(*sorted(lines), sep=",")
    """
)
COUNTER = textwrap.dedent(
    """
    import time
    for number in range(3):
        print("child counts", number, flush=True)
        time.sleep(0.05)
    """
)


def main():
    answer = subprocess.run(
        [sys.executable, "-c", SORTER], input="pear fig apple\nplum\n", stdout=subprocess.PIPE, text=True, check=True
    )
    print("sorted by a child:", answer.stdout.strip())

    sys.stdout.flush()  # what we said comes before what the child says
    with subprocess.Popen([sys.executable, "-c", COUNTER]) as child:
        status = child.wait(timeout=30)
    print("the counting child ended with status", status)
    return status


if __name__ == "__main__":
    sys.exit(main())
