"""Whether this machine, its packages and what a recipe names can do what they are to do: findings with remedies."""
