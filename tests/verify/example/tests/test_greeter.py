"""How a plugin's author tests it."""

import pytest


def test_greets(gateway):
    """The client is greeted, and the trace shows it."""
    gateway.use("greeter.py")
    answer = gateway.get("/orders?name=Ada")
    assert (answer.status, answer.headers["x-greeting"]) == (200, "hello, Ada")
    (span,) = [span for span in gateway.spans if span.name == "greet"]
    assert span.attributes[0].value.string_value == "Ada"


def test_asks_for_the_name(gateway):
    """Who has no name is told so, and the service is not asked."""
    gateway.use("greeter.py")
    answer = gateway.get("/orders")
    assert (answer.status, b"who are you?" in answer.body) == (400, True)
    assert "kong.balancer" not in [span.name for span in gateway.spans]


@pytest.mark.parametrize("upstream", ["refuses", "is silent", "resets"])
def test_greets_whatever_the_service_does(gateway, upstream):
    """Also an error of the gateway has the header; a service that is silent costs no time."""
    gateway.use("greeter.py")
    answer = gateway.get("/orders?name=Ada", upstream=upstream)
    assert answer.status in (502, 504)
    assert answer.headers["x-greeting"] == "hello, Ada"


def test_leaks_nothing(gateway, span_leaks):
    """However a request ends, nothing is left over."""
    gateway.use("greeter.py")
    for abort_s in (None, 0, 0.01):
        gateway.request("POST", "/orders?name=Ada", body=b"x" * 100_000, abort_s=abort_s)
    assert span_leaks == []


def test_of_a_leaky_plugin(gateway):
    """Nothing here asks for leaks: only `--kongsim` does."""
    gateway.use("leaky.py")
    assert gateway.get("/orders").status == 200


def test_of_a_leaky_plugin_that_asks(gateway, span_leaks):
    """This fails, with and without `--kongsim`."""
    gateway.use("leaky.py")
    assert gateway.get("/orders").status == 200
