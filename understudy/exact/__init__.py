"""The enumerable token MDP: ground truth that proves objectives/."""
