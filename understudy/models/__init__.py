"""Networks: the policy, scalar heads (discriminator, value, reward model) on its backbones, other discriminators."""
