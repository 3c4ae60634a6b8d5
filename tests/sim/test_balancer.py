"""Which target a try gets, and what is concluded from how it went."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from sim.balancer import Balancer, xxhash32
from sim.entity import Upstream
from sim.resolver import Resolver
from sim.router import Captures


class World:
    """Time that stands still unless it is moved, drawn numbers, names, and a log."""

    def __init__(self, seed=1, hosts=None):
        self.time_s = 100.0
        self.random = random.Random(seed).random
        self.random_bytes = random.Random(seed).randbytes
        self.hosts = hosts or {}
        self.lines = []

    def now(self):
        return self.time_s

    def log(self, level, message):
        self.lines.append(f"{level}: {message}")

    def balancer(self, targets, *, avoids_tried=False, **fields):
        entries = [{"target": target, "weight": weight} for target, weight in targets.items()]
        upstream = Upstream.model_validate({"name": "pool", "targets": entries} | fields)
        return Balancer(upstream, self, self.hosts, self.log, avoids_tried=avoids_tried)


def request(peer="10.1.1.1", path="/", target=None, lines=(), captures=None):
    return SimpleNamespace(
        client_ip=peer,
        path=path,
        target=(target or path).encode(),
        match=SimpleNamespace(captures=captures),
        forwarded_lines=lambda: [(name.encode(), value.encode()) for name, value in lines],
    )


def chosen(balancer, made=None):
    """The name of the target that a request would get; it ends at once."""
    choice = balancer.begin(made or request())
    address = choice.next()
    choice.ended(200)
    return address and address.name


def failing(balancer, times, *, timeout=False, made=None):
    """The targets that one request gets when `times` tries fail."""
    choice = balancer.begin(made or request())
    names = [choice.next().name]
    for _ in range(times):
        choice.failed(timeout=timeout)
        address = choice.next()
        names.append(address and address.name)
    return names


PASSIVE = {
    "passive": {
        "unhealthy": {"tcp_failures": 2, "timeouts": 1, "http_failures": 3, "http_statuses": [500]},
        "healthy": {"successes": 2},
    }
}
THREE = {"10.0.0.1:80": 10, "10.0.0.2:80": 10, "10.0.0.3:80": 10}


# Algorithms.


@pytest.mark.parametrize("seed", range(3))
def test_round_robin_gives_each_target_its_weight_in_each_turn_of_the_wheel(seed):
    """As many requests as the weights say, in any stretch of one turn; the weight 0 gets none."""
    balancer = World(seed).balancer({"10.0.0.1:80": 100, "10.0.0.2:80": 50, "10.0.0.3:80": 25, "10.0.0.4:80": 0})

    names = [chosen(balancer) for _ in range(21)]

    for start in range(14):
        counts = Counter(names[start : start + 7])
        assert counts == {"10.0.0.1": 4, "10.0.0.2": 2, "10.0.0.3": 1}


def test_wheels_of_two_workers_are_shuffled_apart():
    """Not all workers begin with the same target."""
    firsts = {chosen(World(seed).balancer(THREE)) for seed in range(20)}
    assert len(firsts) == 3


def test_round_robin_goes_on_after_a_failed_try():
    """With equal weights every try of one request goes to another target."""
    assert len(set(failing(World().balancer(THREE), 2))) == 3


def test_consistent_hashing_keeps_a_key_at_its_target():
    """In every worker, whatever it drew, and wherever the targets stand in the file."""
    hashing = {"hash_on": "ip", "slots": 1000}
    one, other = World(1).balancer(THREE, **hashing), World(2).balancer(dict(reversed(THREE.items())), **hashing)
    for number in range(50):
        made = request(peer=f"10.1.1.{number}")
        assert chosen(one, made) == chosen(other, made) == chosen(one, made)


def test_consistent_hashing_spreads_keys_by_weight():
    """Nearly as the weights say."""
    balancer = World().balancer({"10.0.0.1:80": 300, "10.0.0.2:80": 100}, hash_on="ip")
    counts = Counter(chosen(balancer, request(peer=str(number))) for number in range(2000))
    assert 0.6 < counts["10.0.0.1"] / 2000 < 0.9


def test_consistent_hashing_moves_few_keys_when_a_target_goes():
    """Only those that it had."""
    with_it = World().balancer(THREE, hash_on="ip", healthchecks=PASSIVE)
    before = {number: chosen(with_it, request(peer=str(number))) for number in range(300)}
    for _ in range(2):
        with_it.report_failure(with_it.addresses[0], timeout=False)
    after = {number: chosen(with_it, request(peer=str(number))) for number in range(300)}
    gone = with_it.addresses[0].name
    assert gone not in after.values()
    assert {number for number in before if before[number] != after[number]} == {
        number for number in before if before[number] == gone
    }


def test_ring_tries_the_same_target_again_as_kong_does():
    """As long as it counts as healthy; profile `safe` prefers another one."""
    assert len(set(failing(World().balancer(THREE, hash_on="ip"), 2))) == 1
    assert len(set(failing(World().balancer(THREE, hash_on="ip", avoids_tried=True), 2))) == 3


def test_least_connections_looks_at_what_is_under_way_for_the_weight():
    """The target with twice the weight has twice the requests."""
    balancer = World().balancer({"10.0.0.1:80": 20, "10.0.0.2:80": 10}, algorithm="least-connections")
    under_way = [balancer.begin(request()) for _ in range(6)]
    names = [choice.next().name for choice in under_way]
    assert Counter(names) == {"10.0.0.1": 4, "10.0.0.2": 2}

    for choice in under_way:
        choice.ended(200)
    assert [address.connections for address in balancer.addresses] == [0, 0]


def test_least_connections_avoids_what_failed_and_begins_again_when_all_have():
    """As often as the service has retries."""
    names = failing(World().balancer(THREE, algorithm="least-connections"), 3)
    assert len(set(names[:3])) == 3
    assert names[3] in names[:3]


def test_latency_takes_the_quickest_until_its_past_fades():
    """An average that decays within 10 s decides."""
    world = World()
    balancer = world.balancer({"10.0.0.1:80": 1, "10.0.0.2:80": 1}, algorithm="latency")
    for address, took_s in zip(balancer.addresses, (2.0, 0.1), strict=True):
        world.time_s += 5
        balancer.report_end(address, 200, took_s)
    assert chosen(balancer) == "10.0.0.2"
    assert failing(balancer, 2) == ["10.0.0.2", "10.0.0.1", None]


@pytest.mark.parametrize(
    ("data", "hashed"),
    [
        (b"", 0x02CC5D05),
        (b"a", 0x550D7456),
        (b"abc", 0x32D153FF),
        (b"Nobody inspects the spammish repetition", 0xE2293B2F),
    ],
)
def test_hash_is_xxhash32(data, hashed):
    """Values that its authors have published."""
    assert xxhash32(data) == hashed


# What is hashed.


@pytest.mark.parametrize(
    ("fields", "made", "key"),
    [
        ({"hash_on": "ip"}, request(peer="10.2.2.2"), "10.2.2.2"),
        ({"hash_on": "path"}, request(path="/a/./%62"), "/a/b"),
        ({"hash_on": "header", "hash_on_header": "X-A"}, request(lines=[("x-a", "1"), ("X-A", "2")]), "1, 2"),
        ({"hash_on": "cookie", "hash_on_cookie": "c"}, request(lines=[("Cookie", "b=1; c=x=y; d=2")]), "x=y"),
        ({"hash_on": "query_arg", "hash_on_query_arg": "q"}, request(target="/?q=b&p=1&q=a%20"), "a ,b"),
        (
            {"hash_on": "uri_capture", "hash_on_uri_capture": "who"},
            request(captures=Captures(("x", "me"), {"who": "me"})),
            "me",
        ),
        (
            {"hash_on": "uri_capture", "hash_on_uri_capture": "1"},
            request(captures=Captures(("x", "me"), {"who": "me"})),
            "x",
        ),
        ({"hash_on": "consumer", "hash_fallback": "ip"}, request(), "10.1.1.1"),
        (
            {"hash_on": "header", "hash_on_header": "x", "hash_fallback": "query_arg", "hash_fallback_query_arg": "q"},
            request(target="/?q=1"),
            "1",
        ),
        ({"hash_on": "query_arg", "hash_on_query_arg": "q"}, request(), ""),
        ({"algorithm": "consistent-hashing"}, request(), ""),
    ],
)
def test_hash_on_says_what_is_hashed(fields, made, key):
    """Or the fallback does; what is missing is hashed as nothing."""
    choice = World().balancer(THREE, **fields).begin(made)
    assert (choice.key, choice.cookie) == (key, None)


def test_missing_cookie_is_set():
    """The client comes back with it, and gets the same target."""
    balancer = World().balancer(THREE, hash_on="cookie", hash_on_cookie="c", hash_on_cookie_path="/a")
    choice = balancer.begin(request())
    name = choice.next().name

    crumb, attributes = choice.cookie.decode().split("; ", 1)
    assert attributes == "Path=/a; Same-Site=Lax; HttpOnly"
    assert chosen(balancer, request(lines=[("cookie", crumb)])) == name


# Health.


def test_failures_take_a_target_out_with_kongs_lines():
    """Each is counted in a line of the log; then the target gets nothing more, for ever."""
    world = World()
    balancer = world.balancer({"10.0.0.1:80": 10, "10.0.0.2:80": 10}, healthchecks=PASSIVE)
    for _ in range(2):
        balancer.report_failure(balancer.addresses[0], timeout=False)

    assert world.lines == [
        "warn: [healthcheck] (pool) unhealthy TCP increment (1/2) for '10.0.0.1(10.0.0.1:80)'",
        "warn: [healthcheck] (pool) unhealthy TCP increment (2/2) for '10.0.0.1(10.0.0.1:80)'",
    ]
    world.time_s += 86_400
    assert {chosen(balancer) for _ in range(20)} == {"10.0.0.2"}


@pytest.mark.parametrize(
    ("reports", "available"),
    [
        ([500, 500, 500], False),
        ([500, 500, 200, 500], True),
        ([500, 500, 201, 201, 500, 500], True),
        ([500, 404, 500, 404, 500], False),
        ([504], False),
        ([502] * 9, True),
        ([500, "tcp", 500], True),
        (["tcp", "tcp"], False),
        (["timeout"], False),
    ],
)
def test_a_success_forgets_the_failures(reports, available):
    """Each kind of failure has its own count; a status in neither list counts for nothing."""
    balancer = World().balancer(THREE, healthchecks=PASSIVE)
    address = balancer.addresses[0]
    for report in reports:
        if isinstance(report, int):
            balancer.report_end(address, report, 0.1)
        else:
            balancer.report_failure(address, timeout=report == "timeout")
    assert address.available is available


def test_successes_bring_a_target_back():
    """Those of probes, since it gets no requests."""
    world = World()
    checks = {"active": {"healthy": {"successes": 2}}, "passive": {"unhealthy": {"timeouts": 1}}}
    balancer = world.balancer({"10.0.0.1:80": 10}, healthchecks=checks)
    address = balancer.addresses[0]
    balancer.report_failure(address, timeout=True)
    assert chosen(balancer) is None

    balancer.report_status(address, 200, probed=True)
    assert chosen(balancer) is None
    balancer.report_status(address, 200, probed=True)
    assert chosen(balancer) == "10.0.0.1"
    assert [line for line in world.lines if "balancer" in line] == [
        "warn: [healthchecks] balancer pool reported health status changed to UNHEALTHY",
        "warn: [healthchecks] balancer pool reported health status changed to HEALTHY",
    ]


def test_without_checks_nothing_is_counted():
    """Every limit is 0."""
    world = World()
    balancer = world.balancer(THREE)
    for _ in range(100):
        balancer.report_failure(balancer.addresses[0], timeout=True)
    assert (world.lines, balancer.addresses[0].available) == ([], True)


def test_too_little_available_weight_makes_the_whole_upstream_unhealthy():
    """`threshold` is the share in percent that has to be exceeded."""
    balancer = World().balancer(
        {"10.0.0.1:80": 60, "10.0.0.2:80": 40},
        healthchecks={"threshold": 50, "passive": {"unhealthy": {"timeouts": 1}}},
    )
    balancer.report_failure(balancer.addresses[1], timeout=True)
    assert chosen(balancer) == "10.0.0.1"
    balancer.report_failure(balancer.addresses[0], timeout=True)
    assert chosen(balancer) is None


@pytest.mark.parametrize("algorithm", ["round-robin", "consistent-hashing", "least-connections", "latency"])
@pytest.mark.parametrize("targets", [{}, {"10.0.0.1:80": 0}])
def test_no_target_with_weight_is_no_target(algorithm, targets):
    """There is nothing to be had."""
    assert chosen(World().balancer(targets, algorithm=algorithm)) is None


# Names and the Host header.


def test_target_that_is_a_name_is_looked_up():
    """It gets nothing until its name is resolved, and when that fails."""
    world = World(hosts={"static": ("127.0.0.1", 9)})
    balancer = world.balancer({"static": 1, "named.example": 1})
    resolver = Resolver(SimpleNamespace(now=world.now), world.hosts)

    (unresolved,) = balancer.unresolved(resolver)
    assert {chosen(balancer) for _ in range(4)} == {"static"}
    unresolved.endpoint = ("10.9.9.9", 8000)
    assert {chosen(balancer) for _ in range(4)} == {"static", "named.example"}
    assert [address.endpoint for address in balancer.addresses] == [("127.0.0.1", 9), ("10.9.9.9", 8000)]


def test_static_name_of_a_target_is_compared_without_regard_to_case():
    """As names are wherever they are looked up."""  # RFC 4343
    resolver = Resolver(SimpleNamespace(), {"Orders.Internal": ("127.0.0.1", 9)})
    (address,) = World(hosts=resolver.hosts).balancer({"orders.INTERNAL:80": 1}).addresses
    assert address.endpoint == ("127.0.0.1", 9)


def test_name_that_was_looked_up_in_vain_keeps_nobody_waiting_who_can_go_elsewhere():
    """It is looked up again meanwhile; only where nobody else gets requests it is waited for."""
    asked = []
    resolver = SimpleNamespace(known=lambda _name, _port: None, ask=asked.append)
    weights = ({"gone.example": 1}, {"gone.example": 1, "127.0.0.1": 0}, *2 * ({"gone.example": 1, "127.0.0.1": 1},))
    alone, weightless, unhealthy, beside = balancers = [World().balancer(targets) for targets in weights]
    unhealthy.addresses[1].available = False
    for balancer in balancers:
        balancer.addresses[0].unknown = True

    for balancer in (alone, weightless, unhealthy):
        assert [address.name for address in balancer.unresolved(resolver)] == ["gone.example"]
    assert asked == []
    assert beside.unresolved(resolver) == []
    assert asked == ["gone.example"]


def test_host_header_names_the_target_unless_the_upstream_names_another():
    """With its port, but for 80."""
    world = World()
    balancer = world.balancer({"a.example:80": 1, "10.0.0.1:8000": 1}, host_header="api.example")
    assert [address.host for address in balancer.addresses] == [b"a.example", b"10.0.0.1:8000"]
    assert balancer.host == b"api.example"
