"""Another machine inside this one: a network namespace (ip-netns(8)), joined to this one by two links.

Callers come by one link, and the other leads to its servers, so that it can be cut off from them and still be asked how
it is. Linux, as root.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.servers import ServerMissing


class Machine:
    """`address`: where callers reach it; `servers`: this machine's address as seen from there."""

    def __init__(self) -> None:
        if os.geteuid() or not shutil.which("ip"):
            raise ServerMissing("network namespaces need root and the program ip (package iproute2)")
        mark, network = secrets.token_hex(3), secrets.randbelow(256)
        self._name = f"precedent-{mark}"
        self._front, self._back = f"front{mark}", f"back{mark}"
        self._networks = {self._front: f"198.18.{network}", self._back: f"198.19.{network}"}  # RFC 2544, section 12
        self.address, self.servers = f"{self._networks[self._front]}.2", f"{self._networks[self._back]}.1"

    def running(self, command: list[str]) -> list[str]:
        """The command that runs `command` there."""
        return ["ip", "netns", "exec", self._name, *command]

    def start(self) -> None:
        _ip("netns", "add", self._name)
        _ip("-n", self._name, "link", "set", "lo", "up")
        for link, network in self._networks.items():
            _ip("link", "add", link, "type", "veth", "peer", "name", f"{link}x")
            _ip("link", "set", f"{link}x", "netns", self._name)
            _ip("addr", "add", f"{network}.1/30", "dev", link)
            _ip("-n", self._name, "addr", "add", f"{network}.2/30", "dev", f"{link}x")
            _ip("link", "set", link, "up")
            _ip("-n", self._name, "link", "set", f"{link}x", "up")

    def stop(self) -> None:
        """Links go with the namespace."""
        _ip("netns", "del", self._name)

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """From its servers: what it sends them vanishes, and its connections stay open."""
        _ip("link", "set", self._back, "down")
        try:
            yield
        finally:
            _ip("link", "set", self._back, "up")


@contextmanager
def machine() -> Iterator[Machine]:
    """Raises ServerMissing where there can be none."""
    made = Machine()
    made.start()
    try:
        yield made
    finally:
        made.stop()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
