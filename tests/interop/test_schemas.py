"""The JSON Schemas of record and index hold for what the command line writes, and for the golden checkpoint."""

import json

import jsonschema
import pytest
import zstandard

from conftest import ROOT
from test_groups import BF16, CORE_TENSORS, imported

SPEC = ROOT / "spec"


def schema(name):
    text = json.loads((SPEC / "schemas" / f"{name}.schema.json").read_text())
    return jsonschema.validators.validator_for(text)(text)


def check(step):
    document = json.loads((step / "zarr.json").read_text())
    schema("record").validate(document)
    record = document["attributes"]["milepost"]
    assert record["items"]
    for item in record["items"]:
        chunk = (step / "_milepost" / item["name"] / "c.0").read_bytes()
        text = zstandard.ZstdDecompressor().decompress(chunk[:-4], max_output_size=item["index_json_bytes"])
        schema("index").validate(json.loads(text))
    return document


def test_the_golden_checkpoint_fits_the_schemas():
    check(SPEC / "vectors" / "checkpoint")


@pytest.mark.parametrize("outcome, name", [("checkpoint", "record"), ("run", "run")])
def test_good_root_documents_fit_the_schemas(outcome, name):
    roots = json.loads((SPEC / "vectors" / "roots.json").read_text())
    documents = [json.loads(root["document"]) for root in roots if root["outcome"] == outcome]
    assert len(documents) > 1
    for document in documents:
        if not isinstance(document["attributes"]["milepost"].get("step_format"), str):  # a format nobody writes
            schema(name).validate(document)


@pytest.mark.parametrize("options", [[], ["--codec", "zstd:3"], ["--portable"]])
def test_a_step_fits_the_schemas(milepost, options, tmp_path):
    document = check(imported(milepost, tmp_path, CORE_TENSORS | BF16, *options))
    document["attributes"]["milepost"]["items"] = "none"
    with pytest.raises(jsonschema.ValidationError):
        schema("record").validate(document)
