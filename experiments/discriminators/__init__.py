"""Which discriminator tells expert from policy on prompts that neither was trained on, and on whose demonstrations."""
