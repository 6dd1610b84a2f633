"""Results of benchmarks: they go on across machines and sessions, and only with the same settings."""

import json

import pytest

from shallower import UserError


def test_results_go_on_and_name_every_machine(bench, tmp_path):
    """A file from before, of one machine, is continued on another; what that made says so; other settings are
    refused.
    """
    store = bench("harness.store")
    here, there = ({"cpu": name, "torch_threads": 1, "instruction_sets": []} for name in ("one", "two"))
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"settings": {"sizes": [1]}, "machine": here, "pieces": {"a": {"value": 1}}}))
    about = {"settings": {"sizes": (1,)}, "machine": there}

    content = store.begun(path, about, restart=False)
    content["pieces"]["b"] = {"value": 2} | store.place(content, there)
    store.save(path, content)

    again = store.begun(path, about, restart=False)
    assert again == json.loads(path.read_text()) and again["machines"] == [here, there]
    assert again["pieces"] == {"a": {"value": 1}, "b": {"value": 2, "machine": 1}}
    assert store.place(again, here) == {}
    told = store.machines_text(again)
    assert told.split("; ")[1].startswith("two (") and "(1 of 2 pieces)" in told
    with pytest.raises(UserError, match="other settings"):
        store.begun(path, about | {"settings": {"sizes": [2]}}, restart=False)
    with pytest.raises(UserError, match=r"\(machine\)"):
        store.begun(path, about, restart=False, bound=True)
    assert store.begun(path, about, restart=True)["pieces"] == {}


def test_pieces_of_another_result_are_taken_over(bench, tmp_path):
    """Those that are lacking, with the machine that made them; none of other settings."""
    store = bench("harness.store")
    here, there = ({"cpu": name, "torch_threads": 1, "instruction_sets": []} for name in ("one", "two"))
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(json.dumps({"settings": [1], "machine": here, "pieces": {"a": {"value": 1}}}))
    made = {"a": {"value": 3, "machine": 1}, "b": {"value": 2, "machine": 1}, "c": {"value": 4}}
    other.write_text(json.dumps({"settings": [1], "machines": [here, there], "pieces": made}))
    content = store.gathered(one, other)
    assert content["pieces"] == {"a": {"value": 1}, "b": {"value": 2, "machine": 1}, "c": {"value": 4}}
    assert content["machines"] == [here, there]
    other.write_text(json.dumps({"settings": [2], "machine": there, "pieces": made}))
    with pytest.raises(UserError, match=r"other settings than .*\(settings\)"):
        store.gathered(one, other)


def test_versions_of_ours_may_be_mixed_and_are_told(bench, tmp_path, monkeypatch):
    """A piece that another version made says so; other versions of what it computes with are refused."""
    store = bench("harness.store")
    path, further = tmp_path / "results.json", tmp_path / "further.json"
    here = {"cpu": "one", "torch_threads": 1, "instruction_sets": []}
    old, new = {"shallower": "0.1.0", "torch": "2"}, {"shallower": "0.2.0", "torch": "2"}
    path.write_text(json.dumps({"versions": old, "machine": here, "pieces": {"a": {"value": 1}}}))
    monkeypatch.setattr(store, "versions", lambda: new)
    content = store.begun(path, {"versions": new, "machine": here}, restart=False)
    assert content["versions"] == old and store.place(content, here) == {"shallower": "0.2.0"}
    further.write_text(json.dumps({"versions": new, "machine": here, "pieces": {"b": {"value": 2}}}))
    content = store.gathered(path, further)
    assert content["pieces"] == {"a": {"value": 1}, "b": {"value": 2, "shallower": "0.2.0"}}
    assert store.versions_text(content) == "shallower 0.1.0, torch 2; 1 of 2 pieces by shallower 0.2.0"
    with pytest.raises(UserError, match=r"\(versions\)"):
        store.begun(path, {"versions": new | {"torch": "3"}, "machine": here}, restart=False)
