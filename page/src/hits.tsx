// What was found of the last prompts, and why not more.
import * as api from "./api";
import { count } from "./format";
import { useLoaded } from "./panels";
import { talk } from "./state";

const REASONS: Record<string, string> = {
  first_difference: "From this token on the prompt is another one than any that is kept.",
  evicted: "The rest was kept, and others took its place.",
  "not yet saved": "A request with this beginning was in work just then.",
  "other model": "The rest is kept for another model.",
  scored: "Its log-probabilities were asked for, so all of it was run.",
  new: "Nothing more of it was ever read.",
};

export function Hits() {
  const [found, wrong] = useLoaded(() => api.whys(), [talk.value.leaf]);
  if (wrong) return <p role="alert" class="bad">{wrong}</p>;
  if (!found) return <p class="hint">Asking …</p>;
  if (!found.length) return <p class="hint">No prompt was read yet.</p>;
  return (
    <>
      <p class="hint">The last prompts of all clients, the latest first.</p>
      <ol class="hits">
        {found.map((each) => (
          <Hit key={each.request} why={each} />
        ))}
      </ol>
    </>
  );
}

function Hit({ why }: { why: api.Why }) {
  const message = why.message as { index: number; role: string } | null | undefined;
  return (
    <li>
      <meter
        min={0}
        max={why.prompt_tokens}
        value={why.reused_tokens}
        aria-label={`${count(why.reused_tokens)} of ${count(why.prompt_tokens)} tokens were known`}
      />
      <p>
        <b>{count(why.reused_tokens)}</b> of {count(why.prompt_tokens)} tokens were known
        {why.reason && why.position != null && `, up to token ${count(why.position)}`}.
      </p>
      {why.reason ? <p class="hint">{REASONS[why.reason] ?? why.reason}</p> : <p class="hint">All that can be.</p>}
      {why.expected_text != null && (
        <p class="parts">
          <code>
            {why.before}
            <del>{why.expected_text}</del>
            <ins>{why.text}</ins>
          </code>
        </p>
      )}
      {message && (
        <p class="hint">
          In message {message.index + 1}, of the {message.role}.
        </p>
      )}
    </li>
  );
}
