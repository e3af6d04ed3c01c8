"""Several servers as one teacher: who is asked, what a dead or a broken one costs, and that rows keep their answers."""

from __future__ import annotations

import copy
import threading
import time

import pytest
from misbehaving_server import DROP, MisbehavingServer, Reply

from relaylab.relay.api_teacher import APITeacher
from relaylab.relay.fleet_teacher import FleetTeacher, fleet
from relaylab.relay.teachers import Context, Segment, Teacher
from relaylab.tasks.suites import problems
from relaylab.training.data_filter import load_rates, pass_rates

# Four at a time: more connections at once than the test server's queue holds are refused.
OPTIONS = {"model": "m", "retries": 0, "backoff": 0.01, "max_backoff": 0.05, "concurrency": 4, "wait": 0.05}


@pytest.fixture
def servers():
    """Three servers that say which row and seed they were asked for, so that every row has an answer of its own."""
    found = [MisbehavingServer() for _ in range(3)]
    for server in found:
        server.writes = lambda request: f"{request.body.get('seed')}: {request.prompt[-12:]}"
    yield found
    for server in found:
        server.stop()


def made(servers, **options) -> FleetTeacher:
    return fleet([s.url for s in servers], **OPTIONS | options)


def contexts(count: int, first: int = 0) -> list[Context]:
    numbers = range(first, first + count)
    return [Context(i, [{"role": "user", "content": f"row {i}"}], [Segment(f"so {i}")], seed=7 * i) for i in numbers]


def answers(server) -> list[str]:
    """The prompts of rows that a server was asked for, its probing left out."""
    return [r.prompt for r in server.requests if "so " in r.prompt]


def test_a_row_has_the_same_answer_from_a_fleet_as_from_one_server(servers):
    alone = APITeacher(servers[0].url, model="m", concurrency=4)
    said = alone.continue_(contexts(20), [9] * 20)
    assert [c.error for c in said] == [None] * 20
    expected = [c.text for c in said]
    teacher = made(servers)
    assert isinstance(teacher, Teacher)
    said = teacher.continue_(contexts(20), [9] * 20)
    assert [c.text for c in said] == expected
    assert expected[3].startswith("21: ")
    assert all(len(answers(s)) > 0 for s in servers[1:]), "the others were asked as well"
    assert all(c.finish == "length" and c.latency > 0 for c in said)
    assert teacher.continue_([], []) == []
    with pytest.raises(ValueError, match="at least one token"):
        teacher.continue_(contexts(1), [0])


def test_the_least_busy_is_asked_and_a_row_comes_back_to_its_server(servers):
    teacher = made(servers)
    teacher.continue_(contexts(3), [4] * 3)  # all are known now
    for server in servers:
        server.script()
    go_on = threading.Event()
    for server in servers:
        server.rule = lambda request: go_on.wait(60) and None if "row 50" in request.prompt else None
    slow = threading.Thread(target=teacher.continue_, args=(contexts(1, first=50), [4]))
    slow.start()
    while not any(answers(s) for s in servers):
        time.sleep(0.01)
    busy = next(s for s in servers if answers(s))
    for i in range(6):
        teacher.continue_(contexts(1, first=60 + i), [4])
    assert len(answers(busy)) == 1, "nobody else waits for it"
    go_on.set()
    slow.join()
    # One after another, each row goes where it was before, whoever is idle.
    homes = {}
    for row in (70, 71, 72):
        teacher.continue_(contexts(1, first=row), [4])
        homes[row] = teacher._last[row]
    again = contexts(1, first=71)
    again[0].segments.append(Segment(" and on"))
    teacher.continue_(again, [4])
    assert teacher._last[71] == homes[71]
    teacher.release([71])
    assert 71 not in teacher._last


def test_a_dead_server_loses_nothing_and_is_left_alone(servers):
    servers[1].stop()
    teacher = made(servers)
    started = time.monotonic()
    said = teacher.continue_(contexts(30), [9] * 30)
    assert [c.text.partition(":")[0] for c in said] == [str(7 * i) for i in range(30)]
    assert len(answers(servers[0])) + len(answers(servers[2])) == 30, "each was asked once"
    assert time.monotonic() - started < 20
    assert teacher._failures[1] >= 1
    before = teacher._failures[1]
    teacher.continue_(contexts(5, first=100), [9] * 5)
    assert teacher._failures[1] == before, "it rests"


def test_one_that_dies_in_the_middle_loses_nothing(servers):
    teacher = made(servers)
    teacher.continue_(contexts(3), [9] * 3)
    servers[2].rule = lambda request: DROP
    said = teacher.continue_(contexts(30, first=10), [9] * 30)
    assert [c.text.partition(":")[0] for c in said] == [str(7 * i) for i in range(10, 40)]
    servers[2].rule = lambda request: None
    servers[2].script()
    teacher._resting[2] = time.monotonic() - 1  # its rest is over
    teacher.continue_(contexts(12, first=200), [9] * 12)
    assert len(answers(servers[2])) >= 1, "it is back"
    assert teacher._resting[2] == 0.0


def test_after_its_rest_one_request_tries_a_server(servers):
    teacher = made(servers[:2], rest=100)
    teacher.continue_(contexts(4), [4] * 4)
    with teacher._lock:
        teacher._resting[0] = time.monotonic() - 1
    assert teacher._choose("a", set())[0] == 0
    assert [teacher._choose(name, set())[0] for name in "bcd"] == [1, 1, 1], "the others do not wait for the answer"


def test_what_every_server_fails_is_an_error_of_its_row_alone(servers):
    for server in servers:
        server.rule = lambda request: Reply(status=503) if "row 2" in request.prompt else None
    said = made(servers).continue_(contexts(4), [9] * 4)
    assert [c.finish for c in said] == ["length", "length", "error", "length"]
    assert "503" in said[2].error
    assert "every server failed" in said[2].error
    for server in servers:
        server.stop()
    (lost,) = made(servers).continue_(contexts(1), [9])
    assert (lost.finish, lost.text) == ("error", "")


def test_a_request_goes_round_again_before_it_is_lost(servers):
    asked = []

    def overloaded(request):
        if "so " not in request.prompt:
            return None
        asked.append(request.prompt)
        return Reply(status=503) if asked.count(request.prompt) <= 3 else None

    for server in servers:
        server.rule = overloaded
    said = made(servers).continue_(contexts(3), [9] * 3)
    assert [c.text.partition(":")[0] for c in said] == ["0", "7", "14"]
    assert len(asked) == 12, "three times in vain, each at another server"
    asked.clear()
    assert [c.finish for c in made(servers, rounds=1).continue_(contexts(3), [9] * 3)] == ["error"] * 3


def test_a_fleet_is_one_teacher(servers):
    one = APITeacher(servers[0].url, model="m")
    with pytest.raises(ValueError, match="at least one server"):
        FleetTeacher([])
    with pytest.raises(ValueError, match="their model differs"):
        FleetTeacher([one, APITeacher(servers[1].url, model="n")])
    with pytest.raises(ValueError, match="comes twice"):
        fleet([servers[0].url] * 2)
    servers[1].models = ["another"]
    with pytest.raises(ValueError, match=r"serves (another|m), another server of the fleet"):
        made(servers[:2], model=None).continue_(contexts(6), [4] * 6)


def test_names_and_errors_hold_no_secret_and_copies_have_a_temperature_of_their_own(servers):
    address = servers[0].url.removeprefix("http://")
    teacher = fleet([f"http://me:topsecret@{address}", servers[1].url], api_key="sk-verysecret", **OPTIONS)
    servers[0].stop(), servers[1].stop()
    (said,) = teacher.continue_(contexts(1), [4])
    for text in (repr(teacher), teacher.name, said.error):
        assert "secret" not in text
    assert (teacher.name, teacher.fingerprint, teacher.extra_body) == ("m@fleet", None, {})
    sampling = copy.copy(teacher)
    sampling.temperature = 1.0
    assert (teacher.temperature, sampling.temperature) == (0.0, 1.0)


def test_the_data_filter_loses_nothing_to_a_dead_server(servers, tmp_path):
    asked = problems("savings", 6, split="train")
    right = {p.question: p.answer for p in asked}
    for server in servers:
        server.writes = lambda request: (
            rf"\boxed{{{next((a for q, a in right.items() if q in request.prompt), '')}}}"
            if request.body.get("seed", 0) % 2
            else "no"
        )
    whole = pass_rates(made(servers[:1], temperature=1.0), asked, tmp_path / "whole", samples=4, progress=False)
    servers[1].stop()
    rates = pass_rates(made(servers, temperature=1.0), asked, tmp_path / "fleet", samples=4, progress=False)
    assert rates == whole
    assert {r.failed for r in rates} == {0}
    assert 0 < sum(r.passed for r in rates) < 24
    assert (tmp_path / "fleet").read_bytes() == (tmp_path / "whole").read_bytes(), "servers are no part of the terms"
    assert load_rates(tmp_path / "fleet") == rates
