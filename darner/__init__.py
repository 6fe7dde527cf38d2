"""A small, durable message queue server that speaks memcache."""

from darner._version import __version__

__all__ = ["__version__"]
