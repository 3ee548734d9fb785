"""Keeps a full-text index in step with a table.

    python search_index.py 127.0.0.1:50051 public.articles body

The index is a toy; what matters is that indexing by key can be repeated, so at-least-once delivery is enough: a
transaction is acknowledged after it was indexed.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from typing import Any

import walcast

Key = tuple[Any, ...]


class Index:
    """Which documents hold which words."""

    def __init__(self) -> None:
        self.words: defaultdict[str, set[Key]] = defaultdict(set)
        self.documents: dict[Key, set[str]] = {}

    def put(self, key: Key, text: str) -> None:
        self.remove(key)
        self.documents[key] = set(re.findall(r"\w+", text.lower()))
        for word in self.documents[key]:
            self.words[word].add(key)

    def remove(self, key: Key) -> None:
        for word in self.documents.pop(key, ()):
            self.words[word].discard(key)

    def search(self, *words: str) -> set[Key]:
        return set.intersection(*(self.words.get(word.lower(), set()) for word in words))


def apply(index: Index, change: walcast.Change, column: str) -> None:
    if change.operation == "truncate":
        for key in list(index.documents):
            index.remove(key)
        return
    if change.before is not None:
        index.remove(tuple(change.key.values()))
    if change.after is not None:
        key = tuple(change.after[name.name] for name in change.relation.columns if name.in_identity)
        text = change.after[column]
        if text is not walcast.UNCHANGED:  # a long text that the update did not touch is indexed already
            index.put(key, text or "")


def run(address: str, table: str, column: str, index: Index, stop_at_tail: bool = False) -> None:
    with walcast.Client(address) as client:
        for tx in client.subscribe(table, subscriber="search", start="earliest", stop_at_tail=stop_at_tail):
            for change in tx.changes:
                apply(index, change, column)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3], Index())
