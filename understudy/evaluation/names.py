"""The words of a report: the policies that a gate compares, and the "decoding" that is none."""

CHALLENGER, CHAMPION = "aligned", "champion"
EXPERT_TEXT = "expert_text"  # the "decoding" of metrics that read the expert's responses instead of sampling
