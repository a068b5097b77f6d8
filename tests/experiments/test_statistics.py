"""What is said of runs and of comparisons."""

import numpy as np
import pandas as pd
import pytest

from experiments.statistics import (
    compute_interval,
    compute_p,
    correct_holm,
    describe_agreement,
    predict_interval,
    write_mean,
    write_verdict,
)


def test_the_better_group_comes_first_whichever_it_is_and_the_interval_keeps_its_signs() -> None:
    other = np.full(10, 78.0)
    one = other + np.array([-2.5, *[1.0] * 9])
    # Mean 0.65, standard deviation 1.107; Student's t with 9 degrees of freedom: 2.262 x 1.107 / sqrt(10) = 0.792
    said = "**a reaches 78.65% test accuracy, b 78.00% (means of 10 runs each, paired by seed). The difference, 0.65 "
    said += "percentage points (95% interval -0.14 to 1.44), is within what chance explains (p = 0.096).**"
    assert write_verdict(["a", "b"], np.stack([one, other]), 0.096) == said
    assert write_verdict(["b", "a"], np.stack([other, one]), 0.096) == said


def test_below_three_values_there_is_no_interval() -> None:
    assert compute_interval(pd.Series([70.0, 71.0])) is None and write_mean(pd.Series([70.0, 71.0])) == "70.50 ± 0.71"
    # Two degrees of freedom, standard deviation 1: 4.303 / sqrt(3) = 2.484
    assert write_mean(pd.Series([70.0, 71.0, 72.0])) == "71.00 ± 1.00 (68.52 to 73.48)"
    assert compute_p(pd.Series([1.0, 2.0])) == 1


def test_p_of_several_tests_is_corrected_by_holms_steps() -> None:
    # The smallest times 4, the next times 3, and so on, none below the one before it and none above 1.
    assert correct_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_holm([0.02, 0.02, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert correct_holm([0.5, 0.6]) == pytest.approx([1, 1]) and correct_holm([0.03]) == pytest.approx([0.03])


def test_one_run_more_is_predicted_within_what_students_t_gives() -> None:
    # Two degrees of freedom, standard deviation 1: 4.303 x sqrt(1 + 1/3) = 4.968
    assert predict_interval(pd.Series([70.0, 71.0, 72.0])) == pytest.approx((66.032, 75.968), abs=0.001)
    assert predict_interval(pd.Series([70.0, 70.0])) == (70, 70)


def test_agreement_of_single_runs_has_no_prediction() -> None:
    single = describe_agreement([(pd.Series([50.0]), 51.0)])
    assert "-1.00 percentage points" in single and "prediction" not in single and describe_agreement([]) == ""
