"""`kong.configuration`: the settings of kong.conf, as far as the gateway has them."""

from collections.abc import Iterator, Mapping
from typing import Any

from kongtrace import ApiError
from sim.config import Gateway


class Configuration(Mapping[str, Any]):
    """`kong.configuration`: settings by Kong's names, as keys and as fields, which are None where there is none.

    Args:
        gateway: the configuration.

    Raises:
        ApiError: somebody writes one.
    """

    def __init__(self, gateway: Gateway) -> None:
        vars(self)["_settings"] = {
            "database": "off",
            "role": "traditional",
            "log_level": gateway.log_level,
            "proxy_listen": list(gateway.listen),
            "status_listen": list(gateway.status_listen),
            "nginx_worker_processes": gateway.workers,
            "tracing_instrumentations": list(gateway.tracing.instrumentations),
            "tracing_sampling_rate": gateway.tracing.sampling_rate,
            "trusted_ips": list(gateway.trusted_ips),
            "real_ip_header": gateway.real_ip_header,
            "real_ip_recursive": "on" if gateway.real_ip_recursive else "off",
            "loaded_plugins": dict.fromkeys(sorted({plugin.name for plugin in gateway.plugins}), True),
        }

    def __getitem__(self, name: str) -> Any:
        return self._settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself looks for
            raise AttributeError(name)
        return vars(self)["_settings"].get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ApiError("cannot write to configuration")
