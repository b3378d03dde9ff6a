"""What `quantize` shows of its ladder."""

from __future__ import annotations

from edgeattn.cli.quantize import ladder_table
from edgeattn.deploy.ladder import Step
from edgeattn.deploy.recipes.plan import DEFAULT_PLAN


def test_a_row_of_the_ladder_names_its_blocks() -> None:
    paths = tuple(f"backbone.stages.2.{place}" for place in range(4))
    steps = [Step("openvino", "block float", paths[:count], DEFAULT_PLAN, tuned=False) for count in range(5)]
    (named,) = (column for column in ladder_table(steps).columns if column.header == "new in")
    assert list(named.cells) == [
        "all blocks",
        paths[0],
        f"{paths[0]}, {paths[1]}",
        f"{paths[0]}, {paths[1]} and 1 more",
        f"{paths[0]}, {paths[1]} and 2 more",
    ]
