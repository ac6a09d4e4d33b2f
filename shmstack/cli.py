"""The command line: start programs under shmstack, look at running stacks, list options, measure.

`run` ends its own options at the first word that is none, as the shell's own launchers do, so that the options after
COMMAND are the command's.  Exit codes: the command's own; 1 no command; 2 wrong usage or an option out of range; 3 no such
profile; 126 not executable; 127 not found.
"""
from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from shmstack import _show, profiles, run
from shmstack.errors import OptionError, ShmstackError
from shmstack.options import OPTIONS, Options, describe

# What an option of `run` sets; all of them take a value.
_SETTINGS = {"--name": "EF_NAME", "--share-with": "EF_SHARE_WITH", "--client-loopback": "EF_TCP_CLIENT_LOOPBACK",
             "--server-loopback": "EF_TCP_SERVER_LOOPBACK"}
_VALUED = {"-p", "--profile", *_SETTINGS}
_ROOT = Path(__file__).resolve().parent.parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("shmstack", description="Accelerated TCP loopback for unchanged Python programs.")
    commands = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND")

    start = commands.add_parser("run", help="start a program under shmstack", allow_abbrev=False,
                                description="Start COMMAND so that the Python programs in it use shared memory for "
                                            "TCP within this host. A COMMAND that is a .py file is run by this Python.")
    start.add_argument("-p", "--profile", action="append", default=[], metavar="P[,P2]",
                       help=f"options from a profile: {', '.join(profiles.shipped())}, one of ~/.shmstack/profiles, a path")
    start.add_argument("--force-profiles", action="store_true", help="profiles replace what the environment has")
    for flag, name in _SETTINGS.items():
        start.add_argument(flag, dest=name, metavar=flag[2].upper() if flag != "--share-with" else "UID",
                           help=f"{OPTIONS[name].doc} ({OPTIONS[name].range})")
    start.add_argument("-v", "--verbose", action="store_true", help="say on stderr what is run, with which options")
    start.add_argument("command", nargs="*", metavar="COMMAND [ARGS]")
    start.set_defaults(function=_run, parser=start)

    for name, (function, text) in _show.VIEWS.items():
        view = commands.add_parser(name, help=text, description=text)
        view.add_argument("stack", nargs="?", help="only this stack")
        view.add_argument("--json", action="store_true", help="one JSON value a look instead of a table")
        view.add_argument("--watch", type=float, metavar="SECS", help="look again every so often")
        view.set_defaults(function=_view, rows=function)

    options = commands.add_parser("options", help="print every EF_ option with its range and default")
    options.add_argument("--json", action="store_true", help="a JSON list instead of text")
    options.set_defaults(function=_options)
    commands.add_parser("perf", help="measure: the tools in perf/", add_help=False)
    return parser


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the launcher's own options from the command."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("--", "-"):
        at += 2 if words[at] in _VALUED else 1
    rest = list(words[at:])
    return list(words[:at]), rest[1:] if rest[:1] == ["--"] else rest


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    environ = dict(os.environ)
    names = [name for listed in arguments.profile for name in listed.split(",") if name]
    profiles.apply(names, environ, arguments.force_profiles)
    for name in _SETTINGS.values():
        value = getattr(arguments, name)
        if value is not None:
            environ[name] = value
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Options.from_env(environ)
    for warning in caught:
        print(f"shmstack: {warning.message}", file=sys.stderr)
    return run.environment(environ)


def _run(arguments: argparse.Namespace) -> int:
    command = list(arguments.command)
    if not command:
        arguments.parser.print_usage(sys.stderr)
        return 1
    try:
        environ = _environment(arguments)
    except profiles.ProfileNotFound as error:
        print(f"shmstack: {error}", file=sys.stderr)
        return 3
    if command[0].endswith(".py") and os.path.isfile(command[0]):
        command.insert(0, sys.executable)
    if arguments.verbose:
        settings = [f"{name}={value}" for name, value in sorted(environ.items()) if name.startswith("EF_")]
        print("shmstack:", *settings, *command, file=sys.stderr)
    return run.exec_command(command, environ)


def _view(arguments: argparse.Namespace) -> int:
    _show.show(arguments.rows, arguments.stack, arguments.json, arguments.watch)
    return 0


def _options(arguments: argparse.Namespace) -> int:
    names = ("name", "default", "range", "scope", "doc")
    if arguments.json:
        _show.print_json([dict(zip(names, row, strict=True)) for row in describe()])
        return 0
    import textwrap
    for name, default, values, scope, doc in describe():
        print(f"{name}  (default {default or 'unset'}; per {scope})")
        for text in (doc, f"Takes {values}."):
            print(textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="    "))
    return 0


def _perf(words: list[str]) -> int:
    """Hand over to perf/, which is part of the checkout and not of the installed package."""
    import importlib
    for root in (_ROOT, Path.cwd()):
        if (root / "perf" / "cli.py").is_file() and (root / "shmstack").is_dir():
            sys.path.insert(0, str(root))
            try:
                main: Callable[[list[str]], int | None] = importlib.import_module("perf.cli").main
            except ModuleNotFoundError as error:
                print(f"shmstack: wanted the measuring tools, found no module {error.name}; "
                      "install what they need: pip install '.[perf]'", file=sys.stderr)
                return 1
            return main(words) or 0
    print("shmstack: wanted the measuring tools, found no perf/ in this directory; they are part of the source tree: "
          "call this from a checkout, with pip install '.[perf]'", file=sys.stderr)
    return 1


def main(words: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["perf"]:
        return _perf(words[1:])
    command: list[str] = []
    if words[:1] == ["run"]:
        own, command = _split(words[1:])
        words = ["run", *own]
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.subcommand is None:
        parser.print_usage(sys.stderr)
        return 1
    if command:
        arguments.command = command
    try:
        status = int(arguments.function(arguments))
        sys.stdout.flush()                                    # else a closed pipe shows only at exit
        return status
    except (OptionError, profiles.ProfileError) as error:
        print(f"shmstack: {error}", file=sys.stderr)
        return 2
    except ShmstackError as error:
        print(f"shmstack: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has enough; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
