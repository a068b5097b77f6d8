"""What is said of a comparison."""

import numpy as np

from experiments.statistics import verdict


def test_an_interval_that_reaches_over_zero_keeps_its_signs_whichever_group_is_better() -> None:
    other = np.full(10, 78.0)
    one = other + np.array([-0.5, *[1.0] * 9])
    assert "(95% interval -0.10 to 1.20)" in verdict(["a", "b"], (one, other), 0.03, (-0.1, 1.2), False)
    assert "(95% interval -0.10 to 1.20)" in verdict(["b", "a"], (other, one), 0.03, (-1.2, 0.1), False)
