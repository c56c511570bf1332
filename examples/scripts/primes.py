"""Finds the primes below two million with a sieve in a bytearray, and what lies between them."""

from math import isqrt

LIMIT = 2_000_000


def primes_below(limit):
    """Eratosthenes; slices of a bytearray do the crossing out at the speed of C."""
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for number in range(2, isqrt(limit - 1) + 1):
        if sieve[number]:
            sieve[number * number::number] = bytes(len(range(number * number, limit, number)))
    return [number for number in range(limit) if sieve[number]]


def main():
    primes = primes_below(LIMIT)
    gap, start = max((after - before, -before) for before, after in zip(primes, primes[1:]))
    twins = sum(after - before == 2 for before, after in zip(primes, primes[1:]))
    print(f"{len(primes)} primes below {LIMIT}, the last is {primes[-1]}")
    print(f"{twins} pairs of twins; the widest gap is {gap}, after {-start}")


if __name__ == "__main__":
    main()
