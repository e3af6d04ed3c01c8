"""The capstone's solution, as a learner would hand it in."""

from __future__ import annotations

import re

COMMAND = re.compile(r"<call>([1-9]\d*)</call>")


def my_relay(student, teacher, max_tokens, max_calls):
    answer, begin, calls = [], 0, 0  # begin: of the student's turn
    while len(answer) < max_tokens and (token := student([text for text, _ in answer])):
        before = "".join(text for text, _ in answer[begin:])
        answer.append((token, "s"))
        found = [call for call in COMMAND.finditer(before + token) if call.end() > len(before)]
        if not found:
            continue
        end = 0
        for k in range(begin, len(answer)):
            text, end = answer[k][0], end + len(answer[k][0])
            if end > found[0].start():
                answer[k] = (text, "c")
        n = min(int(found[0][1]), max_tokens - len(answer))
        if n > 0 and calls < max_calls:
            text = "".join(text for text, who in answer if who != "c")
            answer += [(written, "t") for written in teacher(text, n)]
            calls, begin = calls + 1, len(answer)
    return answer


def group_rewards(group):
    right = [source for source, correct in group if correct]
    dependent = right and all("t" in source for source in right)
    lengths = [len(source) - source.count("c") for source, _ in group]
    rewards = []
    for (source, correct), length in zip(group, lengths):
        helped = "t" in source
        ratio = min(1.0, source.count("t") * (len(group) - 1) / (sum(lengths) - length))
        if correct:
            rewards.append(1 - ratio if helped else 1.5)
        elif dependent and not helped:
            rewards.append(-1.0)
        else:
            rewards.append(ratio if helped and not right else 0.0)
    return rewards


def batch_mask(sources, length):
    return [[int(k < len(source) and source[k] != "t") for k in range(length)] for source in sources]


def chosen(rates, low, high):
    names = []
    for name, (taught, asked, solved, tried) in rates.items():
        if asked and taught / asked >= low and (not tried or solved / tried <= high):
            names.append(name)
    return names
