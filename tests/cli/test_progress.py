"""Progress: one estimate for all parts of a command, which counts what is left and not what was done before."""

import time

from shallower.runtime import progress


def test_parts_share_one_clock(monkeypatch, capsys) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress.shown(), progress.parts({"first": 2, "skipped": 1, "second": 1}) as part:
        with part("first"), progress.parts({"half": 1, "other": 1}) as inner:
            for name in ("half", "other"):
                with inner(name), progress.meter("layers", 10) as done:
                    for number in range(10):
                        now[0] += 1.0
                        done.add(1, f"layer {number + 1}")
        with part("second"), progress.meter("layers", 10) as done:
            for _ in range(10):
                now[0] += 1.0
                done.add()
    lines = capsys.readouterr().err.splitlines()
    assert lines[4].startswith("1 of 3, first, half: layers: 50%, layer 5, about 35 s left")  # 5 s for an eighth
    assert lines[9].startswith("1 of 3, first, half: layers: 100%, layer 10, about 30 s left")
    assert lines[20].startswith("3 of 3, second: layers: 10%") and "about 9.0 s left" in lines[20]
    assert "about 0.0 s left" in lines[-1]


def test_what_was_done_before_does_not_make_it_faster(monkeypatch, capsys) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress.shown(), progress.parts({"a": 1, "b": 1}) as part:
        with part("a"):
            pass  # kept from an earlier start
        with part("b"), progress.meter("layers", 10, 5) as done:
            now[0] += 2.0
            done.add()
    assert "about 8.0 s left" in capsys.readouterr().err  # 4 more layers
