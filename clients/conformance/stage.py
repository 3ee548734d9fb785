"""A private PostgreSQL and a hub, for scenarios and tests of clients. Standard library only.

``WALCAST_BIN`` names the hub's binary (default: target/debug/walcast of this repository), ``WALCAST_PG_BIN`` the directory
of PostgreSQL's binaries (default: the newest that is installed).
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")

#: The origin of the web pages that hubs let in.
PAGE = "http://localhost:5173"


def until(what: str, probe: Callable[[], T | None], seconds: float = 60.0) -> T:
    """Waits until ``probe`` gives something true."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.02)


def free_port() -> int:
    """A port below the range that outgoing connections get: nobody takes it while its server is restarted."""
    for port in random.sample(range(10000, 15000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 10000 and 15000")


def hub_binary() -> Path:
    """The hub under test."""
    named = os.environ.get("WALCAST_BIN")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    binary = Path(named) if named else target / "debug" / "walcast"
    if not binary.exists():
        raise FileNotFoundError(f"{binary} is missing: build the hub with `cargo build`, or set WALCAST_BIN")
    return binary


def postgres_bin() -> Path:
    """The directory of initdb, postgres and psql."""
    named = os.environ.get("WALCAST_PG_BIN")
    if named:
        return Path(named)
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3].split(".")[0])
    )
    if installed:
        return installed[-1].parent
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    raise FileNotFoundError("PostgreSQL's server binaries are missing: install postgresql, or set WALCAST_PG_BIN")


def _account() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: somebody else, if we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL cannot run as root, and there is no account to run it")


def _stop(process: subprocess.Popen[Any], how: int, seconds: float = 30.0) -> None:
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Cluster:
    """A PostgreSQL server in a directory of its own, gone after ``close``."""

    def __init__(self, directory: Path, primary: Cluster | None = None) -> None:
        """A new one, or a standby of another."""
        self.bin = postgres_bin()
        self.account = _account()
        self.directory = directory / "postgres"
        self.directory.mkdir(parents=True)
        if self.account:
            shutil.chown(self.directory, self.account.pw_uid, self.account.pw_gid)
        self.port = free_port()
        self.log = directory / "postgres.log"
        data = str(self.directory / "data")
        if primary is None:
            self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync",
                      "--no-instructions")  # fmt: skip
        else:
            self._run("pg_basebackup", "-D", data, "-R", "-X", "stream", "-c", "fast", "--no-sync", "-h", "127.0.0.1",
                      "-p", str(primary.port), "-U", "postgres")  # fmt: skip
        self.process: subprocess.Popen[Any] | None = None
        self.start()

    def _as_account(self) -> dict[str, Any]:
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.bin / program, *arguments], capture_output=True, text=True, cwd="/", **self._as_account()
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.directory),
            "wal_level": "logical", "max_wal_senders": "10", "max_replication_slots": "10", "fsync": "off",
            "shared_buffers": "32MB", "timezone": "Asia/Kolkata",
        }  # fmt: skip
        command = [str(self.bin / "postgres"), "-D", str(self.directory / "data")]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self._as_account())
        until("PostgreSQL's answer", self._answers)

    def _answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended:\n{self.log.read_text()[-4000:]}")
        try:
            return self.sql("SELECT 1") == "1"
        except RuntimeError:
            return False

    @property
    def dsn(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def sql(self, text: str) -> str:
        """Runs statements with psql, each in a transaction of its own; what they print, unaligned."""
        done = subprocess.run(
            [self.bin / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port),
             "-U", "postgres", "-d", "postgres", "-f", "-"],
            input=text, capture_output=True, text=True,
            env={**os.environ, "PGOPTIONS": "-c timezone=UTC -c datestyle=ISO -c client_min_messages=warning"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{done.stderr}\nin: {text[:500]}")
        return done.stdout.rstrip("\n")

    def json(self, query: str) -> Any:
        """The rows of a query, as JSON."""
        return json.loads(self.sql(f"SELECT coalesce(json_agg(r), '[]') FROM ({query}) r"))

    def stop(self) -> None:
        """A fast shutdown; ``start`` goes on."""
        if self.process is not None:
            _stop(self.process, signal.SIGINT)

    def kill(self) -> None:
        """An end without a farewell."""
        if self.process is not None:
            _stop(self.process, signal.SIGQUIT)

    def promote(self) -> None:
        """Makes a standby the primary."""
        self.sql("SELECT pg_promote()")

    def close(self) -> None:
        self.kill()


class Hub:
    """A hub on ports of its own. Its journal stays across ``kill`` and ``start``."""

    def __init__(self, cluster: Cluster, directory: Path, *arguments: str, standby: Cluster | None = None) -> None:
        self.dsn = cluster.dsn
        if standby is not None:
            self.dsn = f"host=127.0.0.1,127.0.0.1 port={cluster.port},{standby.port} user=postgres dbname=postgres"
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.http = free_port()
        self.arguments = arguments
        self.log = directory / "hub.log"
        self.process: subprocess.Popen[Any] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the hub and waits until it serves streams."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WALCAST_")}
        command = [
            str(hub_binary()), "serve", "--dsn", self.dsn, "--create-publication",
            "--data-dir", str(self.directory / "data"), "--listen", self.address, "--http", f"127.0.0.1:{self.http}",
            "--log-format", "compact", "--web-origin", PAGE, *self.arguments,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until("the hub's readiness", self._ready)

    def _ready(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"the hub ended:\n{self.log.read_text()[-4000:]}")
        return self.get("/readyz") == 200

    def get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=2) as answer:
                return int(answer.status)
        except OSError:
            return 0

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        """kill -9, and start again."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """SIGTERM: drains."""
        if self.process is not None:
            _stop(self.process, signal.SIGTERM)

    def close(self) -> None:
        self.kill()


class Proxy:
    """A TCP proxy in front of the hub whose connections can be cut, to lose one in the middle of a transaction."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.connections = 0
        self.reached = threading.Event()
        self._limit: tuple[int, bool] | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def limit_next(self, size: int, stall: bool) -> None:
        """The first connection on which so many bytes went to the client is cut then, or passes nothing on any more."""
        self.reached.clear()
        self._limit = (size, stall)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._pairs.append((near, far))
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, limited: bool) -> None:
        moved = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                moved += len(data)
                if limited and self._limit is not None and moved > self._limit[0]:
                    (_, stall), self._limit = self._limit, None
                    self.reached.set()
                    if stall:
                        return
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Cuts every connection."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


def certificates(directory: Path) -> dict[str, Path]:
    """A private authority, a server certificate for localhost and 127.0.0.1, and a client certificate; with openssl."""
    directory.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=directory)

    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=conformance",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    for name, extensions in (
        (
            "server",
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n",
        ),
        ("client", "subjectAltName=DNS:client\nextendedKeyUsage=clientAuth\nbasicConstraints=CA:FALSE\n"),
    ):
        (directory / f"{name}.ext").write_text(extensions)
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-out", f"{name}.pem", "-extfile", f"{name}.ext")  # fmt: skip
    return {name: directory / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory that everybody may enter, removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="walcast-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
