import errno
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sim.cli import commands, main
from sim.errors import UserError
from sim.interruption import INTERRUPTS
from sim.report.folder import folder
from sim.report.summary import EXIT_CODES, Summary
from sim.scenario import load
from tests.runs import RUN_S_MAX, valid_run

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "scenarios" / "quickstart.yaml"

# The upstream is slow, so that a busy machine's delays are small beside it and do not make the run invalid.
SHORT = """\
name: short
seed: 1
gateway:
  workers: 1
  tracing: {sampling_rate: 1.0}
  config:
    services: [{name: a, url: http://default, routes: [{paths: [/]}]}]
    plugins: [{name: opentelemetry}, {name: key-auth}]
upstreams: {default: {latency: {p50: 1s, p99: 1s}}}
load: [{executor: constant-arrival-rate, rate: 50/s, duration: 500ms}]
thresholds: [ledger.unaccounted == 0, requests.failed == 0]
"""

KONG_YML = """\
_format_version: "3.0"
services: [{name: a, url: http://127.0.0.1:9, routes: [{paths: [/]}]}]
plugins: [{name: opentelemetry}]
"""


OF_THE_EXTRA = {"report.html", "spans.parquet", "workers.parquet"}
FOLDER = {"summary.json", "scenario.yaml", "junit.xml", "error.log"} | OF_THE_EXTRA
"""What a run leaves behind."""


@pytest.fixture
def kongsim(monkeypatch, capsys):
    """Call the command line in this process; return exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["kongsim", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An empty folder to work in, with a short scenario and a kong.yml."""
    monkeypatch.chdir(tmp_path)
    Path("short.yaml").write_text(SHORT, encoding="utf-8")
    Path("kong.yml").write_text(KONG_YML, encoding="utf-8")
    return tmp_path


@pytest.fixture
def busy_port():
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def spawn(*arguments, cwd):
    """Start the command line as a user does."""
    command = [sys.executable, "-m", "sim", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "shrt.yaml"], "shrt.yaml: no such file; did you mean short.yaml?"),
        (["run", "."], ".: is a folder, expected a file; in . there are kong.yml, short.yaml"),
        (
            ["run", "short.yaml", "--workers", "0"],
            "--workers: gateway.workers: expected auto or a whole number from 1 to 1024, not 0; write 2",
        ),
        (["run", "short.yaml", "--seed", "x"], "--seed: seed: expected a whole number, not 'x'"),
        (
            ["run", "short.yaml", "--set", "gateway.worker=1"],
            "--set gateway.worker=1: gateway.worker: unknown field; did you mean workers?",
        ),
        (["run", "short.yaml", "--set", "x"], "--set x: expected FIELD=VALUE; write --set load[0].rate=800/s"),
        (
            ["run", "kong.yml"],
            "kong.yml: is a kong.yml, expected a scenario; serve it with kongsim serve, or name it in ",
        ),
        (["serve", "short.yaml"], "short.yaml: is a scenario, expected a kong.yml; run it with kongsim run"),
        (["check", "none.yaml"], "none.yaml: no such file; in . there are kong.yml, short.yaml"),
        (
            ["check", "kong.yml"],
            "kong.yml:3: plugins[0].config.traces_endpoint: missing; add traces_endpoint: http://127.0.0.1:4318/v1/tr",
        ),
        (["serve", "none.yml"], "none.yml: no such file; "),
        (
            ["serve", "kong.yml", "--workers", "0"],
            "--workers: workers: expected auto or a whole number from 1 to 1024, not 0; write 2",
        ),
        (
            ["serve", "kong.yml", "--collector", "here"],
            "--collector: collector: expected a URL such as http://127.0.0.1:4318/v1/traces, not 'here'",
        ),
        (
            ["serve", "kong.yml", "--tracing-instrumentations", "off,all"],
            "--tracing-instrumentations: tracing.instrumentations: off stands alone: ",
        ),
        (["serve", "kong.yml", "--profile", "nice"], "--profile: profile: expected kong or safe, not 'nice'"),
        (
            ["serve", "kong.yml", "--listen", "[::1]:http"],
            "--listen: listen: expected host:port, not '[::1]:http'; write 127.0.0.1:8000; ",
        ),
        *(
            ([command, "kong.yml", "--plugin", place], f"--plugin: {message}")
            for command in ("check", "serve")
            for place, message in (
                ("nope.py", "nope.py: cannot be read: No such file or directory; in . there is no other file of"),
                ("no.such.module", "no.such.module: there is no module no; give a file, or set PYTHONPATH to where"),
                ("a b", "expected a file such as greeter.py, or a module such as mine.greeter, not 'a b'"),
            )
        ),
        *(
            (
                ["overhead", "short.yaml", "--precision", share],
                f"--precision: expected a share such as 1%, not '{share}'",
            )
            for share in ("small", "inf", "nan%", "1%%")
        ),
        (["overhead", "short.yaml", "--precision", "0%"], "--precision: expected more than 0, not 0%"),
        (["collector", "--listen", "here"], "--listen: expected host:port, not 'here'; write 127.0.0.1:8000; "),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(kongsim, files, arguments, line):
    """Nothing is started and nothing is left behind."""
    code, out, err = kongsim(*arguments)

    assert (code, out) == (2, "")
    assert err.startswith(f"kongsim: {line}")
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in files.iterdir()) == ["kong.yml", "short.yaml"]


@pytest.mark.parametrize("arguments", [[], ["nope"], ["run"], ["run", "short.yaml", "--nope"]])
def test_wrong_usage_is_exit_code_2(kongsim, files, arguments):
    """The message points to the help."""
    code, out, err = kongsim(*arguments)

    assert (code, out) == (2, "")
    assert "kongsim" in err
    assert "--help" in err


def test_a_folder_that_has_been_removed_is_one_line(kongsim, files):
    """Also for a command that reads a file elsewhere."""
    gone = files / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()

    code, out, err = kongsim("check", files / "short.yaml")

    assert (code, out) == (2, "")
    assert err == "kongsim: the current folder has been removed; change to one that exists\n"


def test_a_busy_port_is_named_where_it_is_asked_for(kongsim, files, busy_port):
    """In the scenario's line, or as the option; nothing is left behind."""
    text = SHORT.replace("gateway:\n", f"gateway:\n  listen: 127.0.0.1:{busy_port}\n")
    Path("short.yaml").write_text(text, encoding="utf-8")
    reason = f"cannot listen on 127.0.0.1:{busy_port}: Address already in use"

    for arguments, place in (
        (["run", "short.yaml"], "short.yaml:4: gateway.listen"),
        (["serve", "kong.yml", "--collector", "http://c/", "--listen", f"127.0.0.1:{busy_port}"], "--listen"),
        (["collector", "--listen", f"127.0.0.1:{busy_port}"], "--listen"),
    ):
        code, out, err = kongsim(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"kongsim: {place}: {reason}")
        assert len(err.splitlines()) == 1
    assert not list(Path("runs").glob("*"))


def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(kongsim, files):
    """One line, with the cure."""
    code, out, err = kongsim("run", "short.yaml", "--out", "short.yaml/x")

    assert (code, out) == (2, "")
    assert err == "kongsim: short.yaml/x: cannot write there: Not a directory; name another folder with --out\n"


@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("page", "page/report.html: cannot write there: Is a directory"),
        ("", "--out: expected a folder, not an empty name"),
        ("a" * 300, f"{'a' * 300}: cannot write there: File name too long"),
        ("taken", "taken/error.log: cannot be replaced: Is a directory"),
    ],
)
def test_a_folder_that_cannot_be_one_is_refused(kongsim, files, out, line):
    """An empty name, of a variable that is not set, say, is not the folder that one is in."""
    Path("taken/error.log").mkdir(parents=True)
    Path("page/report.html").mkdir(parents=True)
    code, stdout, err = kongsim("run", "short.yaml", "--out", out)

    assert (code, stdout) == (2, "")
    assert f"kongsim: {line}; name another folder with --out\n" in err


def test_a_run_does_not_overwrite_its_scenario(kongsim, files):
    """What the author wrote is not replaced by what was run of it; that of an earlier run may be."""
    Path("scenario.yaml").write_text(SHORT, encoding="utf-8")
    code, _out, err = kongsim("run", "scenario.yaml", "--out", ".", "--set", "load[0].duration=1ms")

    assert (code, Path("scenario.yaml").read_text(encoding="utf-8")) == (2, SHORT)
    reason = "is the scenario itself, and would be overwritten"
    assert err == f"kongsim: scenario.yaml: {reason}; name another folder with --out\n"


def test_a_file_without_permission_is_refused(kongsim, files):
    """Also when root runs the tests: it steps down for a moment."""
    kongsim("check", "short.yaml")  # what the command imports is imported then: nobody may not read it
    Path("short.yaml").chmod(0)
    files.chmod(0o755)
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(65534)
    try:
        code, _out, err = kongsim("check", "short.yaml")
    finally:
        if privileged:
            os.seteuid(0)

    assert code == 2
    assert err == "kongsim: short.yaml: no permission to read it; change its mode or its owner\n"


def test_check_accepts_what_can_be_run(kongsim, files):
    """Scenarios and kong.yml files; what is left aside is told on stderr."""
    Path("kong.yml").write_text(KONG_YML.replace(", {name: opentelemetry}", ""), encoding="utf-8")

    code, out, err = kongsim("check", "short.yaml")
    assert (code, out) == (0, "short.yaml: scenario ok\n")
    assert err == (
        "short.yaml:8: gateway.config.plugins[1].name: plugin key-auth is not simulated: "
        "requests pass as if it were absent; a stand-in can give it a cost\n"
    )

    Path("kong.yml").write_text(KONG_YML.replace("opentelemetry", "jwt"), encoding="utf-8")
    assert kongsim("check", "kong.yml")[:2] == (0, "kong.yml: configuration ok\n")


def test_check_reads_a_pipe(files):
    """What another program has made needs no file: it is read once."""
    for text, kind in ((SHORT, "scenario"), (KONG_YML.replace("opentelemetry", "jwt"), "configuration")):
        command = [sys.executable, "-m", "sim", "check", "/dev/stdin"]
        done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"/dev/stdin: {kind} ok\n"), done.stderr


@pytest.mark.parametrize("arguments", [["check", "short.yaml"], ["--help"]])
def test_a_result_that_cannot_be_written_is_one_line(files, arguments):
    """A full disk is told, and is no success."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "sim", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "kongsim: cannot write what came of it: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_who_reads_no_more_changes_no_verdict(files, options):
    """As `head` does, which has seen enough: the exit code is that of what was found, and nobody is told of it."""

    def unread(*arguments):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "sim", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writing)
        return done.returncode, done.stderr

    code, err = unread("run", "short.yaml", "--out", "out", *options)
    summary = json.loads(Path("out/summary.json").read_text(encoding="utf-8"))
    assert (code, len(err.splitlines())) == (EXIT_CODES[summary["verdict"]], 1), err
    assert unread("compare", "out", "out", *options) == (code, "")
    Path("kong.yml").write_text(KONG_YML.replace("opentelemetry", "correlation-id"), encoding="utf-8")
    assert unread("check", "kong.yml") == (0, "")


def test_standard_files_may_be_closed(files):
    """As where a daemon starts it: nobody reads what is printed, and all goes on."""
    Path("idle.py").write_text(
        "class Idle:\n    PRIORITY = 1\n    VERSION = '1'\n\n    def log(self, kong, conf):\n        pass\n",
        encoding="utf-8",
    )
    for arguments in ("check short.yaml", """verify idle.py --replay '{"steps": []}'"""):
        command = ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m sim {arguments} <&- >&- 2>&-"]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
        assert done.returncode == 0


def test_a_limit_of_the_system_is_named(files):
    """What to raise; nothing of where in the program it was reached."""
    command = ["sh", "-c", f"ulimit -n 18; exec {shlex.quote(sys.executable)} -m sim run short.yaml --out out"]

    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr.splitlines()[-1:]) == (
        2,
        ["kongsim: Too many open files: raise the limit (ulimit -n)"],
    )


UNENCODABLE = """\
class Shop:
    PRIORITY = 1
    VERSION = "1"

    def access(self, kong, conf):
        kong.tracing.start_span("größe → ✓")
"""


def test_a_report_holds_what_the_terminal_cannot_show(files):
    """Characters that the encoding of standard output lacks are escaped, and the report is whole."""
    Path("shop.py").write_text(UNENCODABLE, encoding="utf-8")
    command = [sys.executable, "-m", "sim", "verify", "shop.py", "--replay", '{"steps":[{}]}']
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"}

    done = subprocess.run(command, env=environment, capture_output=True, encoding="latin-1", check=False)

    assert (done.returncode, done.stderr) == (97, "")
    assert r"span 'größe \u2192 \u2713'" in done.stdout


def test_a_summary_that_cannot_be_written_is_shown_all_the_same(files, kongsim, monkeypatch):
    """What a run has found is not lost with one of its files; the exit code says that something is missing."""

    def full(_summary, path):
        path.write_text('{"schema": "kongsim.summ', encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Summary, "write", full)
    code, out, err = kongsim("run", "short.yaml", "--out", "out", "--json")

    assert code == 1
    assert json.loads(out)["ledger"]["unaccounted"] == 0
    assert "kongsim: out/summary.json: cannot be written: No space left on device\n" in err
    assert {path.name for path in Path("out").iterdir()} == FOLDER - {"summary.json"}


def run_and(statement, after="summary.Summary.write"):
    """Run the short scenario, with a statement that is executed after one of its results."""
    of, _, name = after.rpartition(".")
    code = f"""
import os, signal, sys
from sim.report import summary, tables

tell = {after}

def told(*given):
    tell(*given)
    {statement}

{of}.{name} = told
sys.argv = ["kongsim", "run", "short.yaml", "--out", "out"]
from sim.__main__ import main
main()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
@pytest.mark.parametrize("after", ["summary.Summary.write", "tables.show"])
def test_an_interrupt_of_a_run_that_has_its_figures_changes_nothing(files, signum, after):
    """Its files are completed and its tables shown: nothing is left that would be worth interrupting."""
    done = run_and(f"signal.raise_signal(signal.{signum.name})", after)

    assert {path.name for path in Path("out").iterdir()} == FOLDER
    verdict = json.loads(Path("out/summary.json").read_text())["verdict"]
    assert verdict != "interrupted"
    assert done.returncode == EXIT_CODES[verdict], done.stderr
    assert "results in out" in done.stdout


def test_the_summary_is_there_before_what_else_is_written(files):
    """Whatever becomes of the program while it imports what the other files need, the figures are not lost."""
    done = run_and("print(sorted({'plotly', 'pyarrow'} & sys.modules.keys()))")

    assert done.stdout.splitlines()[0] == "[]", done.stderr


def test_a_run_that_is_killed_while_it_writes_leaves_half_of_no_result(files):
    """What has the name of a result is one."""
    done = run_and("os.kill(os.getpid(), 9)")

    assert done.returncode == -signal.SIGKILL
    assert not Path("out/summary.json").exists()


def test_a_folder_is_held_until_the_last_file_is_written(files, kongsim, monkeypatch):
    """A run that began in it between two files of another would leave a folder of which neither is true."""
    refused = []

    def intrude(*arguments):
        with pytest.raises(UserError) as caught, folder(load("short.yaml"), "out"):
            pass
        refused.append(str(caught.value))
        arguments[-1].touch()

    monkeypatch.setattr("sim.report.page.write", intrude)
    code, _out, err = kongsim("run", "short.yaml", "--out", "out")

    assert code in {EXIT_CODES["passed"], EXIT_CODES["invalid"]}, err
    assert refused == ["out: another run is under way there; name another folder with --out"]


def test_an_interrupt_before_there_is_anything_to_tell_is_one_line(kongsim, monkeypatch):
    """Silence would leave open whether it was heard."""

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.scenario.load", interrupted)
    code, out, err = kongsim("run", "short.yaml")

    assert (code, out, err.strip()) == (130, "", "kongsim: interrupted")


INTERRUPTING = "import signal\n\nsignal.raise_signal(signal.{})\nraise SystemExit('nobody heard it')\n"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("signum", INTERRUPTS, ids=lambda signum: signum.name)
def test_an_interrupt_while_the_program_is_still_loaded_is_one_line(files, signum):
    """Before there is a command that could tell of it, and whichever signal it is."""
    Path("click.py").write_text(INTERRUPTING.format(signum.name), encoding="utf-8")  # it is imported in the place of it
    with spawn("check", "short.yaml", cwd=files) as loading:
        told = loading.communicate(timeout=RUN_S_MAX)

    assert (loading.returncode, *told) == (130, "", "kongsim: interrupted\n")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("signum", INTERRUPTS, ids=lambda signum: signum.name)
@pytest.mark.parametrize(
    "command",
    [["run", "short.yaml", "--set", "gateway.plugin_paths=[own.py]"], ["verify", "own.py"]],
    ids=["run", "verify"],
)
def test_every_interrupt_is_told_alike_by_every_command(files, command, signum):
    """Also while a run is only being prepared, and whatever code of the user is running."""
    Path("own.py").write_text(INTERRUPTING.format(signum.name), encoding="utf-8")
    with spawn(*command, cwd=files) as running:
        told = running.communicate(timeout=RUN_S_MAX)

    assert (running.returncode, *told) == (130, "", "kongsim: interrupted\n")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("signum", INTERRUPTS, ids=lambda signum: signum.name)
def test_an_interrupt_when_all_is_done_changes_nothing(signum):
    """What has been told is not followed by another exit code, however long Python takes to leave."""
    code = f"import atexit, signal, sys\natexit.register(signal.raise_signal, signal.{signum.name})\n"
    code += "sys.argv = ['kongsim', '--version']\nfrom sim.__main__ import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kongsim ")


def test_a_hangup_that_is_ignored_goes_on_to_be(files):
    """As under nohup: what the user has asked to be left alone by interrupts nothing."""
    Path("own.py").write_text(
        "import signal\n\nsignal.raise_signal(signal.SIGHUP)\n\n\n"
        "class Own:\n    PRIORITY = 1\n    VERSION = '1'\n\n    def log(self, kong, conf):\n        pass\n",
        encoding="utf-8",
    )
    python = shlex.quote(sys.executable)
    command = ["sh", "-c", f"""trap '' HUP; exec {python} -m sim verify own.py --replay '{{"steps": []}}'"""]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)

    assert done.returncode == 0


def test_help_names_the_commands_that_exist(kongsim):
    """No stubs."""
    code, out, _err = kongsim("--help")

    commands = [line.split()[0] for line in out.split("Commands:\n")[1].splitlines()]
    assert (code, commands) == (0, ["check", "collector", "compare", "overhead", "run", "serve", "verify"])


def test_help_imports_no_more_than_it_needs():
    """It is quick because nothing of the gateway is loaded."""
    code = (
        "import sys; sys.argv = ['kongsim', '--help']\nimport sim.cli\ntry: sim.cli.main()\nexcept SystemExit: pass\n"
    )
    code += (
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('pydantic', 'rich', 'uvloop', 'ruamel')))"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_run_prints_tables_and_leaves_a_folder(files):
    """The result on stdout, the progress on stderr, the run's folder to look into later."""
    run = valid_run("short.yaml", "--out", "out", cwd=files)

    assert run.returncode == 0, run.stderr
    assert "PASSED  short, profile kong, seed 1" in run.stdout
    assert "results in out\n" in run.stdout
    assert "\x1b" not in run.stdout + run.stderr
    assert run.stderr.splitlines()[-1].startswith("short: 1 worker on http://127.0.0.1:")
    assert {path.name for path in (files / "out").iterdir()} == FOLDER
    assert "PASSED" in (files / "out" / "report.html").read_text(encoding="utf-8")
    assert load(str(files / "out" / "scenario.yaml")).as_run == load(str(files / "short.yaml")).as_run


def test_run_json_is_the_summary_and_nothing_else(files):
    """A program can read stdout as it is; a failed threshold is exit code 99."""
    run = valid_run("short.yaml", "--json", "--out", "out", "--set", "thresholds=[requests.sent == 0]", cwd=files)

    assert run.returncode == 99, run.stderr
    assert run.stdout == (files / "out" / "summary.json").read_text(encoding="utf-8")
    summary = json.loads(run.stdout)
    assert (summary["verdict"], summary["ledger"]["unaccounted"]) == ("failed", 0)
    assert summary["requests"]["completed"] == 25
    assert len(summary["warnings"]) == 1


def test_run_imports_what_writes_its_files_when_it_is_over(files):
    """Its workers are forked from it, and would carry that with them."""
    code = (
        "import sys; sys.argv = ['kongsim', 'run', 'short.yaml']\nimport sim.run\n"
        "def begin(*_arguments, **_options):\n"
        "    print([name for name in ('plotly', 'pyarrow', 'xml.etree.ElementTree') if name in sys.modules])\n"
        "    raise KeyboardInterrupt\n"
        "sim.run.run = begin\nfrom sim.cli import main\nmain()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (130, "[]\n"), done.stderr


def test_run_without_the_extra_says_which_files_it_did_not_write(kongsim, files, monkeypatch):
    """One line on stderr, with the cure; all else is there, and stdout is the summary alone."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    code, out, err = kongsim("run", "short.yaml", "--json", "--out", "out")

    verdict = json.loads(out)["verdict"]
    assert verdict in {"passed", "invalid"}  # a busy machine may make it late
    assert code == EXIT_CODES[verdict]
    (told,) = err.splitlines()[1:]
    assert told == (
        "kongsim: report.html, spans.parquet, workers.parquet not written: pyarrow is missing; "
        "install it with: pip install 'kongsim[report]'"
    )
    assert {path.name for path in Path("out").iterdir()} == FOLDER - OF_THE_EXTRA


def test_run_with_an_extra_that_is_broken_says_so(files):
    """It is there, but cannot be imported: what the run has found is shown all the same."""
    Path("plotly").mkdir()
    Path("plotly/__init__.py").write_text("raise ImportError('no libz.so')\n", encoding="utf-8")
    run = valid_run("short.yaml", "--json", "--out", "out", cwd=files)

    assert (run.returncode, json.loads(run.stdout)["verdict"]) == (0, "passed")
    (told,) = run.stderr.splitlines()[1:]
    assert told == (
        "kongsim: report.html, spans.parquet, workers.parquet not written: no libz.so; "
        "install it with: pip install 'kongsim[report]'"
    )


def test_overhead_without_its_extra_is_one_line(files):
    """It says what is missing, and how to get it."""
    code = "import sys; sys.modules['scipy'] = None; sys.argv = ['kongsim', 'overhead', 'short.yaml']\n"
    code += "from sim.cli import main\nmain()\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kongsim: overhead: scipy is missing; install it with: pip install 'kongsim[overhead]'\n"


def test_an_interrupted_run_still_tells_what_it_saw(files):
    """Ctrl-C is exit code 130, with a summary."""
    with spawn("run", "short.yaml", "--json", "--out", "out", "--set", "load[0].duration=60s", cwd=files) as run:
        assert run.stderr is not None
        begun = run.stderr.readline()
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=RUN_S_MAX)

    assert begun.startswith("short: 1 worker on "), begun + err
    assert run.returncode == 130, err
    assert json.loads(out)["verdict"] == "interrupted"


def test_environment_of_kong_is_checked_with_its_kong_yml(kongsim, files, monkeypatch):
    """A variable without meaning is told; a wrong one, or a plugin that it does not enable, ends with exit code 2."""
    Path("kong.yml").write_text(KONG_YML.replace("{name: opentelemetry}", "{name: correlation-id}"), encoding="utf-8")
    monkeypatch.setenv("KONG_UPSTREAM_KEEPALIVE_POOL_SIZE", "10")
    assert kongsim("check", "kong.yml") == (
        0,
        "kong.yml: configuration ok\n",
        "KONG_UPSTREAM_KEEPALIVE_POOL_SIZE is not simulated: it has no effect\n",
    )

    monkeypatch.setenv("KONG_PLUGINS", "opentelemetry")
    code, _out, err = kongsim("check", "kong.yml")
    assert (code, err) == (
        2,
        (
            "kongsim: kong.yml:3: plugins[0].name: plugin correlation-id is not enabled;"
            " add it to KONG_PLUGINS, or unset that\n"
        ),
    )
    monkeypatch.setenv("KONG_PLUGINS", "bundled,my-own")
    assert kongsim("check", "kong.yml")[0] == 0
    monkeypatch.setenv("KONG_NGINX_WORKER_PROCESSES", "none")
    code, _out, err = kongsim("check", "kong.yml")
    assert (code, err.partition(":")[2].partition(";")[0]) == (
        2,
        " KONG_NGINX_WORKER_PROCESSES: workers: expected auto or a whole number from 1 to 1024, not 'none'",
    )


def test_environment_of_kong_does_not_touch_a_scenario(kongsim, files, monkeypatch):
    """A scenario is the same run everywhere."""
    monkeypatch.setenv("KONG_NGINX_WORKER_PROCESSES", "none")
    monkeypatch.setenv("KONG_X", "1")
    code, _out, err = kongsim("check", "short.yaml")
    assert (code, "KONG_" in err) == (0, False)


def test_serve_needs_a_kong_yml(kongsim, files, monkeypatch):
    """From the command line or from the environment, which also says where to listen."""
    assert kongsim("serve")[0] == 2

    Path("kong.yml").write_text(KONG_YML.replace("opentelemetry", "correlation-id"), encoding="utf-8")
    monkeypatch.setenv("KONG_DECLARATIVE_CONFIG", "kong.yml")
    monkeypatch.setenv("KONG_STATUS_LISTEN", "off")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("KONG_PROXY_LISTEN", f"127.0.0.1:{taken.getsockname()[1]}")
        code, _out, err = kongsim("serve")
    assert (code, err.startswith("kongsim: KONG_PROXY_LISTEN: cannot listen on 127.0.0.1:")) == (2, True)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("kng.yml", "KONG_DECLARATIVE_CONFIG: kng.yml: no such file; did you mean kong.yml?"),
        (".", "KONG_DECLARATIVE_CONFIG: .: is a folder, expected a file; "),
        ("short.yaml", "KONG_DECLARATIVE_CONFIG: short.yaml: is a scenario, expected a kong.yml; run it with "),
        ("kong.yml", "kong.yml:3: plugins[0].config.traces_endpoint: missing; "),
    ],
)
def test_a_variable_that_names_no_kong_yml_is_named(kongsim, files, monkeypatch, file, line):
    """Whoever typed no file looks for it in the environment; a mistake in a kong.yml is looked for in its line."""
    monkeypatch.setenv("KONG_DECLARATIVE_CONFIG", file)
    code, out, err = kongsim("serve")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"kongsim: {line}")

    assert "KONG_DECLARATIVE_CONFIG" not in kongsim("serve", file)[2]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["overhead"], "kongsim: Missing argument 'SCENARIO'. (see kongsim overhead --help)"),
        (["verify", "x", "--seed", "y"], "kongsim: Invalid value for '--seed': 'y' is not a valid integer."),
        (["run", "x", "--bogus"], "kongsim: No such option"),  # how it is quoted differs from one click to the next
        (["bogus"], "kongsim: No such command 'bogus'. (see kongsim --help)"),
    ],
)
def test_wrong_usage_is_told_in_one_line(kongsim, arguments, line):
    """As every other mistake of the user is."""
    code, out, err = kongsim(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)
    assert all(argument in err for argument in arguments if argument.endswith("bogus"))


def test_no_command_at_all_shows_what_there_is(kongsim):
    """The commands, each in a line."""
    code, _out, err = kongsim()
    assert code == 2
    assert "overhead" in err


PAGES = {
    "run": "scenarios.md",
    "compare": "compare.md",
    "serve": "serve.md",
    "overhead": "overhead-method.md",
    "collector": "serve.md",
    "check": "check.md",
    "verify": "verify.md",
}
"""Where each command is described."""


@pytest.mark.parametrize("command", commands.commands)
def test_every_option_stands_on_the_page_of_its_command(command):
    """In code, with its own name."""
    options = {name for option in commands.commands[command].params for name in option.opts if name.startswith("--")}
    page = (ROOT / "docs" / PAGES[command]).read_text(encoding="utf-8")
    assert options <= set(re.findall(r"`(--[a-z-]+)", page))
