"""Stand-ins: the synthetic plugin in the place of one that is not simulated.

A stand-in has the name, and so the spans and the scopes, of the plugin that it stands for, and runs where that would in
the order of plugins. What it does and costs is a configuration of the synthetic plugin, given once; what a kong.yml
says of the real plugin is left alone.
"""

from collections.abc import Mapping
from typing import Any, Final

from sim.plugins.synthetic import Synthetic, SyntheticConfig

PRIORITIES: Final[Mapping[str, int]] = {
    "pre-function": 1_000_000,
    "zipkin": 100_000,
    "exit-transformer": 9_999,
    "bot-detection": 2_500,
    "cors": 2_000,
    "session": 1_900,
    "acme": 1_705,
    "mtls-auth": 1_600,
    "jwt": 1_450,
    "oauth2": 1_400,
    "vault-auth": 1_350,
    "key-auth": 1_250,
    "ldap-auth": 1_200,
    "ldap-auth-advanced": 1_200,
    "basic-auth": 1_100,
    "openid-connect": 1_050,
    "hmac-auth": 1_030,
    "jwt-signer": 1_020,
    "saml": 1_010,
    "request-validator": 999,
    "grpc-gateway": 998,
    "ip-restriction": 990,
    "request-size-limiting": 951,
    "acl": 950,
    "opa": 920,
    "rate-limiting": 910,
    "rate-limiting-advanced": 910,
    "response-ratelimiting": 900,
    "route-by-header": 850,
    "jq": 811,
    "request-transformer-advanced": 802,
    "request-transformer": 801,
    "response-transformer": 800,
    "ai-request-transformer": 777,
    "ai-prompt-template": 773,
    "ai-prompt-decorator": 772,
    "ai-prompt-guard": 771,
    "ai-proxy": 770,
    "ai-response-transformer": 769,
    "aws-lambda": 750,
    "azure-functions": 749,
    "proxy-cache": 100,
    "prometheus": 13,
    "http-log": 12,
    "statsd": 11,
    "datadog": 10,
    "file-log": 9,
    "udp-log": 8,
    "tcp-log": 7,
    "loggly": 6,
    "syslog": 4,
    "grpc-web": 3,
    "post-function": -1_000,
}
"""Of Kong's plugins (its documentation, "plugin execution order"); any other has the synthetic's."""


def stand_ins(configs: Mapping[str, SyntheticConfig]) -> dict[str, Any]:
    """Return a plugin class for each name."""
    return {name: _stand_in(name, config) for name, config in configs.items()}


def _stand_in(name: str, config: SyntheticConfig) -> Any:
    class Config(SyntheticConfig):
        """Whatever the real plugin is told."""

        @classmethod
        def model_validate(cls, obj: Any, **_options: Any) -> Any:
            """Return what the stand-in is told."""
            del obj
            return config

    members = {"NAME": name, "PRIORITY": PRIORITIES.get(name, Synthetic.PRIORITY), "Config": Config}
    return type(Synthetic.__name__, (Synthetic,), members)
