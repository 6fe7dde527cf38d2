"""The protocol: the bytes of a client come in, its commands are carried out, the replies go out in order.

No rule about queues lives here, and no listening socket; who may connect is decided above.
It stands on `darner.queues` and all below.
"""
