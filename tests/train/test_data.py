"""The sequence composer: a recall section is what it says it is, and the same every time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.train.data import Composer, DataError, Recipe, TokenStore, TokenTable

VOCABULARY = 300
BLANK = 2
NEWLINE = 10


def write_store(folder: Path, documents: list[np.ndarray], name: str = "train") -> Path:
    tokens = np.concatenate(documents).astype(np.uint16)
    tokens.tofile(folder / f"{name}.bin")
    offsets = np.cumsum([0] + [len(d) for d in documents]).astype(np.int64)
    np.save(folder / f"{name}.idx.npy", offsets)
    return folder / name


def documents(seed: int = 0, count: int = 40) -> list[np.ndarray]:
    """Lines of 3 to 14 tokens, some of which are repeated often, as in code."""
    rng = np.random.default_rng(seed)
    common = [np.append(rng.integers(11, VOCABULARY, 4), NEWLINE) for _ in range(5)]
    made = []
    for _ in range(count):
        lines = []
        for _ in range(int(rng.integers(20, 80))):
            if rng.random() < 0.3:
                lines.append(common[int(rng.integers(len(common)))])
            else:
                lines.append(np.append(rng.integers(11, VOCABULARY, int(rng.integers(2, 14))), NEWLINE))
        made.append(np.concatenate(lines))
    return made


def table() -> TokenTable:
    line_end = np.zeros(VOCABULARY, dtype=np.bool_)
    line_end[NEWLINE] = True
    return TokenTable(line_end=line_end, ordinary=np.arange(10, VOCABULARY), newline=NEWLINE, blank=BLANK)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return TokenStore(write_store(tmp_path_factory.mktemp("store"), documents()))


@given(step=st.integers(0, 10_000), length=st.sampled_from([64, 128, 513, 1024]), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_section_repeats_an_earlier_span(store: TokenStore, step: int, length: int, seed: int) -> None:
    recipe = Recipe()
    sample = Composer(store, table(), recipe, seed=seed).sample(step, length)
    whole = torch.cat([sample.tokens, sample.targets[-1:]])
    assert len(sample.tokens) == len(sample.targets) == len(sample.weights) == len(sample.is_recall) == length
    assert torch.equal(sample.tokens[1:], sample.targets[:-1])
    inside = torch.zeros(length + 1, dtype=torch.bool)
    for section in sample.sections:
        assert section.source + section.length <= section.start
        span = whole[section.source : section.source + section.length]
        assert torch.equal(whole[section.start : section.start + section.length], span)
        inside[section.start + section.cue : section.start + section.length] = True
    # Asked for is only what lies in a section, past its cue; and what is asked for weighs more.
    assert not bool((sample.is_recall & ~inside[1:]).any())
    assert bool((sample.weights[sample.is_recall] == recipe.recall_weight).all())
    assert set(sample.weights[~sample.is_recall].tolist()) <= {1.0, recipe.switch_weight}


@given(step=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_blanks_stand_before_a_cue_and_are_not_learned(store: TokenStore, step: int) -> None:
    sample = Composer(store, table(), Recipe(blank_share=1.0, blanks=7), seed=1).sample(step, 512)
    assert sample.sections
    for section in sample.sections:
        blanks = slice(section.start - 7, section.start)
        assert (sample.tokens[blanks] == BLANK).all()
        assert (sample.weights[section.start - 8 : section.start - 1] == 0).all()


@given(step=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_wrong_tokens_are_shown_and_never_asked_for(store: TokenStore, step: int) -> None:
    right = Composer(store, table(), Recipe(), seed=2).sample(step, 512)
    assert torch.equal(right.tokens[1:], right.targets[:-1])
    sample = Composer(store, table(), Recipe(wrong_share=0.5), seed=2).sample(step, 512)
    differing = (sample.tokens[1:] != sample.targets[:-1]).nonzero().squeeze(1)
    assert bool(sample.is_recall[differing].all()), "only asked-for tokens are shown wrong"
    for section in sample.sections:
        span = sample.targets[section.source - 1 : section.source + section.length - 1]
        stop = min(section.start + section.length - 1, 512)
        assert section.source == 0 or torch.equal(
            sample.targets[section.start - 1 : stop], span[: stop - section.start + 1]
        )


@given(step=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_what_is_asked_for_is_determined_by_the_section_so_far(store: TokenStore, step: int) -> None:
    """Everywhere the section's tokens so far stood before the section, the same token followed."""
    sample = Composer(store, table(), seed=1).sample(step, 700)
    whole = torch.cat([sample.tokens, sample.targets[-1:]]).tolist()
    for section in sample.sections:
        for k in range(1, section.length):
            at = section.start + k
            if not sample.is_recall[at - 1]:
                continue
            shown = whole[section.start : at]
            following = {
                whole[p + k] for p in range(section.start - k) if whole[p] == shown[0] and whole[p : p + k] == shown
            }
            assert following == {whole[at]}


def test_shares_and_distances(store: TokenStore) -> None:
    composer = Composer(store, table(), Recipe(recall_share=0.6), seed=3)
    samples = [composer.sample(step, 2048) for step in range(20)]
    share = np.mean([sum(s.length for s in sample.sections) / 2048 for sample in samples])
    assert 0.45 < share < 0.65
    back = [s.start - s.source for sample in samples for s in sample.sections]
    assert np.mean(np.array(back) > 128) > 0.85


def test_deterministic_and_different(store: TokenStore) -> None:
    first, again = (Composer(store, table(), seed=7).sample(3, 512) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.weights, again.weights)
    assert first.sections == again.sections
    composer = Composer(store, table(), seed=7)
    others = [composer.sample(4, 512), composer.sample(3, 512, 1), Composer(store, table(), seed=8).sample(3, 512)]
    assert not any(torch.equal(first.tokens, other.tokens) for other in others)


def test_look_alikes_are_planted(store: TokenStore) -> None:
    """With look-alikes, more places inside sections need a longer look back than six tokens."""

    def short_sighted(share: float) -> int:
        recipe = Recipe(lookalike_share=share, lookalike=(8, 24), random_share=0.0)
        composer = Composer(store, table(), recipe, seed=2)
        count = 0
        for step in range(10):
            sample = composer.sample(step, 1024)
            whole = torch.cat([sample.tokens, sample.targets[-1:]]).tolist()
            seen: dict[tuple[int, ...], set[int]] = {}
            for i in range(6, len(whole)):
                key = tuple(whole[i - 6 : i])
                count += bool(sample.is_recall[i - 1]) and bool(seen.get(key, set()) - {whole[i]})
                seen.setdefault(key, set()).add(whole[i])
        return count

    assert short_sighted(1.0) > 1.2 * short_sighted(0.0)


def test_fragments_start_lines_and_stay_in_their_document(store: TokenStore) -> None:
    ends = table().line_end
    for position in range(0, len(store), 97):
        fragment = store.fragment(position, 50, ends)
        if not len(fragment):
            continue
        document = int(np.searchsorted(store.starts, position, side="right")) - 1
        whole = store.tokens[int(store.starts[document]) : store.end(document)].tolist()
        found = [i for i in range(len(whole)) if whole[i : i + len(fragment)] == fragment.tolist()]
        assert any(i == 0 or whole[i - 1] == NEWLINE for i in found)


def test_bad_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks"):
        TokenStore(tmp_path / "none")
    base = write_store(tmp_path, documents(count=3))
    np.save(tmp_path / "train.idx.npy", np.array([0, 1 << 30]))
    with pytest.raises(DataError, match="does not fit"):
        TokenStore(base)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    store = TokenStore(write_store(tmp_path, documents(count=3)))
    small = TokenTable(np.zeros(50, dtype=np.bool_), np.arange(50), NEWLINE, BLANK)
    with pytest.raises(DataError, match="vocabulary"):
        Composer(store, small)
