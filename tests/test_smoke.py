def test_an_item_survives_a_kill(server):
    assert server.connect().set(b"work", b"hello") == b"STORED\r\n"
    server.restart()
    assert server.connect().get(b"work") == b"hello"
