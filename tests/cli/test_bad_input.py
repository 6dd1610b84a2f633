"""Bad input of every kind: one line that starts with "error:", status 2, no traceback, and the disk as it
was before.
"""

import builtins
import contextlib
import errno
import io
import itertools
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import shrinking
import torch
import zoo
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, BertLMHeadModel

from shallower.cli import main

NAMES = ("good", "vocabulary", "negative", "float", "one", "empty", "short", "objects")
PROGRESS = re.compile(r"loading .*|kept in .*|[\w ,:-]+: \d+%, .*")
PRUNE = ("prune", "MODEL", "--drop", "3", "--out", "out")
SCORE = ("score", "MODEL", "--samples", "2", "--length", "16", "--out", "scores.json")
EVALUATE = ("evaluate", "MODEL", "--length", "16", "--max-tokens", "32")


def disk(folder) -> dict:
    """Everything below a folder, hidden or not."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="session")
def given(saved, tmp_path_factory):
    """A folder with a model, MODEL, and the good and bad files that the cases below speak of."""
    home = tmp_path_factory.mktemp("given")
    shutil.copytree(saved("llama"), home / "MODEL")
    ids = np.arange(4, 36).reshape(2, 16)
    arrays = (ids, ids + 500, -ids, ids / 2, ids[0], ids[:0], ids[:, :1], np.array([[{}, 1]], dtype=object))
    for name, array in zip(NAMES, arrays, strict=True):
        np.save(home / f"{name}.npy", array)
    texts = {
        "good.txt": "The dog saw the fox. " * 99,
        "short.txt": "The dog.",
        "no.npy": "The dog.",
        "field.jsonl": '{"text": "a"}\n{"txt": "b"}\n',
        "type.jsonl": '{"text": "a"}\n\n["b"]\n',
        "broken.jsonl": '{"text": "a"}\n{"text": \n',
        "deep.jsonl": "[" * 99999,
        "bad.parquet": "PAR1",
        "text.doc": "a",
        "no.json": "{",
        "none.json": "[]",
    }
    for name, text in texts.items():
        (home / name).write_text(text)
    (home / "latin.txt").write_bytes(b"caf\xe9")
    (home / "full").mkdir()
    (home / "full" / "precious").write_text("kept")
    main(["prune", str(home / "MODEL"), "--drop", "5", "--no-verify", "--out", str(home / "made")])
    (home / "made" / "precious").write_text("kept")
    main(
        [
            "score",
            str(home / "MODEL"),
            "--criterion",
            "angular",
            "--tokens",
            str(home / "good.npy"),
            "--out",
            str(home / "scores.json"),
        ]
    )
    main(["plan", str(home / "scores.json"), "--remove", "2", "--out", str(home / "plan.json")])
    main(
        [
            "plan",
            str(saved("llama+tied")),
            "--remove",
            "2",
            "--criterion",
            "magnitude",
            "--out",
            str(home / "other.json"),
        ]
    )
    plan, scores = (json.loads((home / name).read_text()) for name in ("plan.json", "scores.json"))
    changed = {
        "twice.json": plan | {"removed": [3, 3]},
        "outside.json": plan | {"removed": [3, 9]},
        "lost.json": plan | {"kept": plan["kept"][1:]},
        "text.json": plan | {"removed": "3"},
        "newer.json": plan | {"schema": 3},
        "all.json": plan | {"removed": list(range(8)), "kept": []},
        "nothing.json": plan | {"removed": [], "order": [], "kept": list(range(8))},
        "turned.json": plan | {"kept": plan["kept"][::-1]},
        "few.json": scores | {"scores": [1.0]},
        "nan.json": scores | {"scores": [1.0] * 7 + [float("nan")]},
        "counts.json": scores | {"model": scores["model"] | {"layer_parameters": [1]}},
        "runs.json": scores | {"windows": [[1.0]]},
    }
    for name, content in changed.items():
        (home / name).write_text(json.dumps(content))
    return home


@pytest.fixture
def home(given, tmp_path, monkeypatch):
    """A copy of what is given, as the working directory."""
    shutil.copytree(given, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(home, capsys):
    """``refused(argument, …)``: the one line that a command says that must fail and leave the disk alone."""

    def call(*arguments) -> str:
        before = disk(home)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        *progress, message = err.splitlines()
        assert end.value.code == 2 and message.startswith("error: ") and not out
        assert all(map(PROGRESS.fullmatch, progress)), progress
        assert disk(home) == before
        return message

    return call


def config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def header(folder, change) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    content = change(json.loads(raw[8 : 8 + size]))
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + raw[8 + size :])


def shared_bytes(content: dict) -> dict:
    return content | {
        "lm_head.weight": content["lm_head.weight"]
        | {"data_offsets": content["model.embed_tokens.weight"]["data_offsets"]}
    }


def weights(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def index(folder, shard: str) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))


def sharded(folder) -> None:
    (folder / "model.safetensors").unlink()
    zoo.save("llama", folder, max_shard_size="200KB")
    next(folder.glob("*-00002-*")).unlink()


def replaced(folder, model) -> None:
    """Another model, the old tokenizer."""
    with torch.no_grad():
        zoo.randomise(model, 0)
    model.save_pretrained(folder)


def bert(kind):
    return kind(
        BertConfig(vocab_size=512, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, is_decoder=False)
    )


def of_type(name: str, **fields):
    return AutoModelForCausalLM.from_config(shrinking.shrink(name, **fields))


def nan(tensors: dict) -> None:
    tensors["model.norm.weight"].fill_(float("nan"))


MODELS = [  # what is done to the folder, what the message says, the commands, marks
    (shutil.rmtree, "no folder MODEL"),
    (lambda f: (f / "config.json").unlink(), "no model folder: it has no config.json"),
    (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    (lambda f: config(f, hidden_size="much"), "does not accept its config.json.*hidden_size"),
    (lambda f: config(f, model_type="nix"), "does not accept its config.json.*nix"),
    (lambda f: config(f, model_type="nix", auto_map={"AutoConfig": "a.B"}), "--trust-remote-code"),
    (lambda f: config(f, hidden_act="nix"), "nix", PRUNE),
    (lambda f: config(f, num_hidden_layers=9), r"lacks weights.*layers\.8\."),
    (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only pickled weights.*pytorch_model.bin"),
    (lambda f: os.truncate(f / "model.safetensors", 90_000), r"truncated \(90000 bytes"),
    (lambda f: os.truncate(f / "model.safetensors", 0), r"truncated \(0 bytes"),
    (lambda f: header(f, lambda _: b"{nix}"), "corrupt safetensors header"),
    (lambda f: header(f, lambda _: b"[" * 99999), "header", PRUNE),
    (
        lambda f: header(f, lambda h: h | {"lm_head.weight": h["lm_head.weight"] | {"shape": [3]}}),
        "do not fit its shape",
    ),
    (lambda f: header(f, shared_bytes), "MODEL", SCORE),
    (lambda f: index(f, "../../x"), r"points outside its folder \('../../x'\)"),
    (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "not a readable index"),
    (sharded, "lacks the shard model-00002-of"),
    (lambda f: (f / "shallower.json").write_text('{"original": [1, 2]}'), "does not fit the model"),
    (lambda f: weights(f, lambda tensors: tensors.pop("model.norm.weight")), r"lacks weights.*model\.norm"),
    (lambda f: weights(f, lambda tensors: tensors.pop("model.norm.weight")), r"model\.norm", SCORE),
    *[(lambda f: weights(f, nan), "NaN", command) for command in (PRUNE, SCORE, EVALUATE)],
    (lambda f: replaced(f, bert(BertForMaskedLM)), r"is an encoder \(BertForMaskedLM\)"),
    *[
        (lambda f: replaced(f, bert(BertLMHeadModel)), "is no decoder", with_)
        for with_ in (PRUNE, (*PRUNE, "--no-verify"), SCORE)
    ],
    (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer that loads.*--tokens", EVALUATE),
    (lambda f: replaced(f, of_type("llama", vocab_size=300)), "has the token .* 0 to 299", SCORE),
    (lambda f: replaced(f, of_type("llama", vocab_size=300)), "has the token .* 0 to 299", EVALUATE),
    *[
        (lambda f: replaced(f, of_type("gpt2", max_position_embeddings=8)), "--length 16: .* at most 8", command)
        for command in (SCORE, EVALUATE)
    ],
]


@pytest.mark.parametrize(
    ("damage", "message", "command"), [pytest.param(*(*case, PRUNE)[:3], marks=case[3:]) for case in MODELS]
)
def test_models(damage, message, command, home, refused) -> None:
    damage(home / "MODEL")
    assert re.search(message, refused(*command))


# A command -> what the message says. {a|b} are two cases. After "$" nothing is added.
ADDED = {
    "plan": "MODEL --criterion magnitude",
    "score": "MODEL --out s.json",
    "evaluate": "MODEL",
    "prune": "MODEL --out out",
}
COMMANDS = r"""
plan --remove {7|0|x} -> {7 layers cannot go.*at most 6|--remove 0: at least 1|--remove}
plan --ratio {0|1|-0.5|nan} -> {between 0 and 1|between 0 and 1|between 0 and 1|a share such as 0.2 or 20%}
plan --ratio {0.01|0.95} -> {less than half a layer|layers cannot go}
plan --target-params {5,5B|1B|9} -> {a number such as 5.5B|312384 parameters already|cannot be met}
plan {|--remove 2 --ratio 0.2} -> {say how much to remove|one of --remove}
plan --remove 2 --keep-first {some|7} -> {--keep-first some: give a number of layers, or auto|protect all 8}
plan --remove 2 --keep-first ² -> keep-first
plan --remove 2 --selection lowset -> did you mean lowest
plan --remove 2 --selection positional --set {strategy=nix|nix=1|strategy} -> {allowed are max-gap|settings: strategy|write key=value}
plan --remove 2 --selection {greedy|window} --iterative -> --iterative
plan --remove 2 --selection beam --budget {soon|10d|-5s|nan} -> --budget .*{such as 120s, 10m or 2h|such as 120s|0 or more|such as 120s}
plan --remove 2 {|--selection greedy} --budget 10s -> --budget has no meaning .* beam, evolution
plan --remove 2 --selection {beam --set width=0|evolution --set objective=ppl} -> {width=0: at least 1|allowed are loss, kl}
$ plan scores.json --remove 2 --selection {greedy|beam} -> give MODEL instead of scores
$ plan {plan|no|few|nan}.json --remove 2 -> {is a plan that is made already|is not JSON|8 finite scores, found 1|finite}
$ plan {counts|runs}.json --remove 2 --selection window -> json
score --criterion {tailor|random --set seed=x} -> {did you mean taylor|seed=x: expected int}
score --criterion magnitude --set seed=1 -> magnitude has no setting 'seed'
score {--dtype|--device|--bos} nix -> {unknown dtype 'nix'; allowed are fp32|unknown device 'nix'|allowed are auto, first, every, none}
score --device meta --tokens good.npy -> device
score {--samples|--length} 0 -> 0: at least
score --seed -1 -> seed
score {--dataset :::|--text good.txt --tokens good.npy} -> {cannot be loaded|--tokens alone}
score --text {short.txt|good.txt --samples 999} -> {has \d+ tokens, enough for 0 samples of 128; 64 were|999 were asked for}
score --text {nix.txt|text.doc|latin.txt|bad.parquet} -> {no such file|give a .txt|not UTF-8 \(byte 3\)|not a readable .parquet}
{score|evaluate} --text field.jsonl -> line 2 has no field 'text' \(it has txt\)
score --text {type|broken}.jsonl -> {line 3 is a list; each line needs an object with a text|line 2 is not JSON}
score --text deep.jsonl -> line 1
{score|evaluate} --tokens {vocabulary|negative}.npy -> has the token -?\d+; the model knows 0 to 511
score --tokens {float|one|empty|short}.npy -> {holds float64; integers|has 1 dimension; 2|at least 1 sample|at least 1 sample of 2}
score --tokens {objects|no|nix}.npy -> {not a .npy file of numbers|not a .npy file|no such file}
evaluate {--text short.txt|--stride 0|--max-tokens 5} -> {less than one segment of 128|--stride 0|--max-tokens 5}
evaluate --text good.txt --text MODEL/../good.txt -> two files are named good
evaluate --text good.txt --tokens good.npy --length 16 -> good
$ score {nix|org/nix|good.txt|nix.gguf} -> {no folder nix|cannot be fetched from the Hub|a file that is no model|no file nix.gguf}
prune --drop {3,3|8|0-7} -> {names layer 3 twice|the model has the layers 0 to 7|one must stay}
prune --drop {a|-1|""|5-3|1,5-3} -> such as 3,4,5 or 8-10
prune {--verify|--drop 3 --remove 1|--drop 3 --plan plan.json} -> one of --plan, --drop, --remove
prune --drop 3 {--max-shard-size big|--save-dtype fp8|--nix} -> {'big' is not a size|unknown dtype|No such option: --nix}
prune --drop 3 --max-shard-size infGB -> not a size
prune --plan {other|scores|none|no|nix}.json -> {made for another model|is of the kind scores; a file of the kind plan is expected|is of no kind|not JSON|no plan file}
prune --plan {twice|outside|lost}.json -> each layer 0 to 7 exactly once
prune --plan {text|newer|all}.json -> {removed: input should be a valid list|has schema 3; this version|one must stay}
prune --plan nothing.json -> nothing.json
prune --plan turned.json --no-verify -> turned.json
$ prune MODEL --drop 3 --out {full|good.txt|good.txt/x} -> {not empty; give another folder or pass --over|is a file|cannot write good.txt/x}
$ prune MODEL --drop 3 --out MODEL --overwrite -> is or holds MODEL, which is read here
$ prune MODEL --drop 3 --out . --overwrite -> --out
$ prune MODEL --drop 3 --out full --overwrite -> full holds nothing that shallower wrote
$ score MODEL --criterion magnitude --out {full|good.txt/x} -> {full is not a plain file|cannot write good.txt/x}
$ score MODEL --criterion magnitude --out /proc/nix/s.json -> cannot write
$ {inspect MODEL more|trim MODEL|score|prune MODEL --drop 3} -> {unexpected extra|No such command 'trim'|Missing .*MODEL|Missing .*--out}
$ score --help nix -> unknown method 'nix'
"""


def spread(text: str) -> list[str]:
    """a{b|c} -> ab, ac."""
    return [
        "".join(parts)
        for parts in itertools.product(*(part.strip("{}").split("|") for part in re.split(r"({.*?})", text.strip())))
    ]


def cases():
    for line in COMMANDS.strip().splitlines():
        command, _, rest = line.partition("->")
        message = rest
        for one, wanted in zip(spread(command), itertools.cycle(spread(message)), strict=False):
            verb, *options = shlex.split(one)
            arguments = options if verb == "$" else [verb, *ADDED[verb].split(), *options]
            yield pytest.param(arguments, wanted, id=one)


@pytest.mark.parametrize(("arguments", "message"), list(cases()))
def test_commands(arguments, message, refused) -> None:
    found = refused(*arguments)
    assert re.search(message, found) and len(found) < 400


def test_from_outside(home) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shallower", "score", "MODEL", "--tokens", "one.npy"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n"), done.stderr[:16]) == (2, "", 1, "error: --tokens ")


def fail(monkeypatch, where: str, nth: int, code: int) -> list:
    """Let the nth call fail that changes the disk in one way; the calls so far."""
    calls = []

    def failing(true, changes=lambda *_, **__: True):
        def call(*arguments, **options):
            if changes(*arguments, **options):
                calls.append(arguments)
                if len(calls) == nth:
                    raise OSError(code, os.strerror(code))
            return true(*arguments, **options)

        return call

    if where == "open":
        for module in (builtins, io):
            monkeypatch.setattr(
                module, "open", failing(io.open, lambda _, mode="r", *__, **___: not {*mode} <= {*"rbt"})
            )
    else:
        monkeypatch.setattr(os, where, failing(getattr(os, where)))
    return calls


OVERWRITE, ANEW = (
    "prune MODEL --drop 3 --overwrite --no-verify --out made",
    "plan scores.json --remove 2 --out plan.json",
)
FAULTS = [
    ("open", errno.ENOSPC),
    ("open", errno.EROFS),
    ("fsync", errno.EDQUOT),
    ("mkdir", errno.EROFS),
    ("chmod", errno.EPERM),
]
FAULTS = [
    pytest.param(command, *fault, marks=[pytest.mark.slow] if command == OVERWRITE and fault[0] != "fsync" else [])
    for command in (OVERWRITE, ANEW)
    for fault in FAULTS
]
FAULTS += [pytest.param(command, "fsync", errno.EIO) for command in (OVERWRITE, ANEW)]
FAULTS += [pytest.param(ANEW, "replace", errno.ENOSPC), pytest.param(OVERWRITE, "replace", errno.ENOSPC)]


@pytest.mark.parametrize(("command", "where", "code"), FAULTS)
def test_every_write_may_fail(command, where, code, refused, monkeypatch) -> None:
    """Each write in turn: nothing half-written, and what was there before is still there."""
    for nth in itertools.count(1):
        with monkeypatch.context() as patch:
            calls = fail(patch, where, nth, code)
            with contextlib.suppress(
                pytest.fail.Exception
            ):  # it does not exit: no call failed, or the failure did no harm
                assert re.search(f"(no space left|cannot write).*{command.split()[-1]}", refused(*command.split()))
        if len(calls) < nth:
            break
    assert nth > 1


def test_no_empty_folders_stay(home, refused) -> None:
    weights(home / "MODEL", nan)
    assert "NaN" in refused(*PRUNE[:-1], "new/folders/out")


def test_the_model_is_never_overwritten(home, capsys) -> None:
    shutil.move(home / "MODEL", home / "full" / "MODEL")
    with contextlib.suppress(SystemExit):  # the folder is refused as a whole
        main(["prune", "full/MODEL", "--drop", "3", "--out", "full", "--overwrite", "--no-verify"])
    assert (home / "full" / "MODEL" / "model.safetensors").is_file()


def test_what_somebody_put_into_a_working_folder_stays(home) -> None:
    for name in (".scores.json.journal", ".out.journal"):
        (home / name).mkdir()
        (home / name / "notes.txt").write_text("precious")
    main(["score", "MODEL", "--criterion", "magnitude", "--out", "scores.json"])
    main(["prune", "MODEL", "--drop", "3", "--no-verify", "--out", "out"])
    for name in (".scores.json.journal", ".out.journal"):
        assert [path.name for path in (home / name).rglob("*")] == ["notes.txt"]
