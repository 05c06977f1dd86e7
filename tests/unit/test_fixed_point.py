"""The solver of fixed points: Anderson acceleration on problems whose answer is known."""

import pytest
import torch

from guided_synthesis.guidance.fixed_point import fixed_point

SEEDS = range(5)
CONTRACTION, EXPANSION = (-0.9, 0.7, 0.3, -0.5), (-3.0, 2.5, -6.0, 4.0)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Counted:
    """A map that remembers where it was asked, and how far its image was: (B,) each."""

    def __init__(self, function):
        self.function, self.asked, self.residuals = function, [], []

    def __call__(self, x):
        """Return the image of `x` (B, ...)."""
        image = self.function(x)
        self.asked.append(x.clone())
        self.residuals.append((image - x).flatten(1).square().mean(1).sqrt())
        return image


def linear(eigenvalues, seed=0):
    """Return x -> A x + b with a symmetric A, and its fixed point (1, N)."""
    size = len(eigenvalues)
    q = torch.linalg.qr(random(size, size, seed=seed))[0]
    a, b = (
        q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.mT,
        random(size, seed=seed + 100),
    )
    answer = torch.linalg.solve(torch.eye(size, dtype=torch.float64) - a, b)
    return Counted(lambda x: x @ a.mT + b), answer[None]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("eigenvalues", [CONTRACTION, EXPANSION], ids=["contraction", "expansion"])
def test_a_linear_problem_of_n_unknowns_takes_n_plus_2_calls(eigenvalues, size, seed):
    """Up to the ridge, which the call after that makes good."""
    function, answer = linear(eigenvalues[:size], seed)
    found = fixed_point(function, torch.zeros_like(answer), 1e-3, 50)
    assert found.calls == len(function.asked) <= size + 2
    assert found.residual.item() <= 1e-3 and torch.allclose(found.x, answer, atol=1e-2)
    assert fixed_point(function, torch.zeros_like(answer), 1e-12, size + 3).residual.item() < 1e-7


def test_a_plain_iteration_would_never_solve_the_expansions():
    function, answer = linear(EXPANSION)
    x = torch.zeros_like(answer)
    for _ in range(6):
        x = function(x)
    assert (x - answer).norm() > 100 * answer.norm()


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 6, 7)])
def test_a_nonlinear_problem_is_solved_in_fewer_calls_than_by_repetition(shape):
    function = Counted(lambda x: torch.cos(x))
    found = fixed_point(function, random(*shape), 1e-10, 60)
    assert (found.residual <= 1e-10).all() and torch.allclose(found.x, found.x.new_tensor(0.7390851332))
    assert found.calls < 30  # repetition gains a factor of 0.67 a call: 57 calls


def test_each_problem_of_a_batch_finds_what_it_finds_alone():
    scale = torch.tensor([0.2, 0.9, -2.0], dtype=torch.float64)[:, None]
    guess = random(3, 8)

    def solve(rows):
        return fixed_point(lambda x: scale[rows] * torch.sin(x) + 1, guess[rows], 1e-9, 40)

    together = solve(slice(None))
    alone = [solve(slice(row, row + 1)) for row in range(3)]
    assert torch.allclose(together.x, torch.cat([one.x for one in alone]), atol=1e-8)
    assert together.calls == max(one.calls for one in alone) and (together.residual <= 1e-9).all()


def test_a_solved_problem_stays_where_it_is_to_the_bit_while_others_go_on():
    goal = random(1, 6)

    def uneven(x):
        return torch.cat([goal, 2 * torch.cos(x[1:])])  # the first is constant: solved at the second call

    function = Counted(uneven)
    found = fixed_point(function, random(2, 6, seed=1), 1e-9, 40)
    assert found.calls > 4 and torch.allclose(found.x[:1], goal, atol=1e-15)
    assert all(torch.equal(asked[:1], found.x[:1]) for asked in function.asked[1:])
    assert not any(torch.equal(asked[1:], found.x[1:]) for asked in function.asked[:-1])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("most_calls", [1, 2, 7])
def test_of_a_problem_without_an_answer_it_returns_the_best_point_it_tried(most_calls, seed):
    function = Counted(lambda x: x + 0.1 + x.square())  # no fixed point
    found = fixed_point(function, random(2, 5, seed=seed), 1e-12, most_calls)
    tried = torch.stack(function.residuals)
    assert found.calls == len(function.asked) == most_calls
    assert torch.equal(found.residual, tried.min(0).values)
    for row, best in enumerate(tried.argmin(0)):
        assert torch.equal(found.x[row], function.asked[best][row])
        assert torch.equal(found.image[row], function.function(found.x)[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_problem_that_overflows_spoils_neither_itself_nor_its_neighbour(dtype):
    def wild(x):
        return torch.cat([(30 * x[:1]) ** 9, 0.5 * x[1:] + 1])

    guess = random(2, 6, dtype=dtype) + 2
    found = fixed_point(wild, guess, 1e-6, 30)
    assert found.x.isfinite().all() and found.residual[0] > 1 and not found.residual[0].isnan()
    assert found.residual[1] <= 1e-6 and torch.allclose(found.x[1], torch.tensor(2.0, dtype=dtype))


def test_a_map_that_gives_no_numbers_is_never_called_solved():
    guess = random(1, 6)
    found = fixed_point(lambda x: x * torch.nan, guess, 1e-3, 5)
    assert not (found.residual <= 1e-3).any() and torch.equal(found.x, guess)


def test_a_guess_that_fits_is_the_answer_after_one_call():
    guess = random(2, 3)
    found = fixed_point(lambda x: x.clone(), guess, 1e-9, 10)
    assert (
        found.calls == 1
        and torch.equal(found.x, guess)
        and torch.equal(found.residual, torch.zeros(2).double())
    )


def test_a_tolerance_decides_how_many_calls_are_made():
    calls = [fixed_point(torch.cos, random(1, 9), tolerance, 60).calls for tolerance in (1e-1, 1e-4, 1e-12)]
    assert calls == sorted(set(calls))


def test_the_answer_has_the_type_of_the_guess_and_the_guess_is_not_written_to():
    guess = random(2, 3, dtype=torch.float32)
    before = guess.clone()
    found = fixed_point(torch.cos, guess, 1e-5, 30)
    assert found.x.dtype == found.image.dtype == torch.float32 and torch.equal(guess, before)
