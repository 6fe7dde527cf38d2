# cython: language_level=3
"""The types of counters.py: each request counts."""

cimport cython
from libc.stdint cimport uint64_t


@cython.final
cdef class Counters:
    cdef public:
        uint64_t total_connections
        uint64_t cmd_get
        uint64_t cmd_meta
        uint64_t cmd_set
        uint64_t cmd_peek
        uint64_t get_hits
        uint64_t get_misses
        uint64_t bytes_read
        uint64_t bytes_written
        uint64_t noreply_errors
        uint64_t auth_cmds
        uint64_t auth_errors
        uint64_t cmd_flush
        uint64_t conn_yields
        uint64_t delete_hits
        uint64_t delete_misses
        uint64_t rejected_connections
