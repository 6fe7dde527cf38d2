"""Who may log in to the page: `user:password`, a line each, from a file or the environment."""

import stat
from pathlib import Path

from darner.errors import ConfigError

LEAST_CHARACTERS = 12


def read_logins(path: Path | None, text: str) -> dict[str, str]:
    """Return the password of each user, from the file if there is one, else from `text`.

    ConfigError if others than its owner and group may read the file, or a line or a password is not right.
    """
    if path is not None:
        if stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO:
            raise ConfigError(f"{path}: others may read it: chmod 640")
        text = path.read_text()
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        user, _, password = line.partition(":")
        if not user or len(password) < LEAST_CHARACTERS:
            raise ConfigError(
                f"{path or 'DARNER_WEB_LOGIN'}, line {number}: user:password, and the password with"
                f" {LEAST_CHARACTERS} characters at least"
            )
        found[user] = password
    if path is not None and not found:
        raise ConfigError(f"{path}: there is no user in it")
    return found
