"""The resolver: addresses of host names, from a static table, from memory, or from the system.

An answer of the system is kept for `TTL_S`, a failure for `ERROR_TTL_S` (Kong's `dns_error_ttl`); at most
`ANSWERS_MAX` are kept. An address is its own answer and is never looked up.
"""

import ipaddress
from collections.abc import Mapping
from typing import Final

from sim.runtime import Runtime

TTL_S: Final = 30.0
ERROR_TTL_S: Final = 1.0
ANSWERS_MAX: Final = 10_000


class Resolver:
    """Resolves for one worker.

    Args:
        runtime: asked for what is not known.
        hosts: static table: name to address and port.
    """

    def __init__(self, runtime: Runtime, hosts: Mapping[str, tuple[str, int]]) -> None:
        self._runtime = runtime
        self._hosts = hosts
        self._answers: dict[str, tuple[float, str | OSError]] = {}

    def known(self, name: str, port: int) -> tuple[str, int] | None:
        """Return address and port when no one needs to be asked, else None.

        Raises:
            OSError: the name is known to have no address.
        """
        static = self._hosts.get(name)
        if static is not None:
            return static
        answer = self._answers.get(name)
        if answer is None or answer[0] < self._runtime.now():
            return None
        if isinstance(answer[1], OSError):
            raise answer[1]
        return answer[1], port

    async def resolve(self, name: str, port: int) -> tuple[str, int]:
        """Return address and port of a host; asks the system when it must.

        Raises:
            OSError: it has none.
        """
        known = self.known(name, port)
        if known is not None:
            return known
        if len(self._answers) >= ANSWERS_MAX:
            self._answers.clear()
        try:
            address = name if is_address(name) else await self._runtime.resolve(name)
        except OSError as error:
            self._answers[name] = (self._runtime.now() + ERROR_TTL_S, error)
            raise
        self._answers[name] = (self._runtime.now() + TTL_S, address)
        return address, port


def is_address(host: str) -> bool:
    """Whether a host is an IP address already."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
