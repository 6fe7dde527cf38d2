"""The console script `darner`, and `python -m darner`: what has to be so before anything else is loaded."""

from darner import signals, standard


def main() -> None:
    """Run the command line."""
    standard.open_all()
    signals.hold_back()
    # It takes 0.2 s to load, in which a signal is not to end the process with a traceback, or by surprise.
    from darner.cli import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
