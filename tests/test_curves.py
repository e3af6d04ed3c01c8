"""Learning curves hold the logged numbers and their running means, and the live ones never lose the last state."""

import json
import math
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from relaylab.views import curves
from relaylab.views.curves import DASHES, METRICS, LiveCurves, learning_curves
from relaylab.views.theme import OKABE_ITO, show_figure


def frame(n: int = 12, up: float = 0.05) -> pd.DataFrame:
    rows = [(i, math.sin(i) + up * i, 0.25 + up * i + 0.1 * (-1) ** i, 0.3 / i) for i in range(1, n + 1)]
    return pd.DataFrame(rows, columns=["step", "reward", "accuracy", "call_ratio"])


def drawn(fig, mode: str) -> list[tuple[str, list[float], list[float]]]:
    """Name, x and y of every trace of a mode, the upper panels first."""
    traces = sorted((t for t in fig.data if t.mode == mode), key=lambda t: -int(t.yaxis[1:] or 1))
    return [(t.name, list(t.x), list(t.y)) for t in traces]


def running(values: list[float], n: int) -> list[float]:
    """Means of the last n."""
    windows = [values[max(0, i + 1 - n) : i + 1] for i in range(len(values))]
    return [sum(w) / len(w) for w in windows]


def axis_titles(fig) -> list[str]:
    return [fig.layout[f"yaxis{i or ''}"].title.text for i in (*range(30, 1, -1), 0) if f"yaxis{i or ''}" in fig.layout]


def test_dots_are_the_logged_values_and_lines_their_running_means():
    data = frame()
    fig = learning_curves(data, smooth=4)
    scales = {"reward": 1, "accuracy": 100, "call_ratio": 100}
    for k, (column, scale) in enumerate(scales.items()):
        values = [scale * v for v in data[column]]
        (_, x, raw), (_, line_x, line) = drawn(fig, "markers")[k], drawn(fig, "lines")[k]
        assert x == line_x == list(range(1, 13))
        assert raw == pytest.approx(values)
        assert line == pytest.approx(running(values, 4))
    assert [name for name, *_ in drawn(fig, "lines")] == ["reward", "accuracy", "call ratio"]
    assert [a.text for a in fig.layout.annotations] == ["call ratio", "accuracy", "reward"]
    assert [a.y for a in fig.layout.annotations] == [fig.layout[f"yaxis{k}"].domain[1] for k in ("", 2, 3)]
    assert axis_titles(fig) == ["mean of rollouts", "% of rollouts", "% of tokens"]
    assert fig.layout.xaxis.title.text == "optimiser step"
    assert fig.layout.xaxis2.matches == fig.layout.xaxis3.matches == "x"  # zoomed together
    assert not any(t.showlegend for t in fig.data)
    assert all(t.marker.opacity < 0.5 for t in fig.data if t.mode == "markers")


def test_gaps_are_left_out_of_the_means():
    data = pd.DataFrame({"step": range(1, 7), "mean_n": [None, 4, None, None, 10, 20]})
    fig = learning_curves(data, columns=["mean_n"], smooth=2)
    assert drawn(fig, "lines")[0][2] == pytest.approx([math.nan, 4, 4, math.nan, 10, 15], nan_ok=True)
    assert fig.layout.meta["alt"].startswith("Length of an answer rises from 4 tokens to 15 tokens between")


def test_every_known_metric_has_its_unit():
    shares = {"accuracy", "call_ratio", "group_ratio", "helped", "ended", "excluded"}
    data = pd.DataFrame({"step": [1, 2]} | {name: [0.5, 0.25] for name in METRICS})
    fig = learning_curves(data, columns=list(METRICS), smooth=1)
    assert axis_titles(fig) == [unit for _, unit in METRICS.values()]
    for column, (_, _, values) in zip(METRICS, drawn(fig, "lines"), strict=True):
        assert values == ([50, 25] if column in shares or "groups_" in column else [0.5, 0.25]), column
    assert fig.layout.meta["alt"].count(" %") == 2 * (len(shares) + 3)
    assert not fig.layout.title.subtitle.text  # nothing is smoothed


def test_an_unknown_metric_is_drawn_as_logged():
    fig = learning_curves(pd.DataFrame({"step": [1], "grad_norm<i>": [1234.5]}), columns=["grad_norm<i>"])
    assert (axis_titles(fig), fig.layout.annotations[0].text) == (["as logged"], "grad norm&lt;i&gt;")
    assert fig.layout.meta["alt"].startswith("Grad norm<i> is 1,234 at step 1.")


def test_text_alternative_has_the_first_and_the_last_mean():
    data = pd.DataFrame(
        {"step": [5, 6, 7], "accuracy": [0.2, 0.4, 0.8], "call_ratio": [0.31, 0.2, 0.1], "kl": [0.5, 0.5, 0.5]}
    )
    fig = learning_curves(data.assign(mean_n=None), columns=["accuracy", "call_ratio", "kl", "mean_n"], smooth=2)
    assert fig.layout.meta["alt"] == (
        "Accuracy rises from 20 % to 60 % between steps 5 and 7; call ratio falls from 31 % to 15 %; "
        "KL divergence from the reference begins and ends at 0.5 nats; length of an answer has no value. "
        "Each number is a mean of up to 2 logged steps."
    )
    two = learning_curves({"a": data, "b": data.head(1)}, columns=["accuracy"], smooth=1).layout.meta["alt"]
    assert two == "a: accuracy rises from 20 % to 80 % between steps 5 and 7. b: accuracy is 20 % at step 5."


def test_runs_differ_by_colour_and_by_dash():
    fig = learning_curves({f"run {i}": frame(3) for i in range(42)}, columns=["reward", "accuracy"])
    lines = [t for t in fig.data if t.mode == "lines"]
    styles = {(t.name, t.line.color, t.line.dash) for t in lines}
    assert (len(lines), len(styles)) == (84, 42)  # the same in each panel
    assert len({style[1:] for style in styles}) == 42
    assert {("run 0", OKABE_ITO[0], DASHES[0]), ("run 1", OKABE_ITO[1], DASHES[1])} <= styles
    dots = {(t.name, t.marker.color) for t in fig.data if t.mode == "markers"}
    assert dots == {(t.name, t.line.color) for t in lines}
    assert [t.name for t in fig.data if t.showlegend] == [f"run {i}" for i in range(42)]


def test_runs_need_not_have_logged_the_same():
    runs = {"new": pd.DataFrame(), "plain": frame().drop(columns=["reward"]), "relay": frame(5)}
    fig = learning_curves(runs)
    names = [(name, len(x)) for name, x, _ in drawn(fig, "lines")]
    assert names == [("relay", 5), ("plain", 12), ("relay", 5), ("plain", 12), ("relay", 5)]
    assert sorted(t.name for t in fig.data if t.showlegend) == ["plain", "relay"]
    colors = {t.name: t.line.color for t in fig.data if t.mode == "lines"}
    assert colors["plain"] == OKABE_ITO[1]  # a run keeps its colour when those before it begin to log
    assert "new" not in fig.layout.meta["alt"]


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match=r"no column 'acuracy' .* there are step, reward, accuracy, call_ratio$"):
        learning_curves({"a": frame(), "b": frame()}, columns=["reward", "acuracy"])
    for nothing in (pd.DataFrame(), frame().head(0), {}, {"a": pd.DataFrame()}):
        with pytest.raises(ValueError, match="no step has been logged yet"):
            learning_curves(nothing)
    with pytest.raises(ValueError, match="smooth is 0"):
        learning_curves(frame(), smooth=0)


def test_hostile_names_stay_text():
    bad = "</script><b>x</b><a href='y'>$z$\x1b\u202e"
    fig = learning_curves({bad: frame(), "other": frame()})
    names = {t.name for t in fig.data} - {"other"}
    assert names == {"&lt;/script&gt;&lt;b&gt;x&lt;/b&gt;&lt;a href='y'&gt;&#36;z&#36;\\x1b\\u202e"}
    html, harmless = (show_figure(f).html for f in (fig, learning_curves({"a": frame(), "other": frame()})))
    assert html.count("</script>") == harmless.count("</script>")
    assert not re.search("<b>|<a |\x1b|\u202e", html)


# Live ----------------------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(curves, "time", clock := Clock())
    return clock


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """IPython as a notebook has it; ``capture_output`` catches what it displays."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # a shell puts its own module there
    yield InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    InteractiveShell.clear_instance()


def feed(live: LiveCurves, rows: pd.DataFrame) -> None:
    for row in rows.to_dict("records"):
        live(row)


def shown(captured) -> list[tuple[bool, int]]:
    """Of every picture, whether it updates one before it, and the last step that it tells of."""
    last = [re.search(r"steps? (?:1 and )?(\d+)", out.data["text/plain"]) for out in captured.outputs]
    return [(bool(out.update), int(m[1])) for out, m in zip(captured.outputs, last, strict=True)]


def test_outside_of_a_notebook_rows_are_kept_and_nothing_is_drawn(capsys, monkeypatch):
    monkeypatch.setattr(curves, "show_figure", None)
    with LiveCurves() as live:
        assert live.metrics.empty
        with pytest.raises(ValueError, match="no step"):
            live.figure()
        feed(live, frame(3))
    pd.testing.assert_frame_equal(live.metrics, frame(3), check_dtype=False)
    assert capsys.readouterr().out == ""


def test_one_display_is_updated_now_and_then_and_at_the_end(shell, clock):
    with capture_output() as captured, LiveCurves(every=1.0) as live:
        for row in frame(12).to_dict("records"):
            live(row)
            clock.now += 0.3
        assert shown(captured) == [(False, 1), (True, 5), (True, 9)]
    assert shown(captured)[3:] == [(True, 12)]
    assert len({out.transient["display_id"] for out in captured.outputs}) == 1
    html = captured.outputs[-1].data["text/html"]
    assert 'class="rl-fig ' in html
    assert len(html) < 100_000  # plotly.js is in the page, once
    assert len(live.metrics) == 12


def test_the_last_step_is_drawn_at_once_and_only_once(shell, clock):
    live = LiveCurves(steps=3)
    with capture_output() as captured:
        feed(live, frame(3))
        assert shown(captured) == [(False, 1), (True, 3)]
        live.close()
        live.close()
    assert len(captured.outputs) == 2


def test_an_interrupted_training_leaves_its_last_state(shell, clock):
    with capture_output() as captured, pytest.raises(KeyboardInterrupt), LiveCurves(every=1e9) as live:  # noqa: PT012
        feed(live, frame(4))
        raise KeyboardInterrupt
    assert shown(captured) == [(False, 1), (True, 4)]


def test_a_run_that_goes_on_replaces_what_it_repeats_and_has_a_new_display(shell, clock):
    live = LiveCurves()
    with capture_output() as captured:
        for part in (frame(6), frame(5)[2:], frame(1)):
            feed(live, part)
            live.close()
            assert live.metrics["step"].tolist() == list(range(1, part["step"].iloc[-1] + 1))
    assert [update for update, _ in shown(captured)] == [False, True, False, True, False]
    assert len({out.transient["display_id"] for out in captured.outputs}) == 3


def test_a_column_that_comes_late_or_never_breaks_no_training(shell, clock):
    live = LiveCurves(["reward", "mean_n", "acuracy"], every=0)
    with capture_output() as captured:
        live({"step": 1, "reward": 1.0})
        live({"step": 2, "reward": 2.0, "mean_n": 7.0})
    first, last = (out.data["text/plain"] for out in captured.outputs)
    assert "length of an answer has no value; acuracy has no value" in first
    assert "length of an answer is 7 tokens; acuracy has no value" in last
    assert list(live.metrics) == ["step", "reward", "mean_n"]
    with pytest.raises(ValueError, match="smooth is 0"):
        LiveCurves(smooth=0)  # but what is wrong from the start is said at the start
    with pytest.raises(TypeError, match="smoth"):
        LiveCurves(smoth=3)


def test_as_the_last_line_of_a_cell_it_shows_the_curves_and_in_a_terminal_nothing(shell):
    live = LiveCurves()
    assert shell.display_formatter.format(live)[0] == {"text/plain": "no step has been logged yet"}
    live({"step": 1, "reward": 0.5})
    bundle = shell.display_formatter.format(live)[0]
    assert bundle["text/plain"] == live.figure().layout.meta["alt"]
    assert 'class="rl-fig ' in bundle["text/html"]
    # A terminal of IPython shows nothing.
    shell.display_formatter.active_types = ["text/plain"]
    with capture_output() as captured, LiveCurves() as terminal:
        terminal({"step": 1, "reward": 0.5})
    assert (captured.outputs, len(terminal.metrics)) == ([], 1)


def test_runs_whose_long_names_begin_alike_stay_apart():
    folder = "runs/a-very-long-folder-name-of-a-training-that-goes-on-and-on-and-on/"
    names = [f"{folder}{'x' * 60}-{k}" for k in "ab"] + [f"{'y' * 70}{k}{'z' * 70}" for k in "ab"]
    frames = {name: pd.DataFrame({"step": [1], "reward": [float(k)]}) for k, name in enumerate(names)}
    fig = learning_curves(frames, columns=["reward"], smooth=1)
    lines = [line for line in fig.data if line.mode == "lines"]
    assert [list(line.y) for line in lines] == [[0], [1], [2], [3]]
    assert [line.name[-3:] for line in lines] == ["x-a", "x-b", "zzz", "(2)"]


def test_sampled_tokens_are_those_of_all_micro_batches(tmp_path, monkeypatch):
    """A batch of rollouts is 500 x 10 answers of 100 tokens; its metrics stand at its first optimiser step."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import reward_curves

    config = {"per_device_train_batch_size": 500, "gradient_accumulation_steps": 5, "steps_per_generation": 10}
    (tmp_path / "config.json").write_text(json.dumps(config))
    row = {"accuracy": 0.5, "call_ratio": 0.1, "calls": 1.0, "mean_n": 8.0, "tokens": 100.0}
    lines = [{"step": 1} | row, {"step": 2}, {"step": 3} | row, {"step": 4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert reward_curves.curve(tmp_path)["tokens"].unique().tolist() == [0.625, 1.125]


def test_a_draw_without_calls_has_no_share_of_them(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import reward_curves

    columns = ("right", "tokens", "teacher", "asked", "delivered", "needless")
    table = pd.DataFrame({name: [1.0, 1.0] for name in columns} | {"calls": [1.0, 0.0], "delivered": [4.0, 0.0]})
    found = reward_curves.measures([table])["delivered"]
    assert (found.value, found.low, found.high) == (4, 4, 4), "half of the draws have the call, and 4 tokens in it"
    none = reward_curves.measures([table.assign(calls=0.0, delivered=0.0)])["delivered"]
    assert math.isnan(none.value)
