"""Finding the process behind a port, to stop or kill a server of ours in the middle of a test."""

from pathlib import Path

from sqlalchemy.engine import make_url

LISTENING = "0A"


def named_by_port(url: str) -> int:
    """The id of the process that listens at the URL's port. Raises LookupError."""
    port = make_url(url).port
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTENING and int(fields[1].rsplit(":", 1)[1], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    holders = []
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(entry.readlink()) in inodes:
                holders.append(int(entry.parts[2]))
        except OSError:
            continue
    if not holders:
        raise LookupError(f"nobody listens on port {port}")
    return min(holders)
