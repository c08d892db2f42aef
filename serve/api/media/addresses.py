"""Which addresses are those of public hosts. Only these are fetched from, but for the hosts of `fetch_hosts`."""

from ipaddress import IPv4Network, IPv6Network, ip_address

GLOBAL = IPv6Network("2000::/3")  # what is assigned to hosts of the internet so far
# Networks whose addresses are no public hosts', whatever `is_global` of this Python says.
NOT_PUBLIC_6 = tuple(map(IPv6Network, ("2001::/23", "2002::/16", "3fff::/20", "2620:4f:8000::/48", "2001:db8::/32")))
NOT_PUBLIC_4 = tuple(
    map(IPv4Network, ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15"))
)


def is_public(address: str) -> bool:
    """Whether an address is that of a public host.

    Python's `is_global` alone is not enough: multicast is global, and addresses that embed others, by 6to4, Teredo or
    NAT64, lead to them.
    """
    found = ip_address(address)
    if not found.is_global or found.is_multicast or found.is_reserved or found.is_unspecified:
        return False
    if found.version == 4:
        return not any(found in network for network in NOT_PUBLIC_4)
    return found.scope_id is None and found in GLOBAL and not any(found in network for network in NOT_PUBLIC_6)
