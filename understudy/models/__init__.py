"""Networks: the policy, and scalar heads (discriminator, value, reward model) on the same backbones."""
