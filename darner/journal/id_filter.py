"""A filter of ids: it has forgotten which it has seen, and knows of most others that it has not.

It is a Bloom filter, which grows with the ids, up to a size, by layers. Beyond that it knows less and less.
"""

import struct

# The bytes of each layer, with 16 bits for each id that it takes; the last one takes all that come.
LAYERS_BYTES = (1 << 10, 8 << 10, 64 << 10, 512 << 10, 4 << 20)
BITS_PER_ID = 16

_PROBES = struct.Struct("<4I")


class IdFilter:
    """Tells ids that were not added, given by hashes of 16 bytes."""

    __slots__ = ("_layers", "_room")

    def __init__(self) -> None:
        self._layers: list[bytearray] = []
        # how many ids the last layer still takes
        self._room = 0

    def add(self, digest: bytes) -> None:
        """Add an id."""
        if not self._room and len(self._layers) < len(LAYERS_BYTES):
            size = LAYERS_BYTES[len(self._layers)]
            self._layers.append(bytearray(size))
            self._room = size * 8 // BITS_PER_ID
        self._room -= self._room > 0
        bits = self._layers[-1]
        mask = len(bits) * 8 - 1
        for probe in _PROBES.unpack(digest):
            at = probe & mask
            bits[at >> 3] |= 1 << (at & 7)

    def may_have(self, digest: bytes) -> bool:
        """Return whether an id may have been added; False if it was not for certain."""
        probes = _PROBES.unpack(digest)
        for bits in self._layers:
            mask = len(bits) * 8 - 1
            for probe in probes:
                at = probe & mask
                if not bits[at >> 3] & 1 << (at & 7):
                    break
            else:
                return True
        return False
