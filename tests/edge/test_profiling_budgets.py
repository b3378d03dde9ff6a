from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from test_profiling_reports import a_report, a_result
from typer.testing import CliRunner

from edgeattn.bundle import Bundle
from edgeattn.cli.profile import profile as profile_verb
from edgeattn.errors import EdgeAttnError, NameNotFoundError, SpecError
from edgeattn.profiling.budgets import judge, read_budget, rests_on
from edgeattn.profiling.report import Report, Result


def judged(text: str, result: Result, report: Report | None = None) -> list[tuple[str, str]]:
    report = report or a_report(result)
    return [(each.verdict, each.line) for each in judge(read_budget(text, result.mode), report, result)]


def test_a_budget_is_read_with_its_units() -> None:
    bounds = read_budget("p99=33ms, age_p99=0.05s,rss=200MB,max=900us", "paced")
    assert [(b.key, b.limit, b.unit) for b in bounds] == [
        ("p99", 33.0, "ms"),
        ("age_p99", 50.0, "ms"),
        ("rss", 200.0, "MB"),
        ("max", 0.9, "ms"),
    ]
    assert rests_on(bounds) == "p99"
    assert rests_on(read_budget("p50=1ms,rss=1GB", "single")) is None
    assert rests_on(read_budget("p99.9=1ms,p50=1ms", "single")) == "p99.9"


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("p98=3ms", NameNotFoundError, "no budget is named 'p98'. Did you mean 'p9"),
        ("age=3ms", NameNotFoundError, "age_p99"),
        ("p99=3", SpecError, "p99=3 has the unit ''; write one of us, ms, s"),
        ("p99=3MB", SpecError, "has the unit 'MB'; write one of us, ms, s"),
        ("rss=200ms", SpecError, "write one of kB, MB, MiB, GB, GiB"),
        ("p99=fast", SpecError, "p99=fast is no number above 0"),
        ("p99=0ms", SpecError, "no number above 0"),
        ("p99=1.2.3ms", SpecError, "no number above 0"),
        ("p99", SpecError, "must be KEY=VALUE"),
        (" , ", SpecError, "names nothing to keep"),
        ("age_p99=50ms", SpecError, "age_p99 is not measured in --mode single but in paced or live"),
    ],
)
def test_a_wrong_budget_is_told(text: str, error: type[EdgeAttnError], told: str) -> None:
    with pytest.raises(error) as raised:
        read_budget(text, "single")
    assert told in str(raised.value)


def test_a_budget_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "budget.toml"
    path.write_text('[budget]\np99 = "33ms"\n"p99.9" = "60ms"\nrss = "200MB"\n')
    assert [b.key for b in read_budget(str(path), "single")] == ["p99", "p99.9", "rss"]
    for content, told in [
        ("[budget", "no valid TOML"),
        ("[other]\n", "has no table [budget]"),
        ("[budget]\n", "names nothing to keep"),
        ('[budget]\nspeed = "1ms"\n', "no budget is named 'speed'"),
        ("[budget]\np99 = 33\n", "has the unit ''"),
    ]:
        path.write_text(content)
        with pytest.raises(EdgeAttnError) as raised:
            read_budget(str(path), "single")
        assert told in str(raised.value)
    with pytest.raises(SpecError, match="cannot be read"):
        read_budget(str(tmp_path / "none.toml"), "single")


def test_a_bound_is_judged_by_the_interval() -> None:
    result = a_result(np.linspace(1.0, 2.0, 1000))  # its median lies between 1.47 and 1.53
    assert [verdict for verdict, _ in judged("p50=1.6ms", result)] == ["passed"]
    assert [verdict for verdict, _ in judged("p50=1.4ms", result)] == ["failed"]
    verdict, line = judged("p50=1.51ms", result)[0]
    assert verdict == "cannot tell"
    assert "the bound lies within the range" in line
    assert [verdict for verdict, _ in judged("max=2ms,max=1.9ms", result)] == ["failed"]
    assert [verdict for verdict, _ in judged("throughput=600fps", result)] == ["passed"]
    assert [verdict for verdict, _ in judged("throughput=700fps", result)] == ["failed"]
    assert "at least 700 FPS" in judged("throughput=700fps", result)[0][1]


def test_too_few_samples_cannot_tell() -> None:
    verdict, line = judged("p99=9ms", a_result(np.linspace(1, 2, 100)))[0]
    assert verdict == "cannot tell"
    assert "not enough samples (100 of 662); measure with --until p99" in line
    verdict, line = judged("rss=100MB", a_result(np.ones(10)))[0]
    assert (verdict, "not measured" in line) == ("cannot tell", True)


def test_too_slow_on_a_disturbed_machine_cannot_tell() -> None:
    result = a_result(np.linspace(1.0, 2.0, 1000))
    noisy = dataclasses.replace(a_report(result), waited_share=0.5, other_cores=1.0)
    assert judged("p50=1.6ms", result, noisy)[0][0] == "passed"  # what disturbs only ever adds
    verdict, line = judged("p50=1.4ms", result, noisy)[0]
    assert verdict == "cannot tell"
    assert "over it, but disturbed: other programs used 1.00 cores" in line
    heavy = dataclasses.replace(result, memory={"rss_mb": 300.0})
    assert judged("rss=200MB", heavy, noisy)[0][0] == "failed"  # nobody else's load adds to our memory


def test_a_bound_on_an_age_says_what_it_excludes() -> None:
    result = dataclasses.replace(
        a_result(np.ones(800)), mode="live", ages_ms=np.linspace(20, 30, 800), age_from="received"
    )
    verdict, line = judged("age_p99=50ms", result)[0]
    assert verdict == "passed"
    assert "counts from when a frame was received: excludes camera and network" in line


@pytest.mark.parametrize(
    ("budget", "code", "said"),
    [
        ("p50=10s,rss=9GB", 0, "budget passed: openvino float: rss"),
        ("rss=1MB", 1, "budget failed: openvino float: rss"),
        ("first=10s,p99.9=10s", 3, "budget cannot tell: openvino float: p99.9 not known, at most 10000 ms"),
        ("p90=3parsec", 2, "has the unit 'parsec'"),
    ],
)
def test_exit_codes(tiny_bundle: Bundle, tmp_path: Path, budget: str, code: int, said: str) -> None:
    app = typer.Typer()
    app.command()(profile_verb)
    path = tmp_path / "report.json"
    arguments = ["--engine", "openvino", "--precision", "float", "--samples", "16", "--budget", budget]
    outcome = CliRunner().invoke(app, [str(tiny_bundle.path), *arguments, "--json", str(path)])
    if code == 2:  # turned into a line and the exit code by `main`
        assert isinstance(outcome.exception, SpecError)
        assert said in str(outcome.exception)
        return
    assert outcome.exit_code == code, outcome.output
    assert said in outcome.output
    assert {each["verdict"] for each in json.loads(path.read_text())["budget"]} >= {
        {0: "passed", 1: "failed", 3: "cannot tell"}[code]
    }


def test_a_budget_on_a_rare_percentile_measures_until_it_can_tell(tiny_bundle: Bundle, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(profile_verb)
    path = tmp_path / "report.json"
    arguments = ["--engine", "onnxruntime", "--precision", "float", "--budget", "p99=10s", "--json", str(path)]
    outcome = CliRunner().invoke(app, [str(tiny_bundle.path), *arguments])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(path.read_text())["results"][0]["n"] == 664
