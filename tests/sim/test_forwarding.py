"""Whom the gateway takes for the client of a request, on wires of memory."""

import pytest

from tests.wire import Wired

PROXY = "192.0.2.1"


def client_of(*lines, recursive=False, header="X-Real-IP", trusted=(PROXY, "10.0.0.0/8")):
    """The client of a request whose trusted proxy sends these values of a header, a line each."""
    wired = Wired(trusted_ips=trusted, real_ip_header=header, real_ip_recursive=recursive)
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


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (("1.2.3.4", ""), PROXY),
        (("1.2.3.4", ", ,"), PROXY),
        (("5.6.7.8", ",10.1.1.1"), PROXY),
        (("5.6.7.8", ", 10.1.1.1"), "10.1.1.1"),
        (("5.6.7.8", "10.1.1.1,"), "5.6.7.8"),
        (("5.6.7.8", "10.1.1.1, , 10.2.2.2"), "5.6.7.8"),
        (("5.6.7.8", "nobody 10.1.1.1"), "10.1.1.1"),
        (("1.2.3.4,\t10.1.1.1",), PROXY),
    ],
)
def test_a_line_is_read_from_its_end_until_something_is_no_address(lines, client):
    """Nothing before that counts, in no line; no separator is looked for in a line's first place (nginx 1.22)."""
    assert client_of(*lines, recursive=True, header="X-Forwarded-For") == client


@pytest.mark.parametrize(
    ("text", "client"),
    [
        ("1.2.3.4:000080", "1.2.3.4"),
        ("01.002.3.4", "1.2.3.4"),
        ("[1.2.3.4]:80", "1.2.3.4"),
        ("2001:DB8:0::9", "2001:db8::9"),
        ("[2001:db8::9]:1", "2001:db8::9"),
        ("::FFFF:1.2.3.4", "::ffff:1.2.3.4"),
        ("1.2.3.4:", PROXY),
        ("1.2.3.4:0", PROXY),
        ("1.2.3.4:65536", PROXY),
        ("1.2.3.256", PROXY),
        ("255.255.255.255", PROXY),
        ("[2001:db8::9]", PROXY),
        ("fe80::1%lo", PROXY),
        (f"1.2.3.{5_000 * '0'}4", "1.2.3.4"),
        (f"1.2.3.{5_000 * '1'}", PROXY),
    ],
)
def test_address_is_read_and_written_as_by_nginx(text, client):
    """`ngx_parse_addr_port` takes leading zeros, and an address in one form is told in one form (nginx 1.22)."""
    assert client_of(text) == client


@pytest.mark.parametrize("trusted", [(PROXY, "10.0.0.0/8"), (PROXY, "10.0.0.0/8", "::/0")])
def test_mapped_address_is_trusted_as_the_address_that_it_stands_for(trusted):
    """`::ffff:10.0.0.1` is 10.0.0.1 to `ngx_cidr_match`, and belongs to no block of IPv6 (nginx 1.22)."""
    options = {"recursive": True, "header": "X-Forwarded-For", "trusted": trusted}
    assert client_of("9.9.9.9, ::ffff:10.0.0.1", **options) == "9.9.9.9"
    assert client_of("9.9.9.9, ::ffff:11.0.0.1", **options) == "::ffff:11.0.0.1"
