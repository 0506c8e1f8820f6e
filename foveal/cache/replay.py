"""The tail at any position, computed again from pages.

Pages hold all entries of the past, so only the raw windows and open rows are missing, and these reach back over few
tokens: a layer's last window needs what the layer before gave over one window more, so that a window's length of tokens
for each layer is enough, however long the past is (the report's "zero SWA caching"). The run begins with blank windows.
What its first tokens leave is wrong, and goes: wrong rows slide out of the windows, and the entries of each step are
replaced by the true ones before the next step looks at them.

That gives the very bits of a run from the beginning only where a token's result does not depend on what else is in its
pass, nor on how a prompt is cut (`foveal.batch.BatchEngine.grain`).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from foveal.cache.image import SequenceImage
from foveal.cache.layout import CacheLayout
from foveal.cache.sequence import Sequence
from foveal.cache.tail import Tail
from foveal.config import CSA_RATIO, HCA_RATIO, PAGE_TOKENS, ModelConfig
from foveal.formats import Array

STEP = HCA_RATIO
"""Tokens after which entries are replaced: a new one of a whole HCA window is seen by its own last token only."""

Restore = Callable[[SequenceImage], Sequence]
Run = Callable[[Sequence, Seq[int]], object]
OnReplay = Callable[[int, int], None]
"""Called with the tokens that were run again, and all there are to run."""


def replay_start(config: ModelConfig, length: int) -> int:
    """Where a replay begins that ends at `length`: a multiple of `STEP`, or 0."""
    past = config.sliding_window - 1
    reach = max(past, HCA_RATIO - 1)  # of the last layer's own rows: window and open rows
    for ratio in config.compress_ratios[: config.num_hidden_layers - 1]:
        # The oldest row behind an entry that a token may see while it is new; a CSA entry has those before its own too
        entry = STEP - 1 + (CSA_RATIO if ratio == CSA_RATIO else 0) if ratio else 0
        reach += max(past, entry)
    return max(0, length - reach) // STEP * STEP


def replay(
    restore: Restore,
    run: Run,
    layout: CacheLayout,
    tokens: Array,
    pages: Seq[Array],
    length: int,
    *,
    progress: OnReplay | None = None,
) -> Sequence:
    """A sequence over the first `length` of `tokens`, int32, whose full pages are those of `pages`.

    `pages` are the bytes of all pages up to `length`, uint8 [page_bytes]; the last may reach further. They are shared,
    not copied, but for one that is cut. `restore` makes a sequence of an image (keeping no tails on its own), `run`
    puts tokens into one; `progress` is called after every step. Raises what they raise; nothing is held then.
    """
    start = replay_start(layout.config, length)
    full, filled = divmod(start, PAGE_TOKENS)
    image = SequenceImage(
        length=start,
        tokens=tokens[:start],
        pages=list(pages[:full]),
        open_page=pages[full] if filled else None,
        tail=Tail.blank(layout, start).tensors(),
    )
    sequence = restore(image)
    try:
        sequence.drop_tails()  # a blank one is no place to go back to
        while (begin := sequence.length) < length:
            end = min(begin + STEP, length)
            run(sequence, tokens[begin:end].tolist())
            number = begin // PAGE_TOKENS
            sequence.put_page(number, pages[number])
            if progress is not None:
                progress(sequence.length - start, length - start)
    except BaseException:
        sequence.free()
        raise
    return sequence
