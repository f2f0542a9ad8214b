"""What a policy is worth, measured: metrics, judges, intervals, the verdict and the page that shows them."""
