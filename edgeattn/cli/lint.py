"""`edgeattn lint`: will NPU compilers and int8 engines like this bundle?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgeattn.cli.common import console, say, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeattn.bundle import Bundle
    from edgeattn.deploy.lint import Finding

SCHEMA = "edgeattn.lint/1"
COLOURS = {"refused": "red", "wrong": "red", "falls back": "yellow", "slow": "dim"}


def lint(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or its name in the zoo.")],
    *,
    target: Annotated[str, typer.Option(help="intel, qualcomm, rockchip, ethos-u, cpu, or all.")] = "all",
    json: Annotated[Path | None, typer.Option(help="Write the findings there.")] = None,
) -> None:
    """Look for what NPU compilers refuse, compute wrongly or leave to the CPU; with --target, exits 1 on the first two.

    Rules come from compiling and simulating on a PC, or from the toolchains' documentation and trackers, as each line says;
    nothing here was run on the devices.
    """
    from edgeattn.bundle import load
    from edgeattn.deploy.lint import TARGETS
    from edgeattn.deploy.lint import lint as look

    loaded = load(bundle)
    findings = look(loaded, target)
    named = ", ".join(TARGETS.values()) if target == "all" else TARGETS[target]
    if findings:
        console.print(table(findings))
        for finding in findings:
            say(f"{finding.rule}: {finding.mend}")
    else:
        say(f"no rule is broken for {named}")
    say("none of this was run on a device: these are rules, and only its compiler or the box itself can tell")
    rules = [row for finding in findings for row in finding.json()]
    write_json(json, {"schema": SCHEMA, "bundle": str(loaded.path), "target": target, "rules": rules})
    if target != "all" and any(finding.is_fatal for finding in findings):
        raise typer.Exit(1)


def say_broken(bundle: Bundle, target: str = "all") -> None:
    """Say in one line how many rules a bundle breaks, advice aside, and which verb names them; nothing where it keeps all."""
    from edgeattn.deploy.lint import lint as look

    if broken := [finding for finding in look(bundle, target) if not finding.is_advice]:
        say(f"lint: rules of NPU compilers broken: {len(broken)}; edgeattn lint {bundle.path} --target {target}")


def table(findings: Sequence[Finding]) -> Table:
    """Findings as a table for the screen."""
    drawn = Table("rule", "for", "what happens", "evidence", "where", box=None, pad_edge=False, header_style="bold")
    for finding in findings:
        drawn.add_row(
            escape(finding.rule),
            ", ".join(finding.targets),
            f"[{COLOURS[finding.level]}]{finding.level}[/]: {escape(finding.reason)}",
            escape(finding.evidence),
            where(finding),
        )
    return drawn


def where(finding: Finding) -> str:
    """The graph, its first block at fault, and how many more there are."""
    if not finding.blocks:
        return finding.file
    more = f" and {len(finding.blocks) - 1} more" if len(finding.blocks) > 1 else ""
    return escape(f"{finding.file} {finding.blocks[0]}{more}")
