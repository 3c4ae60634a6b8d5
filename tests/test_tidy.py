"""The tree obeys its own rules.

A rule is a function: given the files of a tree, by path, it yields what breaks it, one line each. Every rule is asked
of this repository, and of a small tree in which it is broken.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MADE_AGAIN = {"__pycache__", "runs", "build"}
"""Folders that `make clean` removes, beside those that begin with a dot."""

Tree = Mapping[str, str]


def read_tree(root: Path) -> Tree:
    """Read every text file below `root` that belongs to the repository."""
    files: dict[str, str] = {}
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or path.name in MADE_AGAIN or path.suffix in {".egg-info", ".pyc"}:
            continue
        if path.is_dir():
            files |= {f"{path.name}/{name}": text for name, text in read_tree(path).items()}
        else:
            files[path.name] = path.read_text(encoding="utf-8", errors="replace")
    return files


# What a module uses.


class Use(NamedTuple):
    """A name from elsewhere, in full, such as `time.sleep`."""

    name: str
    line: int
    at_run_time: bool  # not only for type checkers


parse = cache(ast.parse)


def module_name(path: str) -> str:
    """`sim/load/__init__.py` is `sim.load`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def modules(tree: Tree, *packages: str) -> dict[str, str]:
    """The modules of packages: name and source."""
    return {
        module_name(path): text
        for path, text in tree.items()
        if path.endswith(".py") and path.split("/")[0] in packages
    }


@cache
def uses(source: str) -> tuple[Use, ...]:
    """What a module imports, which attributes of that it reads, and which builtins it calls."""
    tree = parse(source)
    found = []
    bound = {}
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        at_run_time = id(node) not in typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Use(alias.name, node.lineno, at_run_time))
                bound[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.append(Use(name, node.lineno, at_run_time))
                bound[alias.asname or alias.name] = name
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in bound:
            found.append(Use(node.func.id, node.lineno, at_run_time=True))
        elif isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if first in bound:
                found.append(Use(f"{bound[first]}.{rest}", node.lineno, at_run_time=True))
    return tuple(found)


def is_within(name: str, package: str) -> bool:
    """Whether a name is a package's own or stands below it."""
    return name == package or name.startswith(f"{package}.")


def imported_modules(name: str, source: str, known: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """The modules of the repository that a module imports when it runs."""
    for use in uses(source):
        target = use.name
        while target and target not in known:
            target = target.rpartition(".")[0]
        if target and target != name and use.at_run_time:
            yield target, use.line


# Who knows whom.

LAYERS = {
    "kongtrace": (
        "testing | otel",
        "global_tracer | checked",
        "provider",
        "tracer",
        "noop | sampler",
        "span | context | pool | profile | ids | custody | findings",
        "propagation | queue | otlp",
        "delivery | queue_parameters",
        "lua | queue_profile",
        "phase | errors | event",
    ),
    "sim": (
        "__main__ cli | pytest_plugin",
        "run | check | overhead | verify",
        "report | outage",
        "master | scenario | collector | origin | load",
        "worker | cycle | declarative | otlp_environment | kong_environment | peer | trace_tree | status",
        "gateway",
        "plugins | http_server | traces | capture",
        "phase_times | health_check | exporter",
        "runloop",
        "instrumentation | pdk ngx | plugin | proxy | router balancer | connection",
        "timers | upstream http_client | forwarding | workload",
        "phases | request | resolver | config entity | faults",
        "runtime | scoreboard | field document | threshold | access_log | connection_table | arguments | table",
        "units | cached_clock | ledger | light_thread | error_log | process | timerfd | wall_clock | framing | tally",
        "shared_row | cjson | plugin_error",
        "absence",
        "errors | outline | plan | interruption",
        "memo",
    ),
}
"""Each package's modules, highest first. A module knows those below it and those in its own cell; cells of one layer,
divided by a bar, do not know each other. A folder is one module here."""


def places(package: str) -> dict[str, tuple[int, int]]:
    """Layer, counted from the top, and cell of each module of a package."""
    return {
        module: (depth, cell)
        for depth, layer in enumerate(LAYERS[package])
        for cell, names in enumerate(layer.split(" | "))
        for module in names.split()
    }


def imports_point_downwards(tree: Tree) -> Iterator[str]:
    """Nothing imports upwards, or sideways, in the table of layers; annotations may look wherever they like."""
    known = modules(tree, *LAYERS)
    for package in LAYERS:
        place = places(package)
        for name, source in modules(tree, package).items():
            if name == package:
                continue
            part = name.split(".")[1]
            if part not in place:
                yield f"{name} stands in no layer: give it its place in LAYERS"
                continue
            for target, line in imported_modules(name, source, known):
                other = target.split(".")[1] if is_within(target, package) and target != package else None
                if other in place and place[other] != place[part] and place[other][0] <= place[part][0]:
                    yield f"{name}:{line} imports {target}, which does not stand below it"


def layers_hold_what_exists(tree: Tree) -> Iterator[str]:
    """Every module in the table of layers exists."""
    for package in LAYERS:
        parts = {name.split(".")[1] for name in modules(tree, package) if name != package}
        yield from (f"LAYERS: there is no {package}.{name}" for name in places(package).keys() - parts)


def imports_have_no_cycle(tree: Tree) -> Iterator[str]:
    """No two modules need each other to be loaded."""
    known = modules(tree, *LAYERS)
    graph = {name: {other for other, _ in imported_modules(name, text, known)} for name, text in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield " -> ".join(error.args[1])


# What a package leaves to others.

GATEWAY = (
    *("sim.connection", "sim.exporter", "sim.forwarding", "sim.framing", "sim.gateway", "sim.http_client"),
    *("sim.instrumentation", "sim.ngx", "sim.pdk", "sim.phase_times", "sim.phases", "sim.plan", "sim.plugin"),
    *("sim.plugins", "sim.proxy", "sim.request", "sim.resolver", "sim.router"),
    *("sim.runloop", "sim.timers", "sim.upstream"),
)
"""The code that must run on any runtime, real or virtual."""


class Ban(NamedTuple):
    """Names that some modules do not use, and what they use instead."""

    where: tuple[str, ...]
    names: str
    instead: str
    but: tuple[str, ...] = ()


BANS = (
    Ban(("kongtrace",), "sim tests", "sim imports kongtrace, never the reverse"),
    Ban(("kongtrace",), "time datetime sched", "the clock is handed in: `time_ns`, `now`"),
    Ban(("kongtrace",), "random secrets uuid", "randomness is handed in: `random_bytes`, `random`"),
    Ban(("kongtrace",), "logging warnings syslog print", "the log is handed in: `log(level, message)`"),
    Ban(
        ("kongtrace",),
        "os io pathlib shutil tempfile mmap fcntl open input",
        "it has no files: bytes are handed in and given back",
    ),
    Ban(
        ("kongtrace",),
        "asyncio concurrent contextvars select selectors signal socket ssl http httptools urllib.request uvloop",
        "it decides and never waits; sim does",
    ),
    Ban(("kongtrace",), "threading queue multiprocess multiprocessing subprocess", "a worker has one provider"),
    Ban(("kongtrace",), "click rich pydantic ruamel psutil google opentelemetry.proto", "the tracer carries its own"),
    Ban(
        GATEWAY, "time os.urandom random secrets ssl.RAND_bytes", "ask the worker's Runtime: `time_ns`, `now`, `random`"
    ),
    Ban(GATEWAY, "asyncio.sleep", "ask the worker's Runtime: `call_later`, or set a timer"),
    Ban(
        GATEWAY,
        "socket asyncio.open_connection asyncio.create_task asyncio.ensure_future uvloop",
        "ask the worker's Runtime: `connect`, `resolve`, `run`",
    ),
    Ban(
        ("sim",),
        "multiprocess multiprocessing subprocess os.fork os.kill os.waitpid os.waitid os.pidfd_open os._exit",
        "`sim.process` starts, signals and reaps; `sim.interruption` leaves",
        but=("sim.process", "sim.interruption"),
    ),
    Ban(("sim",), "tests", "tests import the product, never the reverse"),
    # The watch hears of the threads of plugins, and starts none; a look-up's does nothing else.
    Ban(
        ("sim",),
        "threading concurrent queue",
        "a process has one event loop",
        but=("sim.verify.watch", "sim.runtime.lookup"),
    ),
    Ban(("sim",), "time.sleep", "wait for what is to come: `sim.process.wait`"),
    Ban(
        ("sim",),
        "time.time time.time_ns",
        "durations are monotonic; the wall clock is the Runtime's",
        but=("sim.runtime.live",),
    ),
    Ban(
        ("sim", "tests"),
        "random.random random.randint random.randrange random.choice random.shuffle random.uniform random.seed",
        "draw from a `random.Random(seed)`",
    ),
    Ban(("tests",), "unittest.mock", "write a fake that does the thing"),
)


def packages_leave_alone_what_is_banned(tree: Tree) -> Iterator[str]:
    """No module uses what is banned for it; the ban names what to use instead."""
    for name, source in modules(tree, "kongtrace", "sim", "tests").items():
        for ban in BANS:
            if not any(is_within(name, where) for where in ban.where) or name in ban.but:
                continue
            for use in uses(source):
                if any(is_within(use.name, banned) for banned in ban.names.split()):
                    yield f"{name}:{use.line} uses {use.name}; {ban.instead}"


# What is written.


def lines_with(tree: Tree, pattern: str) -> Iterator[str]:
    """Where a pattern occurs."""
    compiled = re.compile(pattern)
    for path, text in tree.items():
        if compiled.search(text):
            for number, line in enumerate(text.splitlines(), 1):
                yield from (f"{path}:{number}: {found[0]}" for found in compiled.finditer(line))


def nothing_is_left_to_do(tree: Tree) -> Iterator[str]:
    """No marker of unfinished work is left."""
    return lines_with(tree, r"\b(?:T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")


def no_path_of_a_machine(tree: Tree) -> Iterator[str]:
    """Nothing depends on where somebody keeps the repository."""
    return lines_with(tree, r"(?<![\w.])/(?:work|root|home|tmp|Users)/[\w.]")


def no_package_index(tree: Tree) -> Iterator[str]:
    """Where packages come from is a matter of the machine."""
    return lines_with(tree, r"(?i)\bp[y]pi\b|python[h]osted|(?<!emit-)index-u[r]l")


def the_product_alone(tree: Tree) -> Iterator[str]:
    """The repository speaks of the product, not of how it came about."""
    return lines_with(tree, r"(?i)\b(?:cl[a]ude|anthr[o]pic|chatg[p]t|copil[o]t|language mod[e]l|assist[a]nts?)\b")


def suppressions_give_their_reason(tree: Tree) -> Iterator[str]:
    """Whoever silences the linter names the rule and says why."""
    code = {path: text for path, text in tree.items() if path.endswith(".py")}
    return lines_with(code, r"# n[o]qa(?!: [A-Z]+\d+(?:, ?[A-Z]+\d+)*(?: - |  )\S).*")


def modules_are_nouns_of_the_field(tree: Tree) -> Iterator[str]:
    """No module is a drawer."""
    drawers = {"common", "base", "core", "helpers", "lib", "manager", "misc", "tools", "util", "utils"}
    yield from (name for name in modules(tree, "kongtrace", "sim") if name.rpartition(".")[2] in drawers)


def modules_say_what_they_are(tree: Tree) -> Iterator[str]:
    """Every module of the product begins with its contract."""
    for name, source in modules(tree, "kongtrace", "sim").items():
        if not ast.get_docstring(parse(source)):
            yield f"{name} has no docstring"


def docstrings_of_tests_are_sentences(tree: Tree) -> Iterator[str]:
    """Every test says in one sentence what it shows."""
    for name, source in modules(tree, "tests").items():
        for node in ast.walk(parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                sentence = ast.get_docstring(node) or ""
                if not sentence.endswith(".") or "\n\n" in sentence:
                    yield f"{name}:{node.lineno} {node.name}"


def anchors(page: str) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_lead_somewhere(tree: Tree) -> Iterator[str]:
    """Every relative link of a page leads to a file, and its anchor to a heading."""
    for path, text in tree.items():
        if not path.endswith(".md"):
            continue
        for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text):
            page, _, anchor = target.partition("#")
            steps: list[str] = path.split("/")[:-1] if page else path.split("/")
            for step in page.split("/") if page else ():
                steps = steps[:-1] if step == ".." else [*steps, step]
            found = "/".join(steps)
            if found not in tree or (anchor and anchor not in anchors(tree[found])):
                yield f"{path}: {target}"


def pages_that_are_named_exist(tree: Tree) -> Iterator[str]:
    """Whatever code says of a page in `docs`, the page is there."""
    for path, text in tree.items():
        if path.endswith(".py"):
            yield from (f"{path}: {page}" for page in re.findall(r"`(docs/[\w-]+\.md)`", text) if page not in tree)


def pages_are_in_the_index(tree: Tree) -> Iterator[str]:
    """Every page of `docs` is listed in its index."""
    index = tree.get("docs/README.md", "")
    for path in tree:
        folder, _, page = path.rpartition("/")
        if folder == "docs" and page != "README.md" and f"({page})" not in index:
            yield path


RULES: dict[Callable[[Tree], Iterator[str]], tuple[Tree, ...]] = {
    imports_point_downwards: (
        {"sim/worker.py": "from sim import master", "sim/master.py": ""},
        {"sim/origin.py": "def f():\n    import sim.load.driver", "sim/load/driver.py": ""},
        {"kongtrace/span.py": "from kongtrace.tracer import Tracer", "kongtrace/tracer.py": ""},
        {"sim/misplaced.py": ""},
    ),
    layers_hold_what_exists: ({"sim/cli.py": ""},),
    imports_have_no_cycle: (
        {"sim/report/tables.py": "import sim.report.summary", "sim/report/summary.py": "from sim.report import tables"},
    ),
    packages_leave_alone_what_is_banned: (
        {"kongtrace/span.py": "from sim.worker import Worker"},
        {"kongtrace/span.py": "if TYPE_CHECKING:\n    from time import time_ns"},
        {"kongtrace/queue.py": "import random as r"},
        {"kongtrace/otlp.py": "print(1)"},
        {"kongtrace/otlp.py": "open('a')"},
        {"kongtrace/otlp.py": "from urllib import request"},
        {"sim/exporter.py": "import asyncio\nasyncio.sleep(1)"},
        {"sim/plugins/opentelemetry.py": "from time import time_ns"},
        {"sim/run.py": "import os as o\no.kill(1, 9)"},
        {"sim/run.py": "from time import sleep"},
        {"sim/load/driver.py": "import random\nrandom.random()"},
        {"tests/sim/test_run.py": "from unittest import mock"},
    ),
    nothing_is_left_to_do: ({"sim/run.py": "# TO" + "DO: later"},),
    no_path_of_a_machine: ({"docs/a.md": "see /ho" + "me/me/notes"}, {"Makefile": "cd /t" + "mp/x"}),
    no_package_index: ({"Makefile": "pip --index-u" + "rl https://example.com"}, {"a.md": "on Py" + "PI"}),
    the_product_alone: ({"docs/a.md": "written by an assist" + "ant"},),
    suppressions_give_their_reason: ({"a.py": "import os  # no" + "qa"}, {"a.py": "import os  # no" + "qa: F401"}),
    modules_are_nouns_of_the_field: ({"sim/utils.py": ""}, {"sim/load/helpers.py": ""}),
    modules_say_what_they_are: ({"sim/run.py": "import os"},),
    docstrings_of_tests_are_sentences: (
        {"tests/test_a.py": "def test_a():\n    pass"},
        {"tests/test_a.py": "class A:\n    async def test_a():\n        '''One.\n\n        Two.'''"},
    ),
    links_lead_somewhere: (
        {"docs/a.md": "[b](b.md)"},
        {"docs/a.md": "[b](../b.md)", "docs/b.md": ""},
        {"docs/a.md": "[b](b.md#there)", "docs/b.md": "# Here"},
        {"docs/a.md": "[b](#there)"},
    ),
    pages_that_are_named_exist: ({"sim/run.py": '"""See `docs' + '/run.md`."""'},),
    pages_are_in_the_index: ({"docs/README.md": "[a](a.md)", "docs/a.md": "", "docs/b.md": ""},),
}
"""Each rule, with small trees that break it."""


@pytest.fixture(scope="module")
def repository():
    """The files of this repository."""
    return read_tree(ROOT)


@pytest.mark.parametrize("rule", RULES)
def test_repository_obeys(rule, repository):
    """The repository obeys every one of its rules."""
    assert "\n".join(rule(repository)) == ""


@pytest.mark.parametrize(("rule", "broken"), [(rule, tree) for rule, trees in RULES.items() for tree in trees])
def test_rule_notices(rule, broken):
    """Every rule notices a tree that breaks it."""
    assert list(rule(broken)) != []
