"""The public face of a model: the rooms below the memories (checkpoint, cache, engine, text) joined into one object.

A generation from an existing sequence runs on a fork, so that the base stays what it was.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch

from foveal import cache
from foveal.cache.replay import OnReplay, replay, replay_start
from foveal.checkpoint import Checkpoint, open_checkpoint
from foveal.checkpoint import fingerprint as model_fingerprint
from foveal.config import PAGE_TOKENS, ModelConfig
from foveal.engine import (
    GREEDY,
    BatchEngine,
    Event,
    Fingerprint,
    FinishReason,
    Network,
    Sampled,
    SamplingParams,
    Scheduler,
)
from foveal.engine.native import NativeNetwork
from foveal.model import load_transformer
from foveal.ops import Numerics, cpu
from foveal.text import Tokenizer, TokenStream
from foveal.text.fitting import check_tokenizer
from foveal.text.healing import PrefixConstraint, heal
from foveal.text.specials import RECALL_BLANKS

SHIPPED = ("nano",)
"""Models inside the package."""

Backend = Literal["native", "reference"]

DEQUANTIZE_UP_TO = 1 << 28
"""Models up to so many parameters (1 GiB in fp32) are dequantised when opened: much faster on the reference backend."""


class ModelNotFound(FileNotFoundError):
    """No such model directory, and no shipped model of that name."""


@dataclass(frozen=True)
class Generation:
    """A finished generation. `text` ends before a stop string; `tokens` are all chosen tokens but a stop token.

    `reused_tokens` of the `prompt_tokens` were not run, but found (`Prefixes`).
    With token healing, `tokens` begin with the ones that repeat the healed end of the prompt, and `text` after it.
    `logprobs` has the log-probability of each token (and alternatives when asked for).
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[Sampled, ...]
    prompt_tokens: int
    reused_tokens: int = 0


@dataclass(frozen=True)
class Start:
    """Where a prompt starts from: `sequence` holds its first `tokens` already. `replayed` tokens were run again to get
    it, since no tail lay where they end."""

    sequence: cache.Sequence
    tokens: int = 0
    replayed: int = 0

    @property
    def reused(self) -> int:
        """Tokens of the prompt that the network was spared."""
        return max(0, self.tokens - self.replayed)


class Prefixes(Protocol):
    """What is kept of earlier prompts, such as `foveal.memory.StoredPrefixes`."""

    def start(
        self, engine: Engine, tokens: torch.Tensor, *, most: int | None = None, after: cache.Sequence | None = None
    ) -> Start | None:
        """A sequence of the longest beginning of `tokens` (integers [n]) that is kept, of `most` tokens at most; None
        when nothing longer than `after`, a sequence of the first of them, is."""
        ...


class Engine:
    """A model ready to run: network, tokenizer, pages, and the batch engine over them.

    `pool` holds the pages of all sequences of this engine.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        *,
        weights: Callable[[], str],
        kv: cache.CacheFormat | None = None,
        numbers: str = "fp32",
        batch: BatchEngine | None = None,
        name: str = "",
        recall_blanks: int = 0,
        pager: cache.Pager | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        """`weights` gives the content hash of the network's weights when it is first needed (it reads all of them);
        `numbers` names its arithmetic; `recall_blanks` is how many PAD tokens the model wants before a recall's cue;
        `pager` keeps the process under a limit of memory; `prefixes` is where prompts that begin like an earlier one
        start from. Ids that only the network has are never chosen. Raises `TokenizerMismatch`.
        """
        check_tokenizer(tokenizer, network.config)
        self.network = network
        self.config: ModelConfig = network.config
        self.tokenizer = tokenizer
        self.name = name
        self.recall_blanks = recall_blanks
        self.prefixes = prefixes
        self.kv = kv or cache.CacheFormat()
        self.pool = cache.PagePool(cache.CacheLayout(self.config, self.kv), pager=pager)
        self.batch = batch or BatchEngine(network)
        self.batch.vocabulary = tokenizer.vocab_size
        self._weights, self._numbers = weights, f"{numbers}, cache {self.kv}"

    @classmethod
    def open(
        cls,
        model: str | Path = "nano",
        *,
        threads: int | None = None,
        kv: cache.CacheFormat | None = None,
        numerics: Numerics | None = None,
        backend: Backend = "native",
        memory_limit: int | None = None,
        scratch: str | Path | None = None,
        prefixes: Prefixes | None = None,
        context_length: int | None = None,
    ) -> Self:
        """A shipped model by name, or a directory in the official layout (config, safetensors, tokenizer.json).

        `threads`: CPU threads (default: one on each physical core; with the reference backend, torch's choice).
        `kv`: how the cache stores entries (default: `default_format`). `numerics`: which run-time quantisations are
        simulated (default: those of the official code). `backend`: the native kernels, or the plain PyTorch reference
        that defines them, which is much slower.
        `memory_limit`: bytes that the whole process may hold in memory (`foveal.cache.pager`): what does not fit lies
        in files and comes back when it is touched; `scratch` is the folder of those that no store has (default: the
        system's temporary folder; it should be on a disk). For the native backend on Linux.
        `prefixes`: where prompts that begin like an earlier one start from (`foveal.memory.StoredPrefixes`); it can be
        set later, too. `context_length`: tokens a sequence may have (default: the model's `max_position_embeddings`);
        the network was not made for more.
        Raises `ModelNotFound`, `foveal.checkpoint.CheckpointError`, `foveal.text.TokenizerError`, `ParameterError`,
        `foveal.text.fitting.TokenizerMismatch`; with a limit `foveal.cache.LimitTooSmall`, here or at a first step.
        """
        if memory_limit is not None and backend != "native":
            raise ValueError("a memory limit needs the native backend: the reference works on decoded copies")
        folder = model_folder(model)
        tokenizer = Tokenizer.from_file(folder)
        checkpoint = open_checkpoint(folder)
        check_tokenizer(tokenizer, checkpoint.config)
        numerics = numerics or Numerics()
        network = open_network(checkpoint, numerics, backend, threads)
        return cls(
            network,
            tokenizer,
            weights=lambda: model_fingerprint(checkpoint.config, checkpoint.weights).hex(),
            kv=kv or default_format(numerics),
            numbers=describe(numerics, backend),
            batch=_batch_engine(network, backend, context_length),
            name=model if isinstance(model, str) and model in SHIPPED else folder.resolve().name,
            recall_blanks=_recall_blanks(folder),
            pager=None if memory_limit is None else cache.Pager(memory_limit, scratch),
            prefixes=prefixes,
        )

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Everything a state depends on. The first use reads all weights."""
        return Fingerprint.of(
            self.config, weights=self._weights(), tokenizer=self.tokenizer.fingerprint(), numbers=self._numbers
        )

    # ------------------------------------------------------------------ sequences

    def new_sequence(self, *, tail_every: int | None = None) -> cache.Sequence:
        """An empty sequence in this engine's pool; `free` it when done. `tail_every`: see `foveal.cache.Sequence`."""
        return cache.Sequence(self.pool, dtype=torch.float32, tail_every=tail_every)

    def restore_sequence(self, image: cache.SequenceImage, *, tail_every: int | None = None) -> cache.Sequence:
        """The sequence an image was exported from. Raises `foveal.cache.ImageError` when it does not fit."""
        return cache.Sequence.restore(self.pool, image, dtype=torch.float32, tail_every=tail_every)

    def prefill(
        self,
        sequence: cache.Sequence,
        tokens: Sequence[int],
        *,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> int:
        """Run `tokens` into `sequence`, chunk by chunk; returns how many were run.

        `progress(done, total)` is called after every chunk; `should_stop` is asked before every chunk. Whatever
        interrupts it, the sequence holds the chunks that were completed. Raises `ParameterError` for an unknown id, and
        `ContextLengthError`, before anything is run, when the tokens do not all fit.
        """
        self.batch.check_length(sequence.length + len(tokens))
        done = 0
        while done < len(tokens) and not (should_stop is not None and should_stop()):
            done += self.batch.prefill(sequence, tokens[done : done + self.batch.scheduler.chunk])
            if progress is not None:
                progress(done, len(tokens))
        return done

    @property
    def grain(self) -> int:
        """See `foveal.engine.BatchEngine.grain`."""
        return self.batch.grain

    def replay(
        self, sequence: cache.Sequence, length: int, *, progress: OnReplay | None = None
    ) -> cache.Sequence | None:
        """A sequence over the first `length` tokens of `sequence`, with its pages, whose window is run again
        (`foveal.cache.replay`); None where a kept tail is as near, or the backend would not give the same bits.

        Raises `CacheFull`; `sequence` is as it was in any case.
        """
        kept = [tail for tail in sequence.kept_tails if tail.position <= length]
        if self.grain > 1 or replay_start(self.config, length) <= kept[-1].position:
            return None
        pages = [page.data for page in sequence.pages]
        again = replay(
            self.restore_sequence,
            self.prefill,
            self.pool.layout,
            sequence.tokens,
            pages,
            length,
            progress=progress,
        )
        again.tail_every, again.origin = sequence.tail_every, sequence.origin
        for tail in kept:
            again.add_tail(tail)
        return again

    def fork(self, sequence: cache.Sequence, at: int) -> cache.Sequence:
        """A second sequence over the first `at` tokens of `sequence`. All its full pages are shared, and no more tokens
        are run than lie behind the nearest kept tail, or than a `replay` needs.

        Raises `foveal.cache.CacheError` when there are not so many tokens, `CacheFull`.
        """
        if not 0 <= at <= sequence.length:
            raise cache.CacheError(f"cannot fork a sequence of {sequence.length} tokens at {at}")
        if at < sequence.length and (again := self.replay(sequence, at)) is not None:
            again.keep_tail()
            return again
        fork = sequence.fork()
        try:
            tokens = fork.truncate(at).tolist()
            first = fork.length // PAGE_TOKENS
            self.prefill(fork, tokens)
            for number, page in enumerate(sequence.pages[first : at // PAGE_TOKENS], start=first):
                if torch.equal(page.data, fork.pages[number].data):
                    fork.put_page(number, page.data)
            fork.keep_tail()
        except BaseException:
            fork.free()
            raise
        return fork

    # ------------------------------------------------------------------ generating

    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams = GREEDY,
        *,
        base: cache.Sequence | None = None,
        heal_prompt: bool = False,
        trace: bool = False,
        **settings: Any,
    ) -> Iterator[Event]:
        """Continue `prompt`, one event for each token. Closing the iterator cancels.

        `base`: go on from this sequence (on a fork; it is not changed). `settings` are fields of `SamplingParams`
        that replace those of `params`; `stop` may be one string. `heal_prompt`: let the model choose the last token
        of a text prompt anew, so that a prompt cut in the middle of a token goes on as the whole token would; the
        text still begins after the prompt. Raises `ParameterError` for bad parameters or an empty prompt, and what
        the network raised when it failed.
        """
        params = with_settings(params, **settings)
        tokens, remainder = self._prompt(prompt, heal_prompt)
        self.batch.check_room(len(tokens) + (base.length if base is not None else 0), params)
        start = self.start(tokens, base=base)
        yield from self._continue(start, tokens, remainder, params, trace)

    def _continue(
        self, start: Start, tokens: list[int], remainder: bytes, params: SamplingParams, trace: bool
    ) -> Iterator[Event]:
        """The events of a prompt from where it starts; frees its sequence in the end."""
        try:
            request = self.batch.submit(
                start.sequence,
                tokens[start.tokens :],
                params,
                text=TokenStream(self.tokenizer, params.stop, skip_bytes=len(remainder)),
                constraint=PrefixConstraint(self.tokenizer, remainder) if remainder else None,
                trace=trace,
            )
            for event in self.batch.events(request):
                if event.error is not None:
                    raise event.error
                yield event
        finally:
            start.sequence.free()

    def start(
        self, tokens: Sequence[int], *, base: cache.Sequence | None = None, prefixes: Prefixes | None = None
    ) -> Start:
        """A sequence of one's own to run the prompt `tokens` on: `base` (a fork of it) or an empty one; or, when
        `prefixes` (default: the engine's own) has it, one that holds the beginning of the prompt, at most all but its
        last token. Raises `ParameterError` for an unknown id, `foveal.cache.CacheFull`."""
        self.batch.check_tokens(tokens)
        prefixes = prefixes or self.prefixes
        if prefixes is not None and len(tokens) > 1:
            prompt = torch.tensor(tokens, dtype=torch.int32)
            whole = prompt if base is None else torch.cat([base.tokens, prompt])
            found = prefixes.start(self, whole, most=len(whole) - 1, after=base)
            if found is not None:
                return found
        return Start(base.fork() if base is not None else self.new_sequence())

    def _prompt(self, prompt: str | Sequence[int], heal_prompt: bool) -> tuple[list[int], bytes]:
        """Tokens to run, and bytes to be generated anew after them."""
        if not isinstance(prompt, str):
            return self.batch.check_tokens(prompt).tolist(), b""
        tokens, remainder = heal(self.tokenizer, prompt) if heal_prompt else ([], b"")
        # A prompt of one word leaves nothing to run before it is healed: it is taken as it is.
        return (tokens, remainder) if tokens else (self.tokenizer.encode(prompt), b"")

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams = GREEDY,
        *,
        base: cache.Sequence | None = None,
        heal_prompt: bool = False,
        **settings: Any,
    ) -> Generation:
        """`stream`, to its end."""
        params = with_settings(params, **settings)
        tokens, remainder = self._prompt(prompt, heal_prompt)
        count = len(self.tokenizer.encode(prompt)) if isinstance(prompt, str) else len(tokens)
        self.batch.check_room(len(tokens) + (base.length if base is not None else 0), params)
        start = self.start(tokens, base=base)
        events = self._continue(start, tokens, remainder, params, trace=False)
        return collect(events, prompt_tokens=count, reused_tokens=start.reused)


def _recall_blanks(folder: Path) -> int:
    """What the model's tokenizer_config.json says; 0 without one. Raises `ModelNotFound` when it is not readable."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return 0
    try:
        return int(json.loads(path.read_text(encoding="utf-8")).get(RECALL_BLANKS, 0))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelNotFound(f"cannot read {path}: {error}") from error


def open_network(checkpoint: Checkpoint, numerics: Numerics, backend: Backend, threads: int | None) -> Network:
    """The checkpoint's network on `backend`. Sets torch's threads for the reference backend only."""
    config, weights = checkpoint.config, checkpoint.weights
    if backend == "native":
        return NativeNetwork(load_transformer(config, weights, numerics=numerics, ops=cpu), threads=threads or 0)
    if threads is not None:
        torch.set_num_threads(threads)
    small = sum(math.prod(weight.shape) for weight in weights.values()) <= DEQUANTIZE_UP_TO
    return load_transformer(config, weights, dtype=torch.float32 if small else None, numerics=numerics)


def _batch_engine(network: Network, backend: Backend, context_length: int | None) -> BatchEngine:
    """The reference's last bits depend on where a prompt is cut, so it is cut where a stored one may end: at pages."""
    if backend == "native":
        return BatchEngine(network, batched=True, context_length=context_length)
    return BatchEngine(network, scheduler=Scheduler(chunk=PAGE_TOKENS), context_length=context_length)


def default_format(numerics: Numerics) -> cache.CacheFormat:
    """The smallest cache format that loses nothing: FP8 and FP4 where the network rounds to them anyway."""
    return cache.CacheFormat(kv="fp8" if numerics.kv else "bf16", index="fp4" if numerics.index else "bf16")


def describe(numerics: Numerics, backend: Backend) -> str:
    """The arithmetic in words, for the fingerprint. The native kernels round activations to BF16."""
    simulated = [name for name, on in dataclasses.asdict(numerics).items() if on]
    precision = "bf16" if backend == "native" and numerics.activations else "fp32"
    return f"{precision} activations, simulating {'+'.join(simulated) or 'nothing'}"


def collect(events: Iterator[Event], *, prompt_tokens: int, reused_tokens: int = 0) -> Generation:
    """The whole of a stream."""
    text: list[str] = []
    chosen: list[Sampled] = []
    reason = FinishReason.CANCELLED
    for event in events:
        text.append(event.text)
        if event.sampled is not None and event.is_output:
            chosen.append(event.sampled)
        reason = event.finish_reason or reason
    tokens = tuple(sampled.token for sampled in chosen)
    return Generation("".join(text), tokens, reason, tuple(chosen), prompt_tokens, reused_tokens)


def with_settings(params: SamplingParams, **settings: Any) -> SamplingParams:
    """`params` with some fields replaced. `stop` may be a string or any sequence of strings, and so `stop_tokens` of
    ids; None is none of them. Raises `ParameterError`."""
    if isinstance(settings.get("stop"), str):
        settings["stop"] = (settings["stop"],)
    settings |= {name: _as_tuple(settings[name]) for name in ("stop", "stop_tokens") if name in settings}
    return dataclasses.replace(params, **settings) if settings else params


def _as_tuple(value: Any) -> Any:
    """A tuple of what `value` holds; what holds nothing stays what it is, and is refused by that."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple | set | frozenset) else value


def model_folder(model: str | Path) -> Path:
    """The directory of a shipped model's name, or the directory itself. Raises `ModelNotFound`."""
    if isinstance(model, str) and model in SHIPPED:
        folder = Path(__file__).parent / "weights" / model
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"the shipped model {model!r} is missing from {folder.parent}; install Foveal again")
        return folder
    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"there is no model at {folder} (a directory with config.json, safetensors and tokenizer.json); shipped "
            f"models: {', '.join(SHIPPED)}"
        )
    return folder
