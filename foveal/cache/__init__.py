"""The compressed KV cache in memory: pages, tail, sequence.

The contract
============

A **sequence** at length t is

* ``t // 256`` full **pages**, immutable, shared by reference count between forks (in blocks of 256, so that a fork
  costs the same at any length);
* one **open page** of its own when ``t % 256 != 0``: the entries of the last ``t % 256`` tokens, zeros behind them;
* a **tail**: for every layer (and MTP block) the raw KV rows of the last min(t, W - 1) positions, and for every
  compressor its open rows in fp32. Its arrays are never written into: a step replaces them;
* the token ids: 256 with each full page, the rest beside the open page.

Nothing else is state. How many entries there are, which page and slot an entry lies in, how many rows are open: all of
that is arithmetic on t (`CacheLayout`, `ModelConfig.entries_after`, `open_row_count`).

**A step** is what `foveal.cache.contract.SequenceState` says: for every layer `window`, `open_rows`, `append`,
`entries`; then `advance` once. The first `append` acquires the pages the step will need (`CacheFull` comes here, before
the work). New entries go straight into free slots behind what t covers, where nobody but this step looks; `advance`
makes them the past by moving t. So a step that fails anywhere leaves the sequence as it was; the next `append` of a
layer already appended, or `rollback`, or any of fork, truncate, export, keep_tail and free, drops what was staged.

**Entries come back through their codec**, those of the current step too: what a chunk sees of its own entries is what
later chunks see, so cutting a prefill differently changes nothing.

**Reading.** `entries` gives all of a compressor's entries decoded in the sequence's compute dtype, valid until the next
`append`. By default they come out of a view that grows with the sequence and decodes each entry once; views are
derived, belong to one sequence, and `drop_views` gives their memory back (an idle sequence should). `gather` reads
only the entries asked for. `table` gives the pages themselves, for kernels that read in place.

**Going back.** `truncate(n)` returns to the nearest kept tail at or before n and hands back the tokens from there to n:
run them and the state is the one it was at n. Tails are kept by `keep_tail`, every
`tail_every` tokens, where a sequence was restored, and always at 0. Where no tail is near,
`foveal.cache.replay` makes one from the pages, running no more than a window of tokens for each layer.

**Saving.** `export` gives the pages themselves (no copy), a copy of the open page, and the tail as named arrays;
`restore` takes the same and is exact bit for bit. Restoring over memory that already is a page shares that page.

**An MTP block** may run or not, and may lag behind the main layers; its window holds the rows it was given. A step in
which it was not run empties its window: a window with a hole in it would be silently wrong.
"""

from typing import TYPE_CHECKING

from foveal import lazily

if TYPE_CHECKING:
    from foveal.cache.contract import LayerUpdate as LayerUpdate
    from foveal.cache.contract import OpenRows as OpenRows
    from foveal.cache.contract import Part as Part
    from foveal.cache.contract import Segment as Segment
    from foveal.cache.contract import SequenceState as SequenceState
    from foveal.cache.errors import CacheError as CacheError
    from foveal.cache.errors import CacheFull as CacheFull
    from foveal.cache.errors import ImageError as ImageError
    from foveal.cache.errors import SequenceFreed as SequenceFreed
    from foveal.cache.image import SequenceImage as SequenceImage
    from foveal.cache.layout import CacheBytes as CacheBytes
    from foveal.cache.layout import CacheFormat as CacheFormat
    from foveal.cache.layout import CacheLayout as CacheLayout
    from foveal.cache.layout import Region as Region
    from foveal.cache.memory import HostMemory as HostMemory
    from foveal.cache.memory import PageBytes as PageBytes
    from foveal.cache.memory import PageMemory as PageMemory
    from foveal.cache.page import Page as Page
    from foveal.cache.page_list import PageList as PageList
    from foveal.cache.pager import LimitTooSmall as LimitTooSmall
    from foveal.cache.pager import Pager as Pager
    from foveal.cache.pool import PagePool as PagePool
    from foveal.cache.sequence import Sequence as Sequence
    from foveal.cache.tail import LaterTail as LaterTail
    from foveal.cache.tail import Tail as Tail
    from foveal.cache.view import EntryTable as EntryTable
    from foveal.cache.work import InWork as InWork
    from foveal.cache.work import Keeper as Keeper

_HOMES = {
    "CacheError": "foveal.cache.errors",
    "CacheFull": "foveal.cache.errors",
    "ImageError": "foveal.cache.errors",
    "SequenceFreed": "foveal.cache.errors",
    "SequenceImage": "foveal.cache.image",
    "CacheBytes": "foveal.cache.layout",
    "CacheFormat": "foveal.cache.layout",
    "CacheLayout": "foveal.cache.layout",
    "Region": "foveal.cache.layout",
    "Page": "foveal.cache.page",
    "PageList": "foveal.cache.page_list",
    "LimitTooSmall": "foveal.cache.pager",
    "Pager": "foveal.cache.pager",
    "PagePool": "foveal.cache.pool",
    "Sequence": "foveal.cache.sequence",
    "LaterTail": "foveal.cache.tail",
    "Tail": "foveal.cache.tail",
    "EntryTable": "foveal.cache.view",
    "HostMemory": "foveal.cache.memory",
    "PageBytes": "foveal.cache.memory",
    "PageMemory": "foveal.cache.memory",
    "InWork": "foveal.cache.work",
    "Keeper": "foveal.cache.work",
    "LayerUpdate": "foveal.cache.contract",
    "OpenRows": "foveal.cache.contract",
    "Part": "foveal.cache.contract",
    "Segment": "foveal.cache.contract",
    "SequenceState": "foveal.cache.contract",
}

__all__ = [*_HOMES]
__getattr__ = lazily(__name__, _HOMES)
