"""Plans of other tools in, and out in their forms."""

import json
import os
import subprocess

import pytest
import torch
import yaml
from commands import status
from safetensors.torch import load_file

from shallower import UserError, drop, plan, prune
from shallower.artifacts import load
from shallower.planning.exchange import listed_units, recipe_text


@pytest.mark.parametrize(
    ("name", "text", "number", "found"),
    [
        ("block_order.csv", "3,5,1,0,2,4,6,7\n", ":3", ["3", "5", "1"]),
        ("order.txt", "3\n5\n1\n0\n", ":1", ["3"]),
        (
            "layer_distances.csv",
            "block_start,block_end,average_distance\n1,3,0.4\n2,4,0.1\n3,5,0.3\n",
            "",
            ["2", "3"],
        ),
        ("drop.txt", "attn+mlp\nnone\nattn\nmlp\nattn+mlp\n", "", ["1", "2.mlp", "3.attention"]),
        ("evo.txt", "model.blocks.0,False,4\nmodel.blocks.1,True,4\nmodel.blocks.2,True,3\n", "", ["1", "2"]),
    ],
)
def test_lists_of_other_tools(name, text, number, found, tmp_path) -> None:
    (tmp_path / name).write_text(text)
    assert listed_units(f"{tmp_path / name}{number}") == found


def test_what_is_no_file_is_read_as_before() -> None:
    assert listed_units("3,8-10") is None and listed_units("3-5.mlp:0-7+9") is None


@pytest.mark.parametrize(
    ("text", "number", "said"),
    [
        ("3,5,1,0\n", "", r"say how many go, as .*\.csv:6"),
        ("3,5,1,0\n", ":4", "between 1 and 3 of the 4 layers"),
        ("block_start,block_end,average_distance\n1,3,nan?\n", "", "each line needs block_start"),
        ("attn+mlp\nattn+mlp\n", "", "removes nothing"),
        ("none\nattn+mlp\n", ":1", "leave :1 out"),
        ("hello\nworld\n", "", "no list that is known here"),
        ("", "", "no list that is known here|removes nothing"),
    ],
)
def test_lists_that_are_refused(text, number, said, tmp_path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        listed_units(f"{file}{number}")
    with pytest.raises(UserError, match="no such file"):
        listed_units(str(tmp_path / "none.csv"))


def test_in_and_out_by_the_command_line(saved, tmp_path, capsys) -> None:
    model = saved("llama")
    order = tmp_path / "block_order.csv"
    order.write_text("2,1,0,3\n")
    out = tmp_path / "small"
    assert status("prune", model, "--drop", f"{order}:2", "--out", out, "--no-verify") == 0
    assert load(out / "shallower.json", "pruned").plan.removed == [1, 2]
    made = drop(model, f"{order}:2", out=tmp_path / "plan.json")
    recipe, layers = tmp_path / "merge.yaml", tmp_path / "layers.txt"
    assert status("plan", tmp_path / "plan.json", "--out", recipe) == 0
    assert status("plan", tmp_path / "plan.json", "--out", layers) == 0
    assert layers.read_text() == "1,2\n"
    content = yaml.safe_load(recipe.read_text())
    ranges = [source["layer_range"] for one in content["slices"] for source in one["sources"]]
    kept = [layer for start, stop in ranges for layer in range(start, stop)]
    assert kept == made.kept and content["merge_method"] == "passthrough" and content["dtype"] == "float32"
    assert plan(model, remove=1, out=recipe).removed  # replaces our own
    assert yaml.safe_load(recipe.read_text())["slices"]
    capsys.readouterr()
    for options, said in (
        (("plan", tmp_path / "plan.json", "--remove", "2"), "is a plan that is made already"),
        (("plan", model), "say how much to remove"),
        (("plan", model, "--remove", "1", "--out", order.with_suffix(".yaml")), None),
    ):
        if said is None:
            order.with_suffix(".yaml").write_text("mine: 1\n")
            said = "it holds something else"
        assert status(*options) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_parts_are_not_what_these_tools_remove(saved, tmp_path) -> None:
    made = drop(saved("llama"), "1.mlp")
    with pytest.raises(UserError, match=r"mergekit removes whole layers only, and the plan names 1\.mlp"):
        recipe_text(made)
    assert json.loads(json.dumps(made.removed)) == ["1.mlp"]


@pytest.mark.slow
@pytest.mark.skipif("MERGEKIT" not in os.environ, reason="$MERGEKIT names no mergekit-yaml")
def test_mergekit_writes_the_same_weights(saved, tmp_path) -> None:
    """What mergekit makes of our recipe, in an environment of its own, has the weights that we write, bit for bit."""
    model = saved("llama")
    made = drop(model, "1-2", out=tmp_path / "merge.yaml")
    prune(model, made, out=tmp_path / "ours")
    command = [os.environ["MERGEKIT"], str(tmp_path / "merge.yaml"), str(tmp_path / "theirs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in (tmp_path / "ours", tmp_path / "theirs")
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
