"""What is said of runs and of comparisons."""

import numpy as np
import pandas as pd
import pytest

from experiments.statistics import agreement, holm, prediction, verdict


def test_an_interval_that_reaches_over_zero_keeps_its_signs_whichever_group_is_better() -> None:
    other = np.full(10, 78.0)
    one = other + np.array([-0.5, *[1.0] * 9])
    assert "(95% interval -0.10 to 1.20)" in verdict(["a", "b"], (one, other), 0.03, (-0.1, 1.2), False, 0.002)
    assert "(95% interval -0.10 to 1.20)" in verdict(["b", "a"], (other, one), 0.03, (-1.2, 0.1), False, 0.002)


def test_p_of_several_tests_is_corrected_by_holms_steps() -> None:
    # The smallest times 4, the next times 3, and so on, none below the one before it and none above 1.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, 0.02, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert holm([0.5, 0.6]) == pytest.approx([1, 1]) and holm([0.03]) == pytest.approx([0.03])


def test_one_run_more_is_predicted_within_what_students_t_gives() -> None:
    # Two degrees of freedom, standard deviation 1: 4.303 x sqrt(1 + 1/3) = 4.968
    assert prediction(pd.Series([70.0, 71.0, 72.0])) == pytest.approx((66.032, 75.968), abs=0.001)
    assert prediction(pd.Series([70.0, 70.0])) == (70, 70)


def test_agreement_is_told_of_whatever_seeds_are_there() -> None:
    three = (pd.Series([70.0, 71.0, 72.0]), 74.0), (pd.Series([60.0, 60.1, 60.2]), 61.0)
    # Differences -3, -0.9 and 0: standard deviation 1.539, 4.303 x 1.539 / sqrt(3) = 3.824
    assert agreement([*three, (pd.Series([50.0]), 50.0)]) == (
        "Ours minus the report's accuracy over 3 settings: -1.30 ± 1.54 (-5.12 to +2.52) points, mean ± standard "
        "deviation (95% interval of the mean, Student's t). The report's figure is within the 95% prediction interval "
        "of a single run in 1 of the 2 settings with several seeds."
    )
    single = agreement([(pd.Series([50.0]), 51.0)])
    assert "-1.00 points" in single and "prediction" not in single and agreement([]) == ""
