"""Rotary settings in their spellings: `rope_scaling`, transformers' `rope_parameters` (flat, or nested under "main" for
the window-only layers and "compress" for the others), and the official inference code's names.

What comes out is what transformers 5.23 and the official code compute. The network turns the same channels in all
layers, without a magnitude factor, plainly in window-only layers and plainly or by YaRN in the others; every other
setting is a problem that names it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from foveal.config.model import YarnScaling, is_positive, is_whole

_INFERENCE = ("rope_factor", "original_seq_len")
_OFFICIAL_FRACTION = 64 / 512  # transformers' default of `partial_rotary_factor`
_DEFAULT_THETA = 10000.0


def rotary_fields(given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """`rope_scaling`, and `rope_theta`, `compress_rope_theta` and `qk_rope_head_dim` where they are spelled otherwise.

    `given` is under Hugging Face names; what is wrong is added to `problems`.
    """
    where = "rope_parameters" if given.get("rope_scaling") in (None, {}) else "rope_scaling"
    raw = _or(given.get(where), {})
    if not isinstance(raw, Mapping):
        problems.append(f"config field {where!r} is {raw!r}; it must be an object")
        raw = {}
    if any(given.get(name) is not None for name in _INFERENCE):
        if raw:
            problems.append(f"config field {where!r} stands beside 'rope_factor' or 'original_seq_len'; give one")
        return {"rope_scaling": _inference_yarn(given)} | _channels(given, where, {}, problems)
    nested = [name for name in ("main", "compress") if name in raw]
    if not nested:
        return _flat(given, where, raw, problems)
    if any(not isinstance(raw.get(name), Mapping) for name in ("main", "compress")):
        problems.append(f"config field {where!r} must hold both 'main' and 'compress', each an object")
        return {"rope_scaling": None}
    return _nested(given, where, raw["main"], raw["compress"], problems)


def _inference_yarn(given: Mapping[str, Any]) -> YarnScaling | None:
    if given.get("original_seq_len") == 0:  # the official code's way to say: no YaRN
        return None
    names = {"factor": "rope_factor", "original_max_position_embeddings": "original_seq_len"}
    found = {key: given.get(name) for key, name in names.items()}
    found |= {key: given.get(key) for key in ("beta_fast", "beta_slow")}
    return YarnScaling(**{key: value for key, value in found.items() if value is not None})


def _flat(given: Mapping[str, Any], where: str, raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """One set of settings: that of the compressed layers."""
    if _kind(raw) == "yarn":
        for name in ("mscale", "mscale_all_dim"):
            if raw.get(name):
                problems.append(f"config field {where!r} has {name} {raw[name]!r}; it must be absent")
        # transformers puts 1.0 where the key is missing, and not where it is null.
        _check_magnitude(where, "", _magnitude(raw) if "attention_factor" in raw else 1.0, problems)
    top = given.get("original_max_position_embeddings")
    if top is not None and top != raw.get("original_max_position_embeddings"):
        problems.append(f"config field 'original_max_position_embeddings' is {top!r}; it must be as {where!r} has it")
    thetas = (given.get("rope_theta", _DEFAULT_THETA), given.get("compress_rope_theta", 160000.0))
    if raw.get("rope_theta") is not None and raw["rope_theta"] not in thetas:
        problems.append(
            f"config field {where!r} has rope_theta {raw['rope_theta']!r}; it must be absent, or what 'rope_theta' or "
            f"'compress_rope_theta' is"
        )
    fractions = {"partial_rotary_factor": raw.get("partial_rotary_factor")}
    return {"rope_scaling": _yarn(where, "", raw, problems)} | _channels(given, where, fractions, problems)


def _nested(
    given: Mapping[str, Any], where: str, main: Mapping[str, Any], compress: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """Two sets of settings, which win over the fields beside them."""
    if _kind(main) != "default":
        problems.append(f"config field {where!r} has main.rope_type {_kind(main)!r}; it must be 'default'")
    if _kind(compress) == "yarn":
        _check_magnitude(where, "compress.", _magnitude(compress), problems)
    theta = given.get("rope_theta") or _DEFAULT_THETA
    values: dict[str, Any] = {
        "rope_scaling": _yarn(where, "compress.", compress, problems),
        "rope_theta": _or(main.get("rope_theta"), theta),
        # transformers takes the main base where this one is not said.
        "compress_rope_theta": _or(compress.get("rope_theta"), theta),
    }
    fractions = {f"{name}.{_FRACTION}": _fraction(given, one) for name, one in (("main", main), ("compress", compress))}
    return values | _channels(given, where, fractions, problems)


_FRACTION = "partial_rotary_factor"
_TYPES = ("rope_type", "type")


def _or(value: Any, other: Any) -> Any:
    return other if value is None else value


def _kind(raw: Mapping[str, Any]) -> Any:
    return raw.get("rope_type") or raw.get("type") or "default"


def _yarn(where: str, prefix: str, raw: Mapping[str, Any], problems: list[str]) -> YarnScaling | None:
    kind = _kind(raw)
    if kind == "default":
        stray = sorted(set(map(str, raw)) - {"rope_theta", _FRACTION}) if raw.keys().isdisjoint(_TYPES) else ()
        if stray:
            problems.append(f"config field {where!r} has {prefix}{stray[0]} but no {prefix}rope_type; write 'yarn'")
        return None
    if kind != "yarn":
        problems.append(f"config field {where!r} has {prefix}type {kind!r}; it must be 'yarn', or absent")
        return None
    if raw.get("truncate") not in (None, True):
        problems.append(f"config field {where!r} has {prefix}truncate {raw['truncate']!r}; it must be True or absent")
    needed = ("factor", "original_max_position_embeddings")
    lacking = [name for name in needed if raw.get(name) is None]
    if lacking:
        problems.append(f"config field {where!r} has {prefix}type 'yarn' without {' and '.join(lacking)}")
    names = {field.name for field in dataclasses.fields(YarnScaling)}
    return YarnScaling(**{key: value for key, value in raw.items() if key in names and value is not None})


def _magnitude(raw: Mapping[str, Any]) -> Any:
    """The factor on cosine and sine that transformers takes for nested YaRN settings."""
    given, factor = raw.get("attention_factor"), raw.get("factor")
    if given is not None or not is_positive(factor):
        return _or(given, 1.0)
    mscale, all_dim = raw.get("mscale"), raw.get("mscale_all_dim")
    if not mscale or not all_dim:
        return _mscale(factor, 1.0)
    if not is_positive(mscale) or not is_positive(all_dim):
        return f"of mscale {mscale!r} and mscale_all_dim {all_dim!r}"
    return _mscale(factor, mscale) / _mscale(factor, all_dim)


def _mscale(factor: Any, mscale: Any) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _check_magnitude(where: str, prefix: str, found: Any, problems: list[str]) -> None:
    if not is_positive(found) or found != 1:
        problems.append(
            f"config field {where!r} has {prefix}attention_factor {found!r} (given, or what transformers takes without "
            f"it from factor and mscale); it must be 1.0, as in DeepSeek-V4's own code: write it there if it was meant"
        )


def _fraction(given: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """The share of a head that turns, as transformers finds it for one set of nested settings."""
    if settings.get(_FRACTION) is not None:
        return settings[_FRACTION]
    if given.get(_FRACTION) is not None:
        return given[_FRACTION]
    if _kind(settings) == "default":
        return 1.0
    channels, width = given.get("qk_rope_head_dim"), given.get("head_dim")
    return channels / width if is_positive(channels) and is_positive(width) else _OFFICIAL_FRACTION


def _channels(
    given: Mapping[str, Any], where: str, fractions: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """`qk_rope_head_dim`, which all that is said of it must agree on. `fractions`: shares of a head inside `where`."""
    width, channels = given.get("head_dim"), given.get("qk_rope_head_dim")
    said = {f"config field {_FRACTION!r} is": given.get(_FRACTION)}
    said |= {f"config field {where!r} has {name}": fraction for name, fraction in fractions.items()}
    if not is_whole(width):
        return {}
    for what, fraction in said.items():
        if fraction is None:
            continue
        if not is_positive(fraction) or fraction > 1:
            problems.append(f"{what} {fraction!r}; it must be a number over 0, at most 1")
            continue
        turning = int(width * fraction)  # as transformers rounds it
        channels = _or(channels, turning)
        if turning != channels:
            problems.append(
                f"{what} {fraction!r} (where it is not given, what transformers takes), which turns {turning} of "
                f"{width} channels; it must be what turns {channels}, like the rest of the config"
            )
    return {} if channels is None else {"qk_rope_head_dim": channels}
