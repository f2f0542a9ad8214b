"""One adversarial objective composed from its parts: divergence, level, discriminator loss and form.

The loop and the exact proofs call the same two functions, `scores` and `advantages`; neither asks which row of the
table it runs. Shapes: B sequences (k responses a prompt, next to each other), T response columns, n outputs of the
discriminator. Signs: logits are high for the expert, rewards and advantages are to be maximised.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from understudy.objectives.discriminator import (
    DISCRIMINATOR_LOSSES,
    DiscriminatorLoss,
    DiscriminatorScores,
    airl_logits,
    log_ratio,
)
from understudy.objectives.divergences import Divergence, clipped_reward, divergence
from understudy.objectives.masking import at_least_float32, level_mask, masked_mean, where_masked
from understudy.objectives.names import lookup
from understudy.objectives.policy_gradient import leave_one_out, leave_one_out_per_token, penalised_return

LEVELS = ("token", "sequence")
FORMS = ("plain", "airl")


@dataclass(frozen=True)
class AdversarialObjective:
    """What is minimised and how it is estimated.

    Attributes:
        divergence: gives the reward from h = log u.
        level: "token" scores every prefix, "sequence" the whole response at its last token.
        loss: of the discriminator.
        form: "plain" takes the output as h; "airl" takes it as r_phi and subtracts the policy's log-probability.
        absorbing: repeat the reward at EOS up to the horizon (token level only).
        discount: of the occupancy measure (token level only).
        horizon: largest number of response tokens, C.
        reward_clip: bound on |reward|, reported when it bites.
        label_smoothing: of the discriminator's targets.
    """

    divergence: Divergence
    level: str
    loss: DiscriminatorLoss
    form: str
    absorbing: bool
    discount: float
    horizon: int
    reward_clip: float
    label_smoothing: float

    def __post_init__(self) -> None:
        """Refuse what would silently be another objective.

        Raises:
            ValueError: naming the attribute, its value and what is allowed.
        """
        if self.level not in LEVELS:
            raise ValueError(f"level is {self.level!r}; it is one of {', '.join(LEVELS)}.")
        if self.form not in FORMS:
            raise ValueError(f"form is {self.form!r}; it is one of {', '.join(FORMS)}.")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount is {self.discount}; it is above 0 and at most 1.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it is at least 0 and below 0.5.")

    @classmethod
    def from_names(cls, divergence_name: str, level: str, loss: str, **settings: object) -> AdversarialObjective:
        """Look the parts up by name; other attributes by keyword.

        Raises:
            ValueError: an unknown divergence or loss, with the closest valid name.
        """
        chosen = lookup(DISCRIMINATOR_LOSSES, loss, "discriminator loss")
        return cls(divergence(divergence_name), level, chosen, **settings)  # type: ignore[arg-type]

    @property
    def num_outputs(self) -> int:
        """Outputs the discriminator needs per token: one logit, and a spread where the loss learns a variance."""
        return 2 if self.loss.needs_spread else 1

    def scores(
        self, output_BTn: Tensor, logp_BT: Tensor, mask_BT: Tensor, prompt_B: Tensor | None = None
    ) -> DiscriminatorScores:
        """Turn the discriminator's output into scores at this level; `logp_BT` is read by the AIRL form alone.

        Raises:
            ValueError: fewer outputs per token than `num_outputs`.
        """
        if output_BTn.shape[-1] < self.num_outputs:
            raise ValueError(
                f"the discriminator gives {output_BTn.shape[-1]} output per token, the loss {self.loss.name!r} needs "
                f"{self.num_outputs}; make its head with num_outputs={self.num_outputs}."
            )
        output_BTn = at_least_float32(output_BTn)
        logits_BT = output_BTn[..., 0]
        if self.form == "airl":
            logp_BT = where_masked(logp_BT, mask_BT)
            seen_BT = logp_BT if self.level == "token" else logp_BT.cumsum(dim=1)
            logits_BT = airl_logits(logits_BT, seen_BT)
        spread_BT = output_BTn[..., 1] if self.loss.needs_spread else None
        return DiscriminatorScores(logits_BT, level_mask(mask_BT, self.level), prompt_B, spread_BT)

    def discriminator_loss(self, scores_expert: DiscriminatorScores, scores_policy: DiscriminatorScores) -> Tensor:
        """Scalar to minimise over the discriminator."""
        return self.loss(scores_expert, scores_policy, divergence=self.divergence, label_smoothing=self.label_smoothing)

    def rewards(self, scores_policy: DiscriminatorScores) -> tuple[Tensor, dict[str, float]]:
        """Clipped reward at each scored position of the policy's samples, 0 elsewhere, and the numbers to report."""
        h_BT = log_ratio(scores_policy).detach()
        scored = scores_policy.mask_BT
        reward_BT, clipped_fraction = clipped_reward(self.divergence, h_BT, self.reward_clip, scored)
        reward_BT = where_masked(reward_BT, scored)
        report = {
            "reward": float(masked_mean(reward_BT, scored)),
            "reward_clipped_fraction": float(clipped_fraction),
            "log_ratio": float(masked_mean(h_BT, scored)),
        }
        return reward_BT, report

    def advantages(
        self,
        scores_policy: DiscriminatorScores,
        penalty_BT: Tensor,
        mask_BT: Tensor,
        finished_B: Tensor,
        group_size: int,
    ) -> tuple[Tensor, dict[str, float]]:
        """Leave-one-out advantage of each response token, shape (B, T), and the numbers worth reporting.

        Args:
            scores_policy: of the policy's own samples.
            penalty_BT: beta * (log pi - log pi_ref) per token, to be minimised.
            mask_BT: response tokens.
            finished_B: which rows reached EOS.
            group_size: responses per prompt, k.
        """
        mask_BT = mask_BT.bool()
        reward_BT, report = self.rewards(scores_policy)
        token_level = self.level == "token"
        return_BT = penalised_return(
            reward_BT,
            penalty_BT,
            mask_BT,
            discount=self.discount if token_level else 1.0,
            horizon=self.horizon,
            absorbing=self.absorbing and token_level,
            finished_B=finished_B,
        )
        if token_level:
            advantage_BT = leave_one_out_per_token(return_BT, mask_BT, group_size)
        else:
            return_B = return_BT[:, 0]
            baseline_B = return_B - leave_one_out(return_B, group_size)
            advantage_BT = (return_BT - baseline_B[:, None]) * mask_BT.to(return_BT.dtype)
        spread = masked_mean((advantage_BT - masked_mean(advantage_BT, mask_BT)) ** 2, mask_BT).sqrt()
        return advantage_BT, report | {"advantage_std": float(spread)}
