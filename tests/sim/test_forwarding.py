"""Whom the gateway takes for the client of a request, on wires of memory."""

import pytest

from tests.wire import Wired

PROXY = "192.0.2.1"


def client_of(*lines, recursive=False, header="X-Real-IP"):
    """The client of a request whose trusted proxy sends these values of a header, a line each."""
    wired = Wired(trusted_ips=(PROXY, "10.0.0.0/8"), real_ip_header=header, real_ip_recursive=recursive)
    said = "".join(f"{header}: {line}\r\n" for line in lines)
    wired.client(PROXY).send(f"GET / HTTP/1.1\r\nHost: g\r\n{said}\r\n".encode())
    [request] = wired.ended
    return request.client_ip


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("header", ["X-Real-IP", "X-Client", "x-forwarded-for"])
def test_client_is_who_the_first_line_of_a_header_names(header, recursive):
    """Others do not count; X-Forwarded-For, spelled otherwise, is a header like these (nginx 1.22)."""
    said = {
        ("1.2.3.4", "5.6.7.8"): "1.2.3.4",
        ("10.1.1.1", "5.6.7.8"): "10.1.1.1",
        ("1.2.3.4, 10.1.1.1", "5.6.7.8"): "1.2.3.4" if recursive else "10.1.1.1",
        ("nobody", "5.6.7.8"): PROXY,
        ("", "5.6.7.8"): PROXY,
    }
    assert {lines: client_of(*lines, recursive=recursive, header=header) for lines in said} == said


@pytest.mark.parametrize("recursive", [False, True])
def test_lines_of_x_forwarded_for_are_one_list(recursive):
    """The last address of the last line is the nearest proxy's (nginx 1.22)."""
    said = {
        ("1.2.3.4", "5.6.7.8"): "5.6.7.8",
        ("5.6.7.8", "10.1.1.1"): "5.6.7.8" if recursive else "10.1.1.1",
        ("nobody", "5.6.7.8"): "5.6.7.8",
    }
    assert {lines: client_of(*lines, recursive=recursive, header="X-Forwarded-For") for lines in said} == said
