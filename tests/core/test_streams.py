from core.streams import Stream


def test_the_numbers_are_those_of_all_earlier_runs() -> None:
    assert [stream.value for stream in Stream] == [1, 2, 3, 4, 5]
    assert [stream.name for stream in Stream] == ["AUGMENTATION", "ORDER", "CORRUPTION", "RANDOM_CORRUPTION", "NETWORK"]
