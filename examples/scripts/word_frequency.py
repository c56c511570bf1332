"""The words a text uses most, as a bar chart, and the pairs that stand together.

    word_frequency.py [FILE]    FILE defaults to data/ferry.txt beside this script
"""

import re
import sys
from collections import Counter
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
STOP_WORDS = set(
    """a about after all an and are as at be because been before but by did do every for from had has have he her him
    his how i if in into is it its me might no nobody not of on one only or our out own said see she so than that the
    their them then there they this to too two was were what when where which who whose will with would you your""".split()
)
TOP = 12
BAR = 40


def main():
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "ferry.txt"
    words = re.findall(r"[a-z]+(?:'[a-z]+)?", path.read_text(encoding="utf-8").lower())
    telling = Counter(word for word in words if word not in STOP_WORDS and len(word) > 1)
    # Equal counts in alphabetical order, so that the same text always gives the same chart.
    top = sorted(telling.items(), key=lambda entry: (-entry[1], entry[0]))[:TOP]
    longest = top[0][1]
    for word, count in top:
        print(f"{word:>12} {count:3} {'#' * round(BAR * count / longest)}")

    pairs = Counter(pair for pair in zip(words, words[1:]) if not STOP_WORDS.intersection(pair))
    ranked = sorted(pairs.items(), key=lambda entry: (-entry[1], entry[0]))
    print("pairs:", ", ".join(f"{first} {second} ({count})" for (first, second), count in ranked[:5]))


if __name__ == "__main__":
    main()
