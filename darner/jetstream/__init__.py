"""The queues of a NATS JetStream cluster, behind the same `Store` as those of a data directory.

No command and no client's connection is known here, and nothing is kept on this machine.
It stands on `darner.wire.store`, which it is an implementation of, and on nats-py, the extra `nats`.
"""
