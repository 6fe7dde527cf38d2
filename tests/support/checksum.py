"""The checksum of records and log frames, written by hand."""


def crc32c(data, crc=0):
    """Return the CRC-32C of some bytes, bit by bit, as in RFC 3720."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
