"""Where a pipeline's step goes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pretrain.analysis.bench_pipeline import INSTRUCTIONS, InstructionTimes, ideal_efficiency, pipeline_text


def figures(rival_threads):
    seconds = dict.fromkeys(INSTRUCTIONS, 0.0)
    first = seconds | {"ForwardPass": 1.0, "BackwardPass": 2.0, "SendActivation": 0.1, "RecvGrad": 0.3}
    return {
        "pipeline_stages": 2,
        "micro_batches": 16,
        "threads": {"rival": rival_threads, "each_process": 1},
        "engine": {"median_step_seconds": 4.0},
        "ratio": {"median": 0.625},
        "pipeline_seconds": [first | {"OptimizerStep": 0.25}, first | {"LoadMicroBatch": 0.5}],
    }


def test_report():
    efficiency, _, first, second, _ = pipeline_text(figures(1))
    assert "efficiency 0.800" in efficiency  # 1 / (2 x 0.625)
    assert "ideal 0.941 = 16 / (16 + 1); 85% of it" in efficiency
    assert first.split() == ["0", "1.000", "2.000", "0.400", "0.250", "0.350"]
    assert second.split() == ["1", "1.000", "2.000", "0.400", "0.500", "0.100"]


def test_no_efficiency_against_more_threads():
    assert not any("efficiency" in line for line in pipeline_text(figures(2)))


def test_ideal_efficiency():
    assert ideal_efficiency(1, 1) == 1
    assert ideal_efficiency(4, 4) == pytest.approx(4 / 7)


def test_every_instruction_is_counted_also_where_it_fails():
    class ForwardPass:
        pass

    class OptimizerStep:
        pass

    def broken(engine):
        raise FloatingPointError

    deepspeed = SimpleNamespace(_INSTRUCTION_MAP={ForwardPass: lambda engine, n: n + 1, OptimizerStep: broken})
    times = InstructionTimes(SimpleNamespace(deepspeed=deepspeed))
    assert deepspeed._INSTRUCTION_MAP[ForwardPass](None, n=1) == 2
    with pytest.raises(FloatingPointError):
        deepspeed._INSTRUCTION_MAP[OptimizerStep](None)
    assert times.seconds["ForwardPass"] > 0
    assert times.seconds["OptimizerStep"] > 0
    assert times.by_stage(2)[0]["ForwardPass"] == pytest.approx(times.seconds["ForwardPass"] / 2)
    times.reset()
    assert set(times.seconds.values()) == {0.0}
