"""What is served follows the registry, whoever changes it, and never names an engine that is not there."""

import asyncio
import json
from contextlib import ExitStack, asynccontextmanager
from types import SimpleNamespace

import pytest

from luthier.errors import UserError
from luthier.serving import follower
from luthier.serving.api.errors import ApiError
from luthier.serving.fleet import Fleet, Machine
from luthier.serving.follower import Follower
from luthier.serving.metrics import Metrics
from luthier.serving.parameters import ExperimentParameters, ServingParameters
from tests.serving.scripted import scripted

NUMBERS = (1, 2, 3)


class Watched:
    """A follower, and every table that it has served."""

    def __init__(self, home, urls, kept=None, versions=NUMBERS, **parameters):
        urls = {str(number): [urls[number]] for number in versions}
        engine = {"kind": "upstream", "urls": urls, **parameters.pop("engine", {})}
        self.home, self.registry = home, home.registry()
        self.parameters = ServingParameters(poll_seconds=0.05, drain_seconds=0, engine=engine, **parameters)
        self.metrics = Metrics()
        self.fleet = Fleet(self.registry, self.parameters, Machine(home.folder / "cache", "fp32", base=lambda: None))
        self.follower = Follower(self.registry, self.fleet, self.parameters, self.metrics, kept)
        self.lives = []

    @property
    def table(self):
        return self.lives[-1].table

    @property
    def champion(self):
        return self.table.experiment.control.version

    def reloads(self, result):
        return self.metrics.registry.get_sample_value("luthier_reloads_total", {"result": result}) or 0

    async def until(self, holds, seconds=10):
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.01)


@pytest.fixture
def home(home):
    """Return a registry, and for each of its versions a server that follows a script."""
    with ExitStack() as stack:
        scripts = {number: stack.enter_context(scripted()) for number in NUMBERS}
        yield SimpleNamespace(folder=home.folder, registry=home.registry, scripts=scripts)


@asynccontextmanager
async def following(home, **given):
    watched = Watched(home, {number: script.url for number, script in home.scripts.items()}, **given)
    watched.lives.append(await watched.follower.begin())
    task = asyncio.create_task(watched.follower.follow(watched.lives.append))
    try:
        yield watched
    finally:
        task.cancel()
        await watched.follower.close()
        await watched.fleet.close()


def run(scenario):
    asyncio.run(scenario())


def test_promotions_and_rollbacks_of_others_are_followed_and_every_table_is_whole(home):
    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        async with following(home) as watched:
            assert watched.champion == 1
            # what may come next is ready: the candidate
            await watched.until(lambda: set(watched.table.versions) == {1, 3})
            for version in (3, 2, 1, 3):
                line = elsewhere.promote(version)
                await watched.until(lambda version=version: watched.champion == version)
                assert watched.table.sequence == line.number
            line = elsewhere.rollback()
            await watched.until(lambda: watched.table.sequence == line.number)
            assert watched.champion == 1
            for live in watched.lives:
                assert set(live.table.versions) == set(live.engines)
                assert set(live.table.aliases.values()) <= set(live.engines)
                for version, manifest in live.table.versions.items():
                    assert elsewhere.resolve(version).manifest == manifest

    run(scenario)


def test_what_is_no_longer_needed_ends_and_what_was_just_left_stays(home):
    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        async with following(home, engine={"warm": []}) as watched:
            elsewhere.promote(2)
            await watched.until(lambda: watched.champion == 2)
            elsewhere.promote(3)
            await watched.until(lambda: watched.champion == 3)
            await watched.until(lambda: set(watched.table.versions) == {2, 3})
            await watched.until(lambda: set(watched.fleet.running()) == {2, 3})

    run(scenario)


def test_a_version_that_cannot_be_served_changes_nothing_and_is_tried_again(home):
    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        async with following(home, versions=(1,)) as watched:
            before = watched.table
            elsewhere.promote(2)
            await watched.until(lambda: watched.reloads("failed") >= 1)
            assert watched.champion == 1
            assert watched.table.experiment == before.experiment
            with pytest.raises(ApiError) as caught:
                await watched.follower.reload()
            assert caught.value.status == 409
            assert "names no URL for version 2" in str(caught.value)
            # an administrator takes it back, and all is well again
            await watched.follower.rollback("it has no engine")
            assert watched.table.sequence == 3
            assert watched.champion == 1
            assert elsewhere.log.last().reason == "it has no engine"
            assert watched.reloads("reloaded") == 1

    run(scenario)


def test_a_challenger_that_cannot_start_keeps_nobody_from_starting_or_going_back_and_joins_once_it_can(home, monkeypatch, caplog):
    monkeypatch.setattr(follower, "FIRST_PAUSE", 0.2)
    home.scripts[3].troubles = ["404"] * 1000

    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        elsewhere.promote(2)
        experiment = {"variants": variants(("champion", "champion", 0.5), ("challenger", "candidate", 0.5)), "shadow": 3}
        async with following(home, experiment=experiment) as watched:
            assert watched.champion == 2
            line = elsewhere.rollback()
            await watched.until(lambda: watched.table.sequence == line.number, seconds=2)
            assert watched.champion == 1
            await watched.until(lambda: watched.reloads("failed") >= 3)
            assert 3 not in watched.table.versions
            home.scripts[3].troubles.clear()
            await watched.until(lambda: 3 in watched.table.versions)
            assert watched.table.route("challenger", "x").version == 3

    run(scenario)
    assert caplog.text.count("Version 3 cannot be served") == 1


def test_a_challenger_that_takes_its_time_to_start_delays_no_start_for_long_and_no_rollback(home, monkeypatch):
    monkeypatch.setattr(follower, "PATIENCE", 0.2)
    home.scripts[3].before = 60.0

    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        elsewhere.promote(2)
        experiment = {"variants": variants(("champion", "champion", 0.5), ("challenger", 3, 0.5))}
        async with asyncio.timeout(10), following(home, experiment=experiment) as watched:
            await watched.until(lambda: 1 in watched.table.versions)
            monkeypatch.setattr(follower, "PATIENCE", 60.0)
            line = elsewhere.rollback()
            await watched.until(lambda: watched.table.sequence == line.number, seconds=2)
            assert watched.champion == 1

    run(scenario)


def test_a_new_challenger_takes_over_from_the_one_before_without_a_gap(home):
    home.scripts[3].before = 0.5

    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        elsewhere.client.set_registered_model_alias("luthier", "candidate", "2")
        experiment = {"variants": variants(("champion", "champion", 0.5), ("challenger", "candidate", 0.5))}
        async with following(home, experiment=experiment) as watched:
            elsewhere.client.set_registered_model_alias("luthier", "candidate", "3")
            await watched.until(lambda: watched.table.experiment.variants[1].version == 3)
            assert all(variant.version in live.engines for live in watched.lives for variant in live.table.experiment.variants)

    run(scenario)


def test_a_version_that_was_taken_back_while_its_engine_started_is_never_served(home):
    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        async with following(home, engine={"warm": []}) as watched:
            home.scripts[2].before = 2.0
            elsewhere.promote(2)
            await asyncio.sleep(0.5)
            line = elsewhere.rollback()
            # the rollback does not wait for the engine of what it took back
            await watched.until(lambda: watched.table.sequence == line.number, seconds=1)
            await asyncio.sleep(2.0)
            assert {live.table.experiment.control.version for live in watched.lives} == {1}
            assert set(watched.fleet.running()) == {1}

    run(scenario)


def test_a_promotion_is_followed_also_if_the_engines_start_was_just_being_given_up(home, monkeypatch):
    start = Fleet._upstream

    async def upstream(self, version, package):
        try:
            return await start(self, version, package)
        except asyncio.CancelledError:
            await asyncio.sleep(1.0)  # as a process takes its time to end
            raise

    monkeypatch.setattr(Fleet, "_upstream", upstream)
    home.scripts[3].before = 60.0

    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        async with following(home, engine={"warm": ["candidate"]}) as watched:
            await watched.until(lambda: home.scripts[3].seen)
            elsewhere.client.set_registered_model_alias("luthier", "candidate", "2")
            await watched.until(lambda: watched.fleet._starting[3].cancelling())
            home.scripts[3].before = 0.0
            elsewhere.promote(3)
            async with asyncio.timeout(10):
                await watched.follower.reload()
            assert watched.champion == 3

    run(scenario)


def test_a_server_without_the_model_gets_no_traffic_and_a_better_promotion_is_followed_at_once(home):
    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        home.scripts[2].troubles = ["404"] * 100
        async with following(home, engine={"warm": []}) as watched:
            elsewhere.promote(2)
            await watched.until(lambda: watched.reloads("failed") >= 1)
            assert watched.champion == 1
            elsewhere.promote(3)
            await watched.until(lambda: watched.champion == 3, seconds=2)
            assert 2 not in {live.table.experiment.control.version for live in watched.lives}

    run(scenario)


def test_an_alias_that_has_the_name_of_a_variant_stops_nothing(home):
    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        experiment = {"variants": variants(("champion", "champion", 0.5), ("candidate", 2, 0.5))}
        async with following(home, experiment=experiment) as watched:
            await watched.until(lambda: set(watched.table.versions) == {1, 2, 3})
            assert watched.table.route("candidate", "x").version == 2
            elsewhere.promote(3)
            await watched.until(lambda: watched.champion == 3)

    run(scenario)


def test_a_registry_that_is_away_for_a_while_changes_nothing(home):
    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        async with following(home, engine={"warm": []}) as watched:
            database = home.folder / "mlflow.db"
            database.rename(home.folder / "away")
            await watched.until(lambda: watched.reloads("failed") >= 1)
            with pytest.raises(ApiError) as caught:
                await watched.follower.rollback("why not")
            assert caught.value.status in (409, 503)
            assert str(home.folder) not in str(caught.value)
            database.unlink(missing_ok=True)
            (home.folder / "away").rename(database)
            line = elsewhere.promote(2)
            await watched.until(lambda: watched.table.sequence == line.number)

    run(scenario)


def test_a_rollback_with_nothing_to_go_back_to_is_refused(home):
    async def scenario():
        home.registry().promote(1)
        async with following(home) as watched:
            with pytest.raises(ApiError) as caught:
                await watched.follower.rollback("why not")
            assert caught.value.status == 409
            assert "first champion" in str(caught.value)
            assert watched.champion == 1

    run(scenario)


def variants(*dealt):
    return [{"name": name, "version": version, "weight": weight} for name, version, weight in dealt]


def test_an_experiment_of_an_administrator_survives_a_restart_until_the_parameters_change(home, tmp_path):
    asked = ExperimentParameters(id="autumn", variants=variants(("champion", "champion", 0.7), ("second", 2, 0.3)), shadow=3)
    kept = tmp_path / "serving" / "experiment.json"

    async def scenario():
        home.registry().promote(1)
        async with following(home, kept=kept) as watched:
            await watched.follower.set_experiment(asked)
            assert watched.table.experiment.id == "autumn"
            assert {1, 2, 3} <= set(watched.table.versions)
            # the alias in it is followed
            home.registry().promote(3)
            await watched.until(lambda: watched.champion == 3)
            with pytest.raises(ValueError, match="no alias nobody"):
                await watched.follower.set_experiment(ExperimentParameters(variants=variants(("a", "nobody", 1.0))))
            with pytest.raises(ApiError):
                await watched.follower.set_experiment(ExperimentParameters(variants=variants(("a", 17, 1.0))))
            assert watched.table.experiment.id == "autumn"
        async with following(home, kept=kept) as again:
            assert again.table.experiment.id == "autumn"
        async with following(home, kept=kept, experiment={"id": "winter"}) as changed:
            assert changed.table.experiment.id == "winter"
        kept.write_text(json.dumps({"configured": 7}))
        async with following(home, kept=kept) as broken:
            assert broken.table.experiment.id == "default"

    run(scenario)


def test_an_experiment_that_is_refused_leaves_no_engine_and_what_was_being_made_ready_comes(home):
    home.scripts[3].before = 0.5
    asked = ExperimentParameters(variants=variants(("a", "champion", 0.5), ("b", 2, 0.3), ("c", 17, 0.2)))

    async def scenario():
        home.registry().promote(1)
        async with following(home) as watched:
            await watched.until(lambda: home.scripts[3].seen)  # the candidate's engine is starting
            await watched.fleet.serve(2)  # and that of the second variant is there at once
            with pytest.raises(ApiError):
                await watched.follower.set_experiment(asked)
            await watched.until(lambda: set(watched.table.versions) == {1, 3})
            await watched.until(lambda: set(watched.fleet.running()) == {1, 3})

    run(scenario)


def test_an_experiment_that_takes_its_time_undoes_no_rollback_and_is_not_cut_off_by_one(home):
    home.scripts[3].before = 1.0  # its engine takes a second to answer
    asked = ExperimentParameters(id="slow", variants=variants(("champion", "champion", 0.5), ("challenger", 3, 0.5)))

    async def scenario():
        elsewhere = home.registry()
        elsewhere.promote(1)
        elsewhere.promote(2)
        async with following(home, engine={"warm": ()}) as watched:
            asking = asyncio.create_task(watched.follower.set_experiment(asked))
            await asyncio.sleep(0.3)
            elsewhere.rollback(reason="a test")
            await asking
            assert watched.table.experiment.id == "slow"
            champions = [live.table.experiment.control.version for live in watched.lives]
            assert champions == sorted(champions, reverse=True)  # 2, then 1, and never 2 again
            assert watched.champion == 1

    run(scenario)


def test_without_a_champion_there_is_nothing_to_serve(home):
    async def scenario():
        async with following(home):
            pass

    with pytest.raises(UserError, match="kedro promote"):
        run(scenario)


def test_an_experiment_that_cannot_be_dealt_is_told_before_anything_starts(home):
    async def scenario():
        home.registry().promote(1)
        async with following(home, experiment={"variants": variants(("a", "challenger", 1.0))}):
            pass

    with pytest.raises(UserError, match="no alias challenger"):
        run(scenario)
