from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "conformance"), str(HERE.parent / "examples")]


@pytest.fixture(scope="session")
def stage() -> Iterator[Any]:
    """A real PostgreSQL and hub. Without a hub's binary these tests are left out, unless WALCAST_BIN promises one."""
    stage = pytest.importorskip("stage", reason="not in the repository")
    try:
        stage.hub_binary()
        stage.postgres_bin()
    except FileNotFoundError as missing:
        if os.environ.get("WALCAST_BIN"):
            raise
        pytest.skip(str(missing))

    class Stage:
        def __init__(self, directory: Path) -> None:
            self.cluster = stage.Cluster(directory)
            self.hub = None
            try:
                self.hub = stage.Hub(self.cluster, directory / "hub")
            except BaseException:
                self.cluster.close()
                raise

    with stage.scratch() as directory:
        made = Stage(directory)
        try:
            yield made
        finally:
            made.hub.close()
            made.cluster.close()
