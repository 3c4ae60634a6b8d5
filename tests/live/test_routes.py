"""Routes on real sockets: what a client gets where a route answers without its service."""

import json

import pytest

from sim.entity import Route
from tests.gateway import echo, gateway_to, live


def routed(port, *routes):
    """A gateway with routes of its own beside the service."""
    made = tuple(Route.model_validate({"name": f"r{number}"} | fields) for number, fields in enumerate(routes))
    return gateway_to(port, routes=made)


def test_route_without_service_is_told_in_kongs_words(tmp_path):
    """503, when no plugin has answered."""
    with live(tmp_path, routed(1, {"paths": ["/"]})) as gateway:
        answer = gateway.request()
    assert (answer.status, json.loads(answer.content)["message"]) == (503, "no Service found with those values")


@pytest.mark.parametrize(
    ("status", "header", "value"),
    [
        (426, "Upgrade", "TLS/1.2, HTTP/1.1"),
        (301, "Location", "https://shop.example/a?b=c"),
        (302, "Location", "https://shop.example/a?b=c"),
        (307, "Location", "https://shop.example/a?b=c"),
        (308, "Location", "https://shop.example/a?b=c"),
    ],
)
def test_route_for_https_alone_asks_for_tls(tmp_path, status, header, value):
    """An upgrade or a redirect, and nothing for the service."""
    secure = {"paths": ["/"], "service": "orders", "protocols": ["https"], "https_redirect_status_code": status}
    with live(tmp_path, routed(1, secure)) as gateway:
        answer = gateway.request(path="/a?b=c", headers={"Host": "shop.example:8000"})
        log = gateway.log.read_text()
    assert (answer.status, answer.headers[header]) == (status, value)
    assert "upstream" not in log


def test_upgrade_that_is_asked_for_is_an_option_of_the_connection(tmp_path):
    """Beside what becomes of the connection otherwise: `Upgrade` is for the next hop alone."""  # RFC 9110 7.8
    secure = {"paths": ["/"], "service": "orders", "protocols": ["https"]}
    with live(tmp_path, routed(1, secure)) as gateway:
        answer = gateway.request(headers={"Connection": "close"})
    assert (answer.status, answer.headers.get_all("Connection")) == (426, ["Upgrade", "close"])


def test_request_goes_where_its_headers_and_path_lead(tmp_path):
    """Regular expressions, headers and methods on one gateway; the service sees what is left of the path."""
    routes = (
        {"paths": ["~/v(?<version>\\d)/"], "service": "orders"},
        {"paths": ["/v1/raw"], "headers": {"x-raw": ["yes"]}, "service": "orders", "strip_path": False},
        {"methods": ["PUT"], "service": "orders"},
    )
    with echo() as upstream, live(tmp_path, routed(upstream, *routes)) as gateway:

        def path_of(answer):
            return json.loads(answer.content)["path"] if answer.status == 200 else answer.status

        assert path_of(gateway.request(path="/v1/orders?a=1")) == "/orders?a=1"
        assert path_of(gateway.request(path="/v1/raw", headers={"X-Raw": "YES"})) == "/v1/raw"
        assert path_of(gateway.request(path="/v1/%2e%2e/v2/orders")) == "/orders"
        assert path_of(gateway.request("PUT", "/else/where")) == "/else/where"
        assert path_of(gateway.request(path="/else/where")) == 404
