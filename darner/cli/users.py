"""The command for users of the server: `passwd`."""

import sys
from pathlib import Path

import click

from darner.access import auth_file
from darner.cli.outcome import say


@click.command(short_help="Set the password of a user.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("user")
def passwd(file: Path, user: str) -> None:
    """Set the password of USER in FILE, the auth_file of the configuration; either is made if missing.

    Asks for the password; if standard input is no terminal, reads it from there, up to the line end. A
    running server uses the new password once it is told to reload (SIGHUP).

    \b
    Example:
      darner passwd users.toml alice
    """
    auth_file.check_name(user)
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True).encode()
    else:
        password = sys.stdin.buffer.readline().rstrip(b"\r\n")
    is_new = auth_file.set_password(file, user, password)
    if is_new:
        say(f"{user} is new, and may read, write and manage every queue: change that in {file}")
