"""Python reads this when it starts: a client that asks for anything but the loopback is told no, and so are we."""

import ipaddress
import os
import sys
from pathlib import Path


def _watch(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in {"socket.connect", "socket.sendto"} and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if not _is_loopback(host):
        with Path(os.environ["EDGEQWEN_REACHED"]).open("a", encoding="utf-8") as file:
            file.write(f"{event} {host}\n")
        raise OSError(f"{event}: {host} is not on the loopback")


def _is_loopback(host):
    host = host.decode() if isinstance(host, bytes) else host
    if host in {None, "", "localhost"}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


sys.addaudithook(_watch)
