"""The committed results of ``make families``, and how it resumes; the run itself takes minutes."""

import json

import families
import pytest
import settings
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

RESULTS = json.loads(families.RESULTS.read_text(encoding="utf-8"))


def test_most_types_are_exact_and_none_is_wrong() -> None:
    statuses = [result["status"] for result in RESULTS["types"].values()]
    assert statuses.count("exact") >= 170
    assert set(statuses) <= {"exact", "refused", "not built"}


def test_the_readme_says_how_many() -> None:
    exact = [result["status"] for result in RESULTS["types"].values()].count("exact")
    said = (
        f"{exact} of the {len(RESULTS['types'])} causal-LM types of transformers "
        f"{RESULTS['versions']['transformers'][:4]}"
    )
    assert said in (families.ROOT / "README.md").read_text(encoding="utf-8").replace("\n  ", " ")


def test_whatever_is_not_exact_has_a_reason() -> None:
    for name, result in RESULTS["types"].items():
        if result["status"] != "exact":
            assert result.get("reason") or any(item.get("reason") for item in result["sets"]), name
        assert all(item["outcome"] == "refused" and item["reason"] for item in result.get("illegal", [])), name


def test_every_type_was_tried() -> None:
    if RESULTS["versions"]["transformers"] != transformers.__version__:
        pytest.skip("the results are of another version")
    assert set(RESULTS["types"]) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_finished_types_are_skipped(monkeypatch) -> None:
    """As long as the settings and the code are what they were."""
    name, code = "llama", families.code_hash()
    content = {"types": {name: {"settings": families.settings_hash(name), "code": code}}}
    assert families.todo(content, [name], [], False) == []
    assert families.todo(content, [name], [name], False) == [name]
    monkeypatch.setitem(settings.SETTINGS, name, settings.Setting({"hidden_size": 32}))
    assert families.todo(content, [name], [], True) == [name]
    monkeypatch.undo()
    content["types"][name]["code"] = "another"
    assert families.todo(content, [name], [], False) == [name]
    assert families.todo(content, [name], [], True) == []


def test_a_process_that_dies_or_hangs_is_a_result(monkeypatch) -> None:
    monkeypatch.setattr(families, "try_type", lambda name, folder: __import__("os")._exit(3))
    assert families.isolated("llama", 60) == {"status": "crash", "reason": "the process died with status 3"}
    monkeypatch.setattr(families, "try_type", lambda name, folder: __import__("time").sleep(60))
    assert families.isolated("llama", 0.2)["reason"].startswith("not done after")
