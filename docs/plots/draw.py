#!/usr/bin/env python3
"""Draws the plots of docs/performance.md: waiting for a session over the number of threads.

    cargo bench --bench pool -- --json docs/plots/pool.jsonl
    python3 docs/plots/draw.py

Reads pool.jsonl beside this file and writes wait_p50.svg, wait_p99.svg and wait_p999.svg there. With
--check it writes nothing and fails if a plot on disk is another one. Standard library only; the same
figures always give the same bytes.
"""

import json
import math
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
QUANTILES = (("p50", "median"), ("p99", "99th percentile"), ("p999", "99.9th percentile"))
# Name in the figures, name in the plot, class of its line: ours first.
POOLS = (
    ("remuda (Keep)", "remuda", "a"),
    ("fair hand-off (floor)", "floor: fair hand-off", "b"),
    ("deadpool (managed)", "deadpool", "c"),
    ("r2d2 (no check)", "r2d2", "d"),
    ("bb8 (no check)", "bb8", "e"),
    ("mutex + condvar (floor)", "floor: mutex + condvar", "f"),
)
WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 44, 52
# What a wait shorter than this is drawn as: a logarithm knows no zero.
LEAST = 0.1
LABEL_GAP = 15

STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f; }
  .title { font-size: 14px; font-weight: 600; }
  .grid { stroke: #d0d7de; stroke-width: 1; }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
  .dot { stroke: none; }
  .a { stroke: #0a58ca; } .dot.a, .name.a { fill: #0a58ca; }
  .b { stroke: #57606a; stroke-dasharray: 6 3; } .dot.b, .name.b { fill: #57606a; }
  .c { stroke: #1a7f37; } .dot.c, .name.c { fill: #1a7f37; }
  .d { stroke: #bc4c00; } .dot.d, .name.d { fill: #bc4c00; }
  .e { stroke: #8250df; } .dot.e, .name.e { fill: #8250df; }
  .f { stroke: #9a6700; stroke-dasharray: 2 3; } .dot.f, .name.f { fill: #9a6700; }
  .a.line { stroke-width: 3; } .name { stroke: none; } .name.a { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .grid { stroke: #30363d; }
    .a { stroke: #79c0ff; } .dot.a, .name.a { fill: #79c0ff; }
    .b { stroke: #9198a1; } .dot.b, .name.b { fill: #9198a1; }
    .c { stroke: #56d364; } .dot.c, .name.c { fill: #56d364; }
    .d { stroke: #ffa657; } .dot.d, .name.d { fill: #ffa657; }
    .e { stroke: #d2a8ff; } .dot.e, .name.e { fill: #d2a8ff; }
    .f { stroke: #e3b341; } .dot.f, .name.f { fill: #e3b341; }
    .name { stroke: none; }
  }
"""


def load():
    """Pool -> threads -> figure, of the case that is drawn."""
    curves = {name: {} for name, _, _ in POOLS}
    for line in (HERE / "pool.jsonl").read_text(encoding="utf-8").splitlines():
        figure = json.loads(line)
        if figure["case"] == "load" and figure["pool"] in curves:
            curves[figure["pool"]][figure["threads"]] = figure
    missing = [name for name, points in curves.items() if not points]
    if missing:
        sys.exit("pool.jsonl has no load of " + ", ".join(missing))
    return curves


def number(value):
    return f"{value:.1f}".rstrip("0").rstrip(".")


def spread(wanted):
    """Heights of labels, each as near to its line's end as its neighbours allow."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    above = -math.inf
    for index in order:
        above = placed[index] = max(wanted[index], above + LABEL_GAP)
    below = HEIGHT - BOTTOM + LABEL_GAP
    for index in reversed(order):
        below = placed[index] = min(placed[index], below - LABEL_GAP)
    return placed


def plot(curves, key, words):
    threads = sorted({count for points in curves.values() for count in points})
    values = [max(figure[key], LEAST) for points in curves.values() for figure in points.values()]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    first, last = math.log2(threads[0]), math.log2(threads[-1])

    def x(count):
        return LEFT + (right - LEFT) * (math.log2(count) - first) / (last - first)

    def y(value):
        return bottom - (bottom - TOP) * (math.log10(max(value, LEAST)) - low) / (high - low)

    title = f"Waiting for one of 8 sessions: {words}"
    ends = [(shown, curves[name][max(curves[name])][key]) for name, shown, _ in POOLS]
    most = max(threads)
    told = ", ".join(f"{shown} {number(value)}" for shown, value in ends)
    description = (
        f"Microseconds in acquire over the number of threads, both logarithmic; each session is held for "
        f"50 microseconds. With {most} threads: {told}."
    )
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-labelledby="title description">',
        f'<title id="title">{title}</title>',
        f'<desc id="description">{description}</desc>',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">{title}</text>',
    ]
    for exponent in range(low, high + 1):
        height = number(y(10.0**exponent))
        label = number(10.0**exponent) if exponent < 3 else f"{10**exponent // 1000} 000"
        out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{height}" y2="{height}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{height}" dy="4" text-anchor="end">{label}</text>')
    for count in threads:
        place = number(x(count))
        out.append(f'<line class="grid" x1="{place}" x2="{place}" y1="{bottom}" y2="{bottom + 4}"/>')
        out.append(f'<text x="{place}" y="{bottom + 18}" text-anchor="middle">{count}</text>')
    middle = number((LEFT + right) / 2)
    out.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">threads</text>')
    out.append(
        f'<text transform="translate(16 {number((TOP + bottom) / 2)}) rotate(-90)" text-anchor="middle">'
        "wait in µs</text>"
    )
    heights = spread([y(value) for _, value in ends])
    for (name, shown, style), height in reversed(list(zip(POOLS, heights))):
        points = [(x(count), y(figure[key])) for count, figure in sorted(curves[name].items())]
        path = " ".join(f"{number(a)},{number(b)}" for a, b in points)
        out.append(f'<polyline class="line {style}" points="{path}"/>')
        out.extend(f'<circle class="dot {style}" cx="{number(a)}" cy="{number(b)}" r="2.5"/>' for a, b in points)
        out.append(f'<text class="name {style}" x="{right + 10}" y="{number(height)}" dy="4">{shown}</text>')
    out.append("</svg>\n")
    return "\n".join(out)


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    curves, stale = load(), []
    for key, words in QUANTILES:
        file, drawn = HERE / f"wait_{key}.svg", plot(curves, key, words).encode()
        if not check:
            file.write_bytes(drawn)
        elif not file.exists() or file.read_bytes() != drawn:
            stale.append(file.name)
    if stale:
        sys.exit("not what pool.jsonl gives: " + ", ".join(stale))


if __name__ == "__main__":
    main()
