"""Addresses, credentials and channel options, the same for both clients."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union
from urllib.parse import urlsplit

import grpc

log = logging.getLogger("walcast")

Pem = Union[str, "os.PathLike[str]", bytes]
Token = Union[str, Callable[[], str]]

__version__ = "0.1.0"
CONSUME = "/walcast.v1.ChangeStreamService/Consume"
#: Deadline of unary calls, in seconds. Streams have none.
UNARY_DEADLINE = 30.0


@dataclass(frozen=True, slots=True)
class TLS:
    """How to connect with TLS: PEM files, or their bytes."""

    #: Authorities to trust; the system's where not given.
    ca: Pem | None = None
    #: The client's certificate chain and key, for mutual TLS.
    cert: Pem | None = None
    key: Pem | None = None
    #: The name that the hub's certificate must have, where it is not the host.
    server_name: str | None = None


def _pem(value: Pem | None) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return Path(value).read_bytes()


@dataclass(frozen=True, slots=True)
class Target:
    """Where the hub is and how to get in."""

    address: str
    tls: TLS | None
    token: Token | None
    max_message_bytes: int

    @classmethod
    def parse(cls, address: str, tls: TLS | bool | None, token: Token | None, max_message_bytes: int) -> Target:
        """``host:port``, ``http://host:port`` or ``https://host:port``, which asks for TLS."""
        if "://" in address:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https"):
                raise ValueError(f"{address}: the scheme is http or https")
            host = parts.hostname or ""
            host = f"[{host}]" if ":" in host else host
            address = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 50051)}"
            if parts.scheme == "https" and tls is None:
                tls = TLS()
            elif parts.scheme == "http" and tls:
                raise ValueError("TLS needs https://, or an address without a scheme")
        settings = TLS() if tls is True else tls or None
        if token is not None and settings is None and not _is_loopback(address):
            log.warning("the token goes to %s in clear text: use TLS", address)
        return cls(address, settings, token, max_message_bytes)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials, read anew so that renewed certificates are used; ``None`` for plaintext."""
        if self.tls is None:
            return None
        return grpc.ssl_channel_credentials(_pem(self.tls.ca), _pem(self.tls.key), _pem(self.tls.cert))

    def metadata(self) -> list[tuple[str, str]]:
        """Metadata of a call; the token is asked for each time where it is a function."""
        metadata = [("client-id", f"walcast-python/{__version__}")]
        if self.token is not None:
            token = self.token() if callable(self.token) else self.token
            metadata.append(("authorization", f"Bearer {token}"))
        return metadata

    def options(self) -> list[tuple[str, Any]]:
        """Channel options. The local pool makes each channel a connection of its own."""
        options: list[tuple[str, Any]] = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.primary_user_agent", f"walcast-python/{__version__}"),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 0),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
        ]
        if self.tls is not None and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost" or address.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
