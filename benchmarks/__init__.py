"""Speed of Understudy beside its peers, on equal work: `make bench`, docs/speed.md."""
