"""The verbs of the command line that prune: options in, ``stages`` called, a table or JSON out."""

from typing import Annotated

import typer

from . import options as opt
from . import stages, tables
from .anatomy.loading import parse_dtype
from .artifacts import load
from .calibration import Calibration
from .errors import UserError
from .files import check_free
from .journal import journaled
from .quantities import bytes_of, layers_of
from .repairs import FITTED, Compensating


def inspect(model: opt.ModelArg, out: opt.Out = None, json: opt.Json = False, trust_remote_code: opt.Trust = False) -> None:
    """What a model is: family, layers, parameters per layer, legal removals. Loads no weights."""
    compute = stages.Compute(trust_remote_code=trust_remote_code)
    opt.finish(stages.inspect(model, compute=compute, out=out), json, tables.inspection, out)


def score(
    model: opt.ModelArg,
    criterion: opt.CriterionOpt = "taylor",
    settings: opt.Settings = None,
    text: opt.Text = None,
    dataset: opt.Dataset = None,
    tokens: opt.Tokens = None,
    samples: opt.Samples = 10,
    length: opt.Length = 128,
    seed: opt.Seed = 1234,
    bos: opt.Bos = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    layered: opt.Layered = None,
    max_batch_tokens: opt.BatchTokens = None,
    trust_remote_code: opt.Trust = False,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Score every layer; the lowest is removed first."""
    result = stages.score(
        model,
        criterion=criterion,
        settings=opt.pairs(settings),
        calibration=Calibration(text, dataset, tokens, samples, length, seed, bos),
        compute=stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens),
        out=out,
    )
    opt.finish(result, json, tables.scores, out)


def plan(
    source: Annotated[str, typer.Argument(metavar="SCORES|MODEL", help="a scores.json, or a model to score first", show_default=False)],
    remove: opt.Remove = None,
    ratio: opt.Ratio = None,
    target_params: opt.Target = None,
    target_memory: opt.Memory = None,
    target_speedup: opt.Speedup = None,
    max_ppl_increase: opt.Increase = None,
    eval_text: opt.EvalText = None,
    criterion: opt.CriterionOpt = "taylor",
    selection: opt.SelectionOpt = "lowest",
    iterative: opt.Iterative = False,
    budget: opt.Budget = None,
    keep_first: opt.KeepFirst = "auto",
    keep_last: opt.KeepLast = "auto",
    settings: opt.Settings = None,
    text: opt.Text = None,
    dataset: opt.Dataset = None,
    tokens: opt.Tokens = None,
    samples: opt.Samples = 10,
    length: opt.Length = 128,
    seed: opt.Seed = 1234,
    bos: opt.Bos = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    layered: opt.Layered = None,
    max_batch_tokens: opt.BatchTokens = None,
    trust_remote_code: opt.Trust = False,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Decide which layers go."""
    mine, its, _ = opt.split_settings(opt.pairs(settings), criterion, selection)
    result = stages.plan(
        source,
        amount=opt.amount(remove, ratio, target_params, target_memory, target_speedup, max_ppl_increase),
        choosing=opt.choosing(selection, its, (keep_first, keep_last), iterative, budget),
        criterion=criterion,
        settings=mine,
        calibration=Calibration(text, dataset, tokens, samples, length, seed, bos),
        texts=eval_text or (),
        compute=stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens),
        out=out,
    )
    opt.finish(result, json, tables.plan, out)


def prune(
    model: opt.ModelArg,
    out: opt.PrunedOut,
    plan: Annotated[str | None, typer.Option("--plan", help="a plan.json made for this model")] = None,
    drop: Annotated[str | None, typer.Option("--drop", help="exactly these layers, such as 3,4,5; ignores protection")] = None,
    remove: opt.Remove = None,
    ratio: opt.Ratio = None,
    target_params: opt.Target = None,
    target_memory: opt.Memory = None,
    target_speedup: opt.Speedup = None,
    max_ppl_increase: opt.Increase = None,
    eval_text: opt.EvalText = None,
    criterion: opt.CriterionOpt = "taylor",
    selection: opt.SelectionOpt = "lowest",
    iterative: opt.Iterative = False,
    budget: opt.Budget = None,
    keep_first: opt.KeepFirst = "auto",
    keep_last: opt.KeepLast = "auto",
    settings: opt.Settings = None,
    text: opt.Text = None,
    dataset: opt.Dataset = None,
    tokens: opt.Tokens = None,
    samples: opt.Samples = 10,
    length: opt.Length = 128,
    seed: opt.Seed = 1234,
    bos: opt.Bos = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    layered: opt.Layered = None,
    max_batch_tokens: opt.BatchTokens = None,
    trust_remote_code: opt.Trust = False,
    compensate: Annotated[str | None, typer.Option("--compensate", help=f"repair what is left: {opt.COMPENSATIONS}")] = None,
    compensate_samples: opt.CompensateSamples = FITTED,
    save_dtype: opt.SaveDtype = None,
    max_shard_size: opt.ShardSize = "5GB",
    overwrite: opt.Overwrite = False,
    verify: opt.Verify = True,
    json: opt.Json = False,
) -> None:
    """Write the pruned model as a plain checkpoint, and prove that it is the intended one."""
    targets = (target_params, target_memory, target_speedup, max_ppl_increase)
    if sum(way is not None for way in (plan, drop, remove, ratio, *targets)) != 1:
        raise UserError("say what to remove: one of --plan, --drop, --remove, --ratio and the targets (see --help)")
    check_free(out, overwrite=overwrite)
    parse_dtype(save_dtype)
    bytes_of(max_shard_size)
    mine, its, theirs = opt.split_settings(opt.pairs(settings), criterion, selection, compensate)
    repair = None
    if compensate is not None:
        fitting = Calibration(text, dataset, tokens, compensate_samples, length, seed, bos, at_most=True)
        repair = Compensating(compensate, theirs, fitting)
    with journaled(out):
        opened = stages.open_model(model, stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens))
        if plan is not None:
            chosen = load(plan, "plan")
        elif drop is not None:
            chosen = stages.drop(opened, layers_of(drop))
        else:
            chosen = stages.plan(
                opened,
                amount=opt.amount(remove, ratio, target_params, target_memory, target_speedup, max_ppl_increase),
                choosing=opt.choosing(selection, its, (keep_first, keep_last), iterative, budget),
                criterion=criterion,
                settings=mine,
                calibration=Calibration(text, dataset, tokens, samples, length, seed, bos),
                texts=eval_text or (),
            )
        options = {"overwrite": overwrite, "verify": verify, "save_dtype": save_dtype, "max_shard_size": max_shard_size}
        result = stages.prune(opened, chosen, out=out, compensating=repair, **options)
    opt.finish(result, json, tables.pruned, out)


def compensate(
    model: opt.ModelArg,
    plan: Annotated[str, typer.Option("--plan", help="a plan.json made for this model")],
    out: opt.PrunedOut,
    method: Annotated[str, typer.Option("--method", help=opt.COMPENSATIONS)] = "sequential",
    settings: opt.Settings = None,
    text: opt.Text = None,
    dataset: opt.Dataset = None,
    tokens: opt.Tokens = None,
    samples: Annotated[int, typer.Option("--samples", help="samples to fit on, at most")] = FITTED,
    length: opt.Length = 128,
    seed: opt.Seed = 1234,
    bos: opt.Bos = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    layered: opt.Layered = None,
    max_batch_tokens: opt.BatchTokens = None,
    trust_remote_code: opt.Trust = False,
    save_dtype: opt.SaveDtype = None,
    max_shard_size: opt.ShardSize = "5GB",
    overwrite: opt.Overwrite = False,
    verify: opt.Verify = True,
    json: opt.Json = False,
) -> None:
    """Remove what a plan says, repair what is left without training, write it and prove it."""
    check_free(out, overwrite=overwrite)
    parse_dtype(save_dtype)
    bytes_of(max_shard_size)
    fitting = Calibration(text, dataset, tokens, samples, length, seed, bos, at_most=True)
    how = Compensating(method, opt.pairs(settings), fitting)
    with journaled(out):
        opened = stages.open_model(model, stages.Compute(dtype, device, trust_remote_code, layered, max_batch_tokens))
        options = {"overwrite": overwrite, "verify": verify, "save_dtype": save_dtype, "max_shard_size": max_shard_size}
        result = stages.compensate(opened, plan, compensating=how, out=out, **options)
    opt.finish(result, json, tables.pruned, out)


def heal(
    model: opt.ModelArg,
    train_tokens: opt.TrainTokens,
    out: opt.PrunedOut,
    data: opt.Data = None,
    dataset: opt.Dataset = None,
    method: opt.HealMethod = "lora",
    settings: opt.Settings = None,
    length: opt.Length = 512,
    seed: opt.Seed = 1234,
    batch_tokens: opt.TrainBatch = None,
    micro_batch: opt.MicroBatch = None,
    lr: opt.Rate = None,
    checkpoint_steps: opt.CheckpointSteps = None,
    checkpoint_minutes: opt.CheckpointMinutes = 10.0,
    resume: opt.Resume = False,
    eval_text: opt.HealText = None,
    eval_steps: opt.EvalSteps = None,
    max_tokens: opt.MaxTokens = stages.EVAL_TOKENS,
    gradient_checkpointing: opt.Halved = False,
    control: opt.Control = False,
    keep_optimizer: opt.KeepOptimizer = False,
    optimizer_from: opt.OptimizerFrom = None,
    shard: opt.Shard = False,
    track: opt.Track = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    trust_remote_code: opt.Trust = False,
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Train what is left, on text or instructions, and write it as a plain checkpoint."""
    when = {"checkpoint_steps": checkpoint_steps, "checkpoint_minutes": checkpoint_minutes, "resume": resume}
    watched = {"eval_texts": tuple(eval_text or ()), "eval_steps": eval_steps, "eval_tokens": max_tokens}
    kept = {"keep_optimizer": keep_optimizer, "optimizer_from": optimizer_from, "shard": shard, "track": track}
    training = stages.Training(
        *(length, seed, batch_tokens, micro_batch, lr),
        **(when | watched | kept),
        gradient_checkpointing=gradient_checkpointing,
        control=control,
    )
    result = stages.heal(
        model,
        data=data or (),
        dataset=dataset,
        train_tokens=train_tokens,
        out=out,
        method=method,
        settings=opt.pairs(settings),
        training=training,
        compute=stages.Compute(dtype, device, trust_remote_code, layered=False),
        overwrite=overwrite,
    )
    opt.finish(result, json, tables.healing, out)
