"""What a request gave in the end."""

from __future__ import annotations

from dataclasses import dataclass

from foveal.batch.request import Event, FinishReason, Sampled


@dataclass(frozen=True)
class Generation:
    """A finished request. `text` ends before a stop string; `tokens` are all chosen tokens but a stop token.

    `reused_tokens` of the `prompt_tokens` were not run, but found (`foveal.engine.Prefixes`).
    With token healing, `tokens` begin with the ones that repeat the healed end of the prompt, and `text` after it.
    `logprobs` has the log-probability of each token (and alternatives when asked for); `scored` those of the targets
    of a request that scores.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[Sampled, ...]
    prompt_tokens: int
    reused_tokens: int = 0
    scored: tuple[Sampled, ...] = ()


class Collected:
    """The events of one request, joined as they come."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._chosen: list[Sampled] = []
        self._scored: list[Sampled] = []
        self.reason: FinishReason | None = None
        self.error: BaseException | None = None

    def add(self, event: Event) -> None:
        if event.text:
            self._text.append(event.text)
        if event.sampled is not None and event.is_output:
            self._chosen.append(event.sampled)
        self._scored += event.scored
        self.reason, self.error = event.finish_reason, event.error

    def generation(self, prompt_tokens: int, reused_tokens: int) -> Generation:
        """The whole, so far."""
        return Generation(
            text="".join(self._text),
            tokens=tuple(sampled.token for sampled in self._chosen),
            finish_reason=self.reason or FinishReason.CANCELLED,
            logprobs=tuple(self._chosen),
            prompt_tokens=prompt_tokens,
            reused_tokens=reused_tokens,
            scored=tuple(self._scored),
        )
