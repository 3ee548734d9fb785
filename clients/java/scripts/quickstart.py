"""The quick start of README.md against a real hub. Needs target/classpath: see test.sh."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE.parent / "conformance"))

import quickstart  # noqa: E402


def command(scratch: Path, code: str) -> list[str]:
    program = scratch / "QuickStart.java"
    program.write_text(code)
    return ["java", "-cp", f"{HERE}/target/classes:{(HERE / 'target' / 'classpath').read_text()}", str(program)]


quickstart.check(
    HERE / "README.md",
    "java",
    [
        "insert public.orders {id=1, total=9.90, status=new}",
        "update public.orders {id=1, total=9.90, status=paid}",
        "delete public.orders {id=1}",
    ],
    command,
)
