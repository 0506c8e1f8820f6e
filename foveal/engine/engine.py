"""The public face of a model: the rooms below the memories (checkpoint, cache, engine, text) joined into one object.

A generation from an existing sequence runs on a fork, so that the base stays what it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from foveal import cache
from foveal.batch import (
    GREEDY,
    BatchEngine,
    Event,
    Generation,
    Job,
    Kind,
    Network,
    Priority,
    Sampled,
    SamplingParams,
    TextStream,
)
from foveal.batch.tokens import Tokens
from foveal.cache import CacheFormat
from foveal.checkpoint.identity import Fingerprint
from foveal.config import Numerics
from foveal.engine.models import model_folder
from foveal.engine.opening import Backend, open_model
from foveal.engine.prompts import Prefixes, Prepared, Start, text_of, tokens_of, with_settings
from foveal.engine.sequences import SequenceEngine, free_state
from foveal.text import Tokenizer
from foveal.text.fitting import check_tokenizer


class Engine(SequenceEngine):
    """A model ready to run: network, tokenizer, pages, and the thread that runs them. Safe to use from several threads.

    `pool` holds the pages of all sequences of this engine. Use it in a ``with`` block, or `close` it; one that is
    dropped closes by itself.
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
        page_limit: int | None = None,
        scratch: str | Path | None = None,
        folder: Path | None = None,
    ) -> None:
        """`weights` gives the content hash of the network's weights when it is first needed (it reads all of them);
        `numbers` names its arithmetic; `recall_blanks` is how many PAD tokens the model wants before a recall's cue;
        `pager` keeps the process under a limit of memory; `prefixes` is where prompts that begin like an earlier one
        start from; `page_limit` is how many pages there may be, and `scratch` where sequences lie that make room for
        others; `folder` is where the model lies. Ids that only the network has are never chosen. Raises
        `TokenizerMismatch`.
        """
        check_tokenizer(tokenizer, network.config)
        kv = kv or cache.CacheFormat()
        super().__init__(network, kv=kv, batch=batch, pager=pager, page_limit=page_limit, scratch=scratch)
        self.batch.vocabulary = tokenizer.vocab_size
        self.tokenizer = tokenizer
        self.name, self.folder = name, folder
        self.recall_blanks = recall_blanks
        self.prefixes = prefixes
        self._weights, self._numbers = weights, f"{numbers}, cache {self.kv}"

    @classmethod
    def open(
        cls,
        model: str | Path = "nano",
        *,
        threads: int | None = None,
        kv: CacheFormat | None = None,
        numerics: Numerics | None = None,
        backend: Backend = "native",
        memory_limit: int | None = None,
        scratch: str | Path | None = None,
        prefixes: Prefixes | None = None,
        context_length: int | None = None,
        cache: int | str | None = None,
        step_budget: float | None = None,
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
        the network was not made for more. `cache`: bytes that sequences may take (a number, or a text like "8G"):
        what does not fit waits, and what is not urgent makes room on the disk, in `scratch` (default: no bound).
        `step_budget`: see `foveal.batch.Scheduler`.
        Raises `ModelNotFound`, `foveal.checkpoint.CheckpointError`, `foveal.text.TokenizerError`, `ParameterError`,
        `foveal.text.fitting.TokenizerMismatch`; with a limit `foveal.cache.LimitTooSmall`, here or at a first step.
        """
        opened = open_model(
            model,
            backend=backend,
            threads=threads,
            numerics=numerics,
            kv=kv,
            memory_limit=memory_limit,
            scratch=scratch,
            context_length=context_length,
            cache=cache,
            step_budget=step_budget,
        )
        return cls(
            opened.runner,
            opened.tokenizer,
            weights=opened.weights,
            kv=opened.kv,
            numbers=opened.runner.arithmetic,
            batch=opened.batch,
            name=opened.name,
            recall_blanks=opened.recall_blanks,
            pager=opened.pager,
            prefixes=prefixes,
            page_limit=opened.page_limit,
            scratch=scratch,
            folder=model_folder(model),
        )

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Everything a state depends on. The first use reads all weights."""
        return Fingerprint.of(
            self.config, weights=self._weights(), tokenizer=self.tokenizer.fingerprint(), numbers=self._numbers
        )

    # ------------------------------------------------------------------ generating

    def submit(
        self,
        prompt: str | Tokens,
        params: SamplingParams = GREEDY,
        *,
        base: cache.Sequence | None = None,
        priority: Priority = Priority.INTERACTIVE,
        tenant: str = "",
        deadline: float | None = None,
        heal_prompt: bool = False,
        trace: bool = False,
        **settings: Any,
    ) -> Job:
        """Begin to continue `prompt`, and return at once.

        `base`: go on from this sequence, on a fork, as it is when the job is taken in; it is not changed, and must not
        be freed before the first event. `settings` are fields of `SamplingParams` that replace those of `params`;
        `stop` may be one string, `logit_bias` a mapping.
        `priority`, `tenant`: see `foveal.batch.Scheduler`. `deadline`: seconds of `time.monotonic` at which the job
        ends as it is. `heal_prompt`: let the model choose the last token of a text prompt anew, so that a prompt cut in
        the middle of a token goes on as the whole token would; the text still begins after the prompt. `trace`: tell
        where attention looked. Raises `ParameterError` for bad parameters or an empty prompt, `ContextLengthError`,
        `EngineClosed`; the job raises what the network raised when it failed.
        """
        prepared = self.prepare(
            prompt,
            params,
            base=base,
            priority=priority,
            tenant=tenant,
            deadline=deadline,
            heal_prompt=heal_prompt,
            trace=trace,
            **settings,
        )
        return Job(
            self.loop,
            prepared.request,
            prompt_tokens=prepared.prompt_tokens,
            reused_tokens=prepared.reused_tokens,
        )

    def prepare(
        self,
        prompt: str | Tokens,
        params: SamplingParams = GREEDY,
        *,
        base: cache.Sequence | None = None,
        heal_prompt: bool = False,
        priority: Priority = Priority.INTERACTIVE,
        tenant: str = "",
        deadline: float | None = None,
        trace: bool = False,
        **settings: Any,
    ) -> Prepared:
        """The request that `submit` would submit. For callers that take the events elsewhere than in a `Job`."""
        params = with_settings(params, **settings)
        if isinstance(prompt, str):
            tokens, remainder = tokens_of(prompt, self.tokenizer, heal_prompt=heal_prompt)
        else:
            tokens, remainder = self.batch.check_tokens(prompt).tolist(), b""
        count = len(self.tokenizer.encode(prompt)) if isinstance(prompt, str) and remainder else len(tokens)
        self.batch.check_room(len(tokens) + (base.length if base is not None else 0), params)
        start = self.start(tokens, base=base, priority=priority) if self.prefixes is not None else None
        request = self.batch.request(
            tokens[start.tokens :] if start is not None else tokens,
            params,
            state=start.sequence if start is not None else None,
            begin=base.fork if base is not None else self.new_sequence,
            release=free_state,
            priority=priority,
            tenant=tenant,
            deadline=deadline,
            trace=trace,
            whole_prompt=tokens,
            **text_of(params, self.tokenizer, remainder),
        )
        return Prepared(request, count, start.reused if start is not None else 0)

    def go_on(
        self,
        sequence: cache.Sequence,
        tokens: Tokens,
        params: SamplingParams = GREEDY,
        *,
        remainder: bytes = b"",
        text: TextStream | None = None,
        trace: bool = False,
    ) -> Job:
        """Continue `sequence` itself by `tokens` and what follows them; it stays the caller's. `remainder`: bytes that
        the first tokens have to repeat (`foveal.text.healing`); the text begins behind them. `text`: how tokens become
        text, in place of that. Errors are those of `submit`."""
        self.batch.check_room(sequence.length + len(tokens), params)
        how = text_of(params, self.tokenizer, remainder) if text is None else {"text": text}
        return Job(self.loop, self.batch.request(tokens, params, state=sequence, trace=trace, **how))

    def score(
        self,
        prompt: str | Tokens,
        *,
        logprobs: int = 0,
        base: cache.Sequence | None = None,
        priority: Priority = Priority.INTERACTIVE,
        tenant: str = "",
    ) -> tuple[Sampled, ...]:
        """How likely each token of `prompt` is behind those before it, from the second on, with so many likeliest
        alternatives: bit for bit what choosing it would tell where the backend has the same bits for every cut.
        `base`: the prompt stands behind this sequence. It is read in chunks beside what else runs. Raises
        `ParameterError`, `ContextLengthError`, and what the network raises."""
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else self.batch.check_tokens(prompt)
        self.batch.check_length(len(tokens) + (base.length if base is not None else 0))
        if len(tokens) < 2:
            return ()
        request = self.batch.request(
            tokens[:-1],
            SamplingParams(logprobs=logprobs),
            begin=base.fork if base is not None else self.new_sequence,
            release=free_state,
            kind=Kind.SCORE,
            priority=priority,
            tenant=tenant,
            targets=tokens[1:],
        )
        return Job(self.loop, request, prompt_tokens=len(tokens)).result().scored

    def stream(self, prompt: str | Tokens, params: SamplingParams = GREEDY, **options: Any) -> Generator[Event]:
        """Continue `prompt`, one event for each token. Closing or dropping the iterator cancels. Options and errors are
        those of `submit`."""
        return self.submit(prompt, params, **options).events()

    def generate(self, prompt: str | Tokens, params: SamplingParams = GREEDY, **options: Any) -> Generation:
        """`submit`, and wait for the result."""
        return self.submit(prompt, params, **options).result()

    def generate_all(
        self, prompts: Sequence[str | Tokens], params: SamplingParams = GREEDY, **options: Any
    ) -> list[Generation]:
        """`generate` for all `prompts` side by side; their results in the order of the prompts. When one fails the
        others are cancelled."""
        with contextlib.ExitStack() as stack:
            jobs = [stack.enter_context(self.submit(prompt, params, **options)) for prompt in prompts]
            return [job.result() for job in jobs]

    def start(
        self,
        tokens: Tokens,
        *,
        base: cache.Sequence | None = None,
        prefixes: Prefixes | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Start:
        """A sequence of one's own to run the prompt `tokens` on: `base` (a fork of it) or an empty one; or, when
        `prefixes` (default: the engine's own) has it, one that holds the beginning of the prompt, at most all but its
        last token. What is run again for it runs with `priority`. Raises `ParameterError` for an unknown id,
        `foveal.cache.CacheFull`."""
        ids = self.batch.check_tokens(tokens)
        prefixes = prefixes or self.prefixes
        own = self.fork(base) if base is not None else self.new_sequence()
        if prefixes is None or len(ids) < 2:
            return Start(own)
        try:
            prompt = np.array(ids, dtype=np.int32)
            whole = prompt if base is None else np.concatenate([own.tokens, prompt])
            after = own if base is not None else None
            found = prefixes.start(self, whole, most=len(whole) - 1, after=after, priority=priority)
        except BaseException:
            own.free()
            raise
        if found is None:
            return Start(own)
        own.free()
        return found
