"""The program: ``kongsim``, which ``python -m sim`` is too."""

from sim.interruption import ignore_interrupts, leave_when_interrupted


def main() -> None:
    """Run the command that the arguments name, and exit."""
    leave_when_interrupted()
    try:
        from sim import cli  # noqa: PLC0415 - an interrupt while this is loaded is told as any other

        cli.main()
    finally:
        ignore_interrupts()


if __name__ == "__main__":
    main()
