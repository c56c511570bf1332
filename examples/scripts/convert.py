"""Converts a table of orders from CSV to nested JSON and back, and proves that nothing was lost.

Writes into a temporary directory that it removes.
"""

import csv
import io
import json
import tempfile
from pathlib import Path

ORDERS = Path(__file__).resolve().parent / "data" / "orders.csv"


def nest(rows):
    """Orders grouped by customer; what is the same for all of a customer's orders is said once."""
    customers = {}
    for row in rows:
        customer = customers.setdefault(row["customer"], {"region": row["region"], "orders": []})
        customer["orders"].append(
            {
                "order": int(row["order"]),
                "date": row["date"],
                "item": row["item"],
                "quantity": int(row["quantity"]),
                "unit_price": row["unit_price"],  # money stays text: floats cannot hold it
            }
        )
    return customers


def flatten(customers):
    rows = [
        {"customer": name, "region": customer["region"], **order}
        for name, customer in customers.items()
        for order in customer["orders"]
    ]
    return sorted(rows, key=lambda row: row["order"])


def to_csv(rows, header):
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main():
    original = ORDERS.read_text(encoding="utf-8")
    reader = csv.DictReader(io.StringIO(original))
    nested = nest(reader)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "orders.json"
        path.write_text(json.dumps(nested, indent=2, ensure_ascii=False), encoding="utf-8")
        size = path.stat().st_size
        back = to_csv(flatten(json.loads(path.read_text(encoding="utf-8"))), reader.fieldnames)
    print(f"{len(original)} bytes of CSV became {size} bytes of JSON, {len(nested)} customers")
    print(json.dumps({"Hollis": nested["Hollis"]}, indent=2))
    print("there and back:", "identical" if back == original else "DIFFERENT")
    return 0 if back == original else 1


if __name__ == "__main__":
    raise SystemExit(main())
