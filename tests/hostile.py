"""What hostile clients send, and how much of it: a little in the suite, a million in `make soak`."""

import os

SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
"""Whether there is time for much."""

_REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n",
    b"HEAD http://gateway:80/a?b HTTP/1.1\r\nHost: g\r\nAccept: */*\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
    b"POST /a?b HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\n\r\nhello",
    (
        b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;a=b\r\nabc\r\nb\r\nhello world\r\n0\r\nX: y\r\n\r\n"
    ),
    b"PUT / HTTP/1.1\r\nHost: g\r\nConnection: Upgrade, X-A\r\nUpgrade: h2c\r\nX-A: 1\r\nContent-Length: 3\r\n\r\nGET",
    b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
)
_PIECES = (
    *(b"", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"\xff", b"\x7f", b"0", b"5"),
    *(b"-1", b"0x", b"ffffffffffffffff", b"chunked", b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Host: h\r\n", b"Connection: close\r\n", b" HTTP/1.1\r\n", b"GET ", b"\r\n ", b"a" * 9000),
)


def hostile_parts(generator):
    """Some requests with something wrong in them, mostly, in one part or a few."""
    data = bytearray(b"".join(generator.choices(_REQUESTS, k=generator.randrange(1, 4))))
    for _ in range(generator.randrange(6)):
        place = generator.randrange(len(data) + 1)
        piece = generator.choice(_PIECES) if generator.random() < 0.9 else generator.randbytes(4)
        data[place : place + generator.randrange(4)] = piece
    cuts = sorted(generator.randrange(len(data) + 1) for _ in range(generator.randrange(4)))
    return [bytes(data[start:end]) for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]
