"""Statistics of a text: sizes, sentence lengths, and how easy it is to read.

    text_stats.py [FILE]        FILE defaults to data/ferry.txt beside this script
"""

import re
import statistics
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")
SENTENCE_END = re.compile(r"[.!?]+[\"”*]*(?:\s+|$)")


def syllables(word):
    """A fair guess: groups of vowels, without a silent final e."""
    groups = re.findall(r"[aeiouy]+", word.lower())
    silent = word.lower().endswith("e") and not word.lower().endswith("le") and len(groups) > 1
    return max(1, len(groups) - silent)


def reading_ease(words, sentences, syllable_count):
    """Flesch's formula: 100 is easy, 30 is an academic paper."""
    return 206.835 - 1.015 * words / sentences - 84.6 * syllable_count / words


def main():
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "ferry.txt"
    text = path.read_text(encoding="utf-8")
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    sentences = [part for part in SENTENCE_END.split(text) if WORD.search(part)]
    words = WORD.findall(text)
    lengths = [len(WORD.findall(sentence)) for sentence in sentences]
    ease = reading_ease(len(words), len(sentences), sum(map(syllables, words)))

    print(f"{path.name}: {len(text)} characters, {len(words)} words, {len(set(map(str.lower, words)))} different")
    print(f"{len(paragraphs)} paragraphs, {len(sentences)} sentences")
    print(f"words per sentence: mean {statistics.mean(lengths):.1f}, median {statistics.median(lengths):.0f}, "
          f"longest {max(lengths)}")
    print(f"letters per word: mean {statistics.mean(map(len, words)):.2f}, longest {max(words, key=len)!r}")
    print(f"reading ease: {ease:.1f}")


if __name__ == "__main__":
    main()
