"""The resolver: addresses of host names, from a static table, from memory, or from the system.

An answer of the system is kept for `TTL_S`, a failure for `ERROR_TTL_S` (Kong's `dns_error_ttl`); at most
`ANSWERS_MAX` are kept. An address is its own answer and is never looked up. Whoever wants a name that is being asked
for waits for that answer.

An address that has grown old serves for `STALE_TTL_S` more, while the system is asked again: nobody waits for a name
that has been found once, and a resolver that is away for a moment takes no target with it (Kong's `dns_stale_ttl`).
Where nobody can be asked, that is tried again after each `ERROR_TTL_S`. A name that does not exist any more (NXDOMAIN)
loses its address at once, as in Kong.
"""

import asyncio
import ipaddress
from collections.abc import Mapping
from contextvars import Context
from typing import Final, NamedTuple

from kongtrace import PHASES, Execution
from sim.light_thread import LightThread
from sim.runtime import NO_SUCH_NAME, Runtime

TIMER = PHASES["timer"]

TTL_S: Final = 30.0
ERROR_TTL_S: Final = 1.0
STALE_TTL_S: Final = 3_600.0
ANSWERS_MAX: Final = 10_000


class _Answer(NamedTuple):
    """What is known of a name.

    Attributes:
        found: its address, or why it has none.
        fresh_until: from then on the system is asked again.
        usable_until: until then an address serves meanwhile.
    """

    found: str | Exception
    fresh_until: float
    usable_until: float


class Resolver:
    """Resolves for one worker. Of names the case is nothing (RFC 4343); the system is asked in lower case, as by Kong.

    Args:
        runtime: asked for what is not known.
        hosts: static table: name to address and port.

    Attributes:
        hosts: the same, by names in lower case.
    """

    def __init__(self, runtime: Runtime, hosts: Mapping[str, tuple[str, int]]) -> None:
        self._runtime = runtime
        self.hosts = {name.lower(): place for name, place in hosts.items()}
        self._answers: dict[str, _Answer] = {}
        self._asked: dict[str, asyncio.Event] = {}
        self._execution = Execution()

    def known(self, name: str, port: int) -> tuple[str, int] | None:
        """Return address and port when no one needs to be waited for, else None.

        An address that has grown old serves while the system is asked again.

        Raises:
            OSError: the name is known to have no address.
        """
        name = name.lower()
        static = self.hosts.get(name)
        if static is not None:
            return static
        answer = self._answers.get(name)
        if answer is None:
            return None
        now_s = self._runtime.now()
        if answer.fresh_until < now_s:
            if answer.usable_until < now_s:
                return None
            self.ask(name)
        if isinstance(answer.found, Exception):
            raise answer.found.with_traceback(None)  # each time it is raised would be added to it
        return answer.found, port

    async def resolve(self, name: str, port: int) -> tuple[str, int]:
        """Return address and port of a host; asks the system when it must.

        Raises:
            OSError: it has none.
        """
        while (known := self.known(name, port)) is None:
            if is_address(name):
                return name, port
            await self.ask(name).wait()
        return known

    def ask(self, name: str) -> asyncio.Event:
        """Have the system asked for a name, unless it is being asked already; tell when it has answered."""
        name = name.lower()
        answered = self._asked.get(name)
        if answered is None:
            answered = self._asked[name] = asyncio.Event()
            # In a turn of its own it belongs to no request, so that it goes on whoever gives up.
            self._runtime.call_soon(self._begin, name, context=Context())
        return answered

    def _begin(self, name: str) -> None:
        self._runtime.run(LightThread(self._ask(name), self._execution, TIMER, {}), _no_matter)

    async def _ask(self, name: str) -> None:
        try:
            address = await self._runtime.resolve(name)
        except Exception as error:  # noqa: BLE001 - it is raised to whoever wants the name
            self._keep(name, self._in_vain(name, error))
        else:
            fresh_until = self._runtime.now() + TTL_S
            self._keep(name, _Answer(address, fresh_until, fresh_until + STALE_TTL_S))
        finally:
            self._asked.pop(name).set()

    def _keep(self, name: str, answer: _Answer) -> None:
        if len(self._answers) >= ANSWERS_MAX and name not in self._answers:
            self._answers.clear()
        self._answers[name] = answer

    def _in_vain(self, name: str, error: Exception) -> _Answer:
        """Return what holds of a name for a while that was asked for in vain: its last address, or the error."""
        now_s, last = self._runtime.now(), self._answers.get(name)
        is_gone = isinstance(error, OSError) and error.errno == NO_SUCH_NAME
        if is_gone or last is None or isinstance(last.found, Exception) or last.usable_until < now_s:
            return _Answer(error, now_s + ERROR_TTL_S, now_s + ERROR_TTL_S)
        return last._replace(fresh_until=now_s + ERROR_TTL_S)


def _no_matter(_error: BaseException | None) -> None:
    """Take note of nothing: whoever waits looks for the answer."""


def is_address(host: str) -> bool:
    """Whether a host is an IP address already."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
