"""The rules on who may import whom leave no module out."""

import tomllib

from commands import ROOT

ABOVE_THE_ROOMS = {"__init__", "__main__", "cli", "hooks", "pipeline_registry", "pipelines", "settings"}


def test_every_shared_module_is_held_to_not_reaching_into_rooms():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (held,) = [set(one["source_modules"]) for one in contracts if one["name"].startswith("Shared modules")]
    there = {path.stem for path in (ROOT / "src/luthier").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert held == {f"luthier.{name}" for name in there - ABOVE_THE_ROOMS}


def test_every_room_is_kept_apart_from_the_others():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (held,) = [set(one["modules"]) for one in contracts if one["type"] == "independence"]
    rooms = {path.parent.name for path in (ROOT / "src/luthier/pipelines").glob("*/pipeline.py")}
    assert held == {f"luthier.pipelines.{room}" for room in rooms}
