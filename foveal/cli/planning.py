"""`foveal plan`: what a context costs, before anything is downloaded or run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.output import UserError, print_json, results, show_bytes, table, tell
from foveal.config import PRESETS, ModelConfig

if TYPE_CHECKING:
    from foveal.cache import Plan


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(plan)


def plan(
    model: Annotated[str, typer.Option(help="A preset (flash, pro, nano, ...) or a model directory.")] = "flash",
    context: Annotated[str, typer.Option(help="Tokens of context: 128k, 1M (1,048,576) or a number.")] = "1M",
    agents: Annotated[int, typer.Option(help="Agents that share the context.", min=1, max=1 << 40)] = 1,
    agent_tokens: Annotated[str, typer.Option(help="Tokens of its own that each agent adds.")] = "0",
    kv: Annotated[
        str, typer.Option(help="How the cache is stored: bf16, fp8, or fp4 (FP8 entries, FP4 index keys).")
    ] = "bf16",
    machine: Annotated[str, typer.Option(help="Machine it has to fit: 'this' one, or 8xB200, mac-256, ...")] = "this",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compute weights and cache for a model, a context and a machine."""
    from foveal.cache import make_plan, parse_tokens

    own = 0 if agent_tokens.strip() == "0" else parse_tokens(agent_tokens)
    made = make_plan(config_of(model), parse_tokens(context), kv=kv, agents=agents, agent_tokens=own, on=machine)
    if json:
        print_json({"model": model, **made.to_dict()})
    else:
        _print(model, made)


def config_of(model: str) -> ModelConfig:
    """The config of a preset or of a directory with a ``config.json``. Raises `UserError` when it is neither."""
    if model in PRESETS:
        return PRESETS[model]
    file = Path(model) / "config.json"
    if not file.is_file():
        raise UserError(f"{model!r} is neither a preset ({', '.join(PRESETS)}) nor a folder with a config.json")
    return ModelConfig.from_file(file)


def _print(model: str, made: Plan) -> None:
    context = made.context
    cache = table("one context", "bytes>")
    rows = (
        ("CSA entries", context.csa_entries),
        ("index keys", context.index_keys),
        ("HCA entries", context.hca_entries),
        ("  all entries", context.entries),
        ("raw window", context.window),
        ("open windows", context.open_windows),
        ("token ids", context.tokens),
    )
    for name, size in rows:
        cache.add_row(name, show_bytes(size))
    other = table("the same tokens in", "bytes>", "times as much>")
    for rival in made.rivals:
        other.add_row(rival.name, show_bytes(rival.nbytes), f"{rival.nbytes / max(1, context.entries):.2f}")
    where = table(f"on {made.machine.name}", "bytes>")
    where.add_row("weights", show_bytes(made.weight_bytes))
    where.add_row("cache, shared by all agents", show_bytes(made.shared))
    where.add_row(
        f"cache, own part of {made.agents} agent{'s' * (made.agents > 1)}", show_bytes(made.agents * made.private)
    )
    where.add_row("total", show_bytes(made.total))
    where.add_row("usable memory", show_bytes(made.machine.usable))
    out = results()
    tell(f"{model}, {made.tokens:,} tokens, {made.kv} cache: {made.bytes_per_token:,.0f} bytes per token")
    tell("")
    for part in (cache, other, where):
        out.print(part)
        out.print()
    tell(_verdict(made))


def _verdict(made: Plan) -> str:
    if not made.fits:
        return f"does not fit: {show_bytes(-made.remaining)} too much"
    return (
        f"fits: {show_bytes(made.remaining)} left; at most {made.agents_fit:,} agents on this context, or "
        f"{made.contexts_fit:,} contexts with nothing in common"
    )
