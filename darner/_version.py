"""The version, in the one place it is written."""

# Three numbers and no suffix, the first at least 1: libmemcached takes no other in a VERSION reply.
__version__ = "1.0.0"
