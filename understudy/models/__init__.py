"""Networks: the policy, scalar heads (discriminator, value, reward model) on the same backbones, other discriminators."""
