"""The addresses of this host."""

from __future__ import annotations

import ipaddress

import psutil


def local_addresses() -> list[str]:
    """Return every address of every interface that needs no zone to be reached."""
    found = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family.name in ("AF_INET", "AF_INET6")
    }
    return sorted(host for host in found if "%" not in host and not ipaddress.ip_address(host).is_link_local)
