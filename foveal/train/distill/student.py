"""The converted network with packed entries, on the channels that are not zero: what is trained.

It computes what the wide V4 network computes (`foveal.convert.packed` writes that one), several times cheaper. Layers
without retrieval heads are HCA: the raw window and the first token of every 128. Layers with them are CSA: an entry
holds four tokens in slots of their own, read by *slot heads*; a slot head (h, j) has head h's logits on the raw window
and on the first token in its denominator, and takes values from slot j only.

Shape legend: B rows, T tokens (a multiple of 128), n = T / 128 blocks, d hidden, H heads, G groups, c channels of a
head, K = G * c key channels, m retrieval heads of a layer, E = T / 4 entries, S places that a block of queries sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.config import CSA_RATIO, HCA_RATIO
from foveal.convert.fade import fade_table, fit_fade
from foveal.convert.fitting import Moments
from foveal.convert.layout import RAW_WINDOW, Layout
from foveal.convert.llama import Llama, LlamaLayer, normed, turned
from foveal.convert.packed import Slots as LearnedSlots
from foveal.convert.rotary import mix_pairs

_NEVER = -1e9
_LEAST = -80.0
"""Weights under exp(-80) count as that: exponentials that leave fp32's range take seven times as long on a CPU."""
_BLOCK = HCA_RATIO
_ADDED = 0.5
"""How much of their source's output heads begin with that join slots which have learned: four slots, each with a
softmax of its own, find too much before they are taught."""
_OFFSET_CHANNELS = 32
"""Channels that carry a slot head's offset. One would do; products of a round number of channels are faster."""


class _Frozen(torch.autograd.Function):
    """x @ weight.T, of which only x has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grads[0] @ weight, None


def frozen(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` for a weight that does not learn."""
    return _Frozen.apply(x, weight)


class _Attend(torch.autograd.Function):
    """Softmax attention that keeps one matrix for its backward pass.

    Arguments: query [..., R, c], key [..., S, c], value [..., S, w]; `added` to the logits, broadcast, fp32, without a
    gradient; `rest` [..., R] fp32, the logarithm of what else is in the denominator. Returns the weighted values
    [..., R, w] and the logarithms of the denominators [..., R] fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, added: Tensor, rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = (query @ key.transpose(-1, -2)).float().add_(added)
        most = torch.maximum(logits.amax(-1), rest)
        weights = logits.sub_(most[..., None]).clamp_(min=_LEAST).exp_()  # the one exponential: it costs most
        besides = (rest - most).exp()
        norm = weights.sum(-1) + besides
        total = most + norm.log()
        weights = weights.mul_(1 / norm[..., None]).to(value.dtype)
        out = weights @ value
        ctx.save_for_backward(query, key, value, weights, out, besides / norm)
        return out, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor]:
        query, key, value, weights, out, rest = ctx.saved_tensors
        grad_out, grad_total = grads
        grad_value = weights.transpose(-1, -2) @ grad_out
        common = grad_total - (grad_out.float() * out.float()).sum(-1)
        grad_logits = (grad_out @ value.transpose(-1, -2)).float().add_(common[..., None]).mul_(weights)
        grad_logits = grad_logits.to(query.dtype)
        return grad_logits @ key, grad_logits.transpose(-1, -2) @ query, grad_value, None, rest * common


class Student(nn.Module):
    """The network. Matrices of the source in its dtype, slots in fp32; the source's network is shared.

    `constants` [layers, d]: a direction of each layer's attention input along which it is nearly 1. `heads`: layer ->
    the source's heads that look things up.
    """

    def __init__(
        self,
        source: Llama,
        moments: Moments,
        constants: Tensor,
        heads: Mapping[int, Sequence[int]],
    ) -> None:
        super().__init__()
        self.source = source
        layout = Layout.of(source.shape)
        turning = layout.frequencies[layout.free_pairs()]
        context = source.shape.context
        fade = fade_table(fit_fade(turning, context), turning, -(-context // _BLOCK) * _BLOCK)
        self.fade = fade.to(source.embed.device)
        frequencies = layout.frequencies[layout.pairs().flatten()].float()
        self.layers = nn.ModuleList(
            Layer(source, index, moments.attention[index], constants[index], frequencies, heads.get(index, ()))
            for index in range(source.shape.layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, T] -> what the head multiplies [B, T, d], T a multiple of 128."""
        eps, source = self.source.shape.rms_norm_eps, self.source
        seen = Seen(tokens.shape[1], self.fade)
        stream = source.embed[tokens].float()
        for layer in self.layers:
            stream = layer(stream, seen)
        return normed(stream, eps).to(source.dtype)

    def logits(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Logits [n, V] at `places` [n] of the one row `tokens` [T] of any length."""
        return frozen(self(padded(tokens)[None])[0, places], self.source.head).float()

    def packed(self) -> dict[int, LearnedSlots]:
        """What the layers with packed entries have learned, for `foveal.convert.packed`."""
        return {
            index: layer.slots.learned(layer.constant)
            for index, layer in self.packed_layers().items()
            if layer.slots is not None
        }

    def take(self, packed: Mapping[int, LearnedSlots]) -> None:
        """Take what was learned before (the opposite of `packed`). Layers may have more heads than were learned: those
        begin with the slots that their layer has, and layers that were not learned with what is derived."""
        layers = self.packed_layers()
        for index, learned in packed.items():
            layer = layers[index]
            assert layer.slots is not None
            layer.slots.take(learned, layer.own, layer.moment)
            layer.constant = learned.constant.to(layer.constant)

    def packed_layers(self) -> dict[int, Layer]:
        """The layers that have slots."""
        layers = {index: layer for index, layer in enumerate(self.layers) if isinstance(layer, Layer)}
        return {index: layer for index, layer in layers.items() if layer.slots is not None}

    def learned(self) -> dict[str, nn.Parameter]:
        """What training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def padded(tokens: Tensor) -> Tensor:
    """tokens [T] with zeros behind them, to a multiple of 128."""
    return F.pad(tokens, (0, -len(tokens) % _BLOCK))


class Seen:
    """Which places `count` tokens see, as terms of logits that all layers share."""

    def __init__(self, count: int, fade: Tensor) -> None:
        device, blocks = fade.device, count // _BLOCK
        self.angles = torch.arange(count, dtype=torch.float32, device=device)[:, None]
        place = torch.arange(count, device=device)
        first = _BLOCK * torch.arange(1, blocks + 1, device=device)
        firsts = torch.where(first <= place[:, None] + 1, 0.0, _NEVER).unflatten(0, (blocks, _BLOCK))
        self.near = _outside(blocks, device)
        """[n, 128, 256]: the block's own raw tokens and those of the one before it."""
        self.near_and_firsts = torch.cat([self.near, firsts], -1)
        """[n, 128, 256 + n]: and the first token of every 128, in HCA layers."""
        start = CSA_RATIO * torch.arange(count // CSA_RATIO, device=device)
        distance = place[:, None] - start
        self.visible = distance >= CSA_RATIO - 1
        """[T, E]: an entry is seen from its window's last token on."""
        self.fade = fade[distance.clamp(min=0)]
        """[T, E]: the fade of each entry."""


class Layer(nn.Module):
    """Attention and feed-forward of one layer."""

    def __init__(
        self,
        source: Llama,
        index: int,
        moment: Tensor,
        constant: Tensor,
        frequencies: Tensor,
        retrieving: Sequence[int],
    ) -> None:
        super().__init__()
        self.shape, self.own = source.shape, source.layers[index]
        query, key = (matrix.float().cpu() for matrix in (self.own.q, self.own.k))
        mixed = mix_pairs(query, key, moment, source.shape)
        scale = source.shape.head_dim**-0.5
        self.query = (scale * mixed.query.flatten(0, 1)).to(source.embed)
        self.key = mixed.key.to(source.embed)
        self.frequencies, self.constant = frequencies.to(self.key.device), constant.to(self.key.device)
        self.retrieving, self.moment = list(retrieving), moment
        self.slots = Slots(source, index, moment, self.retrieving) if retrieving else None

    def forward(self, stream: Tensor, seen: Seen) -> Tensor:
        """The residual stream [B, T, d] before -> after this layer."""
        own, eps = self.own, self.shape.rms_norm_eps
        stream = stream + self._attention(normed(stream, eps), seen).float()
        y = normed(stream, eps).to(own.gate.dtype)
        return stream + frozen(F.silu(frozen(y, own.gate)) * frozen(y, own.up), own.down).float()

    def _attention(self, x: Tensor, seen: Seen) -> Tensor:
        """x [B, T, d] fp32 -> [B, T, d]."""
        out, total = self.raw(x, seen)
        near = frozen(out, self.own.o)
        if self.slots is None:
            return near
        return near + self.slots(x, total[:, self.retrieving], x @ self.constant, seen)

    def raw(self, x: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """The heads' values [B, T, H * c] of the raw window and the first token, and the logarithms of their
        denominators [B, H, T]."""
        s, rows, count = self.shape, x.shape[0], x.shape[1]
        blocks, per_group = count // _BLOCK, s.heads_per_group
        constant, x = x @ self.constant, x.to(self.query.dtype)
        angles = seen.angles * self.frequencies
        query = turned(frozen(x, self.query).float().unflatten(-1, (s.heads, -1)).transpose(1, 2), angles).to(x.dtype)
        key = turned(frozen(x, self.key).float(), angles).to(x.dtype)
        value = frozen(x, self.own.v)
        query = query.unflatten(2, (blocks, _BLOCK)).transpose(1, 2)  # [B, n, H, 128, K]
        query = query.reshape(rows, blocks, s.groups, per_group * _BLOCK, -1)
        kept = slice(0, None, _BLOCK) if self.slots is None else slice(0, 1)
        key = _with_kept(key, kept, blocks)[:, :, None].expand(-1, -1, s.groups, -1, -1)
        value = _with_kept(value, kept, blocks).unflatten(-1, (s.groups, -1)).transpose(2, 3)
        added = seen.near_and_firsts[None] if self.slots is None else self._with_first_entry(seen, constant)
        added = added.repeat(1, 1, per_group, 1)[:, :, None]  # [1 or B, n, 1, per_group * 128, S]
        rest = added.new_full((), -torch.inf).expand(query.shape[:-1])
        out, total = _Attend.apply(query, key, value, added, rest)
        out = out.unflatten(3, (-1, _BLOCK)).permute(0, 1, 4, 2, 3, 5).reshape(rows, count, -1)
        total = total.unflatten(3, (-1, _BLOCK)).flatten(2, 3).transpose(1, 2).flatten(2)
        return out, total

    def _with_first_entry(self, seen: Seen, constant: Tensor) -> Tensor:
        """[B, n, 128, 257]: logits of the raw tokens and of entry 0, which holds token 0."""
        fade = (constant.detach() * constant[:, :1].detach() * seen.fade[:, 0]).masked_fill(~seen.visible[:, 0], _NEVER)
        near = seen.near[None].expand(len(fade), -1, -1, -1)
        return torch.cat([near, fade.unflatten(1, (-1, _BLOCK))[..., None]], -1)


class Slots(nn.Module):
    """Four slots and the heads that read them."""

    def __init__(self, source: Llama, index: int, moment: Tensor, heads: Sequence[int]) -> None:
        super().__init__()
        s, own = source.shape, source.layers[index]
        self.heads, self.count, self.dtype, d = tuple(heads), len(heads), source.dtype, s.hidden_size
        self.scale, self.per_group = s.head_dim**-0.5, s.heads_per_group
        q, k, v, o = (matrix.float().cpu() for matrix in (own.q, own.k, own.v, own.o))
        key, query = _shared_keys(q, k, moment, heads, s.heads_per_group, s.head_dim)
        value, output = _shared_values(v, o, moment, heads, s.heads_per_group, s.head_dim)
        device = own.q.device
        self.key = nn.Parameter(key.repeat(CSA_RATIO, 1, 1).to(device))
        self.query = nn.Parameter(query.repeat(CSA_RATIO, 1, 1, 1).to(device))
        self.value = nn.Parameter(value.repeat(CSA_RATIO, 1, 1).to(device))
        self.output = nn.Parameter(output.repeat(CSA_RATIO, 1, 1, 1).to(device))
        self.offset = nn.Parameter(torch.zeros(CSA_RATIO * self.count, d, device=device))
        self.bias = nn.Parameter(torch.zeros(CSA_RATIO * self.count, device=device))
        self.sink = nn.Parameter(torch.full((CSA_RATIO * self.count,), -6.0, device=device))

    def forward(
        self, x: Tensor, total: Tensor, constant: Tensor, seen: Seen, asking: slice | Tensor = slice(None)
    ) -> Tensor:
        """Normed input x [B, T, d] fp32, log-denominators `total` [B, m, A] of the heads' raw windows, and x along
        the constant direction [B, T] -> [B, A, d]; `asking`: the A places that look things up, all T by default.

        An entry holds the tokens of the window before its own, so entry 0 holds none.
        """
        m, exact = self.count, x[:, asking]
        x = x.to(self.dtype)
        query = F.linear(x[:, asking], self.scale * self.query.flatten(0, 2).to(x)).unflatten(-1, (CSA_RATIO, m, -1))
        query = query.permute(0, 2, 3, 1, 4)  # [B, 4, m, A, c]
        slots = x.unflatten(1, (-1, CSA_RATIO)).transpose(1, 2)[:, :, :-1]  # [B, 4, E - 1, d]
        key = slots @ self.key.to(x).transpose(1, 2)
        value = slots @ self.value.to(x).transpose(1, 2)
        offset = F.linear(exact, self.offset).unflatten(-1, (CSA_RATIO, m)).permute(0, 2, 3, 1)
        offset = offset + self.bias.view(CSA_RATIO, m, 1) * constant[:, None, None, asking]
        starts = constant[:, ::CSA_RATIO]  # [B, E]
        query = torch.cat([query, F.pad(offset[..., None].to(x), (0, _OFFSET_CHANNELS - 1))], -1)
        flag = F.pad(starts[:, :-1, None], (0, _OFFSET_CHANNELS - 1)).to(x)[:, None].expand(-1, CSA_RATIO, -1, -1)
        key = torch.cat([key, flag], -1)
        fade = (constant[:, asking, None] * starts[:, None]).detach() * seen.fade[asking]
        added = fade.masked_fill(~seen.visible[asking], _NEVER)[:, :, 1:]  # [B, A, E - 1]
        added = added.repeat(1, m, 1)[:, None]
        sink = self.sink.view(1, CSA_RATIO, m, 1).expand_as(offset)
        rest = torch.logaddexp(total[:, None].expand_as(offset), sink)
        out, _ = _Attend.apply(query.flatten(2, 3), key, value, added, rest.flatten(2))
        out = out.unflatten(2, (m, -1)).permute(0, 3, 1, 2, 4).flatten(2)
        return F.linear(out, self.output.permute(2, 0, 1, 3).flatten(1).to(x))

    @torch.no_grad()
    def take(self, learned: LearnedSlots, own: LlamaLayer, moment: Tensor) -> None:
        """Begin with these numbers; the bias is part of the offset there.

        Heads beyond those that learned get the query and the output that come nearest to those of the source with the
        keys and values that are there.
        """
        self.key.copy_(learned.key)
        self.value.copy_(learned.value)
        self.bias.zero_()
        q, k, v, o = (matrix.float().cpu() for matrix in (own.q, own.k, own.v, own.o))
        c = learned.key.shape[1]
        for place, head in enumerate(self.heads):
            if head in learned.heads:
                was = learned.heads.index(head)
                query, output, offset, sink = (
                    getattr(learned, name)[:, was] for name in ("query", "output", "offset", "sink")
                )
                self.offset.unflatten(0, (CSA_RATIO, -1))[:, place] = offset.to(self.offset)
                self.sink.view(CSA_RATIO, -1)[:, place] = sink.to(self.sink)
            else:
                group = slice(c * (head // self.per_group), c * (head // self.per_group + 1))
                keys, values = _from(k[group], learned.key, moment), _from(v[group], learned.value, moment)
                query = keys.transpose(1, 2) @ q[c * head : c * (head + 1)]
                output = _ADDED * o[:, c * head : c * (head + 1)] @ values
            self.query[:, place] = query.to(self.query)
            self.output[:, place] = output.to(self.output)

    @torch.no_grad()
    def learned(self, constant: Tensor) -> LearnedSlots:
        """A copy of what they learned, the bias along the constant direction."""
        shape = (CSA_RATIO, self.count)
        offset = self.offset + self.bias[:, None] * constant
        return LearnedSlots(
            self.heads,
            key=_copied(self.key),
            value=_copied(self.value),
            query=_copied(self.query),
            output=_copied(self.output),
            offset=_copied(offset.unflatten(0, shape)),
            sink=_copied(self.sink.view(shape)),
            constant=_copied(constant),
        )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()


def _with_kept(x: Tensor, kept: slice, blocks: int) -> Tensor:
    """[B, T, w] -> [B, n, 256 + k, w]: each block of 128 with the one before it, and the tokens that are kept."""
    parts = x.unflatten(1, (blocks, _BLOCK))
    before = torch.cat([torch.zeros_like(parts[:, :1]), parts[:, :-1]], 1)
    first = x[:, kept][:, None].expand(-1, blocks, -1, -1)
    return torch.cat([before, parts, first], 2)


def _outside(blocks: int, device: torch.device) -> Tensor:
    """[n, 128, 256]: 0 for those of two blocks' tokens that are in the raw window."""
    distance = torch.arange(_BLOCK, device=device)[:, None] + _BLOCK - torch.arange(2 * _BLOCK, device=device)
    outside = ((distance < 0) | (distance >= RAW_WINDOW)).repeat(blocks, 1, 1)
    outside[0, :, :_BLOCK] = True
    return torch.where(outside, _NEVER, 0.0)


# ---------------------------------------------------------------------- where slots start from


def _root(moment: Tensor, power: float) -> Tensor:
    """A symmetric positive matrix to a power."""
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp_min(1e-9 * float(values.max()))
    return ((vectors * values**power) @ vectors.T).float()


def _shared_keys(
    query: Tensor, key: Tensor, moment: Tensor, heads: Sequence[int], per_group: int, c: int
) -> tuple[Tensor, Tensor]:
    """One key [1, c, d] for the heads of all groups, and the heads' queries of it [1, m, c, d]: the c directions that
    carry most of their logits."""
    groups = sorted({head // per_group for head in heads})
    stacked, back = [], {}
    for group in groups:
        rows = torch.cat([query[c * h : c * (h + 1)] for h in heads if h // per_group == group]).unflatten(0, (-1, c))
        energy = sum(one @ moment @ one.T for one in rows)
        assert isinstance(energy, Tensor)
        stacked.append(_root(energy, 0.5) @ key[c * group : c * (group + 1)])
        back[group] = _root(energy, -0.5)
    basis, reduced = _principal(torch.cat(stacked), moment, c)
    size = float(torch.einsum("ad,de,ae->", reduced, moment, reduced) / c) ** 0.5
    each = []
    for head in heads:
        place = groups.index(head // per_group)
        turn = basis[c * place : c * (place + 1)].T @ back[head // per_group]
        each.append(size * turn @ query[c * head : c * (head + 1)])
    return (reduced / size)[None], torch.stack(each)[None]


def _shared_values(
    value: Tensor, output: Tensor, moment: Tensor, heads: Sequence[int], per_group: int, c: int
) -> tuple[Tensor, Tensor]:
    """One value [1, c, d] for the heads of all groups, and the heads' outputs of it [1, m, d, c]."""
    groups = sorted({head // per_group for head in heads})
    stacked, back = [], {}
    for group in groups:
        columns = [output[:, c * h : c * (h + 1)] for h in heads if h // per_group == group]
        energy = sum(one.T @ one for one in columns)
        assert isinstance(energy, Tensor)
        stacked.append(_root(energy, 0.5) @ value[c * group : c * (group + 1)])
        back[group] = _root(energy, -0.5)
    basis, reduced = _principal(torch.cat(stacked), moment, c)
    each = []
    for head in heads:
        place = groups.index(head // per_group)
        each.append(output[:, c * head : c * (head + 1)] @ back[head // per_group] @ basis[c * place : c * (place + 1)])
    return reduced[None], torch.stack(each)[None]


def _from(wanted: Tensor, rows: Tensor, moment: Tensor) -> Tensor:
    """The matrices M [4, c, c] for which M (rows x) [4, c, d] is nearest to wanted x [c, d]."""
    rows, moment = rows.double(), moment.double()
    crossed = wanted.double() @ moment @ rows.transpose(1, 2)
    return torch.linalg.solve(rows @ moment @ rows.transpose(1, 2), crossed, left=False).float()


def _principal(rows: Tensor, moment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` principal directions of rows @ x: basis [n, count], and the reduced rows [count, d]."""
    _, vectors = torch.linalg.eigh((rows @ moment @ rows.T).double())
    basis = vectors.flip(1)[:, :count].float()
    return basis, basis.T @ rows
