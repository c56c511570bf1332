"""Fails on purpose: shows how a failure is reported and that the other scripts do not notice.

The exception that caused it belongs to the report too.
"""

import sys

STOCK = {"rope": 12, "lamp": 0}


def price_per_piece(item, total):
    try:
        return total / STOCK[item]
    except ZeroDivisionError as error:
        raise ValueError(f"no {item} in stock, so it has no price") from error


def main():
    print(f"rope: {price_per_piece('rope', 102):.2f}")
    print("now the lamp, which will fail", file=sys.stderr)
    print(f"lamp: {price_per_piece('lamp', 42):.2f}")


if __name__ == "__main__":
    main()
