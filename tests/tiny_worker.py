"""Workers for tests of the master: they answer each connection with their pid, one at a time, and obey the signals."""

import os
import signal
import sys
import time

from sim.process import Signals, wait
from sim.scoreboard import FIELD_INDEX, State, new_row

SERVED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)


def serve(args):
    """Answer connections until told to leave; count them, and a span for each."""
    row = new_row()

    def publish(state):
        row[FIELD_INDEX["state"]] = state
        args.record.publish(row)

    with Signals(*SERVED) as signals:
        publish(State.SERVING)
        args.ready.send(os.getpid())
        while True:
            ready = wait([signals, *args.listeners], None)
            for signum, _sender in signals.take():
                if signum is signal.SIGUSR1:
                    args.error_log.reopen()
                    args.error_log("notice", "reopening logs")
                else:
                    publish(State.EXITED)
                    sys.exit(0)
            for listener in args.listeners:
                if listener in ready:
                    _answer(listener, row)
                    publish(State.SERVING)


def _answer(listener, row):
    try:
        connection, _address = listener.accept()
    except BlockingIOError:  # another worker was faster
        return
    with connection:
        connection.sendall(f"{os.getpid()}\n".encode())
    row[FIELD_INDEX["requests"]] += 1
    row[FIELD_INDEX["created"]] += 1
    row[FIELD_INDEX["spans_open"]] += 1


def never_ready(args):
    """Hang before serving."""
    wait([], None)


def stubborn(args):
    """Serve, and ignore every signal that can be ignored."""
    for signum in SERVED:
        signal.signal(signum, signal.SIG_IGN)
    args.ready.send(os.getpid())
    while True:
        time.sleep(1)


def defiant(args):
    """Serve nobody, and say which signals it does not obey."""
    with Signals(*SERVED) as signals:
        args.ready.send(os.getpid())
        while True:
            wait([signals], None)
            for signum, _sender in signals.take():
                args.error_log("notice", f"heard {signum.name}")


def fatal(args):
    """Refuse to start, for a reason that another try does not remove."""
    sys.exit(2)
