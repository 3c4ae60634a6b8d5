"""A gateway exports to collectors of other implementations."""

import pytest
import trustme

from sim.config import Nginx, Plugin
from tests.gateway import echo, gateway_to, live, recording_collector


@pytest.mark.parametrize("profile", ["kong", "safe"])
def test_traces_reach_a_secured_collector(profile, tmp_path):
    """The certificate is checked against the configured authority, and every span arrives."""
    authority, file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    with echo() as upstream, recording_collector(authority.issue_cert("localhost")) as collector:
        config = {"traces_endpoint": f"https://localhost:{collector.port}/v1/traces"}
        gateway = gateway_to(
            upstream,
            plugins=(Plugin(name="opentelemetry", config=config | {"queue": {"max_coalescing_delay": 0.1}}),),
            profile=profile,
            nginx=Nginx(lua_ssl_trusted_certificate=str(file)),
        )
        with live(tmp_path, gateway) as running:
            assert running.request().status == 200
            created = running.wait_requests(1).ledger.created
            assert len(collector.wait_spans(created)) == created
            assert running.stop().ledger.acknowledged == created
