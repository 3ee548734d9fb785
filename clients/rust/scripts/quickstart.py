"""The quick start of README.md against a real hub. Argument: the built example, which the README holds word for word."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE.parent / "conformance"))

import quickstart  # noqa: E402


def command(_: Path, code: str) -> list[str]:
    address = re.search(r"127\.0\.0\.1:\d+", code)
    assert address is not None
    return [sys.argv[1], address.group()]


quickstart.check(
    HERE / "README.md",
    "rust",
    [
        "insert public.orders id=1 total=9.90 status=new",
        "update public.orders id=1 total=9.90 status=paid",
        "delete public.orders id=1",
    ],
    command,
)
