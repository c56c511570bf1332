"""Reads a web server's log: status codes, slow pages, errors, and the busiest hour.

    log_analysis.py [FILE]      FILE defaults to data/access.log beside this script

Lines it does not understand are counted, reported on stderr, and not fatal.
"""

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

DATA = Path(__file__).resolve().parent / "data"
LINE = re.compile(
    r'(?P<host>\S+) \[(?P<day>[\d-]+)T(?P<hour>\d\d):[\d:]+Z\] "(?P<method>\w+) (?P<path>\S+)" '
    r"(?P<status>\d{3}) (?P<size>\d+) (?P<ms>[\d.]+)"
)


def percentile(values, share):
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def main():
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "access.log"
    statuses, hours, errors, unknown = Counter(), Counter(), Counter(), 0
    times = defaultdict(list)
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            entry = LINE.fullmatch(line.rstrip("\n"))
            if entry is None:
                unknown += 1
                continue
            statuses[entry["status"]] += 1
            hours[entry["hour"]] += 1
            times[entry["path"]].append(float(entry["ms"]))
            if entry["status"] >= "400":
                errors[entry["status"], entry["path"]] += 1

    print("status: " + ", ".join(f"{code} x {count}" for code, count in sorted(statuses.items())))
    hour, count = min(hours.items(), key=lambda item: (-item[1], item[0]))
    print(f"busiest hour: {hour}:00 with {count} requests")
    print(f"{'page':<18} {'count':>5} {'median':>8} {'p95':>8}")
    for page, values in sorted(times.items(), key=lambda item: -median(item[1]))[:6]:
        print(f"{page:<18} {len(values):>5} {median(values):>6.1f}ms {percentile(values, 95):>6.1f}ms")
    for (status, page), count in sorted(errors.items()):
        print(f"error {status} {page}: {count}")
    if unknown:
        print(f"{unknown} lines are not requests", file=sys.stderr)


if __name__ == "__main__":
    main()
