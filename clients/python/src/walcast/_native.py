"""The compiled reader of changes (the extra ``native``), where it is installed.

What it does is done in Python otherwise, with the same results; ``WALCAST_PURE_PYTHON`` asks for that.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from ._connect import __version__

log = logging.getLogger("walcast")


def _load() -> Any:
    if os.environ.get("WALCAST_PURE_PYTHON"):
        return None
    try:
        import walcast_native
    except ImportError:
        return None
    ours, its = (version.rpartition(".")[0] for version in (__version__, walcast_native.__version__))
    if ours != its:
        log.warning("walcast-native %s is not for walcast %s and not used", walcast_native.__version__, __version__)
        return None
    return walcast_native


#: The module ``walcast_native``, or ``None``.
native: Any = _load()


def is_run(event: Any) -> bool:
    """Whether this is a run of changes, ``walcast_native.Changes``, rather than a message."""
    return native is not None and type(event) is native.Changes
