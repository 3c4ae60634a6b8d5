"""Peers: one shape for the processes around the gateway."""

import asyncio
import signal

import pytest

from sim import peer, process
from tests.peers import TIMEOUT_S, started


def _counting(control):
    """A peer that reports how often it was asked, and whether it was stopped."""
    reports = []
    stopped = []

    async def main(stop):
        await stop.wait()
        stopped.append(True)

    def report():
        reports.append(None)
        return {"reports": len(reports), "stopped": bool(stopped)}

    peer.run(control, main, report)


def _ending(control):
    """A peer that ends by itself."""

    async def main(_stop):
        await asyncio.sleep(0)

    peer.run(control, main, lambda: {"final": True})


def test_peer_reports_whenever_it_is_asked():
    """Each `report` is answered with a report."""
    with started(_counting) as counting:
        assert counting.report() == {"reports": 1, "stopped": False}
        assert counting.report() == {"reports": 2, "stopped": False}


def test_peer_that_is_told_to_stop_sends_its_final_report_and_exits_with_0():
    """The final report is made after the peer has stopped, and is followed by the end of the pipe."""
    with started(_counting) as counting:
        assert counting.stop() == {"reports": 1, "stopped": True}
        with pytest.raises(EOFError):
            counting.receive()


def test_peer_stops_on_sigterm_as_on_stop():
    """SIGTERM is answered with the final report and exit code 0."""
    with started(_counting) as counting:
        counting.report()  # it stands
        counting.signal(signal.SIGTERM)
        assert counting.end() == {"reports": 2, "stopped": True}


def test_peer_stops_when_its_parent_closes_the_pipe():
    """The end of file is the parent's last word: the peer exits with 0."""
    with started(_counting) as counting:
        counting.report()
        counting.control.close()
        assert process.reap(counting.child, TIMEOUT_S) == 0


def test_peer_leaves_ctrl_c_to_its_parent():
    """SIGINT changes nothing."""
    with started(_counting) as counting:
        counting.report()
        counting.signal(signal.SIGINT)
        assert counting.report() == {"reports": 2, "stopped": False}


def test_peer_that_comes_to_its_end_sends_its_final_report_unasked():
    """The final report needs no asking."""
    with started(_ending) as ending:
        assert ending.end() == {"final": True}
