"""Play the loop of ``my_relay.py`` with two real models: ``python try_it.py``. An adapter makes functions of them."""

import torch
from my_relay import my_relay

import relaylab as rl

pair = rl.load_pair()
problem = next(p for p in rl.problems("tiles", 20) if pair.solve(p).answered)
talk = [{"role": "user", "content": problem.question}]


def adapter(engine):
    """The next token of a model, greedily, as a function of the tokens so far."""
    names = [token.decode(errors="replace") for token in engine.text.bytes]
    ids, ends = {name: i for i, name in reversed(list(enumerate(names)))}, set(engine.end_ids)

    def next_token(tokens: list[str]) -> str:
        known = engine.prompt_ids(talk) + [ids[token] for token in tokens]
        with torch.inference_mode():
            best = int(engine.model(torch.tensor([known])).logits[0, -1].argmax())
        return "" if best in ends else names[best]

    return next_token


def teacher(text: str, n: int) -> list[str]:
    """Up to n tokens of the teacher."""
    write = adapter(pair.teacher.engine)
    tokens = pair.student.text.pieces(pair.student.text.encode(text))
    written: list[str] = []
    while len(written) < n and (token := write(tokens + written)):
        written.append(token)
    return written


mine = my_relay(adapter(pair.student), teacher, 160, 2)
if mine is None:
    raise SystemExit("my_relay is open: it returns None")
theirs = pair.solve(problem, max_tokens=160, max_calls=2)
print(problem.question, *(f"[{text}]" if who == "t" else text for text, who in mine), sep="")
writers = "".join(who for _, who in mine)
print("the package's answer has the same tokens and writers:", writers == theirs.source[: len(writers)])
