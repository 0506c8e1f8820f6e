"""`foveal plan`: what a context costs, before anything is downloaded or run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from foveal.cli.completing import presets
from foveal.cli.options import json_option
from foveal.cli.output import UserError, print_json, show_bytes, tell
from foveal.config import PRESETS, ModelConfig

if TYPE_CHECKING:
    from foveal.cache.layout import CacheBytes
    from foveal.plan import Plan


@click.command("plan")
@click.option(
    "--model",
    default="flash",
    shell_complete=presets,
    metavar="MODEL",
    help="A preset (flash, pro, nano, ...) or a model directory.",
)
@click.option("--context", default="1M", metavar="TOKENS", help="Tokens of context: 128k, 1M (1,048,576) or a number.")
@click.option(
    "--agents", type=click.IntRange(1, 1 << 40), default=1, metavar="N", help="Agents that share the context."
)
@click.option("--agent-tokens", default="0", metavar="TOKENS", help="Tokens of its own that each agent adds.")
@click.option(
    "--kv",
    default="bf16",
    metavar="FORMAT",
    help="How the cache is stored: bf16, fp8, or fp4 (FP8 entries, FP4 index keys: what Foveal's memories have).",
)
@click.option(
    "--machine", default="this", metavar="MACHINE", help="Machine it has to fit: 'this' one, or 8xB200, mac-256, ..."
)
@json_option
def command(model: str, context: str, agents: int, agent_tokens: str, kv: str, machine: str, json: bool) -> None:
    """Compute weights and cache for a model, context and machine."""
    from foveal.plan import make_plan, parse_tokens

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
    from foveal.engine import own_model

    file = Path(model) / "config.json"
    if not file.is_file() and (own := own_model(model)) is not None:
        file = own / "config.json"
    if not file.is_file():
        raise UserError(f"{model!r} is neither a preset ({', '.join(PRESETS)}) nor a folder with a config.json")
    return ModelConfig.from_file(file)


def _print(model: str, made: Plan) -> None:
    from foveal.cli.render import print_blocks, table

    other = table("the same tokens in", "bytes>", "times as much>")
    for rival in made.rivals:
        other.add_row(rival.name, show_bytes(rival.nbytes), f"{rival.nbytes / max(1, made.context.entries):.2f}")
    tell(f"{model}, {made.tokens:,} tokens, {made.kv} cache: {made.bytes_per_token:,.0f} bytes per token")
    tell("")
    print_blocks(
        table("one context", "bytes>", rows=_kinds(made.context)),
        other,
        table(f"on {made.machine.name}", "bytes>", rows=_totals(made)),
    )
    tell(_verdict(made))


def _kinds(context: CacheBytes) -> list[tuple[str, str]]:
    rows = (
        ("CSA entries", context.csa_entries),
        ("index keys", context.index_keys),
        ("HCA entries", context.hca_entries),
        ("  all entries", context.entries),
        ("raw window", context.window),
        ("open windows", context.open_windows),
        ("token ids", context.tokens),
    )
    return [(name, show_bytes(size)) for name, size in rows]


def _totals(made: Plan) -> list[tuple[str, str]]:
    own = f"cache, own part of {made.agents} agent{'s' * (made.agents > 1)}"
    rows = (
        ("weights", made.weight_bytes),
        ("cache, shared by all agents", made.shared),
        (own, made.agents * made.private),
        ("total", made.total),
        ("usable memory", made.machine.usable),
    )
    return [(name, show_bytes(size)) for name, size in rows]


def _verdict(made: Plan) -> str:
    if not made.fits:
        return f"does not fit: {show_bytes(-made.remaining)} too much"
    return (
        f"fits: {show_bytes(made.remaining)} left; at most {made.agents_fit:,} agents on this context, or "
        f"{made.contexts_fit:,} contexts with nothing in common"
    )
