"""The quick start of a client's README: its blocks behind ``<!-- tested -->``, run as they stand against a real hub."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import stage


def check(readme: Path, language: str, expected: list[str], command: Callable[[Path, str], list[str]]) -> None:
    """Runs the block of the language after the SQL block, with the hub's address instead of the demo's.

    ``command``: makes what is to be run from a scratch directory and the program's text.
    """
    blocks = dict(re.findall(r"<!-- tested -->\n```(\w+)\n(.*?)```", readme.read_text(), re.S))
    with stage.scratch() as directory, contextlib.ExitStack() as rest:
        cluster = rest.enter_context(contextlib.closing(stage.Cluster(directory)))
        hub = rest.enter_context(contextlib.closing(stage.Hub(cluster, directory / "hub")))
        cluster.sql(blocks["sql"])
        code = blocks[language]
        assert "127.0.0.1:50051" in code, "the quick start is against the demo's hub"
        with tempfile.TemporaryDirectory() as scratch:
            run = command(Path(scratch), code.replace("127.0.0.1:50051", hub.address))
            with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as running:
                try:
                    assert running.stdout is not None
                    lines = [running.stdout.readline().strip() for _ in expected]
                finally:
                    running.kill()
        assert lines == expected, lines
    print(f"the quick start of {readme.parent.name} works")
