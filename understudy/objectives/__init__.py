"""Pure maths of aligning from demonstrations: tensors in, tensors out; imports torch and nothing else."""

from understudy.objectives.divergences import DIVERGENCES, Divergence, clipped_reward, divergence

__all__ = ["DIVERGENCES", "Divergence", "clipped_reward", "divergence"]
