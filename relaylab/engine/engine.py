"""A batched engine over one causal language model. Sequences keep their key-value caches across hand-offs.

A sequence is a ``CacheSlot``: a growing list of token ids. Append to its ``ids``, and ``forward`` runs whatever has not
been run yet; no token is ever run twice. Sequences can be paused (leave them out of the next ``forward``), cut back
and closed. Who else is in the batch makes no difference to a sequence.

The engine does not sample (``sampling.py``), and it knows nothing of calls (``relay``). It refuses models with sliding
windows, recurrent layers, latent attention or encoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from relaylab.engine.cuda_graphs import StepGraphs
from relaylab.engine.fast import ATTENTION, FEW, FewTokens, causal_mask, fast_forward
from relaylab.engine.kv_cache import CacheSlot, KVCache
from relaylab.engine.supported import cache_shape, context_of, end_ids_of
from relaylab.engine.token_text import TokenText, prompt_ids, raw_ids

MIN_SHARED = 128  # tokens of a beginning that is worth a copy
MAX_CHUNK_TOKENS = 8192  # tokens of one forward pass, padding included: bounds the memory of a prefill


class Engine:
    """Runs one model over many sequences.

    Args:
        model: it may be trained between forward passes, in training mode too. Close all slots before it changes.
        tokenizer: of the model, a fast one.
        name: for traces.
        graphs: on a GPU, decode by CUDA graphs (``cuda_graphs.py``): the same tokens, several times as fast.

    ``forwarded`` counts the tokens that were run (padding not counted), ``passes`` the forward passes.

    Raises:
        ValueError: for a model whose cache is not one key and value a token in every layer, or whose logits through the
            engine are not the model's own. A few tokens are tried at once.

    >>> from relaylab.engine.load import load_engine
    >>> engine = load_engine("student")
    >>> slot = engine.open(engine.prompt_ids([{"role": "user", "content": "What is 2+3?"}]))
    >>> engine.forward([slot]).shape == (1, 1, engine.vocabulary)
    True
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str = "", graphs: bool = True
    ):
        config = model.config.get_text_config()
        shape = cache_shape(model, tokenizer)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.text = TokenText(tokenizer)
        self.name = name
        self.source: str | None = None  # what it was loaded from, if from files
        self.vocabulary = config.vocab_size
        self.context = context_of(config)
        self.device, self.dtype = model.device, model.dtype
        self.end_ids = end_ids_of(model.generation_config, tokenizer)
        self.cache = KVCache(*shape, self.context, dtype=self.dtype, device=self.device)
        self.forwarded = self.passes = 0
        self._config = config
        self._large = self.device.type == "cpu" and self.dtype == torch.float32 and config.hidden_size >= 512
        known = torch.from_numpy(self.text.known[: self.vocabulary])
        unknown = nn.functional.pad(~known, (0, self.vocabulary - len(known)), value=True).to(self.device)
        self._unknown = unknown if unknown.any() else None  # the ids without a token: padding of the embedding matrix
        # While any module has a hook, the modules have to be called: no faster pass then.
        self._hooks = [hooks for m in model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._fast = fast_forward(model)
        capture = graphs and self.device.type == "cuda" and not getattr(model, "is_quantized", False)
        self._graphs = StepGraphs(model, self._fast, self.cache) if self._fast and capture else None
        if self._fast:
            with suppress(AttributeError, IndexError, TypeError, RuntimeError):  # some part of it is another than known
                if self._error() <= 1:
                    return
            self._fast = self._graphs = None
        if not (error := self._error()) <= 1:
            kind = type(model).__name__
            raise ValueError(f"relaylab's engine cannot run {kind}: logits differ {error:.2g} times what rounding may")

    def __repr__(self) -> str:
        return f"Engine({self.name!r}, {type(self.model).__name__}, {self.device}, {self.dtype})"

    @torch.inference_mode()
    def _error(self) -> float:
        """How far a prefill and one token more are from the model's own pass, in units of what rounding may explain."""
        ids = self.text.encode("What is 12 + 34? It is 46.")[: min(12, self.context)]
        slot = self.open(ids[:-1])
        try:
            self.forward([slot])
            slot.ids += ids[-1:]
            ours = self.forward([slot])[0, -1]
        finally:
            self.close(slot)
            self.forwarded = self.passes = 0
        theirs = self.model(torch.tensor([ids], device=self.device), use_cache=False).logits[0, -1].float()
        difference = (ours - theirs)[ours > -torch.inf].abs().max().item()
        allowed = (0.002 if self.dtype == torch.float32 else 0.05) * theirs.abs().max().item()
        return difference / max(allowed, 1e-30)

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """The chat template applied, ready for an answer, in non-thinking mode where a model has one."""
        return prompt_ids(self.tokenizer, messages)

    def raw_ids(self, text: str, ids: Sequence[int] | None = None) -> list[int]:
        """A prompt without a template: its ``ids`` if they are known, else those of the text."""
        return raw_ids(self.tokenizer, text) if ids is None else list(ids)

    # Slots ------------------------------------------------------------------------------------------------------------

    @property
    def slots(self) -> list[CacheSlot]:
        """The open slots."""
        return self.cache.slots

    def open(self, ids: Sequence[int]) -> CacheSlot:
        """A new slot; nothing is run yet."""
        return self.open_many([ids])[0]

    @torch.inference_mode()
    def open_many(self, prompts: Sequence[Sequence[int]]) -> list[CacheSlot]:
        """New slots, one a prompt, in order. Equal prompts, and long beginnings that are equal, are read once.

        Raises:
            ValueError: for an empty prompt.
        """
        if not all(prompts):
            raise ValueError("a slot needs at least one token to begin with")
        slots = list[CacheSlot]()
        try:
            for ids in prompts:
                slots.append(self.cache.place(ids))
            self._read_once(slots)
        except BaseException:  # memory ran out: none of them stays
            for slot in slots:
                self.close(slot)
            raise
        return slots

    def _read_once(self, slots: list[CacheSlot]) -> None:
        """Read what new slots share with each other, and copy what they share with those that are open."""
        alike: dict[tuple[int, ...], list[CacheSlot]] = {}
        for slot in slots:
            alike.setdefault(slot.prompt, []).append(slot)
        # 1) A slot that holds its whole prompt but the last token, whose logits are wanted later, can lend its cache.
        donors = dict[tuple[int, ...], CacheSlot]()
        for slot in filter(None, self.cache.at):
            length = len(slot.prompt)
            if slot.cached >= length - 1 and tuple(slot.ids[:length]) == slot.prompt:
                donors[slot.prompt] = slot
        # 2) Where none does, the first of several equal prompts is read. A long beginning of different ones, such as
        #    solved examples, is read once.
        self._share_beginnings([g[0] for prompt, g in alike.items() if prompt not in donors])
        first = [g[0] for prompt, g in alike.items() if len(g) > 1 and 1 < len(prompt) <= self.context]
        first = [slot for slot in first if slot.prompt not in donors]
        lengths = {slot: len(slot.prompt) - 1 for slot in first}
        self._read_shared([slot for slot in first if slot.cached < lengths[slot]], lengths)
        donors |= {slot.prompt: slot for slot in first}
        # 3) The others get a copy of its cache.
        for prompt, group in alike.items():
            if (donor := donors.get(prompt)) and (others := [s for s in group if s is not donor]):
                self.cache.copy(donor, others, len(prompt) - 1)

    def _share_beginnings(self, new: list[CacheSlot]) -> None:
        """Copy a long beginning that a new prompt shares with another sequence, or read it for those that follow."""
        new = [slot for slot in new if MIN_SHARED < len(slot.prompt) <= self.context]
        for k, slot in enumerate(new):
            prompt = slot.prompt[:-1]  # whose logits are wanted later
            alike = {s: _alike(prompt, s.ids[: s.cached]) for s in self.slots if s.cached}
            donor = max(alike, key=alike.__getitem__, default=slot)
            if alike.get(donor, 0) >= MIN_SHARED:
                self.cache.copy(donor, [slot], alike[donor])
                continue
            beginning = max((_alike(prompt, other.prompt[:-1]) for other in new[k + 1 :]), default=0)
            if beginning >= MIN_SHARED:
                self._read_shared([slot], {slot: beginning})

    def _read_shared(self, some: list[CacheSlot], lengths: dict[CacheSlot, int]) -> None:
        """Run slots up to some length of their prompts."""
        if not some:
            return
        whole = [slot.ids for slot in some]
        for slot in some:
            slot.ids = slot.ids[: lengths[slot]]
        self.forward(some)
        for slot, ids in zip(some, whole):
            slot.ids = ids

    def crop(self, slot: CacheSlot, length: int) -> None:
        """Cut a sequence back to its first ``length`` tokens."""
        del slot.ids[length:]
        slot.cached = min(slot.cached, length)

    def close(self, slot: CacheSlot) -> None:
        """Give a slot back. Closing twice does nothing."""
        self.cache.close(slot)

    # Forward passes ---------------------------------------------------------------------------------------------------

    @overload
    def forward(self, slots: Sequence[CacheSlot], *, positions: int = 1, hidden: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, slots: Sequence[CacheSlot], *, positions: int = 1, hidden: Literal[True]) -> list[Tensor]: ...
    @torch.inference_mode()
    def forward(self, slots: Sequence[CacheSlot], *, positions: int = 1, hidden: bool = False) -> Any:
        """Run the slots' pending tokens, at least one each.

        Args:
            positions: how many of each slot's last tokens to return.
            hidden: return the last hidden states, too.

        Returns:
            Float32 logits (B, ``positions``, vocabulary), right-aligned: ``[:, -1]`` is the distribution after the last
            token. Where a slot had fewer pending tokens, its first entries mean nothing. With ``hidden``: a pair of
            logits and hidden states (B, ``positions``, H).

        Raises:
            ValueError: for a slot that is closed, has nothing to run, comes twice, or does not fit the context.
        """
        if not all(s.pending and s.index >= 0 for s in slots):
            raise ValueError("a slot that is closed or has no pending tokens has nothing to run; append ids first")
        if (longest := max(len(s.ids) for s in slots)) > self.context:
            raise ValueError(f"a sequence of {longest} tokens does not fit the model's context of {self.context}")
        if len(set(slots)) != len(slots):
            raise ValueError("a slot is named twice")
        groups, parts = _groups(slots), []
        for group in groups:
            part, passes = [slots[i] for i in group], list[list[Tensor]]()
            while part[0].pending:  # one pass, or as many as the tokens of a slot alone need
                passes.append(self._pass(part, positions, hidden))
            outputs = passes[0] if len(passes) == 1 else [torch.cat(p, 1)[:, -positions:] for p in zip(*passes)]
            missing = positions - outputs[0].shape[1]
            parts.append([nn.functional.pad(p, (0, 0, missing, 0)) if missing > 0 else p for p in outputs])
        outputs = parts[0]
        if len(groups) > 1:
            order = torch.tensor([i for group in groups for i in group], device=self.device).argsort()
            outputs = [torch.cat(p)[order] for p in zip(*parts)]
        return outputs if hidden else outputs[0]

    def read(self, prompt: Sequence[int], completion: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the model thinks before each token of a completion that it reads.

        Returns:
            Logits (T, vocabulary) and last hidden states (T, H), both float32.
        """
        slot = self.open([*prompt, *completion[:-1]])
        try:
            logits, hidden = self.forward([slot], positions=len(completion), hidden=True)
        finally:
            self.close(slot)
        return logits[0], hidden[0].float()

    def _pass(self, slots: list[CacheSlot], positions: int, hidden: bool) -> list[Tensor]:
        """One forward pass: logits, and hidden states where they are wanted."""
        # 1) The slots' caches come to the front, and there is a column for every token.
        length = max(min(len(s.ids), s.cached + MAX_CHUNK_TOKENS) for s in slots)
        self.cache.to_front(slots, length)
        order = sorted(slots, key=lambda s: s.index)
        ends = [min(len(s.ids), s.cached + MAX_CHUNK_TOKENS) for s in order]
        counts = [end - s.cached for s, end in zip(order, ends)]
        width, later = max(counts), order[0].pending - counts[0]
        # 2) A step of decoding on a GPU is one graph.
        outputs = None
        if self._graphs is not None and width == 1 and not hidden and not any(self._hooks):
            logits = self._graphs.step([s.ids[s.cached] for s in order], [s.cached for s in order])
            outputs = None if logits is None else [logits]
        # 3) All else is a batch, right-aligned: ids, the positions of these tokens, and what each of them may see.
        if outputs is None:
            rows = [[0] * (width - n) + s.ids[s.cached : end] for s, n, end in zip(order, counts, ends)]
            ids, chunk = torch.tensor(rows, device=self.device), torch.arange(width, device=self.device)
            places = torch.tensor(ends, device=self.device)[:, None] + (chunk - width)  # (B, T)
            columns = places
            if width > min(counts):  # padding goes to the spare column, and what it sees is not looked at
                padding = torch.tensor([width - n for n in counts], device=self.device)[:, None]
                columns = torch.where(chunk >= padding, places, self.cache.columns - 1)
                places = places.clamp(min=0)
            self.cache.aim(columns, length)
            mask = causal_mask(places, length, self.dtype)
            few = FewTokens() if self._large and ids.numel() <= FEW else nullcontext()
            keep = min(width, max(1, positions - later))
            with _evaluating(self.model) if self.model.training else nullcontext(), few:
                if self._fast and not any(self._hooks):
                    states = self._fast(self.model, ids, places, mask, self.cache, keep)
                    logits = self.model.lm_head(states)
                else:
                    logits, states = self._modules(ids, places, mask, keep, hidden)
            outputs = [logits.float(), states] if hidden else [logits.float()]
        # 4) What was run stays in the cache.
        if self._unknown is not None:
            outputs[0].masked_fill_(self._unknown, -torch.inf)
        self.passes += 1
        self.forwarded += sum(counts)
        for slot, end in zip(order, ends):
            slot.cached = end
        return outputs if order == slots else [x[[s.index for s in slots]] for x in outputs]

    def _modules(self, ids: Tensor, places: Tensor, mask: Tensor, keep: int, hidden: bool) -> tuple[Tensor, Tensor]:
        """Logits after the last ``keep`` tokens, and hidden states if wanted, by the model's own pass."""
        before, self._config._attn_implementation = self._config._attn_implementation, ATTENTION
        try:
            out = self.model(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=self.cache, use_cache=True,
                logits_to_keep=keep, output_hidden_states=hidden,
            )  # fmt: skip
        finally:
            self._config._attn_implementation = before
        return out.logits, out.hidden_states[-1][:, -keep:] if hidden else out.logits


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode; a trainer that holds it too gets it back as it was."""
    training = [m for m in model.modules() if m.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _groups(slots: Sequence[CacheSlot]) -> list[list[int]]:
    """Indices of slots to run together: of similar pending length, so that padding stays below the tokens."""
    tokens = [s.pending for s in slots]
    if max(tokens) * len(slots) <= min(2 * sum(tokens) + 64, MAX_CHUNK_TOKENS):
        return [list(range(len(slots)))]
    groups, total = list[list[int]]([[]]), 0
    for i in sorted(range(len(slots)), key=tokens.__getitem__):
        total += tokens[i]
        if groups[-1] and tokens[i] * (len(groups[-1]) + 1) > min(2 * total + 64, MAX_CHUNK_TOKENS):
            groups.append([])
            total = tokens[i]
        groups[-1].append(i)
    return [sorted(g) for g in groups]
