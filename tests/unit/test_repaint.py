"""RePaint's schedule against the paper's, walked step by step, and the way back to a higher noise level."""

import itertools

import pytest
import torch

from guided_synthesis.guidance.repaint import Level, descents, jump_back, resampled, steps_between


def the_papers_walk(times, jump_length, jump_n_sample):
    """The semantics of the paper's `get_schedule_jump`, walked: the denoising steps t -> t - 1 as a list of t.

    A latent begins at t = times - 1; t = -1 is clean. Where t is a multiple of the jump length, it goes back up by as
    many, `jump_n_sample` - 1 times, unless that leads above where a run begins.
    """
    visits, steps, t = {}, [], times - 1
    while t >= 0:
        if t % jump_length == 0 and t + jump_length < times and visits.get(t, 0) < jump_n_sample - 1:
            visits[t] = visits.get(t, 0) + 1
            t += jump_length
        else:
            steps.append(t)
            t -= 1
    return steps


def walked(parts):
    return list(itertools.chain.from_iterable(parts))


@pytest.mark.parametrize(
    "times, jump, times_each", [(250, 10, 10), (20, 5, 3), (21, 5, 4), (13, 1, 2), (7, 9, 3)]
)
def test_the_schedule_is_the_papers(times, jump, times_each):
    """Its first steps, fewer than a jump, are done once there; here the range begins after them to say the same."""
    levels = [*range(times, 0, -1), 0]
    begin = (times - 1) % jump if jump < times else times - 1
    again = resampled(levels, range(begin, times))
    found = walked(descents(times, again, jump, times_each))
    assert [times - 1 - step for step in found] == the_papers_walk(times, jump, times_each)


def test_the_papers_own_setting_takes_as_many_model_calls_as_its_schedule():
    assert len(the_papers_walk(250, 10, 10)) == 250 + 9 * 240
    assert sum(map(len, descents(250, range(9, 249), 10, 10))) == 250 + 9 * 240


def test_every_step_of_the_range_is_done_as_often_as_asked_and_every_other_once():
    for steps, begin, end, jump, times in itertools.product(
        (1, 8, 20), (0, 3), (4, 7, 19), (1, 3, 5, 50), (1, 2, 5)
    ):
        again = range(begin, min(end, steps - 1))
        parts = descents(steps, again, jump, times)
        counts = [walked(parts).count(step) for step in range(steps)]
        assert counts == [times if step in again else 1 for step in range(steps)]
        assert sum(map(len, parts)) == steps + (times - 1) * len(again)


def test_a_run_begins_at_the_top_ends_at_the_bottom_and_jumps_no_further_than_asked():
    parts = descents(20, range(2, 15), 5, 3)
    assert parts[0].start == 0 and parts[-1].stop == 20
    jumps = [before.stop - after.start for before, after in itertools.pairwise(parts)]
    assert jumps == [3, 3, 5, 5, 5, 5]
    assert all(len(part) > 0 for part in parts)
    assert parts == [
        range(0, 5), range(2, 5), range(2, 10), range(5, 10), range(5, 15), range(10, 15), range(10, 20)
    ]  # fmt: skip


@pytest.mark.parametrize("again, times", [(range(0), 5), (range(3, 3), 5), (range(0, 19), 1)])
def test_with_nothing_to_do_again_a_run_is_one_descent(again, times):
    assert descents(20, again, 5, times) == [range(0, 20)]


def test_steps_are_chosen_by_the_level_at_which_they_begin():
    sigmas = [14.0, 8.0, 4.0, 2.0, 1.0, 0.0]
    assert steps_between(sigmas, 99.0, 0.0) == range(0, 5)
    assert steps_between(sigmas, 8.0, 2.0) == range(1, 3)
    assert not steps_between(sigmas, 0.9, 0.1) and not steps_between(sigmas[:1], 99.0, 0.0)


def test_there_is_no_way_back_from_level_zero():
    assert resampled([3.0, 2.0, 1.0, 0.0], range(0, 3)) == range(0, 2)
    assert resampled([3.0, 2.0, 1.0, 0.5], range(0, 3)) == range(0, 3)
    assert resampled([3.0, 2.0, 1.0, 0.0], range(0, 2)) == range(0, 2)
    assert not resampled([3.0, 0.0], range(0, 1))


def levels(*values):
    return [Level(*map(torch.tensor, value)) for value in values]


def test_going_back_adds_the_missing_variance_and_leaves_the_picture_alone():
    """The variance of x' = x + sqrt(sigma'^2 - sigma^2) z, and no more."""
    torch.manual_seed(0)
    x, z = torch.randn(2, 1, 4, 8, 8).double()
    here, there = levels((1.0, 2.0), (1.0, 5.0))
    assert torch.allclose(jump_back(x, z, here, there), x + 21**0.5 * z)


@pytest.mark.parametrize("signal", [lambda s: 1.0, lambda s: 1 - s, lambda s: (1 - s**2) ** 0.5])
def test_a_latent_that_went_back_is_distributed_as_one_that_was_noised_at_once(signal):
    """For exploding, flow and preserving noise: mean signal' * x0 and deviation noise', measured on many cells."""
    torch.manual_seed(1)
    s, up = 0.4, 0.9
    here, there = levels((signal(s), s), (signal(up), up))
    x0, n, z = 3.0, torch.randn(400_000).double(), torch.randn(400_000).double()
    clean = (here.signal * x0 + here.noise * n) / here.signal
    back = jump_back(clean, z, here, there)
    assert back.mean().item() == pytest.approx(signal(up) * x0, abs=0.01)
    assert back.std().item() == pytest.approx(up, abs=0.01)


def test_going_nowhere_changes_nothing_also_where_rounding_would_make_the_variance_negative():
    x = torch.randn(1, 4, 8, 8)
    here, there = levels((1.0, 2.0), (1.0, 1.9999999))
    assert torch.equal(jump_back(x, torch.randn_like(x), here, here), x)
    assert torch.isfinite(jump_back(x, torch.randn_like(x), here, there)).all()
