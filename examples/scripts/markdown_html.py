"""Turns a small dialect of Markdown into HTML, then parses the HTML to show that it is well formed.

    markdown_html.py [FILE]     FILE defaults to data/harbour.md beside this script

Headings, paragraphs, lists, tables, quotes, fenced code, rules; emphasis, code and links inside lines.
"""

import html
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
ITEM = re.compile(r"(?:[-*]|(\d+)\.)\s+(.*)")


def inline(text):
    """Markup inside a line. Code comes first: nothing in it is markup."""
    parts = re.split(r"`([^`]+)`", html.escape(text, quote=False))
    for index, part in enumerate(parts):
        if index % 2:
            parts[index] = f"<code>{part}</code>"
            continue
        part = re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", lambda m: f'<a href="{m[2].replace(chr(34), "&quot;")}">{m[1]}</a>', part)
        part = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", part)
        parts[index] = re.sub(r"\*(.+?)\*", r"<em>\1</em>", part)
    return "".join(parts)


def table(lines):
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [("th", cells[0])] + [("td", row) for row in cells[2:]]
    body = "\n".join(
        "<tr>" + "".join(f"<{tag}>{inline(cell)}</{tag}>" for cell in row) + "</tr>" for tag, row in rows
    )
    return f"<table>\n{body}\n</table>"


def block(lines):
    """One block of lines without an empty line between them."""
    first = lines[0]
    if heading := re.fullmatch(r"(#{1,6})\s+(.*)", first):
        return f"<h{len(heading[1])}>{inline(heading[2])}</h{len(heading[1])}>"
    if re.fullmatch(r"-{3,}", first):
        return "<hr>"
    if first.startswith("|"):
        return table(lines)
    if first.startswith(">"):
        return f"<blockquote>{inline(' '.join(line.lstrip('> ') for line in lines))}</blockquote>"
    if item := ITEM.match(first):
        tag = "ol" if item[1] else "ul"
        items = "\n".join(f"<li>{inline(ITEM.match(line)[2])}</li>" for line in lines)
        return f"<{tag}>\n{items}\n</{tag}>"
    return f"<p>{inline(' '.join(lines))}</p>"


def convert(text):
    blocks, lines, code = [], [], None
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            if code is None:
                code = []
            else:
                blocks.append(f"<pre><code>{html.escape(chr(10).join(code), quote=False)}\n</code></pre>")
                code = None
        elif code is not None:
            code.append(line)
        elif line.strip():
            lines.append(line.strip())
        elif lines:
            blocks.append(block(lines))
            lines = []
    return "\n".join(blocks)


class Checker(HTMLParser):
    """Counts tags and refuses those that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], Counter()

    def handle_starttag(self, tag, attrs):
        self.seen[tag] += 1
        if tag != "hr":
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise ValueError(f"</{tag}> closes nothing")


def main():
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "harbour.md"
    page = convert(path.read_text(encoding="utf-8"))
    checker = Checker()
    checker.feed(page)
    checker.close()
    if checker.open:
        raise ValueError(f"not closed: {checker.open}")
    print(page)
    print("tags: " + ", ".join(f"{tag} {count}" for tag, count in sorted(checker.seen.items())), file=sys.stderr)


if __name__ == "__main__":
    main()
