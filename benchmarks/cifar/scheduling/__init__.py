"""Many runs: what is left, what it takes, and three ways to do it all."""
