"""Solves a system of linear equations exactly, with fractions, and checks the answer.

The matrix is Hilbert's, the classic example of one that floating point handles badly: the second half of the output
shows how much of the answer floats lose.
"""

from fractions import Fraction

SIZE = 12


def hilbert(size, number=Fraction):
    return [[number(1) / number(row + column + 1) for column in range(size)] for row in range(size)]


def multiply(left, right):
    columns = list(zip(*right))
    return [[sum(a * b for a, b in zip(row, column)) for column in columns] for row in left]


def solve(matrix, rhs):
    """Gauss-Jordan elimination with the largest pivot; returns the solution and the determinant."""
    rows = [list(row) + [value] for row, value in zip(matrix, rhs)]
    determinant = 1
    for step in range(len(rows)):
        pivot = max(range(step, len(rows)), key=lambda row: abs(rows[row][step]))
        if rows[pivot][step] == 0:
            raise ValueError("the matrix is singular")
        if pivot != step:
            rows[step], rows[pivot] = rows[pivot], rows[step]
            determinant = -determinant
        head = rows[step][step]
        determinant *= head
        rows[step] = [value / head for value in rows[step]]
        for other in range(len(rows)):
            factor = rows[other][step]
            if other != step and factor:
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[step])]
    return [row[-1] for row in rows], determinant


def main():
    matrix = hilbert(SIZE)
    wanted = [Fraction(position + 1) for position in range(SIZE)]
    rhs = [row[0] for row in multiply(matrix, [[value] for value in wanted])]

    exact, determinant = solve(matrix, rhs)
    print(f"Hilbert matrix of size {SIZE}, determinant 1 / {1 / determinant}")
    print("fractions:", *exact)
    assert exact == wanted, "exact arithmetic must give the exact answer"

    rough, _ = solve(hilbert(SIZE, float), [float(value) for value in rhs])
    worst = max(abs(got - value) for got, value in zip(rough, wanted))
    print(f"floats: {'wrong before the first' if worst > 1 else 'right to the first'} digit after the point")


if __name__ == "__main__":
    main()
