"""When masks move, and how much of them."""

import math


def default_t_end(total_steps: int) -> int:
    return int(0.75 * total_steps)


def is_update_step(t: int, delta_t: int, t_end: int) -> bool:
    """Calls of `step()` are counted from 1."""
    return t % delta_t == 0 and t < t_end


def cosine_fraction(alpha: float, t: int, t_end: int) -> float:
    return alpha / 2 * (1 + math.cos(math.pi * t / t_end))
