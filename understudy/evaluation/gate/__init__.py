"""Whether a challenger may replace the champion: `gate.yaml` and a report in, a decision with numbers out.

    gate = load_gate(Path("gate.yaml"))
    decision = decide(gate, report, challenger="aligned", champion="champion")

Pure: no file but `gate.yaml` is read, nothing is promoted here. The statistics are in `docs/gate.md`.
"""

from understudy.evaluation.gate.decision import Decision, decide, decide_scores
from understudy.evaluation.gate.rules import RuleVerdict
from understudy.evaluation.gate.schema import Gate, load_gate
from understudy.evaluation.gate.scores import Scores, scores_from

__all__ = ["Decision", "Gate", "RuleVerdict", "Scores", "decide", "decide_scores", "load_gate", "scores_from"]
