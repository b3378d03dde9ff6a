"""`edgeattn service`: a run as a service of systemd, its unit and its file of settings."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgeattn.cli.common import say
from edgeattn.cli.run import RunCommand
from edgeattn.errors import EdgeAttnError

TEMPLATE = Path(__file__).with_name("service.jinja")
WATCHDOG_S = 30
"""How long the loop may stand before systemd starts the service anew."""
PAGE = "127.0.0.1:8080"
WRITTEN = ("out", "json", "collect")
"""Options that name what is written."""
_GIVEN = "edgeattn.run"


class ServiceCommand(RunCommand):
    """`service`, which takes the options of `run` as well."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its own options, then those of `run`."""
        own = super().get_params(ctx)
        names = {each.name for each in own} | {"settings"}
        return [*own, *(each for each in _run_params(ctx) if each.name not in names)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the options of `run` out of what the verb is called with, and keep those that were given."""
        rest = super().parse_args(ctx, args)
        ctx.params.pop("settings", None)
        own = {each.name for each in self.params}
        given = {}
        for each in _run_params(ctx):
            if each.name in own or each.name not in ctx.params:
                continue
            value = ctx.params.pop(each.name)
            if ctx.get_parameter_source(each.name).name == "COMMANDLINE":
                given[each.name] = value
        ctx.meta[_GIVEN] = given
        return rest


def service(
    ctx: typer.Context,
    bundle: Annotated[str, typer.Argument(help="A bundle's folder (or a link to it), or its name in the zoo.")],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the service; default: edgeattn-BUNDLE.")] = None,
    user: Annotated[
        str | None, typer.Option(help="Run as this user; default: one of its own, or you where it lies in a home.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Write both files into this folder instead of showing them.")
    ] = None,
) -> None:
    """Print a systemd unit and a TOML of settings for `edgeattn run`; takes the options of `run` as well.

    The service says when it is ready and that it is alive, is started anew where its loop stands, and takes a new bundle with
    `systemctl reload` between two frames.
    """
    from edgeattn.bundle import find

    folder = find(bundle)
    shown = folder.name.removesuffix(".edgeattn")
    name = name or f"edgeattn-{shown}"
    if not re.fullmatch(r"[A-Za-z0-9_.\-]+", name):
        raise EdgeAttnError(f"--name {name}: letters, digits, dots, dashes and underscores only")
    settings = settings_of(bundle, ctx.meta[_GIVEN])
    texts = {
        Path(f"/etc/systemd/system/{name}.service"): unit(name, shown, settings, user),
        Path(f"/etc/edgeattn/{name}.toml"): as_toml(settings, name),
    }
    for path, text in texts.items():
        if into is None:
            typer.echo(f"# {path}\n{text}")
        else:
            _write(into / path.name, text)
    if into is not None:
        say(f"wrote {' and '.join(str(into / path.name) for path in texts)}; as root:")
        for path in texts:
            say(f"  install -D -m 644 {into / path.name} {path}")
        if environment := _environment(settings):
            variables = ", ".join(f"{variable}={example}" for variable, example in environment.items())
            say(f"  install -D -m 600 /dev/null /etc/edgeattn/{name}.env    # then write into it: {variables}")
        say(f"  systemctl daemon-reload && systemctl enable --now {name}")


_SECRETS = {
    "source": ("CAMERA", "rtsp://NAME:PASSWORD@..."),
    "mqtt": ("BROKER", "mqtt://NAME:PASSWORD@..."),
    "token": ("TOKEN", "..."),
}
"""Options that may hold a secret: a variable for it, and what may stand there."""


def settings_of(bundle: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What `run` is to be told, by its options' names; paths are made whole.

    Raises:
        EdgeAttnError: a login or a token would stand where everybody could read it.
    """
    from edgeattn.camera.address import holds_login

    path = Path(bundle)
    # Not resolved: where it is a link, SIGHUP is to follow it anew.
    settings = {"bundle": os.path.abspath(path) if path.is_dir() else bundle} | dict(given)  # noqa: PTH100
    for key, (variable, example) in _SECRETS.items():
        for each in _listed(settings.get(key, ())):
            if holds_login(each) or (key == "token" and not each.startswith("env:")):
                raise EdgeAttnError(
                    f"the secret in --{key} would stand in a file that everybody may read; write --{key} env:{variable}, "
                    f"and {variable}={example} into the service's .env"
                )
    for key, value in settings.items():
        if isinstance(value, Path):  # what is written goes to the service's own folder, unless a whole path is given
            settings[key] = str(value if key in WRITTEN else value.absolute())
        elif key == "source":
            settings[key] = [str(Path(each).absolute()) if Path(each).exists() else each for each in _listed(value)]
    if "sink" not in settings and "web" not in settings:
        settings["sink"] = "none"
        if find_spec("aiohttp"):
            settings["web"] = PAGE
    return settings


def as_toml(settings: Mapping[str, Any], name: str) -> str:
    """Settings as `edgeattn run --settings` reads them."""
    lines = [f"{key.replace('_', '-')} = {_value(value)}" for key, value in settings.items()]
    head = f"# Options of edgeattn run, by their names. A new bundle is taken by: systemctl reload {name}; the rest by: restart"
    return "\n".join([head, *lines]) + "\n"


def unit(name: str, shown: str, settings: Mapping[str, Any], user: str | None) -> str:
    """The unit's text."""
    program = _program()
    paths = [program[0], settings["bundle"]]
    homely = user is None and any(_in_home(path) for path in paths)
    command = [*program, "run", "--settings", f"/etc/edgeattn/{name}.toml"]
    import jinja2

    template = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    written = [settings[key] for key in WRITTEN if Path(settings.get(key, "")).is_absolute()]
    return template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        description=_escaped(f"edgeattn {shown} on {', '.join(_listed(settings.get('source', '0')))}"),
        command=" ".join(map(_quoted, command)),
        watchdog_s=WATCHDOG_S,
        user=user or (_login() if homely else None),
        home="read-only" if homely or user else "yes",
        groups="video" if str(settings.get("device", "CPU")).upper() == "CPU" else "video render",
        writes=" ".join(_quoted(f"-{Path(path).parent if Path(path).suffix else path}") for path in written),
    ) + "\n"  # fmt: skip


def _run_params(ctx: Any) -> list[Any]:
    group = ctx.parent.command if ctx.parent is not None else None
    return list(group.commands["run"].params) if isinstance(group, TyperGroup) else []


def _program() -> list[str]:
    """How edgeattn is started: its command beside this Python, or the module."""
    beside = Path(sys.executable).with_name("edgeattn")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "edgeattn"]


def _in_home(path: str) -> bool:
    return any(Path(path).is_relative_to(home) for home in ("/home", "/root", Path.home()))


def _login() -> str:
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or "root"


def _environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """The variables that are read, with what may stand in them."""
    return {
        each.removeprefix("env:"): example
        for key, (_, example) in _SECRETS.items()
        for each in _listed(settings.get(key, ()))
        if each.startswith("env:")
    }


def _listed(value: Any) -> list[str]:
    return list(map(str, value)) if isinstance(value, list | tuple) else [str(value)]


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return _value(value[0]) if len(value) == 1 else f"[{', '.join(map(_value, value))}]"
    # JSON's texts, numbers, true and false are TOML's too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _quoted(text: str) -> str:
    """An argument as a unit has it."""
    escaped = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s\"'\\;]", text) else escaped


def _escaped(text: str) -> str:
    return " ".join(text.split("\n")).replace("%", "%%")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EdgeAttnError(f"{path}: cannot be written ({error.strerror}); choose another --into") from error
