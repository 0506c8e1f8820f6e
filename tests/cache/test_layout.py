"""Bytes: every published figure, the layout of a page, and plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cache_support import CONFIG, FORMATS
from hypothesis import given
from hypothesis import strategies as st

from foveal.cache import CacheError, CacheFormat, CacheFull, CacheLayout, PagePool
from foveal.cache.codec import IndexFp8
from foveal.cache.contract import Part
from foveal.config import preset
from foveal.plan.machines import MACHINE_NAMES, Machine, machine, this_machine
from foveal.plan.plan import PLAN_FORMATS, PlanError, make_plan, parse_tokens

GIB = 2**30
MILLION = 2**20
FLASH, PRO = preset("flash"), preset("pro")


# ---------------------------------------------------------------------- layout


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("config", [CONFIG, FLASH, PRO, preset("nano"), preset("nano-bench")])
def test_regions_cover_a_page_once(config: object, format: CacheFormat) -> None:
    layout = CacheLayout(config, format)  # type: ignore[arg-type]
    regions = sorted(layout.regions.values(), key=lambda region: region.offset)
    end = 0
    for region in regions:
        assert region.offset == end
        assert region.count == 256 // layout.config.compress_ratios[region.layer]
        end += region.nbytes
        if layout.config.compress_ratios[region.layer] == 4:
            assert region.offset % 64 == 0
    assert end == layout.page_bytes


@pytest.mark.parametrize(("kv", "entry", "key"), [("bf16", 1024, 256), ("fp8", 584, 132), ("fp4", 584, 68)])
def test_bytes_of_an_entry(kv: str, entry: int, key: int) -> None:
    layout = CacheLayout(FLASH, PLAN_FORMATS[kv])
    assert (layout.entry_bytes(2, Part.MAIN), layout.entry_bytes(2, Part.INDEX)) == (entry, key)
    assert layout.entry_bytes(3, Part.MAIN) == entry
    with pytest.raises(KeyError, match="layer 3"):
        layout.entry_bytes(3, Part.INDEX)


@pytest.mark.parametrize(
    ("config", "kv", "gib"),
    [
        (PRO, "bf16", "9.62"),
        (PRO, "bf16", "9.625"),
        (PRO, "fp8", "5.387"),
        (PRO, "fp4", "4.918"),
        (FLASH, "bf16", "6.72"),
        (FLASH, "fp8", "3.763"),
        (FLASH, "fp4", "3.435"),
    ],
)
def test_published_cache_sizes_at_a_million_tokens(config: object, kv: str, gib: str) -> None:
    plan = make_plan(config, MILLION, kv=kv, on="this")  # type: ignore[arg-type]
    assert f"{plan.published / GIB:.{len(gib) - 2}f}" == gib
    assert abs(plan.context.total - plan.published) < 0.02 * plan.published


def test_published_parts_of_pro() -> None:
    context = CacheLayout(PRO, PLAN_FORMATS["bf16"]).bytes_at(MILLION)
    assert (context.csa_entries + context.index_keys) / GIB == 9.375
    assert f"{context.hca_entries / GIB:.3f}" == "0.242"
    assert context.window == 61 * 127 * 1024
    assert f"{context.entries / GIB:.3f}" == "9.617"
    assert context.tokens == 4 * MILLION


def test_published_bytes_per_token() -> None:
    assert int(CacheLayout(FLASH, PLAN_FORMATS["fp4"]).bytes_per_token) == 3514
    for name in PLAN_FORMATS:
        layout = CacheLayout(PRO, PLAN_FORMATS[name])
        assert layout.bytes_at(MILLION).entries == 4096 * layout.page_bytes


def test_compressor_state_is_the_official_one() -> None:
    """CSA 64 KiB + 16 KiB per layer for 8 rows, HCA 512 KiB for 128; we keep one row less, never a complete window."""
    layout = CacheLayout(FLASH, PLAN_FORMATS["bf16"])
    csa, hca = 21 * (65536 + 16384), 20 * 524288
    assert layout.open_bytes(127) == csa * 7 // 8 + hca * 127 // 128
    assert layout.open_bytes(128) == csa // 2
    assert layout.tail_bytes(128) == layout.open_bytes(128) + 43 * 127 * 1024
    assert layout.tail_bytes(128, mtp=True) - layout.tail_bytes(128) == 127 * 1024


@given(st.integers(0, 2000), st.integers(0, 300))
def test_bytes_only_grow_by_entries(tokens: int, more: int) -> None:
    layout = CacheLayout(CONFIG)
    before, after = layout.bytes_at(tokens), layout.bytes_at(tokens + more)
    assert 0 <= after.entries - before.entries <= (more // 256 + 2) * layout.page_bytes
    assert after.total == sum(after.to_dict().values())


def test_formats_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="kv is 'fp4'; it must be one of fp32, bf16, fp8"):
        CacheFormat(kv="fp4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="index is 'int8'"):
        CacheFormat(index="int8")  # type: ignore[arg-type]


def test_index_fp8_is_close_and_keeps_zero() -> None:
    dice = np.random.default_rng(0)
    keys = dice.standard_normal((50, 128), dtype=np.float32) * np.logspace(-20, 20, 50, dtype=np.float32)[:, None]
    keys[7] = 0
    codec = IndexFp8(128)
    rows = codec.encode(keys)
    back = codec.decode(rows, np.float32)
    assert rows.shape == (50, 132) and rows.dtype == np.uint8
    assert np.array_equal(back[7], keys[7])
    peak = np.abs(keys).max(-1, keepdims=True)
    assert bool((np.abs(back - keys) <= np.maximum(np.abs(keys) / 16, peak / 448 / 512)).all())
    assert np.allclose(np.abs(back).max(-1, keepdims=True), peak)


# ---------------------------------------------------------------------- pool


def test_a_pool_counts_and_refuses() -> None:
    pool = PagePool(CacheLayout(CONFIG), limit=3)
    pages = pool.acquire(2)
    assert (pool.live, pool.free, pool.nbytes) == (2, 1, 2 * pool.layout.page_bytes)
    assert all(not page.data.any() for page in pages)
    with pytest.raises(CacheFull, match="2 more page"):
        pool.acquire(2)
    assert pool.live == 2
    pool.share(pages[:1])
    pool.check_integrity([pages, pages[:1]])
    with pytest.raises(CacheError, match="2 references but 1 holders"):
        pool.check_integrity([pages])
    pool.release(pages)
    assert pool.live == 1
    pool.release(pages[:1])
    assert pool.live == 0
    with pytest.raises(CacheError, match="more often"):
        pool.release(pages[:1])
    with pytest.raises(CacheError, match="0 references but 1 holders"):
        pool.check_integrity([pages[:1]])
    with pytest.raises(ValueError, match="at least 1"):
        PagePool(pool.layout, limit=0)


def test_a_sealed_page_cannot_be_written() -> None:
    pool = PagePool(CacheLayout(CONFIG))
    page = pool.acquire()[0]
    region = pool.layout.region(1, Part.MAIN)
    row = np.ones((1, region.entry_bytes), dtype=np.uint8)
    page.write(region, 63, row)
    with pytest.raises(CacheError, match="do not fit"):
        page.write(region, 64, row)
    with pytest.raises(CacheError, match="256 int32"):
        page.seal(np.zeros(255, dtype=np.int32))
    page.seal(np.zeros(256, dtype=np.int32))
    for change in (
        lambda: page.write(region, 0, row),
        lambda: page.clear_after(pool.layout, 4),
        lambda: page.fill(np.zeros_like(page.data)),
        lambda: page.seal(np.zeros(256, dtype=np.int32)),
    ):
        with pytest.raises(CacheError, match="never changes"):
            change()


def test_pages_that_do_not_fit_are_not_adopted() -> None:
    pool = PagePool(CacheLayout(CONFIG))
    ids, size = np.zeros(256, dtype=np.int32), pool.layout.page_bytes
    long = np.zeros(2 * size, dtype=np.uint8)
    for data in (np.zeros(size), long[1:], long[::2]):
        with pytest.raises(CacheError, match="contiguous uint8"):
            pool.adopt(data, ids)
    open_page = pool.acquire()[0]
    with pytest.raises(CacheError, match="other token ids"):
        pool.adopt(open_page.data, ids)
    assert pool.live == 1


# ---------------------------------------------------------------------- plan


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("1M", 2**20),
        ("128k", 2**17),
        ("4096", 4096),
        ("1.5m", 1572864),
        ("1_000", 1000),
        ("1,000", 1000),
        (" 2K ", 2048),
    ],
)
def test_parse_tokens(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "M", "0", "-5", "1.5", "3x", "1e6", "k4", "0.0001k"])
def test_parse_tokens_refuses(text: str) -> None:
    with pytest.raises(PlanError, match="not a number of tokens"):
        parse_tokens(text)


def test_plan_of_pro_beside_its_rivals() -> None:
    plan = make_plan(PRO, MILLION, on="8xH200")
    v32, gqa = plan.rivals
    assert v32.nbytes / GIB == 83.875
    assert f"{v32.nbytes / plan.published:.1f}" == "8.7"
    assert gqa.nbytes / GIB == 244
    assert f"{make_plan(PRO, MILLION, kv='fp4', on='this').published / gqa.nbytes:.1%}" == "2.0%"
    assert f"{plan.weight_bytes / GIB:.2f}" == "805.32"
    assert f"{plan.parameters / 1e9:.1f} {plan.active / 1e9:.2f}" == "1573.0 48.85"
    assert plan.fits and plan.contexts_fit >= 8


@pytest.mark.parametrize(("config", "percent"), [(PRO, "10.5%"), (FLASH, "7.3%")])
def test_published_shares_of_v32_in_low_precision(config: object, percent: str) -> None:
    plan = make_plan(config, MILLION, kv="fp4", on="this")  # type: ignore[arg-type]
    assert f"{plan.rivals[0].nbytes / GIB:.2f}" == "46.94"
    assert f"{plan.published / plan.rivals[0].nbytes:.1%}" == percent


def test_plan_of_flash() -> None:
    plan = make_plan(FLASH, MILLION, kv="fp4", on="mac-256")
    assert plan.weight_bytes == 159_609_485_896
    assert int(plan.bytes_per_token) == 3514
    assert plan.fits and plan.remaining == plan.machine.usable - plan.total
    assert not make_plan(FLASH, MILLION, kv="fp4", on="rtx-5090").fits


def test_agents_share_the_context() -> None:
    one, many = (make_plan(FLASH, MILLION, agents=n, on="8xB200") for n in (1, 100))
    assert many.cache_bytes - one.cache_bytes == 99 * one.private
    assert one.private < one.shared / 100
    own = make_plan(FLASH, MILLION, agents=100, agent_tokens=1000, on="8xB200")
    assert own.private - many.private == 4 * CacheLayout(FLASH).page_bytes
    layout = CacheLayout(FLASH)
    assert all(layout.tail_bytes(MILLION + i, mtp=True) + layout.page_bytes <= one.private for i in range(256))


@given(st.integers(1, 3 * MILLION), st.integers(1, 1000), st.sampled_from(tuple(PLAN_FORMATS)), st.integers(1, 10**13))
def test_what_fits_is_consistent(tokens: int, agents: int, kv: str, usable: int) -> None:
    plan = make_plan(preset("nano"), tokens, kv=kv, agents=agents, on=Machine("box", usable, usable))
    assert plan.fits == (plan.remaining >= 0) == (plan.agents_fit >= agents)
    assert plan.contexts_fit <= plan.agents_fit
    bigger = replace(plan, agents=plan.agents_fit + 1)
    assert not bigger.fits
    assert json.loads(json.dumps(plan.to_dict()))["total"] == plan.total


def test_plan_refuses_what_does_not_exist() -> None:
    with pytest.raises(PlanError, match="no cache format 'int3'; there are bf16, fp8, fp4"):
        make_plan(FLASH, 10, kv="int3")
    with pytest.raises(PlanError, match="no machine 'abacus'; there are 8xB200"):
        make_plan(FLASH, 10, on="abacus")
    with pytest.raises(PlanError, match="at least 1 token"):
        make_plan(FLASH, 0)


def test_named_machines() -> None:
    for name in MACHINE_NAMES:
        found = machine(name.upper())
        assert found.name == name and 0 < found.usable <= found.memory


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_this_machine_heeds_cgroup_limits(tmp_path: Path) -> None:
    _write(tmp_path / "proc/meminfo", "MemTotal: 8000 kB\nMemFree: 1 kB\nMemAvailable: 6000 kB\n")
    assert this_machine(tmp_path) == Machine("this", 8000 * 1024, 6000 * 1024)
    _write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    cgroup = tmp_path / "sys/fs/cgroup"
    _write(cgroup / "a/b/memory.max", "max\n")
    _write(cgroup / "a/memory.max", "4000000\n")
    _write(cgroup / "a/memory.current", "3000000\n")
    _write(cgroup / "a/memory.stat", "anon 5\ninactive_file 500000\n")
    assert this_machine(tmp_path) == Machine("this", 4000000, 1500000)
    _write(tmp_path / "proc/self/cgroup", "4:memory:/c\n")
    _write(cgroup / "memory/c/memory.limit_in_bytes", "9223372036854771712\n")
    assert this_machine(tmp_path).memory == 8000 * 1024
    _write(cgroup / "memory/c/memory.limit_in_bytes", "1000\n")
    _write(cgroup / "memory/c/memory.usage_in_bytes", "5000\n")
    assert this_machine(tmp_path) == Machine("this", 1000, 0)
    assert this_machine(tmp_path / "elsewhere").memory > 0
