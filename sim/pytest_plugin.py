"""The pytest plugin: plugins of the gateway under test, in virtual time, with checked spans.

Two fixtures, always there: `gateway`, a gateway to send requests to, and `span_leaks`, with which a test fails when
anything was found. With `pytest --kongsim` every test that uses `gateway` fails on findings, and each plugin that the
ini option `kongsim_plugins` names is verified as `kongsim verify` does, as a test of its own.

pytest loads this module in every project where the distribution is installed, so all else is imported when it is used.
"""

from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.verify.bench import Bench
    from sim.verify.mistakes import Mistake

_FLAG: Final = "--kongsim"
_INI: Final = "kongsim_plugins"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the ini option."""
    group = parser.getgroup("kongsim", "plugins of the simulated gateway")
    group.addoption(
        _FLAG,
        action="store_true",
        help=f"fail tests that use the fixture `gateway` on any finding, and verify the plugins in `{_INI}`",
    )
    parser.addini(_INI, "plugins to verify with --kongsim: a file or module on each line", type="linelist")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each plugin to verify."""
    if config.getoption(_FLAG):
        items += [
            VerifyItem.from_parent(session, name=place, nodeid=f"{place}::verify", place=place)
            for place in config.getini(_INI)
        ]


@pytest.fixture
def gateway(request: pytest.FixtureRequest) -> "Iterator[Bench]":
    """A gateway with one worker, its service and its collector, in virtual time; `use` plugins, then make requests."""
    from sim.verify.bench import Bench  # noqa: PLC0415 - see the module

    bench = Bench()
    try:
        yield bench
        if request.config.getoption(_FLAG) and "span_leaks" not in request.fixturenames:
            _fail_on(bench.finish())
    finally:
        bench.close()


@pytest.fixture
def span_leaks(gateway: "Bench") -> "Iterator[list[Mistake]]":
    """What `gateway` has found so far; when anything is left in it at the end, the test fails."""
    yield gateway.mistakes
    _fail_on(gateway.finish())


class VerifyItem(pytest.Item):
    """The verification of one plugin."""

    def __init__(self, *, place: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._place = place

    def runtest(self) -> None:
        """Verify."""
        from sim.verify import formats  # noqa: PLC0415 - see the module
        from sim.verify.search import Search  # noqa: PLC0415 - the same
        from sim.verify.trial import Suspects  # noqa: PLC0415 - the same

        suspects = Suspects((str(self.config.rootpath / self._place) if self._place.endswith(".py") else self._place,))
        verdict = Search(suspects, 0).run()
        if verdict.shown:
            pytest.fail(formats.text(suspects, verdict), pytrace=False)

    def reportinfo(self) -> tuple[str, None, str]:
        """Tell what failed."""
        return self._place, None, self.name


def _fail_on(mistakes: "list[Mistake]") -> None:
    from sim.verify import formats  # noqa: PLC0415 - see the module

    if mistakes:
        pytest.fail("\n".join(formats.explained(mistake) for mistake in mistakes), pytrace=False)
