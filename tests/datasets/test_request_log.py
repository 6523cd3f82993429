"""The gateway's log in the catalog: the shipped entries read what the gateway wrote, and nothing else."""

import pytest
import yaml
from commands import ROOT
from kedro.io import DataCatalog, DatasetError

from luthier.serving.records.log import RequestLog
from tests.serving.logs import logged, uri_of


def catalog(uri):
    text = (ROOT / "conf/base/catalog_serving.yml").read_text().replace("${globals:request_log}", uri)
    return DataCatalog.from_config(yaml.safe_load(text))


def test_what_the_gateway_wrote_is_read_through_the_catalog(tmp_path):
    uri = uri_of(tmp_path)
    found = catalog(uri)
    assert not found.exists("requests")
    with RequestLog(uri) as log:
        for number in range(3):
            log.put(logged(number, answer=f"text {number}"))
    assert found.exists("requests")
    assert len(found.load("requests")) == 3
    assert not {"prompt", "answer"} & set(found.load("requests").columns)
    assert found.load("request_texts").of(["r000002"])["answer"].tolist() == ["text 2"]
    assert found.load("feedback").empty
    with pytest.raises(DatasetError, match="gateway alone"):
        found.save("requests", 1)


def test_the_environment_names_another_and_no_password_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_REQUEST_LOG_URI", "postgresql+psycopg://u:hidden@h/d")
    assert "hidden" not in str(catalog(uri_of(tmp_path))["requests"])
