"""The console script `darner`, and `python -m darner`: signals and standard files are set up before anything
else is loaded."""

from darner.server import signals


def main() -> None:
    """Run the command line."""
    signals.block()
    # the other imports take 0.2 s, in which no signal may end the process silently or with a traceback
    from darner.server import stdio  # noqa: PLC0415

    stdio.open_all()
    from darner.log import bare_structlog  # noqa: PLC0415

    bare_structlog.load()
    from darner.cli.main import main as run  # noqa: PLC0415
    from darner.cli.outcome import exit_on_error  # noqa: PLC0415

    with exit_on_error():
        run()


if __name__ == "__main__":
    main()
