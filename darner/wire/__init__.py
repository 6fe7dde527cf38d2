"""The protocol: bytes of a client in, commands carried out, replies out in order.

No rule about queues lives here, and no listening socket.
It stands on `darner.queues` and all below.
"""
