"""The command line: ``kongsim run``, ``compare``, ``overhead``, ``serve``, ``collector``, ``check`` and ``verify``.

Results go to stdout, everything else to stderr. Exit codes: 0 all held; 99 a threshold failed; 98 a run is invalid,
because the load generator fell behind; 97 findings of `check` or `verify`; 2 bad usage, scenario or configuration; 1
the program failed; 130 interrupted.
"""

import errno
import io
import json
import os
import secrets
import sys
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sim.errors import FieldError, UserError, asked_for
from sim.interruption import EXIT_INTERRUPTED, INTERRUPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sim.config import Gateway
    from sim.document import Document, Override
    from sim.report.recording import Recording
    from sim.report.summary import Summary

_STANDARD_OUTPUT: Final = 1
_STANDARD_ERROR: Final = 2
_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a full disk, and a terminal that is gone, answer to who writes."""
_LIMITS: Final = {errno.EMFILE: "ulimit -n", errno.ENFILE: "fs.file-max", errno.EAGAIN: "ulimit -u"}
"""Where what the system has too little of for another file or process is set."""

EXIT_FAILED: Final = 1
EXIT_USER_ERROR: Final = 2
EXIT_FINDINGS: Final = 97


def main() -> None:
    """Run the command that the arguments name, and exit."""
    _occupy_standard_files()
    _print_every_character()
    try:
        code = commands.main(prog_name="kongsim", standalone_mode=False)
    except UserError as error:
        _complain(str(error))
        code = EXIT_USER_ERROR
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "kongsim"
        _complain(f"{error.format_message()} (see {path} --help)")
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        code = EXIT_INTERRUPTED
    except OSError as error:
        if error.errno in _LIMITS:
            _complain(f"{error.strerror}: raise the limit ({_LIMITS[error.errno]})")
            code = EXIT_USER_ERROR
        elif error.errno in _UNWRITABLE:
            _print_no_more()
            _complain(f"cannot write what came of it: {error.strerror}")
            code = EXIT_FAILED
        else:
            raise
    sys.exit(code)


@contextmanager
def _printing() -> "Iterator[None]":
    """Print what was found as far as somebody reads it: one who has seen enough, such as `head`, changes no verdict."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich would leave with the latter
        _print_no_more()


def _print_no_more() -> None:
    """Let go to nowhere what standard output still holds, and Python writes as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STANDARD_OUTPUT)


def _complain(message: str) -> None:
    """Print one line for the user to standard error, if anybody is there to read it."""
    with suppress(OSError):
        click.echo(f"kongsim: {message}", err=True)


def _occupy_standard_files() -> None:
    """Open /dev/null in the place of a standard file that is closed: what is opened next would be taken for it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)
    # What was closed when Python started is None to it.
    sys.stdout = sys.stdout or os.fdopen(_STANDARD_OUTPUT, "w")
    sys.stderr = sys.stderr or os.fdopen(_STANDARD_ERROR, "w")


def _print_every_character() -> None:
    """Escape what the encoding of standard output lacks: a span's name may hold anything, and is told all the same."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@click.group()
@click.version_option(package_name="kongsim", message="%(prog)s %(version)s")
def commands() -> None:
    """Simulate an nginx-style gateway with Kong's tracing API, in as many worker processes as you like."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder has been removed", cure="change to one that exists") from None


_PLUGINS: Final = click.option(
    "--plugin", "plugins", multiple=True, metavar="PATH", help="A plugin of your own: a file or a module."
)
_STAND_INS: Final = click.option(
    "--stand-in",
    "stand_ins",
    multiple=True,
    metavar="PLUGIN=CONFIG",
    help="What the synthetic plugin does for another.",
)


@commands.command()
@click.argument("scenario")
@click.option("--workers", metavar="N", help="Number of workers; sets gateway.workers.")
@click.option("--seed", metavar="N", help="Seed of every random draw but ids; sets seed.")
@click.option("--set", "fields", multiple=True, metavar="FIELD=VALUE", help="Set any field: load[0].rate=800/s.")
@click.option("--out", metavar="DIR", help="Folder for the results.  [default: runs/NAME-DATE-TIME]")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of tables.")
def run(*, scenario: str, fields: tuple[str, ...], out: str | None, as_json: bool, **options: str | None) -> int:
    """Run the load scenario in the file SCENARIO."""
    from rich.console import Console  # noqa: PLC0415 - imported when needed: kongsim --help is quick

    from sim import scenario as scenarios  # noqa: PLC0415 - the same
    from sim.document import parse_override  # noqa: PLC0415 - the same
    from sim.report.folder import folder  # noqa: PLC0415 - the same
    from sim.report.progress import Progress  # noqa: PLC0415 - the same
    from sim.report.recording import Recording  # noqa: PLC0415 - the same
    from sim.report.tables import show  # noqa: PLC0415 - the same

    overrides = [parse_override(text) for text in fields]
    overrides += _overrides({"workers": "gateway.workers", "seed": "seed"}, options)
    checked = scenarios.load(scenario, overrides)
    from sim import run as runs  # noqa: PLC0415 - a mistake in the file is told before any of this is imported
    from sim.process import Signals  # noqa: PLC0415 - the same

    missing = [name for name in _REPORT_NEEDS if find_spec(name) is None]
    recording = None if missing else Recording()
    with Signals(*INTERRUPTS):  # the run hears them; what comes of it is told whatever comes after it
        try:
            with folder(checked, out) as out_dir:
                progress = Progress(Console(stderr=True))
                summary = runs.run(checked, out_dir=out_dir, progress=progress, recording=recording)
                code = summary.exit_code if _write_results(summary, recording, out_dir) else EXIT_FAILED
        except UserError as error:
            raise checked.placed(error) from None
        except runs.RunError as error:
            _complain(str(error))
            return EXIT_FAILED
        if missing:
            _complain_of_extra(f"{missing[0]} is missing")
        with _printing():
            if as_json:
                click.echo(summary.to_json(), nl=False)
            else:
                show(summary, str(out_dir), Console())
    return code


_REPORT_FILES: Final = ("report.html", "spans.parquet", "workers.parquet")
_REPORT_NEEDS: Final = ("plotly", "pyarrow")


def _write_results(summary: "Summary", recording: "Recording | None", out_dir: Path) -> bool:
    """Write the files of a run that is over, tell which cannot be, and return whether the disk took all.

    What they need is imported here, or the workers of the run would carry it too; when the summary is safe, for that
    takes its time.
    """
    written = [_is_written(out_dir / "summary.json", summary.write)]
    from sim.report import junit  # noqa: PLC0415 - see above

    writers: dict[str, Callable[[Path], None]] = {"junit.xml": partial(junit.write, summary)}
    if recording is not None:
        try:
            from sim.report import page, parquet  # noqa: PLC0415 - the same, and they need the extra
        except ImportError as error:  # it is there, and does not work
            _complain_of_extra(str(error))
        else:
            writers["workers.parquet"] = partial(parquet.write_workers, recording)
            writers["spans.parquet"] = partial(parquet.write_spans, recording)
            writers["report.html"] = partial(page.write, summary, recording)
    written += [_is_written(out_dir / name, write) for name, write in writers.items()]
    return all(written)


def _is_written(path: Path, write: "Callable[[Path], None]") -> bool:
    """Write a file as a whole, or tell why it cannot be."""
    from sim.report.folder import whole  # noqa: PLC0415 - imported when needed: kongsim --help is quick

    try:
        with whole(path) as place:
            write(place)
    except OSError as error:
        _complain(f"{path}: cannot be written: {error.strerror or error}")
        return False
    return True


def _complain_of_extra(problem: str) -> None:
    _complain(f"{', '.join(_REPORT_FILES)} not written: {problem}; {_install('report')}")


def _install(extra: str) -> str:
    return f"install it with: pip install 'kongsim[{extra}]'"


@commands.command()
@click.argument("before", metavar="DIR_A")
@click.argument("after", metavar="DIR_B")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document instead of tables.")
def compare(*, before: str, after: str, as_json: bool) -> int:
    """Compare the runs in the folders DIR_A and DIR_B: what was asked, what was measured, which thresholds held."""
    from rich.console import Console  # noqa: PLC0415 - imported when needed: kongsim --help is quick

    from sim.report import compare as comparisons  # noqa: PLC0415 - the same

    comparison = comparisons.compare(comparisons.read(before), comparisons.read(after))
    with _printing():
        if as_json:
            click.echo(comparison.to_json(), nl=False)
        else:
            comparisons.show(comparison, Console())
    return comparison.exit_code


@commands.command()
@click.argument("file", metavar="[KONG_YML]", required=False)
@click.option("--listen", metavar="HOST:PORT", help="Where to listen.  [default: 127.0.0.1:8000]")
@click.option(
    "--status-listen", metavar="HOST:PORT", help="Where the Status API answers, or off.  [default: 127.0.0.1:8007]"
)
@click.option("--workers", metavar="N", help="Number of workers, or auto.  [default: one for each CPU]")
@click.option("--error-log", metavar="FILE", help="Where errors are logged.  [default: standard error]")
@click.option(
    "--log-level", metavar="LEVEL", help="debug, info, notice, warn, error, crit, alert, emerg.  [default: notice]"
)
@click.option("--access-log", metavar="FILE", help="Where requests are logged, such as /dev/stdout.  [default: off]")
@click.option("--pid", metavar="FILE", help="Holds the pid of the master while it runs.")
@click.option("--profile", metavar="NAME", help="kong or safe.  [default: kong]")
@click.option("--collector", metavar="URL", help="Where opentelemetry plugins without traces_endpoint export to.")
@click.option(
    "--tracing-instrumentations",
    "--opentelemetry-tracing",
    "tracing_instrumentations",
    metavar="WORDS",
    help="What is traced: all, or a list.  [default: off]",
)
@click.option(
    "--tracing-sampling-rate",
    "--opentelemetry-tracing-sampling-rate",
    "tracing_sampling_rate",
    metavar="RATE",
    help="Share of traces kept, 0 to 1.  [default: 0.01]",
)
@_PLUGINS
@_STAND_INS
def serve(*, file: str | None, plugins: tuple[str, ...], stand_ins: tuple[str, ...], **options: str | None) -> int:
    """Run the gateway that KONG_YML describes, in the foreground, with nginx's signals.

    Kong's environment variables are read too; KONG_DECLARATIVE_CONFIG may name the file.
    """
    from sim import declarative, kong_environment, otlp_environment  # noqa: PLC0415 - imported when needed: --help is quick

    values = {name: options.pop(name) for name in ("workers", "tracing_instrumentations", "tracing_sampling_rate")}
    fields = {name: name.replace("tracing_", "tracing.") for name in values}
    if words := values["tracing_instrumentations"]:
        values["tracing_instrumentations"] = f"[{words}]"
    environment = kong_environment.read(os.environ)
    settings = [*environment.settings, *_texts(options), *_overrides(fields, values), *map(_stand_in, stand_ins)]
    seed = secrets.randbits(32)

    def load() -> "Gateway":
        document = _kong_yml(file, environment.file)
        enabled, export = environment.plugins, otlp_environment.read(os.environ)  # the files that it names may be new
        return declarative.load(document, settings, export, enabled=enabled, plugin_paths=plugins, seed=seed)

    gateway = load()
    for warning in (*environment.warnings, *gateway.export.warnings, *gateway.warnings):
        click.echo(warning, err=True)
    from sim import master  # noqa: PLC0415 - the same

    try:
        return master.serve(gateway, reread=load)
    except UserError as error:
        said_by = {path[0]: origin for path, _value, origin in settings}
        option = f"--{error.field.replace('_', '-')}" if error.field else ""
        raise UserError(error.message, field=said_by.get(error.field or "", option) or None, cure=error.cure) from None


def _kong_yml(file: str | None, of_the_environment: str | None) -> "Document":
    """Read the kong.yml that the command line names, else the environment; raises UserError."""
    from sim import declarative  # noqa: PLC0415 - imported when needed: kongsim --help is quick

    if file:
        return declarative.read(file)
    if of_the_environment is None:
        raise click.UsageError("there is no kong.yml: name it, or set KONG_DECLARATIVE_CONFIG")
    with asked_for("KONG_DECLARATIVE_CONFIG"):
        return declarative.read(of_the_environment)


@commands.command()
@click.argument("scenario")
@click.option("--arms", default="off,noop,0.1,1.0", show_default=True, metavar="ARMS", help="What is compared.")
@click.option("--rate", metavar="RATE", help="Load of the worker, such as 1000/s.  [default: its share of the load]")
@click.option("--time", default="60s", show_default=True, metavar="TIME", help="The comparison lasts no longer.")
@click.option("--precision", default="1%", show_default=True, metavar="SHARE", help="Asked of the CPU an arm adds.")
@click.option("--seed", metavar="N", help="Seed of every random draw; sets seed.")
@click.option("--set", "fields", multiple=True, metavar="FIELD=VALUE", help="Set any field of the scenario.")
@click.option("--out", metavar="DIR", help="Folder for the results.  [default: runs/NAME-DATE-TIME]")
@click.option("--json", "as_json", is_flag=True, help="Print overhead.json instead of tables.")
def overhead(
    *, scenario: str, seed: str | None, fields: tuple[str, ...], out: str | None, as_json: bool, **options: str | None
) -> int:
    """Measure what tracing costs a worker of the gateway in SCENARIO, arm by arm.

    An arm is off, noop, a sampling rate such as 0.1, or the file of another scenario; behind it -export exports
    nothing, +checked checks spans, +plugin.py adds a plugin, @REVISION takes the code of a git revision. The first arm
    is what the others are compared with. Other stages follow: in all it takes three minutes or more.
    """
    from rich.console import Console  # noqa: PLC0415 - imported when needed: kongsim --help is quick

    from sim import scenario as scenarios  # noqa: PLC0415 - the same
    from sim.document import parse_override  # noqa: PLC0415 - the same
    from sim.process import Signals  # noqa: PLC0415 - the same
    from sim.report.folder import folder  # noqa: PLC0415 - the same

    try:
        from sim.overhead import command, tables  # noqa: PLC0415 - the same
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing", field="overhead", cure=_install("overhead")) from None
    checked = scenarios.load(scenario, [*map(parse_override, fields), *_overrides({"seed": "seed"}, {"seed": seed})])
    asked = command.asked(checked, options)
    with Signals(*INTERRUPTS):  # the measurement hears them; what comes of it is told whatever comes after it
        try:
            with folder(checked, out) as out_dir:
                outcome = command.measured(asked, out_dir, Console(stderr=True))
                written = [_is_written(out_dir / name, write) for name, write in command.writers(outcome).items()]
        except command.MeasurementError as error:
            _complain(str(error))
            return EXIT_FAILED
        with _printing():
            if as_json:
                click.echo(outcome.to_json(), nl=False)
            else:
                tables.show(outcome, str(out_dir), Console())
    return 0 if all(written) else EXIT_FAILED


@commands.command()
@click.option("--listen", default="127.0.0.1:4318", show_default=True, metavar="HOST:PORT", help="Where to listen.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="FAULT",
    help="What goes wrong, as in a scenario, after the start: '{at: 10s, for: 5s, kind: status, status: 503}'.",
)
def collector(*, listen: str, faults: tuple[str, ...]) -> None:
    """Receive traces as OTLP/HTTP and show them, in the foreground."""
    from sim.faults import parse_option  # noqa: PLC0415 - imported when needed: kongsim --help is quick

    told = [parse_option(text, "collector") for text in faults]
    from sim import collector as collectors  # noqa: PLC0415 - the same
    from sim.config import parse_address  # noqa: PLC0415 - the same

    try:
        collectors.serve_forever(*parse_address(listen), faults=told)
    except (FieldError, UserError) as error:
        raise UserError(error.message, field="--listen", cure=error.cure) from None


@commands.command()
@click.argument("file")
@_PLUGINS
@_STAND_INS
@click.option("--rate", metavar="RATE", help="Requests to a kong.yml's gateway, such as 500/s.")
@click.option("--workers", metavar="N", help="Workers of a kong.yml's gateway.  [default: one for each CPU]")
@click.option("--profile", metavar="NAME", help="Profile of a kong.yml's gateway.  [default: kong]")
@click.option(
    "--outage", metavar="TIME", help="How long the collector may be away.  [default: the scenario's, else 5s]"
)
@click.option("--round-trip", metavar="TIME", help="What an export request takes.  [default: the scenario's, else 5ms]")
@click.option("--format", "output", type=click.Choice(("text", "json")), default="text", help="How findings are told.")
def check(
    *, file: str, plugins: tuple[str, ...], stand_ins: tuple[str, ...], output: str, **options: str | None
) -> int:
    """Check the scenario or kong.yml in FILE, name its risky settings, and start nothing."""
    from sim import check as checks  # noqa: PLC0415 - imported when needed: kongsim --help is quick
    from sim import declarative, kong_environment, otlp_environment, scenario, workload  # noqa: PLC0415 - as above
    from sim.document import Document  # noqa: PLC0415 - the same

    expected = checks.expected_of(options)
    document = Document.read(file)
    if declarative.is_kong_yml(document):
        environment = kong_environment.read(os.environ)
        export = otlp_environment.read(os.environ)
        told = _overrides({"workers": "workers", "profile": "profile"}, options)
        settings = [*environment.settings, *map(_stand_in, stand_ins), *told]
        gateway = declarative.load(document, settings, export, enabled=environment.plugins, plugin_paths=plugins)
        warnings, kind = (*environment.warnings, *export.warnings, *gateway.warnings), "configuration"
        tracing = [str(setting.path[1]) for setting in settings if setting.path[0] == "tracing"]
        findings = checks.check_gateway(gateway, document, expected, tracing)
    else:
        loaded = scenario.load(document)
        given = {"plugin": plugins, "stand-in": stand_ins, **{name: options[name] for name in _OF_A_KONG_YML}}
        if workload.mean_rate_per_s(loaded.load) is None:
            del given["rate"]
        for name in (name for name, value in given.items() if value):
            raise UserError("is for a kong.yml; a scenario says it itself", field=f"--{name}", cure="leave it out")
        warnings, kind = loaded.gateway.warnings, "scenario"
        findings = checks.check_scenario(loaded, expected)
    for warning in warnings:
        click.echo(warning, err=True)
    with _printing():
        if output == "json":
            click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
        else:
            click.echo("\n".join([*map(str, findings)]) if findings else f"{file}: {kind} ok")
    return EXIT_FINDINGS if findings else 0


_OF_A_KONG_YML: Final = ("rate", "workers", "profile")


def _stand_in(text: str) -> "Override":
    """Read ``PLUGIN=CONFIG``, a configuration of the synthetic plugin in YAML; raises UserError."""
    from sim.document import Override, override  # noqa: PLC0415 - imported when needed: kongsim --help is quick

    origin = f"--stand-in {text}"
    name, equals, config = text.partition("=")
    if not equals:
        raise UserError("expected PLUGIN=CONFIG", file=origin, cure="write 'rate-limiting={access: {cpu: 100us}}'")
    return Override(("stand_ins", name.strip()), override("config", config, origin).value, origin)


@commands.command()
@click.argument("plugins", metavar="PLUGIN...", nargs=-1, required=True)
@click.option("--config", metavar="JSON", help='Configuration of plugins by name: {"shop": {"limit": 3}}.')
@click.option(
    "--answers", metavar="JSON", help='Answers of the services that plugins call: {"quota.internal": {"status": 200}}.'
)
@click.option(
    "--format", "form", metavar="NAME", default="text", show_default=True, help="text, json, sarif or github."
)
@click.option("--select", metavar="CODES", help="Report these alone: KT008, KG.")
@click.option("--ignore", metavar="CODES", help="Do not report these.")
@click.option("--baseline", metavar="FILE", help="Mistakes that are known: they are not reported.")
@click.option("--write-baseline", metavar="FILE", help="Write what is found to FILE, to be known from now on.")
@click.option("--seed", metavar="N", default=0, show_default=True, help="That the programs are drawn from.")
@click.option("--replay", metavar="PROGRAM", help="Run one program alone, as a report gave it.")
def verify(*, plugins: tuple[str, ...], form: str, seed: int, **options: str | None) -> int:
    """Run PLUGIN, a file, a module or the name of a bundled one, in the gateway under all that may happen; report."""
    from sim.verify import command  # noqa: PLC0415 - imported when needed: kongsim --help is quick

    return command.run(plugins, form, seed, **options)


def _texts(options: "Mapping[str, str | None]") -> "list[Override]":
    """Return what the given options set, each the field of its name, as the text that it is: `[::1]:80` is no list."""
    from sim.document import Override  # noqa: PLC0415 - imported when needed: kongsim --help is quick

    given = ((name, value) for name, value in options.items() if value is not None)
    return [Override((name,), value, f"--{name.replace('_', '-')}") for name, value in given]


def _overrides(fields: "Mapping[str, str]", options: "Mapping[str, str | None]") -> "list[Override]":
    """Return what the given options set, each read as if it stood in a file at the field that it is named for."""
    from sim.document import override  # noqa: PLC0415 - imported when needed: kongsim --help is quick

    given = [(field, value, option) for option, field in fields.items() if (value := options[option]) is not None]
    return [override(field, value, f"--{option.replace('_', '-')}") for field, value, option in given]
