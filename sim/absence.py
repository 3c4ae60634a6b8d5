"""What of Kong's API is not simulated, and what takes its place: whoever asks for it is told.

`docs/plugins.md`, *Not simulated*, lists the same.
"""

from typing import ClassVar, Final, NamedTuple

from sim.errors import meant

PAGE: Final = 'docs/plugins.md, "Not simulated"'


class Absent(NamedTuple):
    """Names that are not there.

    Attributes:
        path: of the part that Kong has them in.
        names: what they are; none: whatever is not there.
        instead: what a plugin does without them.
    """

    path: str
    names: tuple[str, ...]
    instead: str


def _absent(path: str, names: str, instead: str) -> Absent:
    return Absent(path, tuple(names.split()), instead)


ABSENT: Final = (
    _absent("kong", "cache core_cache", "`self`, which is the worker's, holds what is looked up"),
    _absent("kong", "worker_events cluster_events cluster", "workers and nodes share nothing"),
    _absent("kong", "dns", "`kong.ngx.socket` and `kong.ngx.http` look names up"),
    _absent("kong", "ip", "`kong.client.get_forwarded_ip` knows the trusted proxies"),
    _absent("kong", "nginx", "the subsystem is http; the Status API has the counts of connections"),
    _absent("kong", "table", "mappings and lists of Python"),
    _absent("kong", "vault", "the configuration has the value itself"),
    _absent(
        "kong.client",
        "authenticate load_consumer get_consumer_group get_consumer_groups set_authenticated_consumer_group "
        "set_authenticated_consumer_groups authenticate_consumer_group_by_consumer_id",
        "there are no consumers: nobody is authenticated",
    ),
    _absent("kong.client", "tls", "clients speak plain HTTP"),
    _absent("kong.db", "", "`kong.db.query`; there are no entities in it"),
    _absent("kong.log", "deprecation new set_format", "`kong.log` and its levels, in one format"),
    _absent(
        "kong.service",
        "set_tls_cert_key set_tls_verify set_tls_verify_depth set_tls_verify_store",
        "services are spoken to without TLS",
    ),
    _absent("kong.service", "set_target_retry_callback", "the balancer chooses the target of another try"),
    _absent("kong.service.request", "disable_tls", "services are spoken to without TLS"),
    _absent("kong.timer", "named_at named_every", "`kong.timer.at` and `every`: timers have no names"),
    _absent("kong.timer", "cancel is_managed pause run stats unpause", "timers are nginx's, without an executor"),
    _absent("kong.ngx", "var req", "`kong.request`, `kong.client` and `kong.service.request`"),
    _absent("kong.ngx", "header resp status", "`kong.response`"),
    _absent("kong.ngx", "exit say print flush eof send_headers redirect exec", "`kong.response.exit`"),
    _absent("kong.ngx", "log", "`kong.log`"),
    _absent("kong.ngx", "shared", "workers share nothing; `self` is the worker's"),
    _absent("kong.ngx", "semaphore thread run_worker_thread", "`asyncio`"),
    _absent("kong.ngx", "location", "`kong.ngx.http`"),
    _absent("kong.ngx", "today localtime utctime http_time cookie_time parse_http_time", "`datetime`, `email.utils`"),
    _absent(
        "kong.ngx",
        "re md5 md5_bin sha1_bin hmac_sha1 crc32_short crc32_long encode_base64 decode_base64 escape_uri unescape_uri "
        "encode_args decode_args quote_sql_str",
        "`re`, `hashlib`, `hmac`, `zlib`, `base64`, `urllib.parse`",
    ),
    _absent("kong.ngx", "OK ERROR AGAIN DONE DECLINED HTTP_OK ERR WARN NOTICE INFO DEBUG", "numbers, `kong.log`"),
    _absent("kong.ngx.socket", "udp stream connect", "`kong.ngx.socket.tcp`"),
)


class Incomplete:
    """A part of Kong's API of which some is absent; `_path` is what plugins call it."""

    _path: ClassVar[str]


def missing(error: BaseException) -> str | None:
    """Return what is to be said of an error that comes from asking a part for what it has not; None: of another.

    A part with a `__getattr__` would say it itself, and each use of what is there would take a fifth longer.
    """
    if not isinstance(error, AttributeError) or not isinstance(error.obj, Incomplete):
        return None
    path, name = error.obj._path, error.name  # noqa: SLF001 - of its own class
    for absent in ABSENT:
        if absent.path == path and (name in absent.names or not absent.names):
            return f"{path}.{name} is not simulated: {absent.instead.replace('`', '')} ({PAGE})"
    cure = meant(name, (other for other in dir(error.obj) if not other.startswith("_")))
    return f"{path} has no {name}" + (f": {cure}" if cure else f" ({PAGE})")
