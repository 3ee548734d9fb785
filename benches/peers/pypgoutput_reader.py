"""Reads so many changes of a slot with pypgoutput, as often as it is told to.

An order is `rows SLOT CHANGES`; as the programs of the clients do (clients/README.md), each is answered with one line of JSON.
"""

import json
import os
import platform
import sys
import time
from importlib.metadata import version

from pypgoutput import LogicalReplicationReader

FOLD = (1 << 32) - 1


def main() -> None:
    dsn, publication = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # pypgoutput prints
    print(json.dumps({"ready": f"pypgoutput {version('pypgoutput')}, Python {platform.python_version()}"}), file=answers)
    for order in sys.stdin:
        _, slot, expected = order.split()
        changes = nulls = digest = 0
        began = time.perf_counter()
        reader = LogicalReplicationReader(publication_name=publication, slot_name=slot, dsn=dsn)
        try:
            for change in reader:
                row = change.after
                changes += 1
                digest = digest * 31 + row["id"] & FOLD
                if row["note"] is None:
                    nulls += 1
                if changes == int(expected):
                    break
            seconds = time.perf_counter() - began
        finally:
            reader.stop()
            reader.extractor.conn.close()  # which it has opened here, before it forked
            reader.source_db_handler.conn.close()
        print(json.dumps({"changes": changes, "nulls": nulls, "digest": digest, "seconds": seconds}), file=answers)


if __name__ == "__main__":
    main()
