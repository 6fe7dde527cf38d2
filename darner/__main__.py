"""The console script `darner`, and `python -m darner`: what has to be so before anything else is loaded."""

from darner.server import signals


def main() -> None:
    """Run the command line."""
    signals.hold_back()
    # the rest takes 0.2 s to load, in which none is to end the process by surprise or with a traceback
    from darner.server import standard  # noqa: PLC0415

    standard.open_all()
    from darner.cli.main import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()
