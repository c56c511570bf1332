"""Counts the ways to place N queens on an N x N board so that none attacks another.

    queens.py [N]               N defaults to 9

Columns and diagonals are bit masks: a free square is a bit that is in none of them.
"""

import sys


def count(size):
    """The number of solutions. The board's mirror halves the first row's work."""
    full = (1 << size) - 1

    def place(columns, left, right):
        if columns == full:
            return 1
        found = 0
        free = full & ~(columns | left | right)
        while free:
            square = free & -free
            free ^= square
            found += place(columns | square, (left | square) << 1, (right | square) >> 1)
        return found

    half = sum(place(1 << column, 2 << column, 1 << column >> 1) for column in range(size // 2))
    middle = place(1 << size // 2, 2 << size // 2, 1 << size // 2 >> 1) if size % 2 else 0
    return 2 * half + middle


def first_solution(size):
    """The first solution in reading order: the column of each row's queen."""
    board = []

    def fits(column):
        return all(column != other and abs(column - other) != len(board) - row for row, other in enumerate(board))

    def place():
        if len(board) == size:
            return True
        for column in filter(fits, range(size)):
            board.append(column)
            if place():
                return True
            board.pop()
        return False

    return board if place() else None


def main():
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    board = first_solution(size)
    for column in board or ():
        print(" ".join("Q" if square == column else "." for square in range(size)))
    print(f"{size} queens: {count(size)} solutions")


if __name__ == "__main__":
    main()
