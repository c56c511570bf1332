"""Loads orders into a database in memory and reports on them in SQL.

Shows window functions, a common table expression, and money kept in whole cents.
"""

import csv
import sqlite3
from decimal import Decimal
from pathlib import Path

ORDERS = Path(__file__).resolve().parent / "data" / "orders.csv"

SCHEMA = """
    CREATE TABLE orders (
        id INTEGER PRIMARY KEY,
        day TEXT NOT NULL,
        customer TEXT NOT NULL,
        region TEXT NOT NULL,
        item TEXT NOT NULL,
        quantity INTEGER NOT NULL CHECK (quantity > 0),
        cents INTEGER NOT NULL CHECK (cents >= 0)
    );
    CREATE INDEX orders_by_customer ON orders (customer);
"""

BY_REGION = """
    SELECT region, count(*), sum(quantity * cents) AS total
    FROM orders GROUP BY region ORDER BY total DESC
"""

BEST_CUSTOMER_PER_REGION = """
    WITH spent AS (
        SELECT region, customer, sum(quantity * cents) AS total FROM orders GROUP BY region, customer
    ), ranked AS (
        SELECT *, row_number() OVER (PARTITION BY region ORDER BY total DESC, customer) AS place FROM spent
    )
    SELECT region, customer, total FROM ranked WHERE place = 1 ORDER BY region
"""

RUNNING_TOTAL = """
    SELECT substr(day, 1, 7) AS month, sum(quantity * cents) AS total,
           sum(sum(quantity * cents)) OVER (ORDER BY substr(day, 1, 7)) AS so_far
    FROM orders GROUP BY month ORDER BY month
"""


def load(db):
    db.executescript(SCHEMA)
    with open(ORDERS, newline="", encoding="utf-8") as file:
        rows = [
            (row["order"], row["date"], row["customer"], row["region"], row["item"], row["quantity"],
             int(Decimal(row["unit_price"]) * 100))
            for row in csv.DictReader(file)
        ]
    with db:
        db.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    return len(rows)


def money(cents):
    return f"{cents // 100:,}.{cents % 100:02}"


def main():
    db = sqlite3.connect(":memory:")
    try:
        print(f"{load(db)} orders")
        print("\nregion   orders      total")
        for region, count, total in db.execute(BY_REGION):
            print(f"{region:<8} {count:>6} {money(total):>10}")
        print("\nbest customer")
        for region, customer, total in db.execute(BEST_CUSTOMER_PER_REGION):
            print(f"{region:<8} {customer:<16} {money(total):>10}")
        print("\nmonth       total     so far")
        for month, total, so_far in db.execute(RUNNING_TOTAL):
            print(f"{month} {money(total):>9} {money(so_far):>10}")
    finally:
        db.close()


if __name__ == "__main__":
    main()
