"""Does alignment stay healthy over five times the default rounds, and over responses of 1,024 tokens?"""
