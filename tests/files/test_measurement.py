"""The one envelope of calibration files: written, read, shipped by name, and read in the forms it had before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import flowblend_plugins as fb
from flowblend_plugins.files.measurement import MeasurementFile


def kind_of(built_in: Path | None = None) -> MeasurementFile[int]:
    def parse(content: Mapping[str, Any]) -> int:
        return int(content["value"])

    return MeasurementFile(kind="count", holds="count", command="count", parse=parse, built_in=built_in)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "count.json"
    path.write_text(json.dumps(kind_of().envelope({"value": 3})))
    assert json.loads(path.read_text()) == {"api_version": 1, "kind": "count", "value": 3}
    assert kind_of().read(path) == 3


@pytest.mark.parametrize(
    "before", [{"technique": "count"}, {"cache": "count", "api_version": 1}, {"kind": "count", "api_version": 1}]
)
def test_the_forms_of_earlier_versions_are_read(tmp_path: Path, before: dict[str, Any]) -> None:
    path = tmp_path / "count.json"
    path.write_text(json.dumps(before | {"value": 3}))
    assert kind_of().read(path) == 3


def test_a_shipped_file_is_named_without_its_suffix_and_no_other_file_is(tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for folder, value in ((shipped, 1), (tmp_path, 2)):
        (folder / "reference.json").write_text(json.dumps({"kind": "count", "value": value}))
    file = kind_of(shipped)
    assert file.read("reference") == 1
    assert file.read(tmp_path / "reference.json") == 2
    for path in (tmp_path / "reference", shipped / "reference", shipped.parent / "shipped" / ".." / "reference"):
        with pytest.raises(fb.AdapterError, match="there is no such file"):
            file.read(path)
    (tmp_path / "reference").write_text(json.dumps({"kind": "count", "value": 4}))
    assert file.read(tmp_path / "reference") == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON file"),
        ("[]", "holds 'list'"),
        ("{}", "'kind' or 'technique' is missing"),
        ('{"kind": "sum", "value": 1}', "it is of sum"),
        ('{"kind": "count", "api_version": 2, "value": 1}', "is of version 2"),
        ('{"kind": "count"}', "'value' is missing"),
        ('{"kind": "count", "value": "many"}', "damaged or incomplete"),
    ],
)
def test_anything_else_is_refused_with_the_command_that_writes_one(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "count.json"
    path.write_text(text)
    with pytest.raises(fb.AdapterError, match=r"Write one with `flowblend calibrate count`\.") as refused:
        kind_of().read(path, "file")
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"file={str(path)!r}")
