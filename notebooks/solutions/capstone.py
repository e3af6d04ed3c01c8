"""The tests by which ``relaylab grade --lesson capstone`` counts points. No learner's copy holds this file.

Each solution is compared with variants that make one mistake.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from itertools import accumulate

from lesson.checks.function import exercise
from solutions import my_relay as solution

# The loop -------------------------------------------------------------------------------------------------------------


def _play(
    student: Callable, teacher: Callable, max_tokens: int, max_calls: int, *, sees: bool = False, mark: str = "c",
    capped: bool = True, limited: bool = True, whole: bool = False, everywhere: bool = False, ends: bool = False,
    pattern: re.Pattern = solution.COMMAND,
) -> list[tuple[str, str]]:  # fmt: skip
    """The relay, or one with a mistake."""
    answer: list[tuple[str, str]] = []
    begin = calls = 0  # of the student's turn; answered calls
    while len(answer) < max_tokens and (token := student([text for text, _ in answer])):
        answer.append((token, "s"))
        written = [text for text, _ in answer[begin:]]
        found = list(pattern.finditer("".join(written)))
        last = found[-1] if found else None
        if not last or last.end() <= len("".join(written[:-1])) or (whole and last[0] not in written):
            continue
        if ends and last.end() < len("".join(written)):
            continue
        for k, end in enumerate(accumulate(map(len, written))):
            if end > last.start() and end - len(written[k]) < last.end():
                answer[begin + k] = (written[k], mark)
        n = min(int(last[1]), max_tokens - len(answer)) if capped else int(last[1])
        if n < 1 or (limited and calls >= max_calls):
            continue
        text = "".join(t for t, who in answer if sees or who != "c")
        answer += [(t, "t") for t in teacher(text, n)[:n]]
        calls, begin = calls + 1, 0 if everywhere else len(answer)
    return answer


def _cuts(text: str, rng: random.Random, *, mixed: bool = False) -> list[str]:
    """A text in tokens of one to seven characters; unless ``mixed``, no command together with other text."""
    parts = [text] if mixed else [part for part in re.split(r"(<call>\d+</call>)", text) if part]
    tokens = []
    for part in parts:
        while part:
            k = rng.choice([len(part), rng.randint(1, 7)]) if part.startswith("<call>") else rng.randint(1, 7)
            tokens.append(part[:k])
            part = part[k:]
    return tokens


def _pairs(rng: random.Random) -> Iterator[tuple]:
    lines = ["7*8=<call>2</call>.", "a<call>30</call>b<call>2</call>c", "<call>1</call><call>1</call>x", "no call",
             "<call>0</call>y", "<call></call>z<call>4</call>", "1 < 2 <call>3</call> <b>",
             "<call>07</call>k<call>1</call>"]  # fmt: skip
    mixed = ["a<call>2</call>.b<call>1</call>c", "7*8=<call>2</call>56."]  # cut anywhere
    echo = ["=<call>2</call></call>q", "b<call>1</call></call>c<call>1</call>"]  # the teacher begins a command
    for k in range(99):
        line = [*lines, *mixed, *echo][k % (len(lines) + len(mixed) + len(echo))]
        script = _cuts(line, rng, mixed=line in mixed)
        words = ["<call>3" if line in echo else str(rng.randint(0, 9)) for _ in range(rng.randint(1, 40))]

        def student(tokens: list[str], script=script, words=words) -> str:
            own = [t for t in tokens if not t.startswith("w")]
            return script[len(own)] if len(own) < len(script) else ""

        def teacher(text: str, n: int, words=words, seen=line not in mixed) -> list[str]:
            return [f"w{len(text) if seen else ''}-{w}" for w in words][:n]

        yield student, teacher, rng.choice([3, 8, 20, 60]), rng.choice([0, 1, 1, 2, 5])


my_relay = exercise(inputs=_pairs, show=lambda s, t, tokens, calls: f"max_tokens = {tokens}, max_calls = {calls}")(
    solution.my_relay
)


@my_relay.mistake("The teacher must not see the commands.")
def teacher_sees_commands(*a):
    return _play(*a, sees=True)


@my_relay.mistake("Tokens of a command are marked c.")
def commands_are_the_students(*a):
    return _play(*a, mark="s")


@my_relay.mistake("The teacher may write no more than is left of max_tokens.")
def not_capped(*a):
    return _play(*a, capped=False)


@my_relay.mistake("After max_calls answered calls nobody answers.")
def too_many_calls(*a):
    return _play(*a, limited=False)


@my_relay.mistake("A command can be made of several tokens. Look at the text, not at one token.")
def one_token(*a):
    return _play(*a, whole=True)


@my_relay.mistake("A command must lie in what the student wrote since the teacher's last token.")
def across_the_teacher(*a):
    return _play(*a, everywhere=True)


@my_relay.mistake("A number has no leading zeros: <call>07</call> is no command.")
def leading_zeros(*a):
    return _play(*a, pattern=re.compile(r"<call>(\d+)</call>"))


@my_relay.mistake("A command is complete with its last character, also in the middle of a token.")
def at_the_end_only(*a):
    return _play(*a, ends=True)


# The reward -----------------------------------------------------------------------------------------------------------


def _groups(rng: random.Random) -> Iterator[tuple]:
    yield ([("ssss", True), ("sctt", True), ("ssss", False)],)
    for _ in range(40):
        right = rng.choice([0.0, 0.3, 0.9])
        sources = ["".join(rng.choices(rng.choice(["s", "sct", "sctt"]), k=rng.randint(3, 15))) + "s" for _ in range(5)]
        yield ([(source, rng.random() < right) for source in sources],)


def _ratio(group: list, i: int, *, own: bool = False, tags: bool = False, cap: bool = True) -> float:
    lengths = [len(source) - (0 if tags else source.count("c")) for source, _ in group]
    others = [length for k, length in enumerate(lengths) if own or k != i]
    ratio = group[i][0].count("t") * len(others) / sum(others)
    return min(1.0, ratio) if cap else ratio


def _rewards(group: list, *, bonus: float = 1.5, penalty: float = -1.0, explore: bool = True, **ratio) -> list[float]:
    right = [source for source, correct in group if correct]
    dependent = bool(right) and all("t" in source for source in right)
    found = []
    for i, (source, correct) in enumerate(group):
        rho, helped = _ratio(group, i, **ratio), "t" in source
        wrong = penalty if dependent and not helped else rho if explore and not right and helped else 0.0
        found.append((1 - rho if helped else bonus) if correct else wrong)
    return found


group_rewards = exercise(inputs=_groups, show=lambda group: str(group))(solution.group_rewards)


@group_rewards.mistake("A right answer without help gets 1.5.")
def no_bonus(group):
    return _rewards(group, bonus=1.0)


@group_rewards.mistake("If all right ones were helped, a wrong one without help gets -1.")
def no_penalty(group):
    return _rewards(group, penalty=0.0)


@group_rewards.mistake("If none is right, a helped one gets its ratio.")
def no_exploration(group):
    return _rewards(group, explore=False)


@group_rewards.mistake("The rollout itself is not in its own denominator.")
def own_length(group):
    return _rewards(group, own=True)


@group_rewards.mistake("Tokens of commands do not count in the denominator.")
def with_commands(group):
    return _rewards(group, tags=True)


@group_rewards.mistake("No ratio is above 1.")
def unbounded(group):
    return _rewards(group, cap=False)


@group_rewards.mistake("That is the simple reward, over all tokens. The group decides what kind of problem this is.")
def simple(group):
    return [correct - source.count("t") / len(source) for source, correct in group]


@group_rewards.mistake(
    "Wrong answers differ: look at who was helped in a dependent group, and in one without a right answer."
)
def wrong_is_nothing(group):
    return _rewards(group, penalty=0.0, explore=False)


# The mask and the filter ----------------------------------------------------------------------------------------------


def _batches(rng: random.Random) -> Iterator[tuple]:
    yield ["scts", "s"], 3
    for _ in range(30):
        yield ["".join(rng.choices("ssct", k=rng.randint(1, 12))) for _ in range(rng.randint(1, 5))], rng.randint(2, 14)


def _masks(sources: list[str], length: int, trained: str, padding: int = 0) -> list[list[int]]:
    rows = [[int(s in trained) for s in source[:length]] for source in sources]
    return [row + [padding] * (length - len(row)) for row in rows]


batch_mask = exercise(inputs=_batches, show=lambda sources, length: f"sources = {sources}, length = {length}")(
    solution.batch_mask
)


@batch_mask.mistake("Commands are the student's own: they are trained.")
def without_commands(sources, length):
    return _masks(sources, length, "s")


@batch_mask.mistake("The teacher's tokens are not trained.")
def with_the_teacher(sources, length):
    return _masks(sources, length, "sct")


@batch_mask.mistake("Every row has the length of the batch: pad the short ones with 0.")
def not_padded(sources, length):
    return [[int(s != "t") for s in source[:length]] for source in sources]


@batch_mask.mistake("Padding is not trained.")
def padding_is_trained(sources, length):
    return _masks(sources, length, "sc", 1)


@batch_mask.mistake("Padding belongs on the right.")
def padded_on_the_left(sources, length):
    rows = [[int(s != "t") for s in source[:length]] for source in sources]
    return [[0] * (length - len(row)) + row for row in rows]


def _tables(rng: random.Random) -> Iterator[tuple]:
    yield {"a": (9, 10, 2, 10), "b": (4, 10, 0, 10), "c": (10, 10, 10, 10)}, 0.5, 0.9
    for _ in range(30):
        counts = [(rng.choice([0, 4, 10]), rng.choice([0, 4, 10])) for _ in range(8)]
        rows = {f"p{k}": (rng.randint(0, t), t, rng.randint(0, s), s) for k, (t, s) in enumerate(counts)}
        yield rows, rng.choice([0.0, 0.25, 0.5]), rng.choice([0.5, 0.75, 1.0])


chosen = exercise(inputs=_tables, show=lambda rates, low, high: f"rates = {rates}, low = {low}, high = {high}")(
    solution.chosen
)


@chosen.mistake("At least `low`, not above it.")
def above(rates, low, high):
    return [n for n, (a, b, c, d) in rates.items() if b and a / b > low and (not d or c / d <= high)]


@chosen.mistake("At most `high`, not below it.")
def below(rates, low, high):
    return [n for n, (a, b, c, d) in rates.items() if b and a / b >= low and (not d or c / d < high)]


@chosen.mistake("The student's rate has a limit, too.")
def one_end(rates, low, high):
    return [n for n, (a, b, _, _) in rates.items() if b and a / b >= low]


@chosen.mistake("A problem that the student never answered stays in.")
def both_answered(rates, low, high):
    return [n for n, (a, b, c, d) in rates.items() if b and d and a / b >= low and c / d <= high]
